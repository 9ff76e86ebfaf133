"""`job: pick`: a model and micrographs to coordinates, dealt out to the ranks, resumable by micrograph.

Every rank takes the next micrograph, the largest first, scans it, and writes all candidates above a low floor to
candidates/<name>.csv, then a line to its own manifest. Candidates depend on the micrograph and the model alone. When
all are scanned, the threshold is settled, and coordinates/<name>.star is written from the candidates, so that another
threshold needs no other scan. A micrograph that cannot be used is told, skipped and listed.
"""
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.log import NullLog, RunLog
from vitrea.engine.star import write_star
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.dealing import Dealer
from vitrea.picker.micrographs import BadMicrographError, list_micrographs
from vitrea.picker.modelfile import read_model

CANDIDATES, COORDINATES = "candidates", "coordinates"
MANIFEST = "manifest-{rank}.jsonl"
INDEX_NAME, SUMMARY_NAME, SETTLED_NAME = "autopick.star", "summary.csv", "threshold.json"


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
        results = _agreed(lambda: _read_manifests(folder), comm)
        _require_enough(options, listed, results, log)
        threshold = _agreed(lambda: _settled(options, model, listed, results, folder), comm)
        for number in range(comm.rank, len(listed), comm.size):
            write_picks(folder, listed.names[number], threshold, options.eman_box)
        comm.Barrier()
        picks = _agreed(lambda: _index(folder, listed, results, threshold), comm)
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
    results = _read_manifests(folder)
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
        result |= {"candidates": len(picks), "pixel_size": micrograph.pixel_size}
    except BadMicrographError as problem:
        result["problem"] = str(problem)
    path = listed.paths[number]
    result |= {"bytes": path.stat().st_size if path.exists() else 0, "seconds": time.process_time() - begin}
    with open(folder / MANIFEST.format(rank=comm.rank), "ab", buffering=0) as file:
        file.write((json.dumps(result) + "\n").encode())


def _read_manifests(folder):
    """{name: last result} of all ranks of this run and those before; a line cut short by a kill is left out."""
    results = {}
    for path in sorted(folder.glob(MANIFEST.format(rank="*"))):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("{") and line.endswith("}"):
                result = json.loads(line)
                results[result["micrograph"]] = result
    return results


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


# ---- thresholds and files

def candidates_path(folder, name):
    """Where the candidates of a micrograph are: its listed name below candidates/, so that equal file names in
    different folders do not meet."""
    return Path(folder) / CANDIDATES / inside(name).with_suffix(".csv")


def coordinates_path(folder, name):
    """Where the picks of a micrograph are."""
    return Path(folder) / COORDINATES / inside(name).with_suffix(".star")


def inside(name):
    """A micrograph's name as a path below a folder: without leading slashes and steps upwards."""
    return Path(*(part for part in Path(os.path.normpath(name)).parts if part not in ("..", os.sep)))


def write_picks(folder, name, threshold, eman_box=None):
    """Write coordinates/<name>.star (and .box) from the candidates of a micrograph, those above the threshold.

    A micrograph that was skipped gets no file; one without picks gets a file without rows.
    """
    source, target = candidates_path(folder, name), coordinates_path(folder, name)
    if not source.exists():
        return
    found = read_coordinates(source)
    kept = found.score >= threshold
    target.parent.mkdir(parents=True, exist_ok=True)
    write_coordinates(target, found.x[kept], found.y[kept], found.score[kept])
    if eman_box:
        write_coordinates(target.with_suffix(".box"), found.x[kept], found.y[kept], found.score[kept], box=eman_box)


def _settled(options, model, listed, results, folder):
    """The threshold of the job: given, by the expected number of picks, or the model's."""
    if options.threshold is not None:
        return options.threshold
    if options.expected_particles is None:
        return model.threshold
    names = [name for name in listed.names if candidates_path(folder, name).exists()]
    scores = np.concatenate([read_coordinates(candidates_path(folder, name)).score for name in names])
    wanted = round(options.expected_particles * len(names))
    return float(np.sort(scores)[::-1][min(wanted, len(scores)) - 1]) if len(scores) and wanted else 1.0


def _index(folder, listed, results, threshold):
    """Write autopick.star and summary.csv; the number of picks."""
    picked = [name for name in listed.names if coordinates_path(folder, name).exists()]
    write_star(folder / INDEX_NAME, {"coordinate_files": {
        "rlnMicrographName": picked, "rlnMicrographCoordinates": [str(coordinates_path(folder, name))
                                                                  for name in picked]}})
    total = 0
    with written_beside(folder / SUMMARY_NAME) as beside, open(beside, "w", encoding="utf-8") as file:
        file.write("micrograph,picks,candidates,median_score,problem\n")
        for name in listed.names:
            result = results[name]
            kept = read_coordinates(coordinates_path(folder, name)).score if name in picked else np.zeros(0)
            total += len(kept)
            median = f"{np.median(kept):.3f}" if len(kept) else ""
            problem = result.get("problem", "").replace('"', "'")
            file.write(f'"{name}",{len(kept)},{result.get("candidates", 0)},{median},"{problem}"\n')
    with written_beside(folder / SETTLED_NAME) as beside:
        beside.write_text(json.dumps({"threshold": threshold}) + "\n", encoding="utf-8")
    return total
