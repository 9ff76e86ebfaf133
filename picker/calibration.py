"""Scores to probabilities: how often a pick with a certain score is a particle, learned from labelled micrographs.

A network's score orders picks well, but it was trained on places, not on maxima, and with positives weighted up, so
that its values are no frequencies. Here p = 1 / (1 + e^−(a·logit(score) + b)), with a > 0, so that the order of picks
stays; fitted by maximum likelihood to targets drawn in from 0 and 1, (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2) (Platt 1999),
with a normal prior on a around 1. Two numbers can be learned from the few tens of candidates that one micrograph has,
where an isotonic fit would learn their order by heart, and would give many picks one score.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.probabilities import calibration_error, logistic_fit, logit, reliability, sigmoid

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
        return sigmoid(self.slope * logit(scores) + self.offset)


def fit(scores, true, source=""):
    """Calibration for candidates with scores float[n] of which `true` bool[n] are particles; None if all or none are
    (there is nothing to learn a probability from)."""
    n_true, n_false = int(np.sum(true)), int(np.sum(~np.asarray(true)))
    if not n_true or not n_false:
        return None
    target = np.where(true, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    return Calibration(*logistic_fit(logit(scores), target, SLOPE_PRECISION), source)


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
        bins = tuple(reliability(probabilities, true, BINS))
        return cls(float(np.mean((probabilities - true) ** 2)), calibration_error(bins), bins)
