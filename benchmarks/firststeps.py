#!/usr/bin/env python3
"""From nothing to selected particles, timed: the steps of docs/tutorial.md with simulated particles, as a new user does
them.

A virtual environment of its own is made, Vitrea is installed into it from this repository (over the network, or pip's
cache), and each command runs as it stands in the tutorial, kernels not yet compiled. Wall times: what a person waits.
One JSON line, then a table; at the end, how many of the particles that were selected are true ones.

example:  python -m vitrea.benchmarks.firststeps
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

from vitrea.benchmarks.measure import (
    HERE,
    RESULTS,
    append_line,
    ended_by_signals,
    environment,
    last_words,
    run_measured,
    table,
)
from vitrea.benchmarks.progress import Progress
from vitrea.engine.errors import JobError
from vitrea.engine.star import read_star

JOB = """job: classify2d
input: sim/particles.star
output: runs/first
n_classes: 20
particle_diameter: 200
"""


def main():
    arguments = parse()
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="vitrea-first-") as temporary:
        folder = Path(temporary)
        (folder / "job.yaml").write_text(JOB)
        times = {words: timed(words, command, folder, progress) for words, command in steps(folder, arguments.ranks)}
        kept, true, specimen = selected(folder)
    record = {"benchmark": "firststeps", "ranks": arguments.ranks, "seconds": times, "selected": kept, "true": true,
              "specimen": specimen, "environment": environment()}
    append_line(arguments.output, record)
    print(table(("step", "wall [s]"), [(words, f"{seconds:.0f}") for words, seconds in
                                       [*times.items(), ("in all", sum(times.values()))]]))
    print(f"\n{kept:,} particles selected, {true:,} of them of the {specimen:,} of the specimen")


def steps(folder, ranks):
    """(words, command) of every step, in order."""
    programs = folder / ".venv" / "bin"
    vitrea, mpiexec = programs / "vitrea", programs / "mpiexec"
    yield "make an environment", [sys.executable, "-m", "venv", ".venv"]
    yield "install", [programs / "pip", "install", "--quiet", f"{HERE.parent}[mpi]"]
    yield "simulate", [vitrea, *("simulate particles --out sim --n 2000 --views 10 --box 64 --pixel-size 4 --snr 0.05 "
                                 "--seed 1 --junk 0.1").split()]
    yield "check", [vitrea, "check", "job.yaml", "--ranks", ranks]
    yield "classify, report included", [mpiexec, "-n", ranks, vitrea, "run", "job.yaml"]
    yield "select", [vitrea, "select", "runs/first", "--score", "0.5"]


def timed(words, command, folder, progress):
    """Wall seconds of a step; JobError with what it said if it failed."""
    progress.step(words)
    measured = run_measured(command, folder, progress.tick)
    if measured.exit_code:
        raise JobError(f"{words}: ended with exit code {measured.exit_code}: {last_words(measured.output)}")
    return round(measured.wall_seconds, 1)


def selected(folder):
    """(particles selected, how many of them are no junk, how many are none in all)."""
    truth = read_star(folder / "sim" / "truth.star")["particles"]
    junk = dict(zip(truth["rlnImageName"], truth["vitreaJunk"] != "none"))
    names = read_star(folder / "runs/first/selection/selected.star")["particles"]["rlnImageName"]
    return len(names), sum(not junk[name] for name in names), sum(not each for each in junk.values())


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="MPI ranks of the "
                        "run (default 2, or the cores)")
    parser.add_argument("--output", type=Path, default=RESULTS / "firststeps.jsonl", metavar="FILE", help="record, a "
                        "JSON line (default benchmarks/results/firststeps.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    with ended_by_signals():
        main()
