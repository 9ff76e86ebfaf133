"""How likely a class is one of particles: a logistic regression on figures that a person can check.

logit p = bias + Σ weight · (figure − mean) / deviation; what each figure adds is told with the score. The weights are
in class_scores.json, learned from simulated runs whose junk is known (benchmarks/classscores.py, which also judges them
on runs held back). A figure that a run lacks counts as average. A network would know shapes; this can be argued with,
and needs no library for networks.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).with_name("class_scores.json")
EDGE = 0.8          # of the particle's radius: the ring from here on is the edge
TOLD = 3            # reasons of each kind that are told
LEAST_TOLD = 0.3    # a change of the odds by less than a third is no reason
BAND = 8            # shells are looked at down to the particle's diameter over this


@dataclass(frozen=True)
class ClassScores:
    """score float64[K] in 0…1, NaN for classes without particles; added float64[K, F]: what each of the figures
    float64[K, F] adds to the logit; names of the figures."""

    score: np.ndarray
    added: np.ndarray
    figures: np.ndarray
    names: tuple

    def reasons(self, k):
        """Sentences of class k: what speaks for it and against it, the strongest first."""
        order = np.argsort(-np.abs(self.added[k]))
        told = [i for i in order if abs(self.added[k, i]) >= LEAST_TOLD][:2 * TOLD]
        found = [f"{'for' if self.added[k, i] > 0 else 'against'} ({self.added[k, i]:+.1f}): "
                 f"{WORDS[self.names[i]].format(self.figures[k, i], np.exp(self.figures[k, i]))}" for i in told]
        return [words.replace("(-", "(−").replace(" -", " −") for words in found]


# What a figure is, in words with its value (0) or the ratio of which it is the logarithm (1).
WORDS = {
    "resolved": "{1:.1f} resolved elements across the particle",
    "relative": "{1:.2f} times as fine as the run's median resolution",
    "population": "{1:.2f} times the mean population of a class",
    "centre": "variance in the middle {1:.2g} times that at the edge",
    "edge": "{0:.2f} of the signal in the outer ring of the mask",
    "offset": "centre of the signal {0:.2f} radii from the middle",
    "stripes": "power spectrum {0:.2f} along one direction",
    "half_sets": "correlation of half-sets {0:.2f} in the mean",
    "pmax": "probability of the best pose {0:+.2f} beside the run's mean",
    "brightness": "amplitude of the particles {0:+.3f} beside the mean of all",
}


def score_classes(run, diameter):
    """ClassScores of a FinishedRun whose particles have a `diameter` [Å], by the weights that come with Vitrea."""
    learned = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    found = class_figures(run, diameter)
    names = tuple(learned["weights"])
    figures = np.stack([found[name] for name in names], axis=1)
    mean, deviation, weight = (np.array([learned[key][name] for name in names])
                               for key in ("mean", "deviation", "weights"))
    added = np.nan_to_num(weight * (figures - mean) / deviation)
    score = 1.0 / (1.0 + np.exp(-(learned["bias"] + added.sum(axis=1))))
    return ClassScores(np.where(run.sizes > 0, score, np.nan), added, figures, names)


def class_figures(run, diameter):
    """{name: float64[K]} of a FinishedRun; NaN where a class has no particles, or the run no such column."""
    found = _spectral(run, diameter) | _of_members(run) | _of_pixels(run, diameter / 2 / run.pixel_size)
    empty = run.sizes == 0
    return {name: np.where(empty, np.nan, values) for name, values in found.items()}


def _spectral(run, diameter):
    longest = run.box_size * run.pixel_size
    resolution = np.nan_to_num(run.resolution, nan=longest)
    band = (run.frequency > 0) & (run.frequency <= BAND / diameter)
    usual = np.median(np.repeat(resolution, run.sizes)) if run.sizes.sum() else longest
    with np.errstate(divide="ignore"):
        population = np.log(run.sizes / max(run.sizes.mean(), 1e-9))
    return {"resolved": np.log(diameter / resolution), "relative": np.log(usual / resolution),
            "population": population, "half_sets": run.expected_frc[:, band].mean(axis=1)}


def _of_members(run):
    """Means over the particles of a class, beside the whole run."""
    missing = np.full(run.n_classes, np.nan)

    def mean(label):
        values = run.numbers(label)
        if values is None:
            return missing, values
        sums = np.bincount(run.class_number, values, run.n_classes)
        return np.divide(sums, run.sizes, out=missing.copy(), where=run.sizes > 0), values

    pmax, every = mean("rlnMaxValueProbDistribution")
    norm, _ = mean("rlnNormCorrection")
    return {"pmax": pmax if every is None else pmax - every.mean(), "brightness": norm - 1.0}


def _of_pixels(run, radius):
    """Figures of the class averages; radius of the particle [px]."""
    axis = np.arange(run.box_size) - run.box_size // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    distance = np.hypot(x, y)
    radius = min(radius, run.box_size / 2 - 1)
    inside, middle = distance <= radius, distance <= radius / 2
    edge = inside & (distance > EDGE * radius)
    found = {name: np.full(run.n_classes, np.nan) for name in ("centre", "edge", "offset", "stripes")}
    for k in np.flatnonzero(run.sizes):
        image = run.averages[k].astype(np.float64)
        image = np.where(inside, image - image[inside].mean(), 0.0)
        power = image**2
        total = power.sum()
        if total <= 0:
            continue
        found["centre"][k] = np.log(max(power[middle].mean(), 1e-12) / max(power[edge].mean(), 1e-12))
        found["edge"][k] = power[edge].sum() / total
        found["offset"][k] = np.hypot((power * x).sum(), (power * y).sum()) / total / radius
        found["stripes"][k] = one_direction(image)
    return found


def one_direction(image):
    """How far the power spectrum of float[L, L] lies along one line through the origin: |Σ P e^(2iθ)| / Σ P, 0 for a
    symmetric one, 1 for plane waves, as carbon edges and stripes of charge have them."""
    power = np.abs(np.fft.fft2(image)) ** 2
    frequency = np.fft.fftfreq(len(image))
    direction = frequency[None, :] + 1j * frequency[:, None]
    power[0, 0] = 0.0
    turned = np.divide(direction**2, np.abs(direction) ** 2, out=np.zeros_like(direction), where=direction != 0)
    return float(np.abs((power * turned).sum()) / max(power.sum(), 1e-30))
