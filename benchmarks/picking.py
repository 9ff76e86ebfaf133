"""`vitrea bench picker`: the jobs pick-train and pick on real micrographs, and their picks against hand-made centres.

The sets come from prepare.py of VITREA_DATA, into a temporary folder. Training and test never share a micrograph. The
threshold is the best of the micrographs that were trained on; nothing is chosen by those that are tested.
"""
import csv
import importlib.util
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.star import write_star
from vitrea.picker import pick_job, pick_train
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.evaluate import Counts, count
from vitrea.picker.options import PickOptions, PickTrainOptions
from vitrea.picker.results import coordinates_path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Specimen:
    """A set: diameter [Å], radius [px of the micrograph] within which a pick is right, least distance of two picks in
    diameters, margin [Å] without labels, and how many micrographs are trained on (0: all but one, in turn)."""

    diameter: float
    radius: float
    min_distance: float
    margin: float
    trained_on: int


SETS = {
    "klh": Specimen(400.0, 60.0, 0.7, 0.0, 0),
    "apoferritin": Specimen(130.0, 20.0, 0.7, 0.0, 3),
    "betagal": Specimen(180.0, 40.0, 0.55, 212.0, 2),
}


def measure(name, how, progress=SILENCE):
    """The record of one set: F1, precision and recall (means over the splits), by split, and CPU seconds.

    how: (network, seed, steps of training or None).
    """
    specimen, comm = SETS[name], world()
    progress.step(f"{name}: micrographs prepared")
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        prepare(name, Path(temporary))
        folder = Path(temporary) / name
        stems = sorted(path.stem for path in (folder / "coordinates").glob("*.star"))
        splits = _splits(stems, specimen.trained_on)
        progress.step(f"{name}: trained on some micrographs, tested on others: splits", len(splits))
        found = []
        for i, split in enumerate(splits):
            found.append(_split(folder, i, split, specimen, how, comm))
            progress.done()
    means = {key: statistics.fmean(split[key] for split in found) for key in ("f1", "precision", "recall")}
    return {"benchmark": "picker", "name": name, **dict(zip(("network", "seed", "steps"), how)), **asdict(specimen),
            **means, "splits": found, "train_cpu_seconds": sum(split["train_cpu_seconds"] for split in found),
            "pick_cpu_seconds": statistics.fmean(split["pick_cpu_seconds"] for split in found), **surroundings()}


def prepare(name, out):
    """Run prepare.py of the data folder for one set; JobError if the data are not there."""
    data = Path(os.environ.get("VITREA_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (data / "prepare.py").exists():
        raise JobError(f"{data}: found no prepare.py; expected the real micrographs; set VITREA_DATA to their folder")
    spec = importlib.util.spec_from_file_location("prepare", data / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with redirect_stdout(StringIO()):
        module.prepare(name, out)


def _splits(stems, trained_on):
    """[(trained on, tested on)]: the first few and the others, or all but one in turn."""
    if trained_on:
        return [(stems[:trained_on], stems[trained_on:])]
    return [([other for other in stems if other != stem], [stem]) for stem in stems]


def _split(folder, number, split, specimen, how, comm):
    """Train, pick and score one split."""
    network, seed, steps = how
    lists = []
    for part, stems in zip(("train", "test"), split):
        lists.append(folder / f"{part}{number}.star")
        write_star(lists[-1], {"micrographs": {"rlnMicrographName": [str(folder / "micrographs" / f"{stem}.mrc")
                                                                     for stem in stems]}})
    training, picked = (folder / f"{part}{number}" for part in ("training", "picked"))
    train_seconds = _run(pick_train.run, PickTrainOptions(
        input=lists[0], output=training, coordinates=folder / "coordinates", ignore=folder / "ignore", holdout=0,
        diameter=specimen.diameter, network=network, min_distance=specimen.min_distance, steps=steps, f_beta=1.0,
        match_radius=specimen.radius * _pixel_size(folder) / specimen.diameter, edge_margin=specimen.margin, seed=seed),
        comm)
    pick_seconds = _run(pick_job.run, PickOptions(
        input=lists[1], output=picked, model=training / "model.npz", edge_margin=specimen.margin), comm)
    counts = sum((_score(folder, picked, stem, specimen.radius) for stem in split[1]), start=Counts(0, 0, 0))
    return {"tested": split[1], "f1": counts.f(), "precision": counts.precision, "recall": counts.recall,
            **asdict(counts), "train_cpu_seconds": train_seconds, "pick_cpu_seconds": pick_seconds / len(split[1])}


def _run(job, options, comm):
    """Run a job in this process, in silence; seconds of CPU."""
    options.output.mkdir()
    begin = time.process_time()
    with redirect_stdout(StringIO()):
        job(options, resume=False, comm=comm)
    return time.process_time() - begin


def _pixel_size(folder):
    from vitrea.engine.stacks import read_header

    return read_header(next((folder / "micrographs").glob("*.mrc"))).pixel_size


def _score(folder, picked, stem, radius):
    path = coordinates_path(picked, str(folder / "micrographs" / f"{stem}.mrc"))
    discs = folder / "ignore" / f"{stem}.csv"
    ignored = np.zeros((0, 3))
    if discs.exists():
        with discs.open() as file:
            rows = [(float(row["y"]), float(row["x"]), float(row["radius"])) for row in csv.DictReader(file)]
        ignored = np.array(rows).reshape(-1, 3)
    truth = read_coordinates(folder / "coordinates" / f"{stem}.star").places
    return count(read_coordinates(path).places, truth, radius, ignored)


def told(record):
    """The record for people."""
    lines = [f"picker     {record['name']}   {record['network']}   seed {record['seed']}",
             f"  F1       {record['f1']:.3f}   precision {record['precision']:.3f}   recall {record['recall']:.3f}   "
             f"within {record['radius']:g} px, mean of {len(record['splits'])} splits",
             f"  CPU      training {record['train_cpu_seconds']:.0f} s in all   picking "
             f"{record['pick_cpu_seconds']:.2f} s a micrograph"]
    if len(record["splits"]) > 1:
        lines.insert(2, "  splits   " + "   ".join(f"{split['f1']:.3f}" for split in record["splits"]))
    return "\n".join(lines)
