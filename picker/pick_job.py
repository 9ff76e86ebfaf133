"""`job: pick`: a model and micrographs to coordinates, dealt out to the ranks, resumable by micrograph.

Every rank takes the next micrograph, the largest first, scans it, and writes all candidates above a low floor to
candidates/<name>.csv, then a line to its own manifest. Candidates depend on the micrograph and the model alone. When
all are scanned, the threshold is settled, and coordinates/<name>.star is written from the candidates, so that another
threshold needs no other scan. A micrograph that cannot be used is told, skipped and listed.
"""
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog, RunLog
from vitrea.kernels.micrograph import SAMPLED
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.dealing import Dealer
from vitrea.picker.micrographs import BadMicrographError, list_micrographs
from vitrea.picker.modelfile import read_model
from vitrea.picker.pictures import draw_looks, draw_run
from vitrea.picker.results import (
    MANIFEST,
    candidates_path,
    expected_threshold,
    read_manifests,
    write_index,
    write_picks,
)


def run(options, *, resume, comm):
    """Pick all micrographs of the job: "done" or "stopped". Collective; `resume` is not needed, the manifests tell.

    Raises JobError for a user's mistake, and when more than skip_limit of the micrographs cannot be used.
    """
    folder = Path(options.output)
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        listed, model = _agreed(lambda: (list_micrographs(options.input), read_model(options.model)), comm)
        order, done = _agreed(lambda: _open_work(listed, folder), comm)
        _announce(options, listed, model, len(done), log, comm)
        begin = time.perf_counter()
        busy = _scan(options, listed, model, [number for number in order if number not in done], stop, comm)
        if stop.agreed():
            log.tell("stopped", reason=stop.reason)
            return "stopped"
        shares = comm.gather(busy / max(time.perf_counter() - begin, 1e-9), root=0)
        log.line(f"scanned   ranks busy {' '.join(f'{100 * share:.0f} %' for share in shares or [])}")
        results = _agreed(lambda: read_manifests(folder), comm)
        _require_enough(options, listed, results, log)
        threshold = _agreed(lambda: _settled(options, model, listed, folder), comm)
        for number in range(comm.rank, len(listed), comm.size):
            write_picks(folder, listed.names[number], threshold, options.eman_box)
        comm.Barrier()
        picks, looks = _agreed(lambda: write_index(folder, listed.names, results, (threshold, model.diameter),
                                                   options.pictures), comm)
        _draw(options, listed, looks, (threshold, model.diameter), log, comm)
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
            f"{model.picker.preparation.pixel_size:.3g} Å/px, threshold {model.threshold:.3f}"]


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _agreed(work, comm):
    """What `work` gives on rank 0, on all ranks; a JobError there is raised on all."""
    outcome = None
    if comm.rank == 0:
        try:
            outcome = (work(), None)
        except JobError as mistake:
            outcome = (None, str(mistake))
    result, mistake = comm.bcast(outcome, root=0)
    if mistake:
        raise JobError(mistake)
    return result


def _announce(options, listed, model, done, log, comm):
    log.record("start", job="pick", output=str(options.output), input=str(options.input), ranks=comm.size,
               micrographs=len(listed), options=options.as_dict())
    log.line(f"pick   {options.output}   {model.picker.network.name} from {options.model}   particle "
             f"{model.diameter:g} Å")
    log.line(f"{len(listed):,} micrographs, {done:,} done before   {comm.size} rank{'s' if comm.size > 1 else ''}")


# ---- scanning

def _open_work(listed, folder):
    """(numbers of the micrographs, the largest file first; those that are done)."""
    sizes = [path.stat().st_size if path.exists() else 0 for path in listed.paths]
    order = sorted(range(len(listed)), key=lambda number: (-sizes[number], number))
    results = read_manifests(folder)
    done = {number for number, name in enumerate(listed.names)
            if results.get(name, {}).get("bytes") == sizes[number] and (
                "problem" in results[name] or candidates_path(folder, name).exists())}
    return order, done


def _scan(options, listed, model, work, stop, comm):
    """Scan what the dealer gives this rank; seconds it was at work. Collective at its beginning and end."""
    picker = model.picker
    if options.min_distance:
        picker = replace(picker, distance=options.min_distance)
    busy, plans = 0.0, {}
    with Dealer(len(work), options.output, comm=comm) as dealer:
        for place in dealer:
            if stop.asked():
                break
            begin = time.perf_counter()
            _scan_one(options, listed, work[place], picker, plans, comm)
            busy += time.perf_counter() - begin
    return busy


def _scan_one(options, listed, number, picker, plans, comm):
    folder, name = Path(options.output), listed.names[number]
    result = {"micrograph": name, "rank": comm.rank}
    begin = time.process_time()
    try:
        micrograph = listed.read(number, options.pixel_size)
        prepared = picker.preparation.apply(micrograph)
        if options.invert_contrast:
            prepared = -prepared
        if prepared.shape not in plans:
            plans.clear()   # one plan at a time: micrographs of a session have one shape
            plans[prepared.shape] = picker.planned(prepared.shape)
        picks = picker.pick_prepared(micrograph, prepared, plans[prepared.shape])
        picks = picks.inside(options.edge_margin / micrograph.pixel_size, micrograph.image.shape)
        path = candidates_path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_coordinates(path, picks.x, picks.y, picks.score)
        result |= {"candidates": len(picks), "pixel_size": micrograph.pixel_size, **_grey_values(micrograph.image)}
    except BadMicrographError as problem:
        result["problem"] = str(problem)
    path = listed.paths[number]
    result |= {"bytes": path.stat().st_size if path.exists() else 0, "seconds": time.process_time() - begin}
    with open(folder / MANIFEST.format(rank=comm.rank), "ab", buffering=0) as file:
        file.write((json.dumps(result) + "\n").encode())


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
    too_many = len(skipped) > 1 and len(skipped) > options.skip_limit * len(listed)
    if too_many or len(skipped) == len(listed):
        raise JobError(f"{options.input}: {len(skipped)} of {len(listed)} micrographs cannot be used; expected at most "
                       f"{100 * options.skip_limit:g} % (skip_limit); the first: {skipped[0]['problem']}")


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
