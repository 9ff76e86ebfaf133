"""Picks against labelled centres: one-to-one matching within a radius, precision, recall, F, and the best threshold."""
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class Counts:
    """True picks, false picks and missed particles."""

    true: int
    false: int
    missed: int

    def __add__(self, other):
        return Counts(self.true + other.true, self.false + other.false, self.missed + other.missed)

    @property
    def precision(self):
        return self.true / (self.true + self.false) if self.true + self.false else 0.0

    @property
    def recall(self):
        return self.true / (self.true + self.missed) if self.true + self.missed else 0.0

    def f(self, beta=1.0):
        """F_β = (1 + β²) P R / (β² P + R)."""
        weighted = beta**2 * self.precision + self.recall
        return (1 + beta**2) * self.precision * self.recall / weighted if weighted else 0.0


def match(picks, truth, radius):
    """Pairs (row of picks, row of truth), as many as possible and then the nearest, each at most `radius` apart.

    picks float[n, 2], truth float[m, 2]; of two picks on one particle one is true and one false.
    """
    if not len(picks) or not len(truth):
        return np.zeros((0, 2), dtype=int)
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(picks), radius).T.tocoo()
    # One more pair is worth more than any distance; forbidden pairs cost nothing and are dropped.
    gain = np.zeros((len(picks), len(truth)))
    gain[near.row, near.col] = 2 * radius * max(gain.shape) - near.data
    apart = np.hypot(*(picks[:, None] - truth[None]).transpose(2, 0, 1))
    gain[apart == 0] = 2 * radius * max(gain.shape)   # a sparse matrix does not keep distances of zero
    rows, columns = linear_sum_assignment(gain, maximize=True)
    good = gain[rows, columns] > 0
    return np.stack([rows[good], columns[good]], axis=1)


def count(picks, truth, radius, ignored=()):
    """Counts of picks float[n, 2] against truth float[m, 2] (y, x).

    ignored float[k, 3] (y, x, radius): picks and truth inside such a disc count neither for nor against.
    """
    truth = truth[~_inside(truth, ignored)]
    pairs = match(picks, truth, radius)
    free = np.ones(len(picks), dtype=bool)
    free[pairs[:, 0]] = False
    false = int((free & ~_inside(picks, ignored)).sum())
    return Counts(len(pairs), false, len(truth) - len(pairs))


def best_threshold(scored, radius, beta, thresholds):
    """(threshold, Counts) of the largest F_β over all micrographs; of equal ones the middle.

    scored is a list of (picks float[n, 2], scores float[n], truth, ignored).
    """
    found = [sum((count(picks[scores >= limit], truth, radius, ignored) for picks, scores, truth, ignored in scored),
                 start=Counts(0, 0, 0)) for limit in thresholds]
    values = np.array([counts.f(beta) for counts in found])
    best = np.flatnonzero(values >= values.max() - 1e-12)
    place = int(best[len(best) // 2])
    return float(thresholds[place]), found[place]


def _inside(places, discs):
    if not len(discs) or not len(places):
        return np.zeros(len(places), dtype=bool)
    discs = np.asarray(discs, dtype=np.float64)
    return (np.hypot(*(places[:, None] - discs[None, :, :2]).transpose(2, 0, 1)) < discs[:, 2]).any(axis=1)
