"""Topaz and the picker here, trained on the same boxes of the same micrographs, tested on the same others.

    python -m vitrea.benchmarks.topaz --executable /path/to/topaz --set apoferritin --updates 1000

Topaz (Bepler et al. 2019, Nat. Methods 16:1153) is run by its own commands on one core: micrographs are brought to
PARTICLE_SIDE px a particle and normalised (`preprocess`), its default network is trained from its pretrained weights
(`train`), and picks are taken out no nearer to each other than ours may be (`extract`). Its threshold, like ours, is
the one of the largest F1 on the micrographs that were trained on. Without an executable it is left out.
"""
import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vitrea.benchmarks.picking import SETS, Training, places_and_discs, prepare, score_split, splits_of
from vitrea.benchmarks.records import DEFAULT, keep, surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.picker.evaluate import best_threshold, curve

PARTICLE_SIDE = 22     # px of a particle's diameter for Topaz, whose network sees 71 px
ONE_CORE = ("-d", "-1", "-j", "1")


def main(argv=None):
    """Measure both on one split, print them side by side, and keep the record; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.topaz", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--executable", default="topaz", metavar="PATH", help="Topaz's program (default: topaz on the PATH)")
    add("--set", choices=sorted(SETS), default="apoferritin", help="real images of VITREA_DATA (default %(default)s)")
    add("--split", type=int, default=0, metavar="I", help="which micrographs are trained on (default 0, the first)")
    add("--updates", type=int, default=1000, metavar="N", help="updates of Topaz's training (default 1000, one of its "
        "epochs; it takes 10 by default)")
    add("--steps", type=int, metavar="N", help="steps of our training (default: the recipe's)")
    add("--seed", type=int, default=0, metavar="S", help="of our training (default 0)")
    add("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (default %(default)s)")
    add("--json", action="store_true", help="print the record, not the table")
    given = parser.parse_args(argv)
    try:
        record = measure(given)
        keep(given.records, record)
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    print(json.dumps(record) if given.json else told(record))
    return 0


def measure(given):
    """The record: for each picker F1, precision, recall, CPU seconds of training and of a micrograph picked."""
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        prepare(given.set, Path(temporary))
        folder = Path(temporary) / given.set
        split = splits_of(folder, given.set)[given.split]
        how = Training(seed=given.seed, steps=given.steps)
        found = {"vitrea": score_split(folder, split, SETS[given.set], how, world())}
        if shutil.which(given.executable):
            found["topaz"] = _topaz(given, folder, split, SETS[given.set])
        else:
            print(f"{given.executable}: found no such program; Topaz is left out; pip install topaz-em, or give "
                  "--executable", file=sys.stderr)
    return {"benchmark": "topaz", "name": given.set, "trained": split[0], "tested": split[1], "steps": given.steps,
            "updates": given.updates, "seed": given.seed, **found, **surroundings()}


def _topaz(given, folder, split, specimen):
    """What Topaz comes to: as `score_split` has it, with its version and the arguments of its training."""
    work, pixel = folder / "topaz", read_header(next((folder / "micrographs").glob("*.mrc"))).pixel_size
    scale = max(1, round(specimen.diameter / PARTICLE_SIDE / pixel))
    work.mkdir()
    run = Runner(given.executable)
    parts = [_preprocessed(run, folder, work / part, stems, scale) for part, stems in zip(("train", "test"), split)]
    before_training = parts[0][1]
    labels = _write_targets(work / "targets.txt", folder, split[0], scale)
    arguments = ("train", "-n", f"{labels / len(split[0]):.0f}", "--train-images", parts[0][0], "--train-targets",
                 work / "targets.txt", "--num-epochs", "1", "--epoch-size", given.updates, "--num-workers", "0",
                 "--save-prefix", work / "model", "-o", work / "curve.txt", *ONE_CORE)
    train_seconds = run(*arguments) + before_training
    model = max(work.glob("model_epoch*.sav"), key=lambda path: path.stat().st_mtime)
    radius = max(1, round(specimen.min_distance * specimen.diameter / pixel / scale))
    picked = [_extracted(run, model, part, (radius, scale)) for part, _ in parts]
    scored = [[_scored(folder, found, stem, specimen.margin / pixel) for stem in stems]
              for (found, _), stems in zip(picked, split)]
    threshold, _ = _of_sorted(scored[0], specimen.radius)
    counts = curve(scored[1], specimen.radius).counts(threshold)
    return {"f1": counts.f(), "precision": counts.precision, "recall": counts.recall, "threshold": threshold,
            "best_f1_of_any_threshold": float(curve(scored[1], specimen.radius).f().max()),
            "train_cpu_seconds": train_seconds, "pick_cpu_seconds": (parts[1][1] + picked[1][1]) / len(split[1]),
            "version": run.version(), "arguments": [_said(each, folder) for each in arguments], "scale": scale}


def _said(word, folder):
    """A word of a command as a record tells it: a path as seen from the folder that is gone afterwards."""
    return str(word.relative_to(folder)) if isinstance(word, Path) else str(word)


class Runner:
    """Runs Topaz's commands; each call gives the seconds of CPU it took."""

    def __init__(self, executable):
        self.executable = executable

    def __call__(self, *arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def version(self):
        return self._run("--version").strip()

    def _run(self, *arguments):
        done = subprocess.run([self.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            last = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise JobError(f"{self.executable} {arguments[0]}: ended with {done.returncode}: {last}; expected a "
                           "working Topaz; try the command by hand")
        return done.stdout


def _preprocessed(run, folder, target, stems, scale):
    """(folder of normalised micrographs, seconds of CPU)."""
    seconds = run("preprocess", "-s", scale, "-o", target, *ONE_CORE,
                  *(folder / "micrographs" / f"{stem}.mrc" for stem in stems))
    return target, seconds


def _write_targets(path, folder, stems, scale):
    """Labels in Topaz's table, in pixels of the normalised micrographs; how many."""
    rows = [f"{stem}\t{round(x / scale)}\t{round(y / scale)}"
            for stem in stems for y, x in places_and_discs(folder, stem)[0]]
    path.write_text("\n".join(["image_name\tx_coord\ty_coord", *rows]) + "\n", encoding="utf-8")
    return len(rows)


def _extracted(run, model, folder, sizes):
    """({stem: rows of (y, x, score)} in pixels of the micrographs, seconds of CPU); sizes: (radius, scale)."""
    radius, scale = sizes
    table = folder.parent / f"{folder.name}.txt"
    seconds = run("extract", "-m", model, "-r", radius, "-x", scale, "-o", table, *ONE_CORE,
                  *sorted(folder.glob("*.mrc")))
    found = {}
    with table.open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found.setdefault(row["image_name"], []).append([float(row[name]) for name in (
                "y_coord", "x_coord", "score")])
    return found, seconds


def _scored(folder, found, stem, margin):
    """(picks, scores, truth, discs) of a micrograph, without the picks nearer than `margin` px to an edge."""
    rows = np.array(found.get(stem, [])).reshape(-1, 3)
    header = read_header(folder / "micrographs" / f"{stem}.mrc")
    apart = np.min([rows[:, 0], rows[:, 1], header.height - 1 - rows[:, 0], header.width - 1 - rows[:, 1]], axis=0)
    rows = rows[apart >= margin] if margin else rows
    return rows[:, :2], rows[:, 2], *places_and_discs(folder, stem)


def _of_sorted(scored, radius):
    """(threshold, Counts) of the largest F1; Topaz's scores are logarithms of odds and fall below zero."""
    found = curve(scored, radius)
    if not len(found.score):
        raise JobError("topaz extract: found no picks on the micrographs it was trained on; expected some; train it "
                       "with more --updates")
    return best_threshold(found, 1.0)


def told(record):
    """Both side by side."""
    lines = [f"{record['name']}   trained on {len(record['trained'])}, tested on {len(record['tested'])} micrographs",
             f"{'':<10}{'F1':>8}{'precision':>11}{'recall':>9}{'training':>12}{'a micrograph':>15}"]
    for name in ("vitrea", "topaz"):
        if name in record:
            row = record[name]
            lines.append(f"{name:<10}{row['f1']:>8.3f}{row['precision']:>11.3f}{row['recall']:>9.3f}"
                         f"{row['train_cpu_seconds']:>10.0f} s{row['pick_cpu_seconds']:>13.2f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
