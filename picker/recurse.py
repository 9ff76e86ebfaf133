"""`job: recurse`: a picker that learns from its own picks, sorted, until that no longer helps.

DeepEM's recursive training (Zhu, Ouyang & Mao 2017) with the sorting done by numbers: a round trains on the labels and
on what the rounds before have accepted, is judged on micrographs held back, picks the micrographs without labels, and
sorts its picks. Those that are surely particles become labels, those that are surely not stay background, and the
places of all between are not learned from. Each round trains anew, on the picks of the last round only, so that an
error of an early round can be mended. A round that does not raise F ends the job; the best round's model is kept.
"""
import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine import classify2d
from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.log import NullLog, RunLog
from vitrea.engine.options import Classify2dOptions
from vitrea.engine.star import read_star
from vitrea.picker import extract, pick_job, pick_train
from vitrea.picker.coordinates import find_coordinates, read_coordinates, write_coordinates
from vitrea.picker.dealing import agreed
from vitrea.picker.extract import STAR_NAME as PARTICLES_STAR
from vitrea.picker.labels import FAR
from vitrea.picker.micrographs import Preparation, list_micrographs
from vitrea.picker.network import PRESETS
from vitrea.picker.options import ExtractOptions, PickOptions, PickTrainOptions
from vitrea.picker.pick_train import (
    LEAST_POSITIVES,
    MODEL_NAME,
    Session,
    fit_model,
    load_labels,
    tell_judged,
    write_fitted,
)
from vitrea.picker.progress import record_start
from vitrea.picker.results import candidates_path, read_manifests
from vitrea.picker.sources import require_folders
from vitrea.picker.trainings import Trainings

ROUND, PICKED, PARTICLES, CLASSES = "round{number}", "picked", "particles", "classes"
ACCEPTED, UNSURE = "accepted", "unsure"
ROUNDS_NAME = "rounds.csv"
BOX_DIAMETERS, CLASS_BOX = 1.6, 48   # box of the particles that are classified [diameters], and its size at most [px]
SAME_PLACE = 0.25                    # diameters within which a pick is the one a person has rejected


@dataclass(frozen=True)
class Round:
    """What a round came to: labels it was trained on, picks of the round before among them, and F_β, precision, recall
    and area under precision against recall on the micrographs held back."""

    number: int
    labels: int
    accepted: int
    f: float
    precision: float
    recall: float
    auprc: float


def run(options, *, resume, comm):
    """Write the best round's model.npz, rounds.csv and a folder for each round: "done" or "stopped". Collective.

    A run that is resumed goes on with the trainings of its checkpoint and the micrographs that a round has picked with
    its model, to the same bits. Raises JobError for a user's mistake, and if no labelled micrograph is held back.
    """
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        agreed(lambda: require_folders(options, "rejected"), comm)
        labels = load_labels(options, Preparation.of(PRESETS[options.network], options.diameter), log, comm=comm)
        held = int(options.holdout * len(labels))
        _require_held_back(options, held, len(labels))
        record_start(log, "recurse", options, micrographs=len(labels), comm=comm)
        log.line(f"recurse   {options.output}   {len(labels) - held} labelled micrographs, {held} held back, "
                 f"{len(list_micrographs(options.unlabelled)):,} without labels")
        rounds, added, trainings = [], [], Trainings(options.output, resume=resume, comm=comm)
        for number in range(1, options.rounds + 1):
            session = Session(log, stop, trainings, ROUND.format(number=number) + " ")
            fitted = fit_model(labels[held:] + added, labels[:held], options, session, comm=comm)
            if fitted is None:
                break
            folder = Path(options.output) / ROUND.format(number=number)
            rounds.append(_judged_round(options, number, fitted, added, folder, log, comm))
            if _no_longer_rises(rounds, log) or number == options.rounds:
                return _ended(options, rounds, log, comm)
            if _pick(options, folder, comm) == "stopped":
                break
            added = _learned_from(options, folder, log, comm)
            if added is None:
                break
            if not added:
                return _ended(options, rounds, log, comm)
        # A signal that came to a job within is told there.
        log.tell("stopped", stage="train", reason=stop.reason or "a signal")
        return "stopped"


def check(options):
    """Lines for `vitrea check`."""
    require_folders(options, "rejected")
    return [*pick_train.check(options), f"unlabelled  {len(list_micrographs(options.unlabelled)):,} micrographs in "
                                        f"{options.unlabelled}, {options.rounds} rounds at most"]


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _require_held_back(options, held, n):
    if not held:
        raise JobError(f"{options.coordinates}: a holdout of {options.holdout:g} of {n} labelled micrographs holds "
                       "none back; expected at least one, which decides whether rounds help; label more, or raise "
                       "holdout")


