"""F1 of the picker against the number of labels, and with half of the labels missing.

    python -m vitrea.benchmarks.labels --set apoferritin --seeds 0 1 2 --steps 500

A number of labels is had by cropping the micrographs to an area that holds as many particles, so that within it the
labels are complete; with half of them missing it holds twice as many, of which every other one, drawn at random, is
labelled, once without a word and once with `expected_particles`. Micrographs that are tested are never trained on.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np

from vitrea.benchmarks.picking import SETS, Training, prepare, score_split
from vitrea.benchmarks.records import DEFAULT, keep, read_all, surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.star import write_star
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.micrographs import LEAST_SIDE

POOL = {"apoferritin": 6, "betagal": 2, "klh": 4}   # micrographs that labels are taken from; the others are tested
NUMBERS = (25, 50, 100, 200, 400)
KINDS = ("complete", "half missing", "half missing, told")


def main(argv=None):
    """Measure every number, kind and seed, print a table of F1, and keep the records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.labels", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--set", choices=sorted(POOL), default="apoferritin")
    add("--numbers", nargs="+", type=int, default=NUMBERS, metavar="N", help="labels (default 25 50 100 200 400)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which labels are there (default: all three)")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="S", help="seeds (default 0 1 2)")
    add("--steps", type=int, metavar="N", help="steps of training (default: the recipe's)")
    add("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (default %(default)s)")
    add("--from", dest="read", type=Path, metavar="FILE", help="measure nothing; table and plot of kept records")
    add("--plot", type=Path, metavar="PNG", help="also draw the table")
    add("--json", action="store_true", help="print the records, not the table")
    given = parser.parse_args(argv)
    try:
        records = kept(given) if given.read else measure(given)
        if given.plot:
            draw(records, given.plot)
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    if not given.json:
        print(table(records))
    return 0


def measure(given):
    """One record for each kind, number and seed, kept and, with --json, printed as soon as it is there."""
    records, comm = [], world()
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        prepare(given.set, Path(temporary))
        whole = Path(temporary) / given.set
        stems = sorted(path.stem for path in (whole / "coordinates").glob("*.star"))
        pool, tested = stems[:POOL[given.set]], stems[POOL[given.set]:]
        for i, (kind, number, seed) in enumerate(
                (kind, number, seed) for kind in given.kinds for number in given.numbers for seed in given.seeds):
            folder = Path(temporary) / f"case{i}"
            expected = take_labels(whole, folder, pool, (number, kind, seed))
            if expected is None:
                print(f"{given.set}: fewer particles than {kind} with {number} labels needs; left out",
                      file=sys.stderr)
                continue
            link(whole, folder, tested)
            trained_on = [stem for stem in pool if (folder / "micrographs" / f"{stem}.mrc").exists()]
            how = Training(seed=seed, steps=given.steps)
            found = score_split(folder, (trained_on, tested), SETS[given.set], how, comm,
                                expected if kind == KINDS[2] else None)
            records.append({"benchmark": "labels", "name": given.set, "kind": kind, "labels": number, "seed": seed,
                            "steps": given.steps, **found, **surroundings()})
            keep(given.records, records[-1])
            if given.json:
                print(json.dumps(records[-1]), flush=True)
    return records


def kept(given):
    """The records of a file that were measured on the set; JobError if there are none."""
    found = [each for each in read_all(given.read) if (each["benchmark"], each.get("name")) == ("labels", given.set)]
    if not found:
        raise JobError(f"{given.read}: found no records of labels on {given.set}; expected those that this benchmark "
                       "keeps; measure them first")
    return found


def take_labels(whole, folder, pool, case):
    """Write micrographs and coordinates with a number of labels into `folder`, from those of `whole`.

    case: (number, kind, seed). Micrographs are taken in the order of the pool, the last one cropped to rows; in the
    last row there may be a label or two more. Returns the particles on a micrograph in the mean, labelled or not; None
    if the pool has too few.
    """
    number, kind, seed = case
    missing, random = number * (1 if kind == KINDS[0] else 2), np.random.default_rng(seed)
    for part in ("micrographs", "coordinates", "ignore"):
        (folder / part).mkdir(parents=True)
    used = []
    for stem in pool:
        found = read_coordinates(whole / "coordinates" / f"{stem}.star")
        with mrcfile.open(whole / "micrographs" / f"{stem}.mrc", permissive=True) as mrc:
            image, size = np.array(mrc.data), float(mrc.voxel_size.x)
        if missing <= 0:
            break
        rows = len(image) if len(found) <= missing else _rows(found.y, missing, image)
        inside = np.flatnonzero(found.y < rows)
        used.append((stem, image[:rows], size, found.x[inside], found.y[inside]))
        missing -= len(inside)
    if missing > 0:
        return None
    total = sum(len(x) for *_, x, _ in used)
    chosen = np.sort(random.permutation(total)[:number]) if kind != KINDS[0] else np.arange(total)
    first = 0
    for stem, image, size, x, y in used:
        kept = chosen[(chosen >= first) & (chosen < first + len(x))] - first
        first += len(x)
        with mrcfile.new(folder / "micrographs" / f"{stem}.mrc", data=image) as mrc:
            mrc.voxel_size = size
        write_star(folder / "coordinates" / f"{stem}.star", {
            "": {"rlnCoordinateX": x[kept], "rlnCoordinateY": y[kept]}})
        link(whole, folder, [stem], ("ignore",))
    return total / len(used)


def _rows(y, number, image):
    """How many rows hold at least `number` particles; no fewer than an image must have."""
    return min(len(image), max(LEAST_SIDE, int(np.sort(y)[number - 1]) + 1))


def link(whole, folder, stems, parts=("micrographs", "coordinates", "ignore")):
    """Links in `folder` to all that a set has of some micrographs."""
    for part in parts:
        for stem in stems:
            for path in (whole / part).glob(f"{stem}.*"):
                (folder / part / path.name).symlink_to(path)


def table(records):
    """F1 by number of labels and kind: the median of the seeds, and in brackets the least and the greatest."""
    numbers = list(dict.fromkeys(record["labels"] for record in records))
    lines = ["| labels | " + " | ".join(map(str, numbers)) + " |", "|---" * (len(numbers) + 1) + "|"]
    for kind in dict.fromkeys(record["kind"] for record in records):
        cells = []
        for number in numbers:
            f1 = [record["f1"] for record in records if (record["kind"], record["labels"]) == (kind, number)]
            cells.append(f"{np.median(f1):.3f} ({min(f1):.3f}–{max(f1):.3f})" if f1 else "–")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(records, path):
    """F1 over the number of labels, a line for each kind: the median of the seeds, and dots for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind in dict.fromkeys(record["kind"] for record in records):
        of_kind = [record for record in records if record["kind"] == kind]
        numbers = sorted({record["labels"] for record in of_kind})
        f1 = [[record["f1"] for record in of_kind if record["labels"] == number] for number in numbers]
        line, = axes.plot(numbers, [np.median(each) for each in f1], label=kind)
        for number, each in zip(numbers, f1):
            axes.plot([number] * len(each), each, ".", color=line.get_color())
    axes.set(xscale="log", xlabel="labels trained on", ylabel="F1 on other micrographs", title=records[0]["name"])
    axes.set_xticks([], minor=True)
    axes.set_xticks(NUMBERS, map(str, NUMBERS))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
