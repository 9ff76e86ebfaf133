"""`job: pick-train`: labelled micrographs to a model file.

Micrographs are prepared by the ranks in turn and then known to all; some are held back, on which scores are calibrated
to probabilities and the threshold is chosen. If there are too few to hold one back, both happen by cross-validation
(`folds`), every micrograph scored by a network that was trained on the others; or else on the micrographs that were
trained on, whose scores are surer than those of others. The log and the model say which.
"""
import importlib.metadata
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.log import NullLog, RunLog, format_bytes
from vitrea.kernels.micrograph import deviation_ratios
from vitrea.picker.calibration import Reliability, fit, held_out
from vitrea.picker.coordinates import find_coordinates, read_coordinates
from vitrea.picker.dealing import agreed
from vitrea.picker.evaluate import Counts, Curve, best_threshold, curve, verdicts
from vitrea.picker.labels import LabelledMicrograph, empty_decoys, most_uneven
from vitrea.picker.memory import training as memory_of_training
from vitrea.picker.micrographs import BadMicrographError, Micrograph, Preparation, header_of, list_micrographs
from vitrea.picker.modelfile import Model, write_model
from vitrea.picker.network import PRESETS
from vitrea.picker.pick import Picker
from vitrea.picker.pictures import TRAINING_NAME, draw_training
from vitrea.picker.progress import Progress, record_start
from vitrea.picker.sources import require_folders, without_micrograph
from vitrea.picker.steered import last_probe, train_freeze_aware
from vitrea.picker.training import PUBLISHED, RECIPES, train
from vitrea.picker.trainings import Trainings, digest_of

MODEL_NAME, LOSSES_NAME = "model.npz", "training.csv"
TOLD_STEPS = 50          # steps between two lines of the log
LEAST_POSITIVES = 10     # labels with which training makes sense
LABEL_FOLDERS = ("coordinates", "negatives", "ignore")   # keys
HELD_BACK, TRAINED_ON = "micrographs held back", "the micrographs trained on"
CROSS_VALIDATED = "all micrographs, each by a network that had not seen it"


def run(options, *, resume, comm):
    """Train and write model.npz in options.output: "done" or "stopped". Collective.

    A run that is resumed goes on with the trainings of its checkpoint, to the same bits. Raises JobError for a user's
    mistake.
    """
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        labels = load_labels(options, Preparation.of(PRESETS[options.network], options.diameter), log, comm=comm)
        held = int(options.holdout * len(labels))
        _announce(options, labels[held:], held, log, comm)
        session = Session(log, stop, Trainings(options.output, resume=resume, comm=comm))
        fitted = fit_model(labels[held:], labels[:held], options, session, comm=comm)
        if fitted is None:
            log.tell("stopped", stage="train", reason=stop.reason)
            return "stopped"
        if comm.rank == 0:
            write_fitted(options.output, fitted)
        tell_judged(fitted.judged, log)
        return "done"


@dataclass(frozen=True)
class Session:
    """What the trainings of a run are told by and tell to: its log, the request to stop, and its checkpoint, where
    their names begin with `name`."""

    log: object
    stop: StopRequest
    trainings: Trainings
    name: str = ""


@dataclass(frozen=True)
class Fitted:
    """A trained Model, what labelled micrographs say of it, and the loss of every step."""

    model: Model
    judged: "Judged"
    losses: list


def fit_model(training, testing, options, session, *, comm):
    """Train on LabelledMicrographs as the keys of a pick-train job say, calibrate and judge on those for testing: a
    Fitted, or None if the run was asked to stop. Collective.

    Without any for testing the judge is cross-validation, if options.folds asks for it, or the training itself.
    """
    trained = _trained(training, options, f"{session.name}all", session, comm=comm)
    if trained is None:
        return None
    picker, losses = trained
    scored, source = _all_scored(picker, testing or training, comm), HELD_BACK if testing else TRAINED_ON
    folds = min(options.folds, len(training))
    if not testing and folds > 1:
        scored, source = _cross_scored(training, folds, options, session, comm=comm), CROSS_VALIDATED
        if scored is None:
            return None
    size = options.diameter / picker.preparation.pixel_size, picker.preparation.window
    empty = empty_decoys(testing or training, size, options.seed)
    judged = _judged(picker, scored, _all_scored(picker, empty, comm), options, source)
    return Fitted(Model(judged.picker, options.diameter, judged.threshold, {
        "version": importlib.metadata.version("vitrea"), "seed": options.seed, "steps": len(losses),
        "labels": sum(len(each.positives) for each in training), "micrographs": len(training),
        "held_back": len(testing), "loss": [round(loss, 6) for loss in losses[TOLD_STEPS - 1::TOLD_STEPS]],
        **judged.as_dict()}), judged, losses)


