"""The keys of `job: dynamics`, and the experiments it knows; engine/options.py says how keys are made.

An experiment is an entry of EXPERIMENTS: its name, one line of words, the keys that it takes besides those of every
experiment, and where its Procedure (engine/dynamics.py) is found. A key that is given to an experiment that does not
take it is refused, so that nobody waits for a run that ignores what it was told.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.options import JobOptions, key, options_of

COMMON = ("output", "experiment", "seed", "checkpoint_minutes")
LANDSCAPE = ("flat_minimum", "sharp_minimum", "y_f", "y_b", "y_d", "loss_height")
ENSEMBLE = ("learning_rates", "noise_strengths", "trajectories", "iterations", "start_y", "noise_power", "rule",
            "noise", *LANDSCAPE)
DESCENTS = ("input", "learning_rates", "batch_sizes", "repeats", "matched_losses", "learning_time", "replacement")
BRANCHES = ("branch_times", "children", "horizon")
DENSE = ("hidden", "per_class")
TILES = ("coordinates", "diameter", "parts", "tests")


@dataclass(frozen=True)
class Experiment:
    """An entry of the registry: words for people, the keys it takes, and `module:name` of its Procedure."""

    summary: str
    keys: tuple[str, ...]
    place: str

    def load(self):
        """The Procedure, imported when it is wanted."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(module), name)


_HERE = "vitrea.engine.two_valleys_experiments"
_NETWORKS, _PICKER = "vitrea.engine.network_experiments", "vitrea.picker.network_experiments"
EXPERIMENTS = {
    "phase_diagram": Experiment("two valleys: who ends in the flat one, and when hopping freezes",
                                ENSEMBLE, f"{_HERE}:PHASE_DIAGRAM"),
    "freezing_scan": Experiment("two valleys: where hopping freezes, by noise strength",
                                ENSEMBLE, f"{_HERE}:FREEZING_SCAN"),
    "flat_probability": Experiment("two valleys: the fraction in the flat one along the way",
                                   (*ENSEMBLE, "positions"), f"{_HERE}:FLAT_PROBABILITY"),
    "quench": Experiment("two valleys: noise turned down at once, earlier and later",
                         (*ENSEMBLE, "quench_times", "quench_factor"), f"{_HERE}:QUENCH"),
    "cooling": Experiment("two valleys: noise turned down by schedules, fast and slow",
                          (*ENSEMBLE, "schedules", "cooling_times"), f"{_HERE}:COOLING"),
    "digits_noise": Experiment("a dense network: where descents with noise end, at matched losses",
                               (*DESCENTS, *DENSE), f"{_NETWORKS}:DIGITS_NOISE"),
    "digits_branching": Experiment("a dense network: when the valley is decided, by barriers",
                                   (*DESCENTS, *BRANCHES, *DENSE), f"{_NETWORKS}:DIGITS_BRANCHING"),
    "digits_starts": Experiment("a dense network: accuracy and noise, over starts and digits",
                                (*DESCENTS, *DENSE), f"{_NETWORKS}:DIGITS_STARTS"),
    # Names in a table, imported when they are wanted: the engine itself knows nothing of the picker.
    "picker_noise": Experiment("the picker's network: as digits_noise, on labelled micrographs",
                               (*DESCENTS, *TILES), f"{_PICKER}:PICKER_NOISE"),
    "picker_branching": Experiment("the picker's network: as digits_branching, on micrographs",
                                   (*DESCENTS, *BRANCHES, *TILES), f"{_PICKER}:PICKER_BRANCHING"),
}


RULES = {
    "ito": "noise as strong as where a step begins, as SGD has it",
    "anti_ito": "noise as strong as where a step ends",
}
NOISES = {
    "diagonal": "the Hessian's diagonal",
    "full": "the whole Hessian, negative eigenvalues cut to 0; twice the time",
}
SCHEDULES = {
    "constant": "as strong to the end",
    "linear": "down to 0 in proportion to time",
    "cosine": "down to 0 as half a cosine",
    "restarts": "four half cosines, one after the other",
    "exponential": "as exp(-t/τ), for each of cooling_times",
}


