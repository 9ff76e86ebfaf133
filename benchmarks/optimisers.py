"""The picker's optimisers on equal terms: tuned alike, one budget of gradients, tested on other micrographs, in pairs.

    python -m vitrea.benchmarks.optimisers --runs runs.jsonl --seeds 10 --json table.json

What is compared, and by which rule it is judged, was written down before (docs/dynamics.md, "Rules fixed before the
runs"). To be within reach of one core it is done on a small scale, the same for every arm: the network SMALL, half of
`vitrea` in its box and lighter by ten, tiles of one place, and BUDGET gradients of PART tiles a training. Micrographs
are simulated, by seed: TRAINED to train on, VALIDATED to stop early and to tune on, TESTED to test on. Where labels are
wrong, so are those of validation; tests are true. Arms share micrographs, start and draws of a seed.

First every arm has its eight trials at the middle SNR, the better half of them on all seeds TUNING; the best mean AUPRC
of validation wins. Then come the tests. Each training is a line of the file --runs as soon as it has ended; those that
are there are not done again, so that the command goes on where it was stopped. The table is made of the lines.
"""
import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from vitrea.benchmarks.measure import append_line, read_lines
from vitrea.benchmarks.paired import ABLATIONS, OURS, judged, told
from vitrea.benchmarks.picking import SETS, places_and_discs, prepare
from vitrea.benchmarks.progress import Progress
from vitrea.benchmarks.records import surroundings
from vitrea.engine.comm import alone
from vitrea.engine.errors import JobError
from vitrea.engine.simulate import noise_sd, simulated_views
from vitrea.picker.calibration import Reliability, fit
from vitrea.picker.evaluate import best_threshold, curve, verdicts
from vitrea.picker.labels import Augmentation, LabelledMicrograph, Sampler
from vitrea.picker.micrographs import Micrograph, Preparation, read_micrograph
from vitrea.picker.network import Layer, Network
from vitrea.picker.pick import Picker
from vitrea.picker.scene import CLEAN
from vitrea.picker.simulate import MicrographSimulation, make_micrograph
from vitrea.picker.steered import descend_freeze_aware, steering_of
from vitrea.picker.training import PART, QUARTERS, Recipe, descend

SMALL = Network("small", 24, (Layer(5, 8, 2, normalised=True), Layer(3, 16, 2, normalised=True),
                              Layer(3, 32, normalised=True)))