def _trained(training, options, name, session, *, comm):
    """(Picker without calibration, loss of every step), or None if the run was asked to stop. Collective.

    Goes on with the training of this name, if the checkpoint has it with the same labels and recipe."""
    network = PRESETS[options.network]
    preparation = Preparation.of(network, options.diameter)
    recipe = RECIPES[options.optimiser] if options.network == "vitrea" else PUBLISHED
    trainer = train_freeze_aware if recipe.optimizer == "freeze_aware" else train
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    diameter = options.diameter / preparation.pixel_size
    digest = digest_of(training, network, diameter, recipe, options.seed)
    begun, losses = session.trainings.begun(name, digest)
    state = begun
    progress = Progress(session.log, "train", recipe.steps, words="step")
    if begun:
        session.log.line(f"step {begun.step}/{recipe.steps}   from the checkpoint")
    for state in trainer(training, network, diameter, recipe, seed=options.seed, comm=comm, begun=begun):
        losses += [state.loss] * (state.step - len(losses))   # a probe takes several steps of the budget
        probe = last_probe(state)
        if probe:
            session.log.line(probe.words)
        session.trainings.keep(name, digest, state, losses)
        progress.tell(state.step, besides=f"loss {np.mean(losses[-TOLD_STEPS:]):.4f}")
        if session.stop.agreed():
            session.trainings.write()
            session.log.line(f"step {state.step}/{recipe.steps}   in the checkpoint")
            return None
    session.log.line(f"step {state.step}/{recipe.steps}   loss {np.mean(losses[-TOLD_STEPS:]):.4f}")
    return Picker(network, state.parameters, state.statistics, preparation,
                  options.min_distance * options.diameter, max_deviation=most_uneven(training)), losses


def _cross_scored(labels, folds, options, session, *, comm):
    """What `_scored` gives for each LabelledMicrograph, by a network trained on the other parts; None if the run was
    asked to stop. Collective."""
    scored = [None] * len(labels)
    for part in range(folds):
        session.log.line(f"cross-validation   network {part + 1} of {folds}")
        others = [each for number, each in enumerate(labels) if number % folds != part]
        trained = _trained(others, options, f"{session.name}fold{part + 1}", session, comm=comm)
        if trained is None:
            return None
        scored[part::folds] = _all_scored(trained[0], labels[part::folds], comm)
    return scored


def write_fitted(folder, fitted):
    """Write the model, and the loss of every step and the picture of its training, into a folder."""
    write_model(Path(folder) / MODEL_NAME, fitted.model)
    with written_beside(Path(folder) / LOSSES_NAME) as beside:
        beside.write_text("step,loss\n" + "".join(f"{step},{loss:.6g}\n" for step, loss in enumerate(fitted.losses, 1)),
                          encoding="utf-8")
    draw_training(Path(folder) / TRAINING_NAME, fitted.losses, fitted.judged)


@dataclass(frozen=True)
class Judged:
    """A picker after calibration, with its threshold and what labelled micrographs say of them: Counts at the
    threshold, the Curve, and the Reliability of scores before calibration and of probabilities after it (of candidates
    whose micrograph the fit had not seen)."""

    picker: Picker
    threshold: float
    counts: Counts
    curve: Curve
    before: Reliability
    after: Reliability
    source: str

    def as_dict(self):
        """Plain values for the model's record."""
        return {"precision": self.counts.precision, "recall": self.counts.recall, "f1": self.counts.f(),
                "auprc": self.curve.auprc, "judged_on": self.source,
                "reliability": {"before": asdict(self.before), "after": asdict(self.after)}}