def _judged_round(options, number, fitted, added, folder, log, comm):
    """Write the model of a round and, if it is the best, of the job; its Round."""
    counts = fitted.judged.counts
    found = Round(number, fitted.model.record["labels"], sum(len(each.positives) for each in added),
                  counts.f(options.f_beta), counts.precision, counts.recall, fitted.judged.curve.auprc)
    if comm.rank == 0:
        folder.mkdir(exist_ok=True)
        write_fitted(folder, fitted)
    tell_judged(fitted.judged, log, kind="judged")
    log.line(f"round {number}   {found.labels:,} labels, {found.accepted:,} of them picks   F{options.f_beta:g} "
             f"{found.f:.4f}   precision {found.precision:.4f}   recall {found.recall:.4f}   area {found.auprc:.4f}")
    comm.Barrier()
    return found


def _no_longer_rises(rounds, log):
    """Whether the last round is no better than the best before it."""
    best = max((each.f for each in rounds[:-1]), default=-1.0)
    if rounds[-1].f > best:
        return False
    log.line(f"F no longer rises: {rounds[-1].f:.4f} after {best:.4f}")
    return True


def _ended(options, rounds, log, comm):
    """The best round's model in the place of the job's, the table of rounds, and the last line."""
    best = max(rounds, key=lambda each: (each.f, -each.number))
    folder = Path(options.output)
    if comm.rank == 0:
        for name in (MODEL_NAME, pick_train.TRAINING_NAME):
            with written_beside(folder / name) as beside:
                beside.write_bytes((folder / ROUND.format(number=best.number) / name).read_bytes())
        with written_beside(folder / ROUNDS_NAME) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(Round))
            writer.writerows([getattr(each, field.name) for field in fields(Round)] for each in rounds)
    log.line(f"done   round {best.number} of {len(rounds)} is the best: F{options.f_beta:g} {best.f:.4f}, without "
             f"recursion {rounds[0].f:.4f}")
    log.record("done", rounds=len(rounds), best=best.number, f=best.f, f_of_first=rounds[0].f)
    comm.Barrier()
    return "done"


# ---- picks, and what is learned from them

def _pick(options, folder, comm):
    """Pick the micrographs without labels with the model of a round, all that are not surely background."""
    target = _made(folder / PICKED, comm)
    return pick_job.run(PickOptions(
        input=options.unlabelled, output=target, pixel_size=options.pixel_size, model=folder / MODEL_NAME,
        threshold=options.reject, edge_margin=options.edge_margin, skip_limit=1.0, pictures=6), resume=False, comm=comm)


def _made(folder, comm):
    if comm.rank == 0:
        folder.mkdir(exist_ok=True)
    comm.Barrier()
    return folder


def _learned_from(options, folder, log, comm):
    """LabelledMicrographs of the picks of a round that are sure enough: an empty list if they are too few, None if the
    run was asked to stop. Collective."""
    own = _probabilities(options, folder)
    if sum(int((each >= options.reject).sum()) for each in own.values()) < LEAST_POSITIVES:
        log.line(f"fewer than {LEAST_POSITIVES} picks above reject on the micrographs without labels")
        return []
    probabilities = own if options.sort == "scores" else _by_classes(options, folder, own, comm)
    if probabilities is None:
        return None
    sorted_picks = _sorted(options, folder, probabilities) if comm.rank == 0 else None
    n_accepted, n_unsure = comm.bcast(sorted_picks, root=0)
    log.line(f"sorted   {n_accepted:,} picks are learned from as particles, {n_unsure:,} places not at all")
    if n_accepted < LEAST_POSITIVES:
        log.line(f"fewer than {LEAST_POSITIVES} picks are sure enough; make accept smaller for another round")
        return []
    keys = {field.name: getattr(options, field.name) for field in fields(PickTrainOptions)}
    own = PickTrainOptions(**keys | {"input": options.unlabelled, "coordinates": folder / ACCEPTED,
                                     "ignore": folder / UNSURE, "negatives": options.rejected, "y_axis": "down",
                                     "expected_particles": None})
    return load_labels(own, Preparation.of(PRESETS[options.network], options.diameter), log, comm=comm)


