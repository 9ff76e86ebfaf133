"""Which micrographs a person should look at first: those with the fewest and the most picks, the lowest scores, and
grey values unlike the others'.

The four lists take turns, so that each has its say in a short list; of a session without faults the list shows its
extremes, which is where a picker's faults are seen first.
"""
from dataclasses import dataclass

import numpy as np

NORMAL_MAD = 1.4826    # deviation of a normal distribution over its median absolute deviation
LEAST_SPREAD = 0.02    # of the median: micrographs of one session are not more alike than this
ODD = 3.0              # deviations from the session's median from which grey values are odd


@dataclass(frozen=True)
class Look:
    """A micrograph to be looked at, and why."""

    name: str
    reason: str


def look_first(names, scores, results, limit):
    """At most `limit` Looks, the most urgent first.

    names of micrographs in their order; scores {name: float[n]} of their picks; results {name: dict}, of which `mean`
    and `deviation` are the grey values' (where a run of an earlier version did not write them, they are not judged).
    """
    counts = {name: len(scores[name]) for name in names}
    medians = {name: float(np.median(scores[name])) for name in names if len(scores[name])}
    usual = np.median(list(counts.values())) if counts else 0
    odd = _oddness(names, results)
    rows = (
        [Look(name, f"few picks: {counts[name]}, the median is {usual:g}") for name in _ordered(counts)],
        [Look(name, f"many picks: {counts[name]}, the median is {usual:g}") for name in _ordered(counts, -1)],
        [Look(name, f"low scores: their median is {medians[name]:.2f}") for name in _ordered(medians)],
        [Look(name, odd[name][1]) for name in _ordered({name: worst for name, (worst, _) in odd.items()}, -1)
         if odd[name][0] >= ODD])
    chosen = {}
    for place in range(len(names)):
        for row in rows:
            if place < len(row) and row[place].name not in chosen and len(chosen) < limit:
                chosen[row[place].name] = row[place]
    return list(chosen.values())


def _ordered(values, sign=1):
    """Names by value, the least first (sign −1: the greatest), equal ones in their order."""
    return sorted(values, key=lambda name: sign * values[name])


def _oddness(names, results):
    """{name: (how many robust deviations its grey values are from the session's median, in words)}."""
    worst = {}
    for key, words in (("mean", "mean grey value"), ("deviation", "contrast"), ("pixel_size", "pixel size [Å]")):
        known = {name: results[name][key] for name in names if results.get(name, {}).get(key) is not None}
        if not known:
            continue
        values = np.array(list(known.values()))
        middle = np.median(values)
        spread = max(NORMAL_MAD * np.median(np.abs(values - middle)), LEAST_SPREAD * abs(middle), 1e-12)
        for name, value in known.items():
            apart = abs(value - middle) / spread
            if apart > worst.get(name, (0.0, ""))[0]:
                worst[name] = apart, f"{words} {value:.4g}, the median is {middle:.4g}"
    return worst