def check(options):
    """Lines for `vitrea check`; JobError for what `run` will refuse, as far as headers and labels tell it."""
    listed = list_micrographs(options.input)
    require_folders(options, *LABEL_FOLDERS)
    found = [find_coordinates(options.coordinates, Path(name).stem) for name in listed.names]
    network, labelled = PRESETS[options.network], [number for number, path in enumerate(found) if path]
    preparation = Preparation.of(network, options.diameter)
    problems = {number: _problem(listed, number, preparation, options.pixel_size) for number in labelled}
    usable = [number for number in labelled if not problems[number]]
    labels = sum(len(read_coordinates(found[number])) for number in usable)
    _require_labels(options, labels, len(listed), [problem for problem in problems.values() if problem])
    needed = memory_of_training(listed, usable, preparation, options.pixel_size)
    stray = without_micrograph(options.coordinates, listed.names)
    return [f"micrographs {len(listed):,} in {options.input}, {len(labelled):,} with coordinates, {labels:,} particles",
            *([f"doubtful    {stray}"] if stray else []),
            *(f"left out    {problem}" for problem in problems.values() if problem),
            f"network     {network.name}: {network.n_parameters:,} parameters, box {network.box} px of "
            f"{preparation.pixel_size:.3g} Å",
            f"memory      {format_bytes(needed)} a rank at most"]


def _problem(listed, number, preparation, pixel_size):
    """Why a micrograph cannot be learned from, as its header says, or None."""
    try:
        preparation.require_fit(listed.paths[number], *header_of(listed, number, pixel_size))
    except BadMicrographError as error:
        return str(error)
    return None


def _require_labels(options, labels, n_micrographs, problems):
    """JobError if there are too few labels; problems are why micrographs with labels were left out."""
    if labels >= LEAST_POSITIVES:
        return
    if problems:
        raise JobError(f"{options.input}: {len(problems)} micrographs with coordinates cannot be used, and the others "
                       f"have {labels} labelled particles; expected at least {LEAST_POSITIVES}; the first: "
                       f"{problems[0]}")
    raise JobError(f"{options.coordinates}: found {labels} labelled particles for the {n_micrographs} micrographs of "
                   f"{options.input}; expected at least {LEAST_POSITIVES}; the files must have the micrographs' names, "
                   "such as mic1.star for mic1.mrc")


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _announce(options, training, held, log, comm):
    network = PRESETS[options.network]
    preparation = Preparation.of(network, options.diameter)
    positives = sum(len(each.positives) for each in training)
    record_start(log, "pick-train", options, micrographs=len(training) + held, comm=comm)
    log.line(f"pick-train   {options.output}   {network.name}: {network.n_parameters:,} parameters, box {network.box} "
             f"px of {preparation.pixel_size:.3g} Å")
    log.line(f"{len(training)} micrographs with {positives:,} labelled particles to train on, {held} held back   "
             f"{comm.size} rank{'s' if comm.size > 1 else ''}")


def load_labels(options, preparation, log, *, comm):
    """LabelledMicrographs of a pick-train job, the same on every rank; those without labels or that cannot be used are
    told and left out. Collective. JobError if there are too few labels."""
    listed = list_micrographs(options.input)
    stray = agreed(lambda: _stray(options, listed), comm)
    if stray:
        log.line(f"doubtful   {stray}")
    labels, problems = [], []
    for number in range(len(listed)):
        found, problem = None, None
        if number % comm.size == comm.rank:
            try:
                found = _labelled(listed, number, options, preparation)
            except BadMicrographError as error:
                problem = str(error)
            except JobError as error:
                problem = error
        found, problem = comm.bcast((found, problem), root=number % comm.size)
        if isinstance(problem, JobError):
            raise problem
        if problem:
            log.line(f"left out   {problem}")
            problems.append(problem)
        elif found is not None:
            labels.append(found)
    _require_labels(options, sum(len(each.positives) for each in labels), len(listed), problems)
    return labels


def _stray(options, listed):
    require_folders(options, *LABEL_FOLDERS)
    return without_micrograph(options.coordinates, listed.names)


