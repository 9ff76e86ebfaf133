"""`job: pick`: a model and micrographs to coordinates, dealt out to the ranks, resumable by micrograph.

Every rank takes the next micrograph, the largest first, scans it, and writes all candidates above a low floor to
candidates/<name>.csv, then a line to its own manifest. Candidates depend on the micrograph and the model alone. When
all are scanned, the threshold is settled, and coordinates/<name>.star is written from the candidates, so that another
threshold needs no other scan. A micrograph that cannot be used is told, skipped and listed.
"""
import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog, RunLog, format_bytes
from vitrea.engine.star import write_star
from vitrea.kernels.micrograph import SAMPLED, deviation_ratios
from vitrea.picker.coordinates import SUFFIXES, read_coordinates, write_coordinates
from vitrea.picker.dealing import agreed, deal_out, largest_first
from vitrea.picker.memory import picking
from vitrea.picker.micrographs import BadMicrographError, list_micrographs
from vitrea.picker.modelfile import read_model
from vitrea.picker.pictures import draw_looks, draw_run
from vitrea.picker.progress import Progress, record_start
from vitrea.picker.results import (
    add_to_manifest,
    candidates_path,
    coordinates_path,
    expected_threshold,
    read_manifests,
    require_own_files,
    write_index,
    write_picks,
)

SELECTED_NAME = "micrographs.star"
# Keys that decide what is found on a micrograph; with another value, or another model, it is scanned again.
DECISIVE = ("pixel_size", "min_distance", "max_deviation", "edge_margin", "invert_contrast")
OFTEN = 3.0         # times as many picks as labels in training, or as few, from which a run is doubtful
SAME_PIXEL = 0.02   # of the session's median: pixel sizes that differ by more are told


def run(options, *, resume, comm):
    """Pick all micrographs of the job: "done" or "stopped". Collective; `resume` is not needed, the manifests tell.

    Raises JobError for a user's mistake, and when more than skip_limit of the micrographs cannot be used.
    """
    folder = Path(options.output)
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        listed, model = agreed(lambda: (list_micrographs(options.input), read_model(options.model)), comm)
        settings = agreed(lambda: _settings(options), comm)
        work, sizes, done = agreed(lambda: _open_work(listed, folder, settings), comm)
        _announce(options, listed, model, done, log, comm)
        scan = Scan(options, listed, model, settings, comm.rank)
        busy = deal_out(work, [sizes[number] for number in work], scan.one, folder, stop=stop, comm=comm,
                        progress=Progress(log, "scan", len(listed), words="scanned", earlier=done))
        if stop.agreed():
            log.tell("stopped", stage="scan", reason=stop.reason)
            return "stopped"
        log.line(f"scanned   ranks busy {' '.join(f'{100 * share:.0f} %' for share in busy)}")
        log.record("scanned", micrographs=len(work), busy=busy)
        results = agreed(lambda: read_manifests(folder), comm)
        _require_enough(options, listed, results, log)
        _tell_uneven(results, options.max_deviation or model.picker.max_deviation, log)
        threshold = agreed(lambda: _settled(options, model, listed, folder), comm)
        for number in range(comm.rank, len(listed), comm.size):
            write_picks(folder, listed.names[number], threshold, options.formats)
        comm.Barrier()
        picks, looks = agreed(lambda: write_index(folder, listed.names, results, (threshold, model.diameter),
                                                   options.pictures), comm)
        if comm.rank == 0:
            _write_selected(folder, listed)
        _draw(options, listed, looks, (threshold, model.diameter), log, comm)
        _tell_doubt(picks / max(len(listed) - len(_skipped(results)), 1), model.record, log)
        log.line(f"done   {picks:,} picks above {threshold:.3f} on {len(listed) - len(_skipped(results))} micrographs, "
                 f"{len(_skipped(results))} skipped")
        log.record("done", picks=picks, threshold=threshold, micrographs=len(listed), skipped=len(_skipped(results)))
        return "done"