@dataclass(frozen=True, kw_only=True)
class DynamicsOptions(JobOptions):
    """The keys of `job: dynamics`."""

    input: Path | None = key("what networks learn: a folder with MNIST's four files, or the picker's micrographs", None,
                             null_means="the digits that come with scikit-learn", example=Path("mnist"),
                             section="experiment")
    output: Path = key("the run folder that is made", example=Path("runs/phases"), section="experiment")
    experiment: str = key("what is measured", example="phase_diagram",
                          choices={name: each.summary for name, each in EXPERIMENTS.items()}, section="experiment")
    seed: int = key("start of every random draw; one seed, one result, on any number of ranks", 0, minimum=0,
                    section="experiment")

    learning_rates: tuple[float, ...] | None = key(
        "learning rates η, each with every noise strength or batch size", None, above=0,
        null_means="as the paper has them", example=(0.01, 0.03, 0.1), section="valleys")
    noise_strengths: tuple[float, ...] | None = key(
        "noise strengths σ: a step's noise has the covariance 2σ H^noise_power", None, above=0,
        null_means="as the paper has them", example=(0.01, 0.03, 0.1), section="valleys")
    trajectories: int | None = key("trajectories for each pair of them", None, minimum=1,
                                   null_means="as many as the paper has", example=2000, section="valleys")
    iterations: int | None = key("steps of a trajectory", None, minimum=1, null_means="as many as the paper has",
                                 example=20000, section="valleys")
    start_y: float | None = key("progress y at which trajectories begin, half of them in each valley", None, above=0,
                                null_means="as the paper has it", example=5.0, section="valleys")
    noise_power: int = key("power of the Hessian that the noise's covariance grows with; 0: isotropic", 1, minimum=0,
                           maximum=2, section="valleys")
    rule: str = key("where in a step the noise is evaluated", "ito", choices=RULES, section="valleys")
    noise: str = key("directions of the noise", "diagonal", choices=NOISES, section="valleys")
    positions: tuple[float, ...] | None = key(
        "progress y at which it is noted how many trajectories are in the flat valley", None, above=0,
        null_means="as published", example=(2, 4, 8), section="valleys")
    quench_times: tuple[float, ...] | None = key(
        "times, learning rate × steps, at which the noise is turned down, in runs of their own", None, minimum=0,
        null_means="25 to 600, and never", example=(50, 100, 300), section="valleys")
    quench_factor: float = key("what the noise strength is multiplied by then", 0.02, above=0, maximum=1,
                               section="valleys")
    schedules: tuple[str, ...] | None = key("courses of the noise strength, each a run of its own", None,
                                            choices=SCHEDULES, null_means="all", example=("constant", "cosine"),
                                            section="valleys")
    cooling_times: tuple[float, ...] = key("times, learning rate × steps, over which exponential cooling falls to 1/e",
                                           (10.0, 30.0, 100.0, 200.0), above=0, section="valleys")
    flat_minimum: float = key("how far the flat valley's minimum goes from the ridge, as y grows", 0.8, above=0,
                              section="valleys")
    sharp_minimum: float = key("the same of the sharp valley", 0.65, above=0, section="valleys")
    y_f: float = key("progress at which the barrier has a quarter of its final height", 20.0, above=0,
                     section="valleys")
    y_b: float = key("progress at which the valleys are half as far apart as they get", 30.0, above=0,
                     section="valleys")
    y_d: float = key("progress over which the loss falls by 1/e", 100.0, above=0, section="valleys")
    loss_height: float = key("height that the loss falls by, in units of the barrier's final height", 1.0, minimum=0,
                             section="valleys")

    batch_sizes: tuple[int, ...] | None = key(
        "samples of a batch, each with every learning rate; of the picker's network, parts of 8 tiles", None, minimum=1,
        null_means="the experiment's own pairs of rates and sizes", example=(10, 50, 250), section="networks")
    repeats: int | None = key("descents for each pair of them; parents, where descents branch", None, minimum=1,
                              null_means="the experiment's own number", example=10, section="networks")
    learning_time: float = key("learning rate × steps of a descent", 100.0, above=0, section="networks")
    matched_losses: tuple[float, ...] = key(
        "training losses to which ends are cooled before they are compared; branches take the largest", (0.005, 0.002),
        unit="nats", above=0, section="networks")
    replacement: bool = key("batches are drawn with replacement, not by shuffling", False, section="networks")
    branch_times: tuple[float, ...] | None = key("learning times at which descents branch, rising", None, minimum=0,
                                                 null_means="the experiment's own", example=(0, 10, 50),
                                                 section="networks")
    children: int = key("branches of a state", 3, minimum=2, section="networks")
    horizon: float = key("learning time of a branch before it is cooled", 50.0, above=0, section="networks")
    hidden: tuple[int, ...] | None = key("units of the layers of a dense network", None, minimum=1,
                                         null_means="32, 32; for MNIST 50, 50", example=(32, 32), section="networks")
    per_class: int | None = key("images of each digit that are trained on", None, minimum=1,
                                null_means="50; for MNIST 100", example=50, section="networks")
    coordinates: Path | None = key("folder of the coordinates of labelled particles, named as the micrographs", None,
                                   null_means="none: the experiment is not about the picker",
                                   example=Path("coordinates"), section="networks")
    diameter: float | None = key("diameter of the picker's particle", None, unit="Å", above=0,
                                 null_means="none: the experiment is not about the picker", example=200.0,
                                 section="networks")
    parts: int = key("parts of 8 tiles that the picker's network learns", 12, minimum=2, section="networks")
    tests: int = key("tiles, of a third of the micrographs, on which it is tested", 300, minimum=10,
                     section="networks")

    checkpoint_minutes: float = key("time between checkpoints, 0 for one after every round; a stop makes one too", 1.0,
                                    unit="minutes", minimum=0, resumable=True, section="iterations")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        taken = EXPERIMENTS[self.experiment].keys
        for name, option in options_of(type(self)).items():
            if name not in (*COMMON, *taken) and getattr(self, name) != option.default:
                yield (name,), (f"{self.experiment} does not take {name}; expected a key of this experiment, which are "
                                f"{', '.join(taken)}; take the line out, or write another experiment")
        for name in ("input", "coordinates", "diameter"):
            if "coordinates" in taken and getattr(self, name) is None:
                yield ("experiment", name), (f"{self.experiment} needs {name}; expected input, coordinates and "
                                             f"diameter of labelled micrographs; add {name}")
        times = self.branch_times or (0.0,)
        if list(times) != sorted(set(times)):
            yield ("branch_times",), (f"{', '.join(f'{time:g}' for time in times)} do not rise; expected rising "
                                      "learning times; sort them")
        if "sharp_minimum" in taken and not self.sharp_minimum < self.flat_minimum:
            yield ("sharp_minimum", "flat_minimum"), (
                "the sharp valley is not nearer to the ridge than the flat one; expected sharp_minimum below "
                "flat_minimum; make it smaller, or exchange them"
            )
