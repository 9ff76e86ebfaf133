"""`job: cluster` on simulated particles, as many and as large as those that ROME's authors worked on.

Sizes are those seen in the manuals and scripts of ROME 1.1 (Wu et al. 2017): `data1` and `data2` of its tutorial, and
the inflammasome set, whose box is not stated and taken as 128 px. Particles are simulated at 1.72 Å/px with CTF and
noise, and come with their true poses. Every iteration sees all particles. The time of an iteration is what the run's
log says: wall time, and CPU time of rank 0, of one pass of EM, solves and checkpoint included; posing the particles and
the results are told apart.

    python -m vitrea.benchmarks.rome --sets data1 data2 inflammasome
"""
import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vitrea.benchmarks.launching import launcher_words
from vitrea.benchmarks.measure import (
    compared,
    iterations_of,
    last_words,
    made_folder,
    read_lines,
    run_measured,
    simulate,
    table,
)
from vitrea.benchmarks.progress import Progress
from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.errors import JobError

PIXEL_SIZE, SNR, VIEWS, RESOLUTION = 1.72, 0.05, 50, 10.0   # Å/px, -, -, Å
FILLED = 0.7                                               # diameter of the particle over the box
COLUMNS = ("set", "particles", "box [px]", "K", "ranks", "iterations", "s an iteration", "CPU s an iteration",
           "images · classes / CPU s", "whole run [s]", "CPU s", "MB a rank", "purity")


@dataclass(frozen=True)
class Replica:
    """particles, box [px] and classes of a set."""

    particles: int
    box: int
    classes: int


SETS = {"data1": Replica(28_201, 180, 100), "data2": Replica(24_504, 224, 100),
        "inflammasome": Replica(16_306, 128, 300)}


def measure(folder, name, ranks, progress, iterations=300):
    """The record of one set: simulated in `folder` unless it is there, clustered, compared with the truth; iterations:
    at most."""
    replica, stack = SETS[name], f"{name}-particles"
    if not (folder / stack / "truth.star").exists():
        simulate(folder / stack, n=replica.particles, views=VIEWS, snr=SNR, seed=0, box=replica.box,
                 pixel_size=PIXEL_SIZE, progress=progress)
    job = {"job": "cluster", "input": f"{stack}/truth.star", "output": f"{name}-run", "n_classes": replica.classes,
           "particle_diameter": FILLED * replica.box * PIXEL_SIZE, "max_resolution": RESOLUTION,
           "minibatch_size": replica.particles, "max_iterations": iterations, "starts": 1}
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in job.items()))
    progress.step(f"cluster on {name}: {replica.particles:,} particles, K {replica.classes}")
    command = [*launcher_words(ranks), sys.executable, "-m", "vitrea.jobs", "run", f"{name}.yaml"]
    measured = run_measured(command, folder, progress.tick)
    if measured.exit_code:
        raise JobError(f"{name}: vitrea run ended with exit code {measured.exit_code}: {last_words(measured.output)}")
    made = iterations_of(read_lines(folder / f"{name}-run" / "record.jsonl"))
    seconds = [record["seconds"] for record in made]
    cpu_seconds = statistics.median(record["cpu_seconds"] for record in made)
    return {"benchmark": "rome", "name": name, "particles": replica.particles, "box": replica.box,
            "classes": replica.classes, "ranks": ranks, "iterations": len(made),
            "seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds),
            "cpu_seconds_an_iteration": cpu_seconds,
            "wall_seconds": measured.wall_seconds, "cpu_seconds": measured.cpu_seconds,
            "memory": max(record["memory"] for record in made),
            "purity": compared(folder, f"{stack}/truth.star", f"{name}-run/run_data.star")["purity"], **surroundings()}


def told(records):
    """The records as a table."""
    return table(COLUMNS, [[
        record["name"], f"{record['particles']:,}", record["box"], record["classes"], record["ranks"],
        record["iterations"], f"{record['seconds']:.2f} ({record['least']:.2f}–{record['most']:.2f})",
        f"{record['cpu_seconds_an_iteration']:.2f}",
        f"{record['particles'] * record['classes'] / record['cpu_seconds_an_iteration']:.3g}",
        f"{record['wall_seconds']:.0f}",
        f"{record['cpu_seconds']:.0f}", f"{record['memory'] / 1e6:.0f}", f"{record['purity']:.4f}"]
        for record in records])


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    words.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="which (default: all)")
    words.add_argument("--ranks", type=int, default=1, metavar="R", help="MPI ranks (default 1)")
    words.add_argument("--iterations", type=int, default=300, metavar="I", help="at most (default 300)")
    words.add_argument("--keep", type=Path, metavar="DIR",
                       help="keep stacks and runs here (default: a temporary folder, removed); 4–5 GB a set")
    words.add_argument("--records", default="bench.jsonl", metavar="FILE", help="JSON lines (default bench.jsonl)")
    arguments, progress, records = words.parse_args(), Progress(), []
    for name in arguments.sets:   # one after the other, so that only one stack at a time is on the disk
        with tempfile.TemporaryDirectory(prefix="vitrea-rome-") as temporary:
            folder = made_folder(arguments.keep or temporary, "--keep")
            records.append(measure(folder, name, arguments.ranks, progress, arguments.iterations))
        keep(arguments.records, records[-1])
    progress.clear()
    print(told(records))


if __name__ == "__main__":
    main()
