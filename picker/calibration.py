"""Scores to probabilities: how often a pick with a certain score is a particle, learned from labelled micrographs.

A network's score orders picks well, but it was trained on places, not on maxima, and with positives weighted up, so
that its values are no frequencies. Here p = 1 / (1 + e^−(a·logit(score) + b)), with a > 0, so that the order of picks
stays; fitted by maximum likelihood to targets drawn in from 0 and 1, (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2) (Platt 1999),
with a normal prior on a around 1. Two numbers can be learned from the few tens of candidates that one micrograph has,
where an isotonic fit would learn their order by heart, and would give many picks one score.
"""
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

CLIPPED = 1e-7            # scores nearer to 0 or 1 are taken for this
LEAST_SLOPE = 0.05        # keeps the order of picks whatever the labels say
SLOPE_PRECISION = 1.0     # of the prior on the slope
FOLDS = 5                 # of the candidates, where there is one micrograph only
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Probability = σ(slope · logit(score) + offset); `source` says on what it was learned."""

    slope: float
    offset: float
    source: str = ""

    def apply(self, scores):
        """Probabilities float64[n] of scores float[n] in 0..1; rising with them."""
        return _sigmoid(self.slope * _logit(scores) + self.offset)


def fit(scores, true, source=""):
    """Calibration for candidates with scores float[n] of which `true` bool[n] are particles; None if all or none are
    (there is nothing to learn a probability from)."""
    n_true, n_false = int(np.sum(true)), int(np.sum(~np.asarray(true)))
    if not n_true or not n_false:
        return None
    target = np.where(true, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    logit = _logit(scores)

    def loss(parameters):
        slope, offset = parameters
        argument = slope * logit + offset
        value = np.sum(np.logaddexp(0, argument) - target * argument) + SLOPE_PRECISION / 2 * (slope - 1) ** 2
        error = _sigmoid(argument) - target
        return value, np.array([np.sum(error * logit) + SLOPE_PRECISION * (slope - 1), np.sum(error)])

    found = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((LEAST_SLOPE, None), (None, None)))
    return Calibration(float(found.x[0]), float(found.x[1]), source)


def held_out(groups):
    """(probabilities float64[n], true bool[n]): each candidate judged by a fit that has not seen its micrograph.

    groups: a list of (scores, true) by micrograph. The candidates of a single micrograph are cut into FOLDS parts.
    """
    if len(groups) == 1:
        scores, true = groups[0]
        groups = [(scores[part::FOLDS], true[part::FOLDS]) for part in range(FOLDS)]
    probabilities = []
    for left_out, (scores, _) in enumerate(groups):
        others = [group for number, group in enumerate(groups) if number != left_out]
        learned = fit(*(np.concatenate(columns) for columns in zip(*others)))
        probabilities.append(learned.apply(scores) if learned else np.asarray(scores, dtype=np.float64))
    return np.concatenate(probabilities), np.concatenate([true for _, true in groups])


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are frequencies: Brier score (mean squared error), expected calibration error (mean
    |probability − frequency| over BINS, weighted by candidates), and by bin (mean probability, frequency, number)."""

    brier: float
    error: float
    bins: tuple

    @classmethod
    def of(cls, probabilities, true):
        """Reliability of probabilities float[n] for what was `true` bool[n]; NaN without candidates."""
        if not len(true):
            return cls(float("nan"), float("nan"), ())
        place = np.clip(np.digitize(probabilities, BINS) - 1, 0, len(BINS) - 2)
        bins = tuple((float(probabilities[place == k].mean()), float(true[place == k].mean()), int((place == k).sum()))
                     for k in np.unique(place))
        error = sum(abs(mean - frequency) * n for mean, frequency, n in bins) / len(true)
        return cls(float(np.mean((probabilities - true) ** 2)), error, bins)


def _logit(scores):
    clipped = np.clip(np.asarray(scores, dtype=np.float64), CLIPPED, 1 - CLIPPED)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(argument):
    return 0.5 * (1.0 + np.tanh(0.5 * argument))
