"""How far two runs agree on which particles belong together: a stability for each class and each particle.

A particle in class a of one run and class b of the other has the stability |a ∩ b| / |a ∪ b|, the Jaccard index,
counted over the particles of both runs: 1 if the same particles met again, about the share of b in the data if the runs
have nothing in common. Runs with another seed, of the same particles, tell what the noise and the start decided.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.star import write_star

NAME, STAR_NAME = "stability.json", "stability.star"
HALVES_NAME, HALVES_STAR_NAME = "half_sets.json", "half_sets.star"   # engine/half_sets.py writes them


@dataclass(frozen=True)
class Stability:
    """Of the n particles that two runs share: rows int64[n] in the first run; particles float64[n]; classes float64[K]
    of the first run, NaN without shared particles: the mean over its particles; partner int64[K]: the class of the
    other run that shares most (-1: none); chance float64[K]: what classes[K] would be if the runs had nothing in
    common; ari: adjusted Rand index of the two runs."""

    rows: np.ndarray
    particles: np.ndarray
    classes: np.ndarray
    partner: np.ndarray
    chance: np.ndarray
    ari: float


def stability_of(run, other):
    """The Stability of a FinishedRun beside another of the same particles; JobError if they share none."""
    rows, others = _shared(run, other)
    if not len(rows):
        raise JobError(f"{other.folder}: none of the particles of {run.folder} is in it; expected a run of the same "
                       "particles, with another seed; check the paths")
    a, b = run.class_number[rows], other.class_number[others]
    together = np.bincount(a.astype(np.int64) * other.n_classes + b, minlength=run.n_classes * other.n_classes)
    together = together.reshape(run.n_classes, other.n_classes).astype(np.float64)
    size_a, size_b = together.sum(axis=1), together.sum(axis=0)
    union = size_a[:, None] + size_b - together
    jaccard = np.divide(together, union, out=np.zeros_like(together), where=union > 0)
    known = size_a > 0
    classes = np.full(run.n_classes, np.nan)
    classes[known] = (together * jaccard).sum(axis=1)[known] / size_a[known]
    return Stability(rows, jaccard[a, b], classes, np.where(known, together.argmax(axis=1), -1),
                     _chance(size_a, size_b), adjusted_rand_index(a, b))


def write_stability(run, other, found):
    """Write stability.star (classes, particles) and stability.json into the folder of the first run."""
    partner = np.where(found.partner >= 0, found.partner + 1, 0)
    write_star(run.folder / STAR_NAME, {
        "classes": {"rlnClassNumber": np.arange(1, run.n_classes + 1),
                    "vitreaStability": np.nan_to_num(found.classes), "vitreaChance": np.nan_to_num(found.chance),
                    "vitreaPartner": partner},
        "particles": {"rlnImageName": run.particles["rlnImageName"][found.rows],
                      "vitreaStability": found.particles}})
    told = {"run": str(run.folder), "other": str(other.folder), "shared": len(found.rows), "ari": round(found.ari, 5),
            "classes": [None if np.isnan(value) else round(float(value), 5) for value in found.classes],
            "chance": [None if np.isnan(value) else round(float(value), 5) for value in found.chance],
            "partner": partner.tolist()}
    with written_beside(run.folder / NAME) as beside:
        beside.write_text(json.dumps(told) + "\n", encoding="utf-8")


def read_stability(folder, n_classes):
    """What stability.json of a run folder says, None if there is none of so many classes."""
    return _read(Path(folder) / NAME, n_classes)


def read_half_sets(folder, n_classes):
    """What half_sets.json of a run folder says, None if there is none of so many classes."""
    return _read(Path(folder) / HALVES_NAME, n_classes)


def _read(path, n_classes):
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if len(told["classes"]) == n_classes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shared(run, other):
    """Rows of the particles that both runs have, by the names of their images."""
    names, others = run.particles["rlnImageName"][:], other.particles["rlnImageName"][:]
    _, rows, more = np.intersect1d(names, others, return_indices=True)
    order = np.argsort(rows)
    return rows[order], more[order]


def _chance(size_a, size_b):
    """float64[K]: expected stability of each class if the other run dealt the particles at random, to leading order:
    of a class of size s, a share b/n falls into a class of size b."""
    n = size_a.sum()
    share = size_b / n
    meet = size_a[:, None] * share
    union = size_a[:, None] + size_b - meet
    found = (share * np.divide(meet, union, out=np.zeros_like(meet), where=union > 0)).sum(axis=1)
    return np.where(size_a > 0, found, np.nan)