DIAMETER, SIDE, PARTICLES = 200.0, 192, 34.0   # Å; px of a micrograph; particles on it
RADIUS, DISTANCE = 0.25, 0.7   # diameters: a pick is right within, and two picks are apart
TRAINED, VALIDATED, TESTED = 5, 3, 6
BUDGET = 400                   # gradients of PART tiles
SNRS = (0.4, 0.2, 0.13)
MIDDLE = SNRS[1]
WRONG = (0.0, 0.1, 0.2)
REAL = {"apoferritin": (3, 5)}   # sets, and how many micrographs are trained on, or come before those for testing
TUNING = (1000, 1001)          # seeds
STOPS = (0.4, 0.6, 0.8, 1.0)   # of the budget: where validation may stop a training
FLOOR = 0.01                   # of the scores: candidates below are left out
VIEWS_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A way to train: what is fixed in its Recipe, and two knobs (name, values) whose product are its eight trials."""

    fixed: dict
    rates: tuple
    second: tuple

    def trials(self):
        name, values = self.second
        return [self.fixed | {"rate": rate, name: value} for rate, value in product(self.rates, values)]


BATCHES = ("batch", (16, 32))
ARMS = {
    "sgd low": Arm({"optimizer": "sgd", "schedule": "constant"}, (0.01, 0.02, 0.05, 0.1), BATCHES),
    "sgd high": Arm({"optimizer": "sgd", "schedule": "constant"}, (0.2, 0.4, 0.7, 1.0), BATCHES),
    "cosine": Arm({"optimizer": "sgd"}, (0.1, 0.3, 0.6, 1.2), BATCHES),
    "step": Arm({"optimizer": "sgd", "schedule": "steps"}, (0.1, 0.2, 0.5, 1.0), BATCHES),
    "SASA": Arm({"optimizer": "sasa", "schedule": "constant", "batch": 16}, (0.1, 0.2, 0.5, 1.0),
                ("tolerance", (0.1, 0.5))),
    "Adam": Arm({"optimizer": "adam"}, (0.004, 0.01, 0.02, 0.05), BATCHES),
    "AdamW": Arm({"optimizer": "adamw", "batch": 16}, (0.004, 0.01, 0.02, 0.05), ("weight_decay", (0.01, 0.1))),
    "DeepEM": Arm({"optimizer": "sgd", "schedule": "constant", "loss": "mse", "augmentation": QUARTERS},
                  (0.5, 1.0, 2.0, 5.0), ("batch", (16, 48))),
    "SWA": Arm({"optimizer": "swa", "schedule": "constant", "averaged": 0.4}, (0.1, 0.2, 0.5, 1.0), BATCHES),
    "SAM": Arm({"optimizer": "sam", "batch": 16}, (0.1, 0.2, 0.5, 1.0), ("radius", (0.05, 0.2))),
    "freeze-aware": Arm({"optimizer": "freeze_aware"}, (0.1, 0.2, 0.4, 0.8), BATCHES),
    "fixed fraction": Arm({"optimizer": "freeze_aware"}, (0.1, 0.2, 0.4, 0.8), BATCHES),
    "random time": Arm({"optimizer": "freeze_aware"}, (0.1, 0.2, 0.4, 0.8), BATCHES),
}


# ---- data

class Case:
    """What a seed has at an SNR, or of a real set, with a share of wrong labels: micrographs, and tiles that are drawn
    once for all arms."""

    def __init__(self, snr, wrong, seed):
        real = snr in REAL
        self.specimen = SETS[snr].diameter if real else DIAMETER
        self.seed, self.preparation = seed, Preparation.of(SMALL, self.specimen)
        self.diameter = self.specimen / self.preparation.pixel_size
        made = real_micrographs(snr) if real else micrographs_of(snr, seed)
        trained, judged = REAL[snr] if real else (TRAINED, TRAINED + VALIDATED)
        spoilt = [(image, spoiled(places, discs, wrong, (image.shape, self.diameter), (seed, k)), discs)
                  for k, (image, places, discs) in enumerate(made[:judged])]
        self._training = [LabelledMicrograph(image, places, ignored=discs) for image, places, discs in spoilt[:trained]]
        self.validation, self.test = spoilt[trained:], made[judged:]
        self._samplers = {}

    def sampler(self, augmentation):
        """The Remembered tiles of an Augmentation."""
        if augmentation not in self._samplers:
            self._samplers[augmentation] = Remembered(
                Sampler(self._training, SMALL, self.diameter, 1, augmentation, self.seed))
        return self._samplers[augmentation]

    def scored(self, picker, judged):
        """[(places, scores, truth, discs)] of all candidates of a Picker on micrographs of the case."""
        found = []
        for image, truth, discs in judged:
            micrograph = Micrograph("simulated", image, self.preparation.pixel_size)
            picks = picker.pick_prepared(micrograph, image, floor=FLOOR)
            found.append((np.stack([picks.y, picks.x], axis=1), picks.score, truth, discs))
        return found

    @property
    def radius(self):
        return RADIUS * self.diameter


class Remembered:
    """A Sampler that draws nothing twice."""

    def __init__(self, sampler):
        self._sampler, self._drawn = sampler, {}

    def draws(self, step, numbers):
        if (step, numbers) not in self._drawn:
            self._drawn[step, numbers] = self._sampler.draws(step, numbers)
        return self._drawn[step, numbers]

    def unlabelled_share(self):
        return self._sampler.unlabelled_share()


@lru_cache(maxsize=1)
def _views():
    """float32[V, L, L] of the one specimen of all cases, and the simulation they belong to."""
    simulation = MicrographSimulation(
        n=1, pixel_size=Preparation.of(SMALL, DIAMETER).pixel_size, diameter=DIAMETER, particles=PARTICLES, snr=MIDDLE,
        size=(SIDE, SIDE), aggregates=0.5, contamination=1.0, carbon=0.1)
    return simulated_views(simulation.particle_simulation())[0], simulation


@lru_cache(maxsize=1)
def micrographs_of(snr, seed):
    """[(image float32[h, w], centres float64[n, 2], discs float64[m, 3])]: prepared micrographs and their truth."""
    views, simulation = _views()
    views = views / np.float32(noise_sd(views, replace(simulation, snr=snr).particle_simulation()))
    simulation = replace(simulation, snr=snr, seed=seed)
    preparation, found = Preparation.of(SMALL, DIAMETER), []
    for number in range(TRAINED + VALIDATED + TESTED):
        image, scene, _ = make_micrograph(simulation, views, number)
        others = scene.centres[scene.kind != CLEAN]
        radii = np.full(len(others), DIAMETER / preparation.pixel_size / 2)
        found.append((preparation.apply(Micrograph("simulated", image, preparation.pixel_size)),
                      scene.centres[scene.kind == CLEAN], np.column_stack([others, radii])))
    return found


@lru_cache(maxsize=1)
def real_micrographs(name):
    """As `micrographs_of`, of a real set; the same for every seed. JobError if the data are not there."""
    preparation = Preparation.of(SMALL, SETS[name].diameter)
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        prepare(name, Path(temporary))
        folder, found = Path(temporary) / name, []
        for path in sorted((folder / "micrographs").glob("*.mrc")):
            micrograph = read_micrograph(path)
            image = preparation.apply(micrograph)
            places, discs = places_and_discs(folder, path.stem)
            scale = image.shape[0] / micrograph.image.shape[0]
            found.append((image, places * scale, discs * scale))
    return found


def spoiled(places, discs, wrong, extent, seed):
    """Labels float64[n, 2] of which a share is wrong: half of those left out, half put where nothing is. extent: shape
    of the micrograph and the diameter [px]."""
    shape, diameter = extent
    random, number = np.random.default_rng((*seed, 1)), round(wrong * len(places) / 2)
    kept, taken = places[random.permutation(len(places))[number:]], np.concatenate([places, discs[:, :2]])
    for _ in range(number):
        tries = random.uniform(diameter / 2, np.array(shape) - diameter / 2, (1000, 2))
        free = np.hypot(*(tries[:, None] - taken).transpose(2, 0, 1)).min(axis=1) > diameter if len(taken) else [True]
        place = tries[np.flatnonzero(free)[:1]]
        kept, taken = np.concatenate([kept, place]), np.concatenate([taken, place])
    return kept


# ---- a run

def recipe_of(given):
    """The Recipe of a trial: {name: value}; SAM has half the steps."""
    recipe = replace(Recipe(steps=1, batch=32, outputs=1, loss="bce", optimizer="adam", rate=0.0,
                            augmentation=Augmentation(shift=4.0)), **given)
    return replace(recipe, steps=BUDGET * PART // recipe.batch // (2 if recipe.optimizer == "sam" else 1))


def states_of(case, recipe):
    """The States of a training."""
    train = descend
    if recipe.optimizer == "freeze_aware":
        def train(sampler, *rest, **keys):
            return descend_freeze_aware(sampler, None, *rest, **keys)
    return train(case.sampler(recipe.augmentation), SMALL, recipe, seed=case.seed, comm=alone())


def run_one(case, recipe, *, tested):
    """Train, stop where validation is best, and test if `tested`: {name: value} for the record."""
    begin, marks, best = time.process_time(), list(STOPS), None
    for state in states_of(case, recipe):
        if marks and state.step >= round(marks[0] * recipe.steps):
            marks = [mark for mark in marks if state.step < round(mark * recipe.steps)]
            picker = Picker(SMALL, state.parameters, state.statistics, case.preparation, DISTANCE * case.specimen,
                            orientations=(0,))
            scored = case.scored(picker, case.validation)
            auprc = curve(scored, case.radius).auprc
            if best is None or auprc > best[0]:
                best = auprc, picker, scored, state.step
    found = {"validation": best[0], "stopped": best[3] / recipe.steps}
    if recipe.optimizer == "freeze_aware":
        steering = steering_of(state)
        found |= {"hot": steering.leave / recipe.steps, "frozen": steering.frozen / recipe.steps,
                  "probes": steering.spent / recipe.steps}
    if tested:
        found |= measures(case, *best[1:3])
    return found | {"seconds": time.process_time() - begin}


def measures(case, picker, scored):
    """What the micrographs for testing say of a Picker, the threshold and the calibration coming from validation:
    AUPRC, F1, recall at a precision of 0.9, calibration error; and by micrograph the particles there are, and the
    candidates' scores, those of false ones negative."""
    tested = case.scored(picker, case.test)
    found, (threshold, _) = curve(tested, case.radius), best_threshold(curve(scored, case.radius), 1.0)
    learned = fit(*_judged(scored, case.radius))
    scores, true = _judged(tested, case.radius)
    precise = found.precision >= 0.9
    ranked = []
    for places, values, truth, discs in tested:
        verdict = verdicts(places, values, truth, case.radius, discs)
        ranked.append([curve([(places, values, truth, discs)], case.radius).truth,
                       [round(float(sign * value), 5) for sign, value in zip(verdict, values) if sign]])
    return {"auprc": found.auprc, "f1": found.counts(threshold).f(),
            "recall": float(found.recall[precise].max(initial=0.0)),
            "calibration": Reliability.of(learned.apply(scores) if learned else scores, true).error, "ranked": ranked}


