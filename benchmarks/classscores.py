#!/usr/bin/env python3
"""The weights of class scores: learned on simulated runs whose junk is known, judged on others and on real stacks.

`figures` runs classify2d on stacks in which a part of the images is junk, and appends one JSON line a run: the figures
of each class (engine/class_scores.py), its particles, and how many of them are junk. Simulated junk is pure noise,
off-centre particles and close neighbours, or background of micrographs with carbon and ice; in the real stacks of
VITREA_DATA it is background cut from the same micrographs, away from every label. Runs that are held back have no part
in the training, some of them of other specimens, nor have real stacks. `train` fits a logistic regression to the runs
for training and writes engine/class_scores.json; `judge` prints precision and recall by set. A class is junk if at
least half of its particles are.

example:  python benchmarks/classscores.py figures && python benchmarks/classscores.py train judge
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from vitrea.benchmarks.measure import (
    HERE,
    RESULTS,
    append_line,
    classify,
    ended_by_signals,
    environment,
    read_lines,
    table,
    vitrea,
)
from vitrea.engine.class_scores import WEIGHTS, WORDS, class_figures
from vitrea.engine.files import written_beside
from vitrea.engine.finished import read_finished
from vitrea.engine.star import read_star, write_star

RECORDS = RESULTS / "classscores.jsonl"
DATA = Path(os.environ.get("VITREA_DATA", HERE.parent.parent / "shared" / "data")).resolve()
JUNK = 0.3
RIDGE = 1.0            # penalty of a squared weight, in classes: figures that say the same share their weight
AGAINST = ("edge", "offset", "stripes")   # the more, the worse; of all others more is better
LEAST_PARTICLES = 5    # of a class that is learned from or judged
THRESHOLD = 0.5
SPECIMENS = {"bgal": ["--map", DATA / "maps" / "betaGal.mrc"],
             "proteasome": ["--model", DATA / "structures" / "3c91.pdb.gz"]}
# set: for training?, specimen, box [px], pixel size [Å], diameter [Å], SNR, views, classes, seed
SIMULATED = {
    "train-1": (True, None, 48, 5.0, 190, 0.1, 8, 14, 1),
    "train-2": (True, None, 64, 4.0, 200, 0.03, 8, 16, 2),
    "train-3": (True, None, 48, 5.0, 190, 0.3, 20, 12, 3),
    "train-4": (True, "bgal", 56, 4.4, 190, 0.1, 10, 16, 4),
    "train-5": (True, "bgal", 48, 5.0, 190, 0.03, 6, 10, 5),
    "train-6": (True, "bgal", 64, 3.6, 190, 0.05, 20, 20, 6),
    "held-builtin": (False, None, 56, 4.4, 200, 0.05, 12, 16, 11),
    "held-bgal": (False, "bgal", 56, 4.0, 190, 0.07, 12, 16, 12),
    "held-proteasome": (False, "proteasome", 56, 4.4, 190, 0.05, 12, 16, 13),
    "held-proteasome-low": (False, "proteasome", 48, 5.0, 190, 0.02, 8, 12, 14),
}
# set: box [px of the micrograph], after scaling [px], diameter [Å], classes, further keys
REAL = {
    "apoferritin": (160, 56, 130, 12, {"offset_range": 5}),
    "klh": (256, 56, 420, 6, {"offset_range": 6}),
    "betagal": (160, 56, 180, 16, {"max_resolution": 35}),
}
# Simulated micrographs with much carbon and ice, whose background is learned from: box, scaled box, diameter, classes.
SCENES = {"train-carbon": (108, 54, 180, 10, {})}
SCENE = ["--n", 6, "--size", 1400, 1400, "--pixel-size", 2.5, "--diameter", 180, "--particles", 90, "--snr", 0.1,
         "--carbon", 0.7, "--contamination", 6, "--aggregates", 0, "--overlapping", 0, "--seed", 7]
DISTANCE = 1.0         # diameters from every label at which background begins


def main():
    arguments = parse()
    if "figures" in arguments.what:
        with tempfile.TemporaryDirectory(prefix="vitrea-scores-") as temporary:
            for name in arguments.set:
                make = simulated_run if name in SIMULATED else real_run
                append_line(arguments.records, make(Path(temporary), name, arguments.n) | environment())
    records = latest(arguments.records)
    if "train" in arguments.what:
        write_weights(fit([each for each in records if each["training"]]))
    if "judge" in arguments.what:
        print(table(("set", "training", "classes", "junk", "by class: precision", "recall", "by particle: precision",
                     "recall", "before"), [row(each) for each in records]))


def latest(path):
    """The last record of each set."""
    return list({each["set"]: each for each in read_lines(path)}.values())


# ---- runs with known junk

def simulated_run(folder, name, n):
    training, specimen, box, pixel, diameter, snr, views, classes, seed = SIMULATED[name]
    more = SPECIMENS[specimen] if specimen else []
    vitrea("simulate", "particles", "--out", name, "--n", n, "--views", views, "--box", box, "--pixel-size", pixel,
           "--snr", snr, "--seed", seed, "--junk", JUNK, "--threads", 1, *more, folder=folder)
    classify(folder, {"input": f"{name}/particles.star", "n_classes": classes, "particle_diameter": diameter,
                      "max_iterations": 15, "seed": seed}, name=f"run_{name}")
    truth = read_star(folder / name / "truth.star")["particles"]
    junk = dict(zip(truth["rlnImageName"].tolist(), (truth["vitreaJunk"] != "none").tolist()))
    return record_of(folder / f"run_{name}", name, training, diameter, junk)


def real_run(folder, name, n):
    """Labelled particles and as much background as makes JUNK of all."""
    box, scaled, diameter, classes, keys = (REAL | SCENES)[name]
    if name in SCENES:
        vitrea("simulate", "micrographs", "--out", folder / "prepared" / name, *SCENE, folder=folder)
    elif not (folder / "prepared" / name).exists():
        subprocess.run([sys.executable, DATA / "prepare.py", folder / "prepared"], check=True, capture_output=True)
    prepared = folder / "prepared" / name
    pixel = add_background(prepared, folder / f"mixed_{name}", diameter)
    lines = {"job": "extract", "input": f"'{prepared}/micrographs/*.mrc'", "output": f"stack_{name}",
             "coordinates": f"mixed_{name}", "box_size": box, "scaled_size": scaled, "diameter": diameter,
             "pixel_size": pixel}
    (folder / "extract.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    vitrea("run", "extract.yaml", folder=folder)
    classify(folder, {"input": f"stack_{name}/particles.star", "n_classes": classes, "particle_diameter": diameter,
                      "ctf": "none", "max_iterations": 15, **keys}, name=f"run_{name}")
    rows = read_star(folder / f"run_{name}" / "run_data.star")["particles"]
    known = {path.stem: read_star(path)["coordinates"] for path in (folder / f"mixed_{name}").glob("*.star")}
    junk = {image: is_junk(known[Path(micrograph).stem], float(x), float(y)) for image, micrograph, x, y in zip(*(
        rows[label].tolist() for label in ("rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")))}
    return record_of(folder / f"run_{name}", name, name in SCENES, diameter, junk)


def add_background(prepared, out, diameter):
    """Coordinates of each micrograph with places of background added; the pixel size [Å/px]."""
    import mrcfile

    out.mkdir()
    random = np.random.default_rng(0)
    for path in sorted((prepared / "coordinates").glob("*.star")):
        with mrcfile.open(prepared / "micrographs" / f"{path.stem}.mrc", header_only=True) as file:
            width, height, pixel = int(file.header.nx), int(file.header.ny), float(file.voxel_size.x)
        columns = next(iter(read_star(path).values()))
        centres = np.stack([columns["rlnCoordinateX"], columns["rlnCoordinateY"]], axis=1).astype(float)
        wanted, far, margin = round(len(centres) * JUNK / (1 - JUNK)), DISTANCE * diameter / pixel, diameter / pixel
        tried = random.uniform(margin, np.array([width, height]) - margin, (20_000, 2))
        apart = np.hypot(*(tried[:, None] - centres).transpose(2, 0, 1)).min(axis=1) > far
        found = np.concatenate([centres, tried[apart][:wanted]])
        kind = np.repeat([0, 1], [len(centres), len(found) - len(centres)])
        write_star(out / path.name, {"coordinates": {"rlnCoordinateX": found[:, 0], "rlnCoordinateY": found[:, 1],
                                                     "vitreaBackground": kind}})
    return pixel


def is_junk(known, x, y):
    """Whether the place nearest to (x, y) is background."""
    distance = np.hypot(known["rlnCoordinateX"].astype(float) - x, known["rlnCoordinateY"].astype(float) - y)
    return bool(known["vitreaBackground"].astype(float)[distance.argmin()])


def record_of(folder, name, training, diameter, junk):
    """The record of a run; junk: {image name: whether it is junk}."""
    run = read_finished(folder)
    figures = class_figures(run, diameter)
    each = np.array([junk[image] for image in run.particles["rlnImageName"].tolist()])
    counts = np.bincount(run.class_number, each, run.n_classes).astype(int)
    return {"benchmark": "classscores", "set": name, "training": training, "diameter": diameter,
            "particles": run.sizes.tolist(), "junk": counts.tolist(),
            "figures": {key: [None if np.isnan(value) else round(float(value), 5) for value in values]
                        for key, values in figures.items()}}


# ---- learning and judging

def columns_of(record, names):
    """(figures float64[C, F], particles, junk) of the classes of a record that have enough particles."""
    particles, junk = (np.array(record[key]) for key in ("particles", "junk"))
    figures = np.array([record["figures"][name] for name in names], dtype=float).T
    used = particles >= LEAST_PARTICLES
    return figures[used], particles[used], junk[used]


def fit(records):
    """What class_scores.json holds, from the records for training; every run weighs the same."""
    names = list(WORDS)
    parts = [columns_of(record, names) for record in records]
    figures = np.concatenate([part[0] for part in parts])
    good = np.concatenate([part[2] < 0.5 * part[1] for part in parts])
    # A class that is half junk says nothing of either kind.
    sure = np.concatenate([np.abs(1 - 2 * part[2] / part[1]) for part in parts])
    mean, deviation = np.nanmean(figures, axis=0), np.nanstd(figures, axis=0)
    scaled = np.nan_to_num((figures - mean) / deviation)

    def loss(parameters):
        logit = parameters[0] + scaled @ parameters[1:]
        error = sure * np.logaddexp(0, np.where(good, -logit, logit))
        slope = sure * np.where(good, -1, 1) / (1 + np.exp(np.where(good, logit, -logit)))
        weights = parameters[1:]
        return (error.sum() + 0.5 * RIDGE * weights @ weights,
                np.concatenate([[slope.sum()], scaled.T @ slope + RIDGE * weights]))

    # A weight of the wrong sign would be an accident of few junk classes, and a reason that nobody believes.
    bounds = [(None, None), *((None, 0) if name in AGAINST else (0, None) for name in names)]
    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x

    def rounded(values):
        return {name: round(float(value), 5) for name, value in zip(names, values)}

    return {"trained_on": {"sets": [each["set"] for each in records], "classes": len(good), "junk": int((~good).sum()),
                           "script": "benchmarks/classscores.py"},
            "bias": round(float(found[0]), 5), "weights": rounded(found[1:]), "mean": rounded(mean),
            "deviation": rounded(deviation)}


def write_weights(learned):
    with written_beside(WEIGHTS) as beside:
        beside.write_text(json.dumps(learned, indent=1) + "\n", encoding="utf-8")


def scores_of(record, learned):
    """(score float64[C], particles, junk) by the weights."""
    names = list(learned["weights"])
    figures, particles, junk = columns_of(record, names)
    mean, deviation, weight = (np.array([learned[key][name] for name in names])
                               for key in ("mean", "deviation", "weights"))
    logit = learned["bias"] + np.nan_to_num(weight * (figures - mean) / deviation).sum(axis=1)
    return 1 / (1 + np.exp(-logit)), particles, junk


def row(record):
    score, particles, junk = scores_of(record, json.loads(WEIGHTS.read_text()))
    kept, good = score >= THRESHOLD, junk < 0.5 * particles
    true = particles - junk
    values = (np.sum(kept & good) / max(kept.sum(), 1), np.sum(kept & good) / max(good.sum(), 1),
              true[kept].sum() / max(particles[kept].sum(), 1), true[kept].sum() / max(true.sum(), 1),
              true.sum() / max(particles.sum(), 1))
    return (record["set"], "yes" if record["training"] else "no", len(score), int((~good).sum()),
            *(f"{value:.3f}" for value in values))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="+", choices=("figures", "train", "judge"))
    add("--set", nargs="+", default=[*SIMULATED, *SCENES, *REAL], choices=[*SIMULATED, *SCENES, *REAL], metavar="NAME")
    add("--n", type=int, default=1200, help="simulated particles of a run (default 1200)")
    add("--records", type=Path, default=RECORDS, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    ended_by_signals()
    main()
