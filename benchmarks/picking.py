"""`vitrea bench picker`: the jobs pick-train and pick on real micrographs, and their picks against hand-made centres.

The sets come from prepare.py of VITREA_DATA, into a temporary folder. Training and test never share a micrograph. The
threshold is the best of the micrographs that were trained on; nothing is chosen by those that are tested. The set
`quality` is of images without particles: each specimen's model picks them, at its own threshold and pixel size, and
every pick is false.
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

import mrcfile
import numpy as np
from PIL import Image

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.star import write_star
from vitrea.picker import pick_job, pick_train
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.evaluate import Counts, count
from vitrea.picker.modelfile import read_model
from vitrea.picker.options import PickOptions, PickTrainOptions
from vitrea.picker.results import coordinates_path

QUALITY, EMPTY = "quality", "[35]*/*.png"   # classes 3 and 5: no ice, and ice without particles
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
    if name == QUALITY:
        return measure_empty(how, progress)
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
            found.append(score_split(folder, split, specimen, how, comm))
            for part in ("training", "picked"):
                (folder / part).rename(folder / f"{part}{i}")
            progress.done()
    means = {key: statistics.fmean(split[key] for split in found) for key in ("f1", "precision", "recall")}
    return {"benchmark": "picker", "name": name, **dict(zip(("network", "seed", "steps"), how)), **asdict(specimen),
            **means, "splits": found, "train_cpu_seconds": sum(split["train_cpu_seconds"] for split in found),
            "pick_cpu_seconds": statistics.fmean(split["pick_cpu_seconds"] for split in found), **surroundings()}


def measure_empty(how, progress=SILENCE):
    """The record of the images without particles: picks on each by the model of each specimen, and the most of all."""
    images = sorted((_data() / QUALITY).glob(EMPTY))
    if not images:
        raise JobError(f"{_data() / QUALITY}: found no images of classes 3 and 5; expected the quality set; set "
                       "VITREA_DATA to its folder")
    progress.step("quality: a model of each specimen picks images without particles: specimens", len(SETS))
    picks = {}
    for name in SETS:
        picks[name] = _picks_on(images, name, how)
        progress.done()
    every = [n for of_name in picks.values() for n in of_name]
    return {"benchmark": "picker", "name": QUALITY, **dict(zip(("network", "seed", "steps"), how)),
            "images": [str(path.relative_to(_data())) for path in images], "picks": picks, "most": max(every),
            "mean": statistics.fmean(every), **surroundings()}


def _picks_on(images, name, how):
    """How many picks the model of a specimen, trained as in its first split, finds on each image."""
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        prepare(name, Path(temporary))
        folder, comm = Path(temporary) / name, world()
        stems = sorted(path.stem for path in (folder / "coordinates").glob("*.star"))
        _train(folder, _splits(stems, SETS[name].trained_on)[0][0], SETS[name], how, comm)
        model = read_model(folder / "training" / "model.npz")
        for i, path in enumerate(images):
            # Of these images nobody knows the pixel size: they are taken for micrographs of the network's own.
            with Image.open(path) as image, mrcfile.new(folder / f"empty{i}.mrc",
                                                        data=np.asarray(image.convert("L"), np.float32)) as mrc:
                mrc.voxel_size = model.picker.preparation.pixel_size
        _run(pick_job.run, PickOptions(input=folder / "empty*.mrc", output=folder / "empty", pictures=0,
                                       model=folder / "training" / "model.npz"), comm)
        return [len(read_coordinates(coordinates_path(folder / "empty", str(folder / f"empty{i}.mrc"))))
                for i in range(len(images))]


def _data():
    """The folder of the real data; JobError if it is not there."""
    data = Path(os.environ.get("VITREA_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (data / "prepare.py").exists():
        raise JobError(f"{data}: found no prepare.py; expected the real micrographs; set VITREA_DATA to their folder")
    return data


def prepare(name, out):
    """Run prepare.py of the data folder for one set; JobError if the data are not there."""
    data = _data()
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


def score_split(folder, split, specimen, how, comm, expected_particles=None):
    """Train on split[0] of a set in `folder`, pick and score split[1]: F1, precision, recall, Counts, CPU seconds."""
    train_seconds = _train(folder, split[0], specimen, how, comm, expected_particles)
    picked = folder / "picked"
    pick_seconds = _run(pick_job.run, PickOptions(
        input=_listed(folder, "test", split[1]), output=picked, edge_margin=specimen.margin, pictures=0,
        model=folder / "training" / "model.npz"), comm)
    counts = sum((_score(folder, picked, stem, specimen.radius) for stem in split[1]), start=Counts(0, 0, 0))
    return {"tested": split[1], "f1": counts.f(), "precision": counts.precision, "recall": counts.recall,
            **asdict(counts), "train_cpu_seconds": train_seconds, "pick_cpu_seconds": pick_seconds / len(split[1])}


def _train(folder, stems, specimen, how, comm, expected_particles=None):
    """Train on some micrographs of a set into training/; seconds of CPU."""
    network, seed, steps = how
    return _run(pick_train.run, PickTrainOptions(
        input=_listed(folder, "train", stems), output=folder / "training", coordinates=folder / "coordinates",
        ignore=folder / "ignore", holdout=0, diameter=specimen.diameter, network=network, steps=steps, f_beta=1.0,
        min_distance=specimen.min_distance, edge_margin=specimen.margin, expected_particles=expected_particles,
        match_radius=specimen.radius * _pixel_size(folder) / specimen.diameter, seed=seed), comm)


def _listed(folder, name, stems):
    """A STAR file that lists some micrographs of a set."""
    path = folder / f"{name}.star"
    write_star(path, {"micrographs": {"rlnMicrographName": [str(folder / "micrographs" / f"{stem}.mrc")
                                                            for stem in stems]}})
    return path


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
    if record["name"] == QUALITY:
        return _told_empty(record)
    lines = [f"picker     {record['name']}   {record['network']}   seed {record['seed']}",
             f"  F1       {record['f1']:.3f}   precision {record['precision']:.3f}   recall {record['recall']:.3f}   "
             f"within {record['radius']:g} px, mean of {len(record['splits'])} splits",
             f"  CPU      training {record['train_cpu_seconds']:.0f} s in all   picking "
             f"{record['pick_cpu_seconds']:.2f} s a micrograph"]
    if len(record["splits"]) > 1:
        lines.insert(2, "  splits   " + "   ".join(f"{split['f1']:.3f}" for split in record["splits"]))
    return "\n".join(lines)


def _told_empty(record):
    names = [Path(image).parent.name[:24] for image in record["images"]]
    return "\n".join([
        f"picker     images without particles   {record['network']}   seed {record['seed']}",
        *(f"  {name:<12} picks " + "   ".join(f"{n} ({words})" for n, words in zip(picks, names))
          for name, picks in record["picks"].items()),
        f"  most {record['most']}   mean {record['mean']:.2f} an image"])