def _sorted(options, folder, probabilities):
    """Write accepted/ and unsure/ of a round from probabilities {name: float[n] of its candidates}; how many of each.

    A micrograph without an accepted pick is left out: it may be one that the network does not understand.
    """
    results, totals = read_manifests(folder / PICKED), np.zeros(2, dtype=int)
    for part in (ACCEPTED, UNSURE):
        (folder / part).mkdir(exist_ok=True)
        for path in (folder / part).iterdir():
            path.unlink()
    for name, probability in probabilities.items():
        found, pixel = read_coordinates(candidates_path(folder / PICKED, name)), results[name]["pixel_size"]
        denied = _denied(options, name, found, options.diameter / pixel)
        sure = (probability >= options.accept) & ~denied
        unsure = (probability >= options.reject) & ~sure & ~denied
        if sure.any():
            stem = Path(name).stem
            write_coordinates(folder / ACCEPTED / f"{stem}.star", found.x[sure], found.y[sure], probability[sure])
            radius = FAR * options.diameter / pixel
            rows = [f"{x:.2f},{y:.2f},{radius:.2f}" for x, y in zip(found.x[unsure], found.y[unsure])]
            with written_beside(folder / UNSURE / f"{stem}.csv") as beside:
                beside.write_text("\n".join(["x,y,radius", *rows]) + "\n", encoding="utf-8")
            totals += int(sure.sum()), len(rows)
    return tuple(totals.tolist())


def _denied(options, name, found, diameter):
    """bool[n]: candidates at places that a person has rejected; diameter [px]."""
    path = find_coordinates(options.rejected, Path(name).stem) if options.rejected else None
    rejected = read_coordinates(path).places if path else np.zeros((0, 2))
    if not len(rejected) or not len(found):
        return np.zeros(len(found), dtype=bool)
    apart = np.hypot(*(found.places[:, None] - rejected[None]).transpose(2, 0, 1))
    return apart.min(axis=1) < SAME_PLACE * diameter


def _probabilities(options, folder):
    """{name: probabilities of its candidates}, as the model says."""
    names = [name for name in list_micrographs(options.unlabelled).names
             if candidates_path(folder / PICKED, name).exists()]
    return {name: read_coordinates(candidates_path(folder / PICKED, name)).score for name in names}


def _by_classes(options, folder, own, comm):
    """{name: probabilities}, of each pick that could be classified the mean over its class; None if the run was asked
    to stop. Collective.

    What looks alike is alike: of a class of ice or carbon most members were doubtful to the network, of a class of
    particles few, and the mean over the class says of each more than its own noise lets it.
    """
    pixel = next(result["pixel_size"] for result in read_manifests(folder / PICKED).values() if "pixel_size" in result)
    box = 2 * round(BOX_DIAMETERS * options.diameter / pixel / 2)
    ended = extract.run(ExtractOptions(
        input=options.unlabelled, output=_made(folder / PARTICLES, comm), pixel_size=options.pixel_size,
        coordinates=folder / PICKED / "coordinates", box_size=box, scaled_size=min(box, CLASS_BOX),
        diameter=options.diameter), resume=False, comm=comm)
    if ended != "stopped":
        classes = Classify2dOptions(
            input=folder / PARTICLES / PARTICLES_STAR, output=_made(folder / CLASSES, comm),
            n_classes=options.n_classes, particle_diameter=options.diameter, seed=options.seed)
        ended = classify2d.run(classes, resume=False, comm=comm)
    if ended == "stopped":
        return None
    particles = read_star(folder / CLASSES / "run_data.star")["particles"]
    return class_means(own, particles, lambda name: read_coordinates(candidates_path(folder / PICKED, name)))


def class_means(own, particles, candidates):
    """{name: probabilities} where each classified pick has the mean probability of its class.

    own {name: float[n]}; particles: columns of a data STAR with classes and coordinates; candidates(name) gives the
    Coordinates that they came from, of which they are the nearest.
    """
    scores = particles["rlnAutopickFigureOfMerit"].astype(float)
    classes, names = particles["rlnClassNumber"], particles["rlnMicrographName"]
    means = {each: float(scores[classes == each].mean()) for each in np.unique(classes)}
    places = np.stack([particles["rlnCoordinateY"].astype(float), particles["rlnCoordinateX"].astype(float)], axis=1)
    found = {name: probability.copy() for name, probability in own.items()}
    for name in np.unique(names):
        known = candidates(name).places
        for row in np.flatnonzero(names == name):
            found[name][np.argmin(np.hypot(*(known - places[row]).T))] = means[classes[row]]
    return found