def _judged(scored, radius):
    """(scores float[n], whether true bool[n]) of the candidates that count."""
    verdict = [verdicts(places, values, truth, radius, discs) for places, values, truth, discs in scored]
    verdict, scores = np.concatenate(verdict), np.concatenate([values for _, values, _, _ in scored])
    return scores[verdict != 0], verdict[verdict != 0] > 0


# ---- the comparison

class Runs:
    """The trainings of a file, a line each; what is not there is done."""

    def __init__(self, path, progress):
        self._path, self._progress = path, progress
        self._found = {_key(record): record for record in (read_lines(path) if path.exists() else [])}

    def done(self, key, given):
        """The record of a key (stage, arm, trial, SNR, share of wrong labels, seed), trained by the values of a trial;
        where `hot` is (low, high) it is drawn between them."""
        if key not in self._found:
            stage, *_, snr, wrong, seed = key
            if isinstance(given.get("hot"), tuple):
                given = given | {"hot": float(np.random.default_rng((seed, 2)).uniform(*given["hot"]))}
            found = run_one(case_of(snr, wrong, seed), recipe_of(given), tested=stage == "test")
            told_values = {name: value for name, value in given.items() if name != "augmentation"}
            self._found[key] = dict(zip(KEY, key)) | {"recipe": told_values} | found
            append_line(self._path, self._found[key])
        self._progress.done()
        return self._found[key]

    def all(self, stage):
        return [record for key, record in self._found.items() if key[0] == stage]