def _labelled(listed, number, options, preparation):
    """LabelledMicrograph, or None if there is no coordinate file."""
    stem = Path(listed.names[number]).stem
    path = find_coordinates(options.coordinates, stem)
    if path is None:
        return None
    micrograph = listed.read(number, options.pixel_size)
    height = micrograph.image.shape[0]
    image = preparation.apply(micrograph)
    scale = np.array(image.shape) / micrograph.image.shape

    def places(folder):
        found = find_coordinates(folder, stem) if folder else None
        return read_coordinates(found, upwards=height if options.y_axis == "up" else None) if found else None

    positives, negatives, ignored = (places(folder) for folder in (
        options.coordinates, options.negatives, options.ignore))
    expected = options.expected_particles
    return LabelledMicrograph(
        image, positives.places * scale,
        negatives.places * scale if negatives else np.zeros((0, 2)),
        np.column_stack([ignored.places * scale, ignored.radius * scale[0]]) if ignored else np.zeros((0, 3)),
        unlabelled=max(0.0, expected - len(positives)) if expected else 0.0,
        margin=options.edge_margin / preparation.pixel_size,
        deviations=deviation_ratios(micrograph.image, positives.places, options.diameter / micrograph.pixel_size))


def _judged(picker, scored, empty, options, source):
    """Judged: scores calibrated on labelled micrographs, and the threshold of the largest F_β on those and as many
    empty ones (both as `_scored` gives them)."""
    radius = options.match_radius * options.diameter / picker.preparation.pixel_size
    groups = []
    for picks, scores, truth, ignored in scored:
        verdict = verdicts(picks, scores, truth, radius, ignored)
        groups.append((scores[verdict != 0], verdict[verdict != 0] > 0))
    raw, true = (np.concatenate(columns) for columns in zip(*groups))
    found = curve(scored, radius)
    threshold, _ = best_threshold(curve([*scored, *empty], radius), options.f_beta)
    counts = found.counts(threshold)
    before, calibration = Reliability.of(raw, true), fit(raw, true, source)
    if calibration is None:
        return Judged(picker, threshold, counts, found, before, before, source)
    # Half way between two picks is meant in the network's own scores: probabilities learned on few or on trained-on
    # candidates are steep, and half way in them is near the better pick, above many of another micrograph's particles.
    found = replace(found, score=calibration.apply(found.score))
    return Judged(replace(picker, calibration=calibration), float(calibration.apply(threshold)), counts, found, before,
                  Reliability.of(*held_out(groups)), source)


def _all_scored(picker, labels, comm):
    """What `_scored` gives for each LabelledMicrograph, on every rank; the ranks take them in turn. Collective."""
    own = [_scored(picker, each) for each in labels[comm.rank::comm.size]]
    parts = comm.allgather(own)
    return [parts[number % comm.size][number // comm.size] for number in range(len(labels))]


def _scored(picker, labelled):
    """(picks float[n, 2], scores, truth, ignored) of a LabelledMicrograph, as evaluate.curve wants them."""
    picks = picker.pick_prepared(Micrograph(Path(), labelled.image, picker.preparation.pixel_size), labelled.image)
    picks = picks.inside(labelled.margin, labelled.image.shape)
    return np.stack([picks.y, picks.x], axis=1), picks.score, labelled.positives, labelled.ignored


def tell_judged(judged, log, kind="done"):
    """What the labels say of the model, in the log: lines, and a record of this kind."""
    counts, where = judged.counts, judged.source
    if judged.picker.calibration is None:
        log.line("scores are those of the network: the candidates on labelled micrographs are all particles, or none "
                 "is, and no probability can be learned from that")
    else:
        log.line(f"scores are probabilities, learned on {where}"
                 + (", whose scores are surer than those of others: likely too high elsewhere"
                    if where == TRAINED_ON else ""))
        log.line(f"calibration error {judged.after.error:.3f}, before {judged.before.error:.3f}   Brier score "
                 f"{judged.after.brier:.3f}, before {judged.before.brier:.3f}   "
                 f"{sum(n for *_, n in judged.after.bins)} candidates")
        for mean, frequency, n in judged.after.bins:
            log.line(f"probability {mean:.2f}   {frequency:.2f} are particles   {n} candidates")
    log.line(f"{kind}   threshold {judged.threshold:.3f}   precision {counts.precision:.3f}   recall "
             f"{counts.recall:.3f}   F1 {counts.f():.3f} on {where}")
    log.record(kind, threshold=judged.threshold, **judged.as_dict())
