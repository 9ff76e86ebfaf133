#!/usr/bin/env python3
"""Whether the probabilities of `vitrea stability RUN_DIR` are frequencies, on simulated particles of known views.

A particle is right if most particles of its class show its view. For each SNR and seed: the share that is right beside
the mean probability before and after calibration, the expected calibration error of both (ten bins; 0 is perfect), how
well the stability of classes orders them by their purity (Spearman), and the CPU time of asking the halves beside
that of the run. One JSON line a run, then a table.

example:  python -m vitrea.benchmarks.confidence                          eighteen runs: about 15 minutes on one core
          python -m vitrea.benchmarks.confidence --snr 0.05 --seeds 0
"""
import argparse
import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from vitrea.benchmarks.measure import (
    RESULTS,
    append_line,
    classify,
    ended_by_signals,
    environment,
    made_folder,
    simulate,
    table,
    vitrea,
)
from vitrea.benchmarks.progress import Progress
from vitrea.engine.half_sets import BINS
from vitrea.engine.probabilities import calibration_error, reliability
from vitrea.engine.star import read_star

N, VIEWS, BOX, PIXEL_SIZE, DIAMETER = 1500, 12, 40, 4.8, 150.0   # particles, views, px, Å/px, Å
COLUMNS = ("SNR", "K", "seed", "right", "probability", "calibrated", "error", "error, calibrated", "stability",
           "classes: Spearman", "CPU s", "of the run's")


def main():
    arguments = parse()
    progress, records = Progress(), []
    with tempfile.TemporaryDirectory(prefix="vitrea-confidence-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        for n_classes, snr, seed in itertools.product(arguments.classes, arguments.snr, arguments.seeds):
            record = one_run(folder, snr, n_classes, seed, progress)
            records.append(record)
            append_line(arguments.output, record)
            progress.result(table(COLUMNS, [row(record)]).splitlines()[-1])
    print("\n" + table(COLUMNS, [row(record) for record in records]))


def one_run(folder, snr, n_classes, seed, progress):
    """The record of one stack, one run on it, and what its halves said."""
    stack = f"stack_snr{snr:g}_s{seed}"
    if not (folder / stack / "truth.star").exists():
        simulate(folder / stack, n=N, views=VIEWS, snr=snr, seed=seed, box=BOX, pixel_size=PIXEL_SIZE,
                 progress=progress)
    name = f"run_snr{snr:g}_k{n_classes}_s{seed}"
    shutil.rmtree(folder / name, ignore_errors=True)
    progress.step(f"SNR {snr:g}, {n_classes} classes, seed {seed}")
    run, _ = classify(folder, {"input": f"{stack}/particles.star", "n_classes": n_classes,
                               "particle_diameter": DIAMETER, "seed": seed}, name, progress)
    halves = vitrea("stability", name, folder=folder, look=progress.tick)
    return {"benchmark": "confidence", "snr": snr, "n_classes": n_classes, "seed": seed, "particles": N,
            "views": VIEWS, "run_cpu": round(run.cpu_seconds, 2), "halves_cpu": round(halves.cpu_seconds, 2),
            **judged(folder / stack / "truth.star", folder / name), "environment": environment()}


def judged(truth, run_folder):
    """How far stability and probabilities of a run folder agree with the views of truth.star, in its order."""
    told = read_star(run_folder / "half_sets.star")
    rows, classes = told["particles"], told["classes"]
    number = rows["rlnClassNumber"].astype(int) - 1
    views = dict(zip(*(read_star(truth)["particles"][label] for label in ("rlnImageName", "rlnClassNumber"))))
    view = np.array([int(views[name]) for name in rows["rlnImageName"]])
    counts = np.zeros((len(classes["rlnClassNumber"]), view.max() + 1))
    np.add.at(counts, (number, view), 1)
    right = counts.argmax(axis=1)[number] == view
    used = counts.sum(axis=1) > 0
    purity = counts.max(axis=1)[used] / counts.sum(axis=1)[used]
    stability = classes["vitreaStability"].astype(float)[used]
    found = {name: rows[label].astype(float) for name, label in (
        ("raw", "vitreaUncalibratedProbability"), ("calibrated", "vitreaClassProbability"),
        ("stability", "vitreaStability"))}
    errors = {f"error_{name}": round(calibration_error(reliability(found[name], right, BINS)), 4)
              for name in ("raw", "calibrated")}
    return {"right": round(float(right.mean()), 4), **{name: round(float(x.mean()), 4) for name, x in found.items()},
            **errors, "order": round(float(spearmanr(stability, purity).statistic), 3)}


def row(record):
    return (f"{record['snr']:g}", record["n_classes"], record["seed"], *(f"{record[name]:.3f}" for name in (
        "right", "raw", "calibrated", "error_raw", "error_calibrated", "stability")), f"{record['order']:.2f}",
        f"{record['halves_cpu']:.0f}", f"{record['halves_cpu'] / record['run_cpu']:.0%}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--snr", type=float, nargs="+", default=[0.1, 0.05, 0.03], help="var(signal)/var(noise) (default 0.1 0.05 "
        "0.03)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of stacks and runs (default 0 1 2)")
    add("--classes", type=int, nargs="+", default=[12, 16], metavar="K", help=f"classes, of {VIEWS} views (default 12 "
        "16)")
    add("--keep", type=Path, metavar="DIR", help="keep stacks and runs here")
    add("--output", type=Path, default=RESULTS / "confidence.jsonl", metavar="FILE", help="records, a JSON line a run "
        "(default benchmarks/results/confidence.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    with ended_by_signals():
        main()