def check(options):
    """Lines for `vitrea check`."""
    listed, model = list_micrographs(options.input), read_model(options.model)
    missing = sum(not path.exists() for path in listed.paths)
    return [f"micrographs {len(listed):,} in {options.input}" + (f", {missing:,} of them missing" if missing else ""),
            f"model       {model.picker.network.name}, particle {model.diameter:g} Å, scanned at "
            f"{model.picker.preparation.pixel_size:.3g} Å/px, threshold {model.threshold:.3f}",
            f"memory      {format_bytes(picking(listed, model.picker, options.pixel_size))} a rank at most"]


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _announce(options, listed, model, done, log, comm):
    record_start(log, "pick", options, micrographs=len(listed), comm=comm)
    log.line(f"pick   {options.output}   {model.picker.network.name} from {options.model}   particle "
             f"{model.diameter:g} Å")
    distance = options.min_distance or model.picker.distance
    log.line(f"scanned at {model.picker.preparation.pixel_size:.3g} Å/px   picks at least {distance:.4g} Å apart")
    log.line(f"{len(listed):,} micrographs, {done:,} done before   {comm.size} rank{'s' if comm.size > 1 else ''}")


# ---- scanning

def _settings(options):
    """A text that is another for another model, or another value of what decides what is found."""
    digest = hashlib.sha256(Path(options.model).read_bytes())
    digest.update(repr([getattr(options, name) for name in DECISIVE]).encode())
    return digest.hexdigest()[:16]


def _open_work(listed, folder, settings):
    """(numbers of the micrographs that are to be scanned, the largest file first; sizes of all [bytes]; how many are
    done)."""
    require_own_files(folder, listed.names)
    order, sizes = largest_first(listed)
    results = read_manifests(folder)

    def done(number):
        name = listed.names[number]
        result = results.get(name, {})
        return (result.get("bytes") == sizes[number] and result.get("settings") == settings
                and ("problem" in result or candidates_path(folder, name).exists()))

    work = [number for number in order if not done(number)]
    return work, sizes, len(order) - len(work)


class Scan:
    """Scans micrographs of a job by number; a plan is kept for micrographs of one shape, which a session's are."""

    def __init__(self, options, listed, model, settings, rank):
        self._options, self._listed, self._model, self._settings = options, listed, model, settings
        self._rank, self._plans, self._picker = rank, {}, model.picker
        if options.min_distance:
            self._picker = replace(self._picker, distance=options.min_distance)
        if options.max_deviation:
            self._picker = replace(self._picker, max_deviation=options.max_deviation)

    def one(self, number):
        """Write the candidates of a micrograph, and a line to the manifest of this rank."""
        folder, name, path = Path(self._options.output), self._listed.names[number], self._listed.paths[number]
        result = {"micrograph": name, "rank": self._rank, "settings": self._settings}
        begin, target = time.process_time(), candidates_path(folder, name)
        try:
            micrograph = self._listed.read(number, self._options.pixel_size)
            picks, ratios, uneven = self._even(self._picks(micrograph), micrograph)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_coordinates(target, picks.x, picks.y, picks.score, besides=_besides(picks, ratios, micrograph))
            result |= {"candidates": len(picks), "uneven": uneven, "pixel_size": micrograph.pixel_size,
                       **_grey_values(micrograph.image)}
        except BadMicrographError as problem:
            result["problem"] = str(problem)
            picked = coordinates_path(folder, name)
            for left in (target, *(picked.with_suffix(suffix) for suffix in SUFFIXES)):   # of a run with other settings
                left.unlink(missing_ok=True)
        add_to_manifest(folder, self._rank, result | {
            "bytes": path.stat().st_size if path.exists() else 0, "seconds": time.process_time() - begin})

    def _picks(self, micrograph):
        prepared = self._picker.preparation.apply(micrograph)
        if self._options.invert_contrast:
            prepared = -prepared
        if prepared.shape not in self._plans:
            self._plans.clear()   # one plan at a time
            self._plans[prepared.shape] = self._picker.planned(prepared.shape)
        picks = self._picker.pick_prepared(micrograph, prepared, self._plans[prepared.shape])
        return picks.inside(self._options.edge_margin / micrograph.pixel_size, micrograph.image.shape)

    def _even(self, picks, micrograph):
        """(the picks whose surroundings are even enough, their deviation ratios, how many of the others are above the
        model's threshold)."""
        ratios = deviation_ratios(micrograph.image, np.stack([picks.y, picks.x], axis=1),
                                  self._model.diameter / micrograph.pixel_size)
        limit = self._picker.max_deviation
        kept = ~(ratios > limit) if limit else np.ones(len(picks), dtype=bool)   # NaN is kept
        return picks.where(kept), ratios[kept], int((picks.score[~kept] >= self._model.threshold).sum())