KEY = ("stage", "arm", "trial", "snr", "wrong", "seed")


def _key(record):
    return tuple(record[name] for name in KEY)


@lru_cache(maxsize=len(TUNING))
def case_of(snr, wrong, seed):
    return Case(snr, wrong, seed)


def tune(arms, runs):
    """{arm: (number, values) of its best trial} by the mean AUPRC of validation. The better half of the trials on the
    first seed go on to the others. The ablations come last: they need what freeze-aware has found."""
    chosen = {}
    for arm in sorted(arms, key=lambda name: name in ABLATIONS):
        trials = [trial | _timing(arm, chosen, runs) for trial in ARMS[arm].trials()]

        def validated(number, seed, arm=arm, trials=trials):
            return runs.done(("tune", arm, number, MIDDLE, 0.0, seed), trials[number])["validation"]

        scores = np.array([validated(number, TUNING[0]) for number in range(len(trials))])
        better = np.argsort(-scores, kind="stable")[:len(trials) // 2].tolist()
        means = {number: np.mean([scores[number], *(validated(number, seed) for seed in TUNING[1:])])
                 for number in better}
        best = max(better, key=means.get)
        chosen[arm] = best, trials[best]
    return chosen


def _timing(arm, chosen, runs):
    """When an ablation turns the noise down: at the mean time that freeze-aware found with its best trial, or at any
    within the range of the times that it found."""
    if arm not in ABLATIONS:
        return {}
    found = [record for record in runs.all("tune") if record["arm"] == OURS]
    if arm == "random time":
        return {"hot": (min(record["hot"] for record in found), max(record["hot"] for record in found))}
    return {"hot": float(np.mean([record["hot"] for record in found if record["trial"] == chosen[OURS][0]]))}


def conditions():
    """[[(SNR or real set, share of wrong labels)]]: labels complete, then wrong ones, those of the middle SNR first."""
    return [[(snr, 0.0) for snr in SNRS], [(name, 0.0) for name in REAL], [(MIDDLE, wrong) for wrong in WRONG[1:]],
            [(snr, wrong) for snr in SNRS if snr != MIDDLE for wrong in WRONG[1:]]]


def measure(given, progress):
    """Tune and test what the file of runs does not have yet; the Runs."""
    runs = Runs(given.runs, progress)
    arms = [*given.arms, *([OURS] if set(given.arms) & set(ABLATIONS) and OURS not in given.arms else [])]
    trials = len(ARMS[OURS].trials())
    progress.step("tuning: trainings", len(arms) * (trials + trials // 2 * (len(TUNING) - 1)))
    chosen = tune(arms, runs)
    for part in conditions():
        part = [each for each in part if each[1] in given.wrong and (given.real or each[0] not in REAL)]
        if part:
            sets = ", ".join(f"{snr}" + (f" ({100 * wrong:.0f} % wrong)" if wrong else "") for snr, wrong in part)
            progress.step(f"tests, {sets}: trainings", len(part) * given.seeds * len(arms))
        for seed, (snr, wrong), arm in product(range(given.seeds), part, arms):
            runs.done(("test", arm, chosen[arm][0], snr, wrong, seed), chosen[arm][1])
    return runs


def main(argv=None):
    """Do the trainings that are missing, and print tables and verdicts; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.optimisers",
                                     description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=Path, default=Path("optimisers.jsonl"), metavar="FILE",
        help="trainings, a JSON line each; goes on with those that are there (default %(default)s)")
    add("--seeds", type=int, default=10, metavar="N", help="seeds of the tests (default %(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    add("--wrong", nargs="+", type=float, choices=WRONG, default=WRONG, metavar="S",
        help="shares of wrong labels (default: 0 0.1 0.2)")
    add("--real", action="store_true", help=f"also on {', '.join(REAL)}, of VITREA_DATA")
    add("--table", action="store_true", help="train nothing; the table of the trainings that are there")
    add("--json", action="store_true", help="print the table as JSON")
    given, progress = parser.parse_args(argv), Progress()
    try:
        runs = Runs(given.runs, progress) if given.table else measure(given, progress)
        if not runs.all("test"):
            raise JobError(f"{given.runs}: no tests are there; expected those of this command; run it without --table")
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    found = judged(runs.all("test"))
    progress.result(json.dumps({"benchmark": "optimisers"} | found | surroundings()) if given.json else told(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
