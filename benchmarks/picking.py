"""`vitrea bench picker`: the jobs pick-train and pick on real micrographs, and their picks against hand-made centres.

The sets come from prepare.py of VITREA_DATA, into a temporary folder. Training and test never share a micrograph. The
threshold is the best of the micrographs that were trained on, by the network itself or by networks trained on the
others of them (--folds); nothing is chosen by those that are tested. Every model
also picks real images without particles, where every pick is false.
"""
import csv
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
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
SCORES, SECONDS = ("f1", "precision", "recall"), ("train_cpu_seconds", "pick_cpu_seconds")
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Specimen:
    """A set: diameter [Å], radius [px of the micrograph] within which a pick is right, least distance of two picks in
    diameters, margin [Å] without labels, and how many micrographs are trained on (0: all but one, in turn).

    Of β-galactosidase, 180 Å long, the labels trained on tell the others: 99 in 100 lie 0.55 diameters or more from
    their neighbours, and none nearer than 229 Å to an edge.
    """

    diameter: float
    radius: float
    min_distance: float
    margin: float
    trained_on: int


SETS = {
    "klh": Specimen(400.0, 60.0, 0.7, 0.0, 0),
    "apoferritin": Specimen(130.0, 20.0, 0.7, 0.0, 3),
    "betagal": Specimen(180.0, 40.0, 0.55, 229.0, 2),
}


@dataclass(frozen=True)
class Training:
    """A training: network, start of the random draws, steps (None: the recipe's), and the parts that the micrographs
    are cut into to choose the threshold, each judged by a network trained on the others (0: by the network itself)."""

    network: str = "vitrea"
    seed: int = 0
    steps: int | None = None
    folds: int = 0


@dataclass(frozen=True)
class Choice:
    """Which splits of a set are measured: those of the micrographs that the first one trains on, each left out in turn
    (inner), and of these or of the set's own some by their numbers from 0 (None: all)."""

    inner: bool = False
    numbers: list | None = None

    def of(self, splits):
        """Some [(trained on, tested on)] of splits; JobError for a number beyond them."""
        if self.inner:
            splits = _splits(splits[0][0], 0)
        for number in self.numbers or ():
            if not 0 <= number < len(splits):
                raise JobError(f"--splits {number}: the set has {len(splits)} split{'s' * (len(splits) > 1)}; expected "
                               f"a number from 0 to {len(splits) - 1}; leave --splits out for all of them")
        return splits if self.numbers is None else [splits[number] for number in self.numbers]


def measure(name, how, seeds, choice=None, progress=SILENCE):
    """The record of one set: F1, precision and recall, the medians over seeds of the means over splits; every seed's
    own means and splits; and CPU seconds of a training and of a micrograph picked, the medians.

    how: a Training, of each seed; choice: a Choice, by default the set's own splits.
    """
    choice = choice or Choice()
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        progress.step(f"{name}: micrographs prepared")
        prepare(name, Path(temporary))
        folder = Path(temporary) / name
        splits = choice.of(splits_of(folder, name))
        progress.step(f"{name}: trained on some micrographs, tested on others: splits", len(splits) * len(seeds))
        runs = [{"seed": seed, **_over_splits(folder, splits, SETS[name], replace(how, seed=seed), progress)}
                for seed in seeds]
    return {"benchmark": "picker", "name": name, "network": how.network, "seeds": list(seeds), "steps": how.steps,
            "folds": how.folds, **asdict(SETS[name]), "inner": choice.inner, "chosen_splits": choice.numbers,
            **{key: statistics.median(run[key] for run in runs) for key in (*SCORES, *SECONDS)}, "runs": runs,
            **surroundings()}


def _over_splits(folder, splits, specimen, how, progress):
    """Means over the splits of one seed, and each split."""
    found = []
    for split in splits:
        found.append(score_split(folder, split, specimen, how, world()))
        found[-1]["empty"] = empty_picks(folder, world())
        for part in ("training", "picked"):
            shutil.rmtree(folder / part)
        progress.done()
    return {**{key: statistics.fmean(split[key] for split in found) for key in (*SCORES, *SECONDS)}, "splits": found}


def empty_picks(folder, comm):
    """{image: picks} of the model in training/ on real images without particles, at its own threshold; every pick is
    false. Nobody knows the pixel size of these images: they are taken for micrographs of the network's own."""
    images = sorted((_data() / QUALITY).glob(EMPTY))
    model, made = read_model(folder / "training" / "model.npz"), folder / "empty"
    if not images:
        return {}
    made.mkdir()
    for i, path in enumerate(images):
        with Image.open(path) as image, mrcfile.new(made / f"{i}.mrc",
                                                    data=np.asarray(image.convert("L"), np.float32)) as mrc:
            mrc.voxel_size = model.picker.preparation.pixel_size
    run_job(pick_job.run, PickOptions(input=made / "*.mrc", output=made / "picked", pictures=0, skip_limit=1.0,
                                   model=folder / "training" / "model.npz"), comm)
    picks = {f"{path.parent.name[:7]} {path.stem[:7]}": len(read_coordinates(coordinates_path(
        made / "picked", str(made / f"{i}.mrc")))) for i, path in enumerate(images)}
    shutil.rmtree(made)
    return picks


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


