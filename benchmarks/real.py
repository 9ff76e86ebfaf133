#!/usr/bin/env python3
"""classify2d on the real stacks of VITREA_DATA: runs them to the end and keeps the galleries, to be looked at.

KLH, apoferritin and β-galactosidase come from prepare.py there (no defocus is known: `ctf: none`); the small stacks are
as RELION wrote them (5 to 17 particles: they try readers and odd metadata, not classification). Only KLH's particles
carry a label, side or top: how often each occurs in each class is printed. One JSON line a run, then a table.

example:  python benchmarks/real.py --set klh apoferritin betagal --keep real
          python benchmarks/real.py --set klh --classes 6 --key seed=3 --pictures docs/pictures
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from vitrea.benchmarks.measure import (
    HERE,
    RESULTS,
    append_line,
    classify,
    ended_by_signals,
    environment,
    iterations_of,
    made_folder,
    table,
)
from vitrea.benchmarks.progress import Progress
from vitrea.engine.star import read_star

LARGEST_PICTURE = 300_000     # bytes
# K and keys of the job of every set. Diameters [Å] are a little more than the particle's longest axis, except for
# β-galactosidase, whose micrographs are crowded: a wider mask lets the neighbours in.
PREPARED = {
    "klh": {"n_classes": 4, "particle_diameter": 420, "ctf": "none", "offset_range": 6},
    "apoferritin": {"n_classes": 8, "particle_diameter": 130, "ctf": "none"},
    "betagal": {"n_classes": 20, "particle_diameter": 180, "ctf": "none", "max_resolution": 40, "mask_edge": 10},
}
SMALL = {
    "relion31": ("relion31.star", {"n_classes": 1, "particle_diameter": 600, "normalise": "always"}),
    "empiar_10076": ("empiar_10076_7.star", {"n_classes": 1, "particle_diameter": 300, "normalise": "always",
                                             "invert_contrast": "true"}),
    "sample": ("sample_relion_data.star", {"n_classes": 2, "particle_diameter": 220, "normalise": "always"}),
}
COLUMNS = ("set", "particles", "box", "Å/px", "K", "empty", "largest", "resolution [Å]", "iterations", "CPU s", "MB",
           "seen in truth")


def main():
    arguments = parse()
    data = Path(os.environ.get("VITREA_DATA", HERE.parent.parent / "shared" / "data")).resolve()
    if not data.is_dir():
        sys.exit(f"{data} is not there: set VITREA_DATA to the folder of real data")
    records, progress = [], Progress()
    with tempfile.TemporaryDirectory(prefix="vitrea-real-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        for name in arguments.set:
            star, keys = job_of(name, data, folder)
            keys |= {"n_classes": arguments.classes} if arguments.classes else {}
            keys |= dict(pair.split("=", 1) for pair in arguments.key)
            progress.step(f"{name}: classify2d")
            record = one_run(folder, name, star, keys)
            records.append(record)
            append_line(arguments.output, record)
            if arguments.keep:
                progress.result(f"{name}: {folder / ('run_' + name) / 'classes.png'}")
            if arguments.pictures:
                shrink(folder / f"run_{name}" / "classes.png", Path(arguments.pictures) / f"{name}.png")
    progress.result("\n" + table(COLUMNS, [row(record) for record in records]))


def job_of(name, data, folder):
    """The STAR file of a set, made if need be, and the keys of its job."""
    if name in SMALL:
        star, keys = SMALL[name]
        return data / "stacks_small" / star, dict(keys)
    if not (folder / name / "particles.star").exists():
        subprocess.run([sys.executable, data / "prepare.py", folder], check=True)
    return folder / name / "particles.star", dict(PREPARED[name])


def one_run(folder, name, star, keys):
    """Run one set in `folder`: its record."""
    run = f"run_{name}"
    shutil.rmtree(folder / run, ignore_errors=True)
    measured, records = classify(folder, {"input": star, **keys}, run)
    started = next(record for record in records if record["kind"] == "start")
    last = iterations_of(records)[-1]
    sizes = last["class_sizes"]
    record = {"benchmark": "real", "set": name, "keys": keys, "particles": started["particles"],
              "box": started["box_size"], "pixel_size": started["pixel_size"], "n_classes": started["n_classes"],
              "empty_classes": sum(size == 0 for size in sizes), "class_sizes": sizes, "resolution": last["resolution"],
              "iterations": len(iterations_of(records)), "cpu_seconds": round(measured.cpu_seconds, 2),
              "wall_seconds": round(measured.wall_seconds, 2), "memory": measured.memory,
              "memory_said": started["memory_per_rank"], "labels": labels_by_class(folder / run / "run_data.star")}
    return record | environment()


def labels_by_class(star):
    """{class: {label: particles}} where particles carry more than one `vitreaTruth`, else {}."""
    particles = read_star(star)["particles"]
    labels = particles.get("vitreaTruth")
    if labels is None or len(set(labels)) < 2:
        return {}
    found = {}
    for number, label in zip(particles["rlnClassNumber"].tolist(), labels.tolist(), strict=True):
        found.setdefault(number, Counter())[label] += 1
    return {number: dict(found[number]) for number in sorted(found, key=int)}


def shrink(picture, target):
    """Write a gallery as a grey PNG of fewer than LARGEST_PICTURE bytes, made smaller by tenths where it must be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.open(picture).convert("L")
    for tenths in range(10, 0, -1):
        size = [round(0.1 * tenths * side) for side in whole.size]
        whole.resize(size, Image.Resampling.LANCZOS).save(target, optimize=True)
        if target.stat().st_size < LARGEST_PICTURE:
            return


def row(record):
    labels = "; ".join(f"{number}: " + " ".join(f"{count} {label}" for label, count in counts.items())
                       for number, counts in record["labels"].items())
    resolution = f"{record['resolution']:.1f}" if record["resolution"] else "–"
    return (record["set"], record["particles"], record["box"], f"{record['pixel_size']:.2f}", record["n_classes"],
            record["empty_classes"], max(record["class_sizes"]), resolution, record["iterations"],
            f"{record['cpu_seconds']:.0f}", f"{record['memory'] / 1e6:.0f}", labels or "–")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--set", nargs="+", default=list(PREPARED) + list(SMALL), choices=[*PREPARED, *SMALL], metavar="SET",
        help=f"which: {', '.join([*PREPARED, *SMALL])} (default all)")
    add("--classes", type=int, metavar="K", help="number of classes (default: one that suits the set)")
    add("--key", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the job other than the set's")
    add("--keep", metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    add("--pictures", metavar="DIR", help="write the galleries there as SET.png, each below 300 kB")
    add("--output", default=RESULTS / "real.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    with ended_by_signals():
        main()
