"""Means with their confidence intervals, of repeats and of pairs of repeats."""
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate, the interval that holds the truth with CONFIDENCE, its standard error, from n repeats."""

    mean: float
    low: float
    high: float
    error: float
    n: int

    def as_dict(self):
        return asdict(self)


def _interval(mean, error, freedom, n):
    half = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error if freedom > 0 else np.inf
    return Interval(float(mean), float(mean - half), float(mean + half), float(error), n)


def mean_interval(values):
    """Student's interval of the mean of independent values float[n]."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    error = values.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return _interval(values.mean(), error, n - 1, n)


def difference_interval(one, other):
    """Welch's interval of mean(one) − mean(other) of two independent groups."""
    variances = [np.var(group, ddof=1) / len(group) for group in (one, other)]
    total = sum(variances)
    spread = sum(v**2 / (len(group) - 1) for v, group in zip(variances, (one, other)))
    freedom = total**2 / spread if spread else np.inf
    return _interval(np.mean(one) - np.mean(other), np.sqrt(total), freedom, min(len(one), len(other)))


def ratio_interval(one, other):
    """Interval of the ratio of the geometric means of two independent groups of positive values.

    Its error is that of the logarithm.
    """
    found = difference_interval(np.log(one), np.log(other))
    return Interval(*(float(np.exp(each)) for each in (found.mean, found.low, found.high)), found.error, found.n)


def pair_interval(matrix):
    """Interval of the mean over pairs i < j of a symmetric float[n, n].

    Pairs share repeats and are not independent: the error is the jackknife's, over repeats left out (Efron & Stein
    1981).
    """
    matrix = np.asarray(matrix, dtype=float)
    n = len(matrix)
    mean_of = lambda rows: matrix[np.ix_(rows, rows)][np.triu_indices(len(rows), 1)].mean()  # noqa: E731
    if n < 3:
        return _interval(mean_of(np.arange(n)), np.inf, 0, n)
    return jackknife_interval(mean_of, n)


def jackknife_interval(statistic, n):
    """Interval of statistic(int[m] of repeats) over n repeats, its error from leaving each of them out."""
    everything = np.arange(n)
    left = np.array([statistic(np.delete(everything, i)) for i in everything])
    error = np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2))
    return _interval(statistic(everything), error, n - 1, n)
