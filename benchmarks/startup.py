"""`vitrea bench startup`: how long fresh processes take to answer `vitrea --help`, and to begin their first iteration.

The second is from the start of the process to the start of the first iteration, as the run's own log tells it: imports,
MPI, kernels from numba's cache, plans, and reading a stack so small that it counts for nothing. A run before the clock
starts fills the caches of numba and of the file system; the first run after an installation, which compiles, takes
longer.
"""
import os
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from vitrea.benchmarks.measure import classify, run_measured
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import surroundings
from vitrea.benchmarks.whole import DIAMETER, make_stack
from vitrea.engine.errors import JobError

LIMITS = {"help": 300.0, "first iteration": 3000.0}   # ms
STACK = SimpleNamespace(particles=64, views=2, box=64, pixel_size=4.0, snr=0.1, seed=0)
JOB = {"n_classes": 4, "max_iterations": 1, "algorithm": "full"}


def measure(n, progress=SILENCE):
    """Records of both, `help` first, each of `n` fresh processes after one that is not counted."""
    with tempfile.TemporaryDirectory(prefix="vitrea-startup-") as temporary:
        folder = Path(temporary)
        stack = make_stack(folder, STACK, progress)
        keys = {"input": f"{stack}/particles.star", "particle_diameter": DIAMETER * STACK.box * STACK.pixel_size, **JOB}
        samples = {"help": _each(n, "vitrea --help", progress, lambda i: _help(folder)),
                   "first iteration": _each(n, "a run to its first iteration", progress,
                                            lambda i: _first_iteration(folder, keys, i))}
    return [_record(name, found[1:]) for name, found in samples.items()]


def _each(n, words, progress, run):
    """What run(i) found, for a warm-up and `n` runs."""
    progress.step(f"{words}: a warm-up and fresh processes", n + 1)
    found = []
    for i in range(n + 1):
        found.append(run(i))
        progress.done()
    return found


def _help(folder):
    measured = run_measured([sys.executable, "-m", "vitrea.jobs", "--help"], folder)
    if measured.exit_code:
        raise JobError(f"vitrea --help: ended with exit code {measured.exit_code}: {measured.output.strip()[-200:]}; "
                       "expected help; install Vitrea again")
    return {"wall": 1e3 * measured.wall_seconds, "cpu": 1e3 * measured.cpu_seconds}


def _first_iteration(folder, keys, number):
    began = time.time()
    measured, records = classify(folder, keys, f"run{number}")
    start, first = (next(each for each in records if each["kind"] == kind) for kind in ("start", "iteration"))
    announced, ended = (datetime.fromisoformat(each["time"]).timestamp() for each in (start, first))
    return {"wall": 1e3 * (ended - first["seconds"] - began), "imports": 1e3 * (announced - began),
            "cpu": 1e3 * measured.cpu_seconds}


def _record(name, samples):
    """One record [ms]; `imports` is the time to the log's first line, `cpu` that of the whole program."""
    walls = [sample["wall"] for sample in samples]
    record = {"benchmark": "startup", "name": name, "unit": "start", "n": len(walls), "min": min(walls),
              "median": statistics.median(walls), "samples": walls, "limit": LIMITS[name]}
    record |= {f"{part}_median": statistics.median(sample[part] for sample in samples)
               for part in samples[0] if part != "wall"}
    return record | surroundings()


def told(record):
    """One line for people."""
    words = {"help": "vitrea --help", "first iteration": "run to its first iteration"}[record["name"]]
    verdict = "holds" if record["median"] < record["limit"] else "OVER THE LIMIT"
    line = (f"{words:<28} median {record['median'] / 1e3:.2f} s   least {record['min'] / 1e3:.2f} s   "
            f"n {record['n']}   limit {record['limit'] / 1e3:.1f} s   {verdict}")
    if "imports_median" in record:
        line += f"   ({record['imports_median'] / 1e3:.2f} s to the log's first line)"
    if verdict != "holds" and record["load"][0] > 0.6 * (os.cpu_count() or 1):
        line += f"   the machine is busy, load {record['load'][0]:.1f}"
    return line