def _besides(picks, ratios, micrograph):
    """What a candidate carries besides its place and score, as columns of texts."""
    places = np.stack([picks.y, picks.x], axis=1)
    nearest = (cKDTree(places).query(places, k=2)[0][:, 1] if len(places) > 1 else np.full(len(places), np.inf)
               ) * micrograph.pixel_size
    return {"edge": [str(int(edge)) for edge in picks.edge],
            "nearest": [f"{distance:.1f}" if np.isfinite(distance) else "" for distance in nearest],
            "deviation": [f"{ratio:.3f}" for ratio in ratios]}


def _grey_values(image):
    """What says whether a micrograph is unlike the others, from about SAMPLED of its pixels, and its height [px]."""
    step = max(1, int(np.sqrt(image.size / SAMPLED)))
    sample = image[::step, ::step].astype(np.float64)
    return {"height": image.shape[0], "mean": float(sample.mean()), "deviation": float(sample.std())}


def _skipped(results):
    return [result for result in results.values() if "problem" in result]


def _require_enough(options, listed, results, log):
    skipped = _skipped(results)
    for result in sorted(skipped, key=lambda result: result["micrograph"]):
        log.line(f"skipped   {result['problem']}")
    sizes = {result["micrograph"]: result["pixel_size"] for result in results.values() if "pixel_size" in result}
    usual = float(np.median(list(sizes.values()) or [1.0]))
    odd = sorted(name for name, size in sizes.items() if abs(size / usual - 1) > SAME_PIXEL)
    if odd:
        log.line(f"other pixel sizes   {len(odd):,} micrographs have others than the {usual:.4g} Å/px of most; the "
                 f"first: {odd[0]}, {sizes[odd[0]]:.4g} Å/px")
    too_many = len(skipped) > 1 and len(skipped) > options.skip_limit * len(listed)
    if too_many or len(skipped) == len(listed):
        raise JobError(f"{options.input}: {len(skipped)} of {len(listed)} micrographs cannot be used; expected at most "
                       f"{100 * options.skip_limit:g} % (skip_limit); the first: {skipped[0]['problem']}")


def _tell_uneven(results, limit, log):
    """A line if picks were left out for their surroundings."""
    found = [result["uneven"] for result in results.values() if result.get("uneven")]
    if found:
        log.line(f"left out   {sum(found):,} places above the model's threshold on {len(found):,} micrographs, whose "
                 f"surroundings are more than {limit:.3g} times as uneven as the micrograph's (max_deviation)")


def _tell_doubt(picks, record, log):
    """A line if there are many more or fewer picks a micrograph than the model had labels."""
    labels = record.get("labels", 0) / max(record.get("micrographs", 0), 1)
    if labels and not labels / OFTEN <= picks <= labels * OFTEN:
        log.line(f"doubtful   {picks:.1f} picks a micrograph, and {labels:.1f} labels a micrograph in training; are "
                 "pixel size, contrast and threshold right?")


# ---- thresholds and pictures

def _settled(options, model, listed, folder):
    """The threshold of the job: given, by the expected number of picks, or the model's."""
    if options.threshold is not None:
        return options.threshold
    if options.expected_particles is None:
        return model.threshold
    names = [name for name in listed.names if candidates_path(folder, name).exists()]
    scores = np.concatenate([read_coordinates(candidates_path(folder, name)).score for name in names])
    return expected_threshold(scores, len(names), options.expected_particles)


def _write_selected(folder, listed):
    """micrographs.star: the micrographs that were picked, with the columns and optics of the input."""
    kept = [number for number, name in enumerate(listed.names) if coordinates_path(folder, name).exists()]
    columns = {label: values[kept] for label, values in listed.columns.items()}
    columns = columns or {"rlnMicrographName": [listed.names[number] for number in kept]}
    write_star(folder / SELECTED_NAME, ({"optics": listed.optics} if listed.optics else {}) | {"micrographs": columns})


def _draw(options, listed, looks, settled, log, comm):
    """The pictures of a run, and the list of what to look at first; the ranks draw in turn. Collective."""
    folder = Path(options.output)
    if comm.rank == 0:
        draw_run(folder, [name for name in listed.names if candidates_path(folder, name).exists()], settled[0])
    comm.Barrier()
    mine = list(enumerate(looks, 1))[comm.rank::comm.size]
    draw_looks(folder, mine, lambda name: listed.read(listed.names.index(name), options.pixel_size), *settled)
    comm.Barrier()
    for place, look in enumerate(looks, 1):
        log.line(f"look first   {place:>2}   {look.name}   {look.reason}")
