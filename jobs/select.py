"""`vitrea select`: which classes of a run go on, by rules or by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.stability import HALVES_NAME, NAME, read_half_sets, read_stability
from vitrea.engine.subset import SELECTED, Choice

FOLDER = "selection"   # in the run folder, unless --out says otherwise
BY_HAND = ("rejected by hand", "kept by hand")


@dataclass(frozen=True)
class Rules:
    """What a class must fulfil: its number; its resolution [Å] at most; its particles, its score and its stability at
    least, between runs or, without a second one, between halves of the particles."""

    classes: str | None = None
    resolution: float | None = None
    particles: int | None = None
    score: float | None = None
    stability: float | None = None

    def __bool__(self):
        return any(value is not None for value in vars(self).values())


def choose(run, rules, score=None):
    """The Choice of the classes that fulfil all Rules; a class without particles is never kept.

    score float[K], needed if the rules ask for one. JobError for numbers of classes that the run has not.
    """
    failed = [[] for _ in range(run.n_classes)]
    words = []
    for name, fulfils, told in _tests(run, rules, score):
        words.append(name)
        for k in np.flatnonzero(~fulfils):
            failed[k].append(told(k))
    why = ["no particles" if not run.sizes[k] else "; ".join(failed[k]) or "fulfils " + ", ".join(words)
           for k in range(run.n_classes)]
    kept = (run.sizes > 0) & np.array([not each for each in failed])
    return Choice(kept, tuple(why if words else ["not looked at yet"] * run.n_classes), tuple(words))


def by_hand(choice, kept):
    """The Choice after a person has decided: what differs from the rules says so."""
    why = tuple(choice.why[k] if kept[k] == choice.kept[k] and choice.criteria else BY_HAND[int(kept[k])]
                for k in range(len(kept)))
    return Choice(np.asarray(kept, dtype=bool), why, (*choice.criteria, "by hand"))


def parse_classes(text, n_classes):
    """bool[K] of numbers from 1 and ranges, like `1,4,7-9`; JobError for what is none, or not a class of the run."""
    found = np.zeros(n_classes, dtype=bool)
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise JobError(f"--classes: '{part}' was found; expected numbers and ranges like 1,4,7-9; correct it")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= n_classes:
            raise JobError(f"--classes: '{part}' was found, but the run has the classes 1 to {n_classes}; expected "
                           "some of them, the smaller number first; correct it")
        found[first - 1:last] = True
    return found


def output_folder(run_folder, out, interactive):
    """Where the files go; JobError if a selection is there that was not asked to be changed."""
    folder = Path(out) if out else Path(run_folder) / FOLDER
    if not interactive and (folder / SELECTED).exists():
        raise JobError(f"{folder}: a selection is already there ({SELECTED}); expected a folder without one; choose "
                       "another --out, remove it, or change it with --interactive")
    return folder


def _tests(run, rules, score):
    """(rule in words, bool[K] fulfilled, words of a failure by class) of each rule that was given."""
    if rules.classes is not None:
        yield "--classes " + rules.classes, parse_classes(rules.classes, run.n_classes), lambda k: "not in --classes"
    if rules.resolution is not None:
        yield (f"--min-resolution {rules.resolution:g}", np.nan_to_num(run.resolution, nan=np.inf) <= rules.resolution,
               lambda k: f"resolution {run.resolution[k]:.1f} Å is worse than {rules.resolution:g} Å"
               if np.isfinite(run.resolution[k]) else "has no resolution")
    if rules.particles is not None:
        yield (f"--min-particles {rules.particles}", run.sizes >= rules.particles,
               lambda k: f"{run.sizes[k]:,} particles are fewer than {rules.particles:,}")
    if rules.stability is not None:
        stable = _stability(run)
        yield (f"--min-stability {rules.stability:g}", stable >= rules.stability,
               lambda k: f"stability {stable[k]:.2f} is below {rules.stability:g}")
    if rules.score is not None:
        yield (f"--score {rules.score:g}", score >= rules.score,
               lambda k: f"score {score[k]:.2f} is below {rules.score:g}")


def _stability(run):
    """float64[K]: stability of the classes between runs, or between halves where no second run was compared; NaN for
    classes without. JobError if the run folder tells neither."""
    found = read_stability(run.folder, run.n_classes) or read_half_sets(run.folder, run.n_classes)
    if found is None:
        raise JobError(f"{run.folder}: --min-stability: found neither {NAME} nor {HALVES_NAME}; expected what 'vitrea "
                       f"stability' writes; run 'vitrea stability {run.folder}'")
    return np.array(found["classes"], dtype=np.float64)
