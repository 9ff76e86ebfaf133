"""Picks against labelled centres: one-to-one matching within a radius, precision, recall, F, and the best threshold.

The picks that can be matched to labels one to one are independent in the sense of a matroid, so that taking picks from
the best score down, and keeping each that still adds a pair, gives the largest number of pairs at every threshold
(Edmonds & Fulkerson 1965). One pass therefore tells the whole curve of precision against recall.
"""
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


@dataclass(frozen=True)
class Curve:
    """What every threshold would give: at `score` float64[k], falling, `true` and `false` int64[k] picks reach it.

    truth: how many particles there are to be found.
    """

    score: np.ndarray
    true: np.ndarray
    false: np.ndarray
    truth: int

    @property
    def precision(self):
        return self.true / np.maximum(self.true + self.false, 1)

    @property
    def recall(self):
        return self.true / max(self.truth, 1)

    def f(self, beta=1.0):
        """F_β at each score."""
        weighted = beta**2 * self.precision + self.recall
        return np.divide((1 + beta**2) * self.precision * self.recall, weighted, where=weighted > 0,
                         out=np.zeros(len(self.score)))

    @property
    def auprc(self):
        """Area under precision against recall, in steps: Σ P_k (R_k − R_(k−1)); particles never picked add nothing."""
        return float(np.sum(self.precision * np.diff(self.recall, prepend=0.0)))

    def counts(self, threshold):
        """Counts of the picks with at least this score."""
        place = int(np.searchsorted(-self.score, -threshold, side="right")) - 1
        true, false = (int(self.true[place]), int(self.false[place])) if place >= 0 else (0, 0)
        return Counts(true, false, self.truth - true)


def verdicts(picks, scores, truth, radius, ignored=()):
    """int8[n]: 1 for a true pick, −1 for a false one, 0 where neither counts. Arguments as in `count`.

    Better picks are matched first: of two picks on one particle the better one is true.
    """
    truth = truth[~_inside(truth, ignored)]
    found = np.where(_inside(picks, ignored), 0, -1).astype(np.int8)
    if len(picks) and len(truth):
        near = cKDTree(truth).query_ball_point(picks, radius)
        owner, held = {}, {}
        for row in np.argsort(-np.asarray(scores), kind="stable").tolist():
            if _augmented(row, near, owner, held):
                found[row] = 1
    return found


def curve(scored, radius):
    """Curve over micrographs, a list of (picks float[n, 2], scores float[n], truth float[m, 2], ignored float[k, 3]).

    At any threshold it counts as many true picks as `count` does.
    """
    judged = [verdicts(picks, scores, truth, radius, ignored) for picks, scores, truth, ignored in scored]
    verdict = np.concatenate([np.zeros(0, dtype=np.int8), *judged])
    score = np.concatenate([np.zeros(0), *(np.asarray(scores) for _, scores, _, _ in scored)])
    order = np.argsort(-score, kind="stable")
    order = order[verdict[order] != 0]   # what counts for nothing is no step of the curve
    verdict, score = verdict[order], score[order]
    last = np.flatnonzero(np.append(score[1:] < score[:-1], True)) if len(score) else np.zeros(0, dtype=int)
    return Curve(score[last], np.cumsum(verdict == 1)[last], np.cumsum(verdict == -1)[last],
                 sum(int((~_inside(truth, ignored)).sum()) for _, _, truth, ignored in scored))


def best_threshold(found, beta):
    """(threshold, Counts) of the largest F_β of a Curve, half way to the next worse pick; 0.5 if nothing was picked."""
    if not len(found.score):
        return 0.5, found.counts(0.5)
    place = int(np.argmax(found.f(beta)))
    worse = found.score[place + 1] if place + 1 < len(found.score) else 0.0
    threshold = 0.5 * float(found.score[place] + worse)
    return threshold, found.counts(threshold)


def _augmented(pick, near, owner, held):
    """Match a pick if that adds a pair, moving others to other labels they are near; whether it did.

    near[pick] lists labels; owner {label: pick} and held {pick: label} are the matching. Breadth first, so that as few
    as possible are moved.
    """
    reached, queue = {}, [pick]
    for each in queue:
        for label in near[each]:
            if label in reached:
                continue
            reached[label] = each
            if label in owner:
                queue.append(owner[label])
                continue
            while label is not None:
                taker = reached[label]
                owner[label], held[taker], label = taker, label, held.get(taker)
            return True
    return False


def _inside(places, discs):
    if not len(discs) or not len(places):
        return np.zeros(len(places), dtype=bool)
    discs = np.asarray(discs, dtype=np.float64)
    return (np.hypot(*(places[:, None] - discs[None, :, :2]).transpose(2, 0, 1)) < discs[:, 2]).any(axis=1)