def splits_of(folder, name):
    """[(trained on, tested on)] of a set in `folder`: names of micrographs without their suffix."""
    return _splits(sorted(path.stem for path in (folder / "coordinates").glob("*.star")), SETS[name].trained_on)


def _splits(stems, trained_on):
    """[(trained on, tested on)]: the first few and the others, or all but one in turn."""
    if trained_on:
        return [(stems[:trained_on], stems[trained_on:])]
    return [([other for other in stems if other != stem], [stem]) for stem in stems]


def score_split(folder, split, specimen, how, comm, expected_particles=None):
    """Train on split[0] of a set in `folder`, pick and score split[1]: F1, precision, recall, Counts, CPU seconds."""
    options = PickTrainOptions(**training_options(folder, split[0], specimen, how) | {
        "expected_particles": expected_particles})
    train_seconds = run_job(pick_train.run, options, comm)
    found = pick_and_score(folder, split[1], specimen, options.output / "model.npz", comm)
    return {**found, "train_cpu_seconds": train_seconds}


def pick_and_score(folder, stems, specimen, model, comm):
    """Pick some micrographs of a set into picked/, which is made anew: F1, precision, recall, Counts, CPU seconds a
    micrograph."""
    picked = folder / "picked"
    shutil.rmtree(picked, ignore_errors=True)
    seconds = run_job(pick_job.run, PickOptions(input=listed(folder, "test", stems), output=picked, model=model,
                                                edge_margin=specimen.margin, pictures=0), comm)
    counts = sum((_score(folder, picked, stem, specimen.radius) for stem in stems), start=Counts(0, 0, 0))
    return {"tested": stems, "f1": counts.f(), "precision": counts.precision, "recall": counts.recall,
            **asdict(counts), "pick_cpu_seconds": seconds / len(stems)}


def training_options(folder, stems, specimen, how):
    """Keys of a pick-train job, {name: value}, on some micrographs of a set; how: a Training."""
    return {"input": listed(folder, "train", stems), "output": folder / "training",
            "coordinates": folder / "coordinates", "ignore": folder / "ignore", "holdout": 0,
            "folds": how.folds, "diameter": specimen.diameter, "network": how.network, "steps": how.steps,
            "f_beta": 1.0, "seed": how.seed,
            "min_distance": specimen.min_distance, "edge_margin": specimen.margin,
            "match_radius": specimen.radius * _pixel_size(folder) / specimen.diameter}


def listed(folder, name, stems):
    """A STAR file that lists some micrographs of a set."""
    path = folder / f"{name}.star"
    write_star(path, {"micrographs": {"rlnMicrographName": [str(folder / "micrographs" / f"{stem}.mrc")
                                                            for stem in stems]}})
    return path


def run_job(job, options, comm):
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
    truth, discs = places_and_discs(folder, stem)
    return count(read_coordinates(path).places, truth, radius, discs)


def places_and_discs(folder, stem):
    """(labelled centres float[n, 2] (y, x), discs float[k, 3] (y, x, radius) in which nothing counts) of a micrograph
    of a set, px."""
    discs = folder / "ignore" / f"{stem}.csv"
    rows = []
    if discs.exists():
        with discs.open() as file:
            rows = [(float(row["y"]), float(row["x"]), float(row["radius"])) for row in csv.DictReader(file)]
    return read_coordinates(folder / "coordinates" / f"{stem}.star").places, np.array(rows).reshape(-1, 3)


def told(record):
    """The record for people."""
    runs = record["runs"]
    lines = [f"picker     {record['name']}   {record['network']}   seeds {' '.join(map(str, record['seeds']))}",
             f"  F1       {record['f1']:.3f}   precision {record['precision']:.3f}   recall {record['recall']:.3f}   "
             f"within {record['radius']:g} px, median of seeds, mean of {len(runs[0]['splits'])} splits",
             *(f"  seed {run['seed']:<4}{run['f1']:.3f}   splits   "
               + "   ".join(f"{split['f1']:.3f}" for split in run["splits"]) for run in runs),
             f"  CPU      training {record['train_cpu_seconds']:.0f} s   picking "
             f"{record['pick_cpu_seconds']:.2f} s a micrograph"]
    empty = [split["empty"] for run in runs for split in run["splits"]]
    lines += [f"  empty    {image}: picks of each model " + " ".join(str(picks[image]) for picks in empty)
              for image in empty[0]]
    return "\n".join(lines)
