"""`vitrea threshold`: another threshold for a finished pick run, from its candidates, without a scan.

New coordinates are written whole into a folder beside, which then takes the place of coordinates/; index and summary
follow, and threshold.json comes last. A command that was killed leaves a run that the same command puts right.
"""
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.log import RunLog
from vitrea.picker.coordinates import find_coordinates, read_coordinates
from vitrea.picker.evaluate import Counts, best_threshold, curve
from vitrea.picker.micrographs import list_micrographs
from vitrea.picker.pictures import draw_looks, draw_run
from vitrea.picker.results import (
    COORDINATES,
    SUMMARY_NAME,
    candidates_path,
    expected_threshold,
    listed_micrographs,
    read_manifests,
    settled,
    write_index,
    write_picks,
)

NEW, OLD = ".coordinates-new", ".coordinates-old"


@dataclass(frozen=True)
class Labels:
    """Labelled micrographs to choose a threshold by: folders of coordinate files and of discs to be ignored (columns
    x, y, radius [px]), the distance [Å] up to which a pick is right, β of F_β, and how the files count y."""

    folder: Path
    radius: float
    ignore: Path | None = None
    beta: float = 2.0
    y_axis: str = "down"


@dataclass(frozen=True)
class Change:
    """What another threshold makes of a run: thresholds, picks {micrograph: number}, and Counts on labelled
    micrographs (None without labels, which are then 0), each before and after; and the
    number of pictures that could be drawn anew."""

    thresholds: tuple[float, float]
    picks: tuple[dict, dict]
    counts: tuple[Counts, Counts] | None = None
    labelled: int = 0
    pictures: int = 0


def by_value(value):
    """A chooser that takes a given threshold; JobError outside 0 to 1."""
    if not 0 <= value <= 1:
        raise JobError(f"--value {value:g}: scores are from 0 to 1; expected a threshold between; change --value")
    return lambda run: value


def by_number(expected):
    """A chooser for `expected` picks a micrograph in the mean; JobError for a number that is not above 0, or above
    that of the candidates."""
    if not expected > 0:
        raise JobError(f"--expected {expected:g}: expected a number of picks above 0; change --expected")

    def choose(run):
        scores = np.concatenate([found.score for found in run.values()])
        if round(expected * len(run)) > len(scores):
            raise JobError(f"--expected {expected:g}: the run has {len(scores) / len(run):.4g} candidates a "
                           "micrograph; expected no more picks than those; change --expected, or choose a threshold "
                           "by --value")
        return expected_threshold(scores, len(run), expected)

    return choose


def change_threshold(options, choose, labels=None):
    """Write coordinates/, autopick.star, summary.csv and threshold.json of the run in options.output anew: a Change.

    choose(run) gives the threshold for the candidates of all micrographs, {name: Coordinates}; it is None where labels
    choose. Raises JobError if the run is not done, or no label belongs to it.
    """
    folder = Path(options.output)
    (before, diameter), listed = settled(folder), listed_micrographs(folder)
    names = [name for name in listed if candidates_path(folder, name).exists()]
    if not names:
        raise JobError(f"{folder}: found no candidates; expected candidates/ as job pick writes it; pick again")
    run, results = {name: read_coordinates(candidates_path(folder, name)) for name in names}, read_manifests(folder)
    counts, scored = None, []
    if labels is None:
        after = choose(run)
    else:
        scored = _scored(folder, run, results, labels)
        after, counts = _best(scored, before, labels)
    _replace_coordinates(folder, names, after, options.formats)
    total, looks = write_index(folder, listed, results, (after, diameter), options.pictures)
    drawn = _draw(options, names, looks, (after, diameter))
    with RunLog(folder, echo=False) as log:
        log.line(f"threshold {before:.3f} changed to {after:.3f}   {total:,} picks")
        log.record("done", picks=total, threshold=after, micrographs=len(listed), skipped=len(listed) - len(names))
    picks = tuple({name: int((found.score >= limit).sum()) for name, found in run.items()} for limit in (before, after))
    return Change((before, after), picks, counts, len(scored), drawn)


def format_change(change, shown=10):
    """Lines for people: thresholds, picks before and after, and the micrographs where most changes."""
    before, after = change.picks
    rows = [("", "before", "after"), ("threshold", *(f"{value:.3f}" for value in change.thresholds)),
            (f"picks, {len(before):,} micrographs", *(f"{sum(part.values()):,}" for part in change.picks)),
            ("picks a micrograph", *(f"{np.mean(list(part.values())):.1f}" for part in change.picks))]
    if change.counts:
        rows.append((f"on {change.labelled} labelled micrographs", "", ""))
        rows += [(words, *(f"{figure(counts):.3f}" for counts in change.counts)) for words, figure in (
            ("  precision", lambda counts: counts.precision), ("  recall", lambda counts: counts.recall),
            ("  F1", Counts.f), ("  F2", lambda counts: counts.f(2)))]
    rows.append(("pictures drawn anew", "", f"{change.pictures}"))
    most = sorted((name for name in before if before[name] != after[name]),
                  key=lambda name: -abs(after[name] - before[name]))
    if most:
        rows.append(("most changed" if len(most) > shown else "changed", "", ""))
        rows += [(f"  {name}", f"{before[name]:,}", f"{after[name]:,}") for name in most[:shown]]
    if len(most) > shown:
        rows.append((f"  and {len(most) - shown:,} more; all are in {SUMMARY_NAME}", "", ""))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{words:<{width}}{one:>10}{other:>10}".rstrip() for words, one, other in rows)


def _scored(folder, run, results, labels):
    """Candidates and labels of the labelled micrographs, in Å, as evaluate.curve wants them."""
    if not labels.radius > 0:
        raise JobError(f"--radius {labels.radius:g}: expected a distance in Å above 0; change --radius")
    scored = []
    for name, found in run.items():
        path = find_coordinates(labels.folder, Path(name).stem)
        if path is None:
            continue
        height, pixel = results[name].get("height"), results[name]["pixel_size"]
        if labels.y_axis == "up" and height is None:
            raise JobError(f"{folder}: the run does not say how high {name} is; expected a run of this version for "
                           "labels that count y upwards; pick again, or convert the labels")
        upwards = height if labels.y_axis == "up" else None
        discs = find_coordinates(labels.ignore, Path(name).stem) if labels.ignore else None
        ignored = read_coordinates(discs, upwards=upwards) if discs else None
        scored.append((found.places * pixel, found.score, read_coordinates(path, upwards=upwards).places * pixel,
                       np.column_stack([ignored.places, ignored.radius]) * pixel if discs else ()))
    if not sum(len(truth) for _, _, truth, _ in scored):
        raise JobError(f"{labels.folder}: found no labels for the {len(run):,} micrographs of {folder}; expected "
                       "coordinate files with the micrographs' names, such as mic1.star for mic1.mrc; check the folder")
    return scored


def _best(scored, before, labels):
    """(threshold of the largest F_β, Counts before and after)."""
    found = curve(scored, labels.radius)
    if not found.true.any():
        raise JobError(f"{labels.folder}: no pick lies within {labels.radius:g} Å of a label; expected labels of the "
                       "picked particles; check --radius, which is in Å, and --y-axis")
    after, counts = best_threshold(found, labels.beta)
    return after, (found.counts(before), counts)


def _draw(options, names, looks, settled):
    """The run's pictures anew; the number of micrographs that were drawn, which must still be where they were."""
    draw_run(options.output, names, settled[0])
    if settled[1] is None:   # of a version that did not write it down
        return 0
    try:
        listed = list_micrographs(options.input)
    except JobError:
        return 0
    known = [(place, look) for place, look in enumerate(looks, 1) if look.name in listed.names]
    return draw_looks(options.output, known, lambda name: listed.read(listed.names.index(name), options.pixel_size),
                      *settled)


def _replace_coordinates(folder, names, threshold, formats):
    """Write coordinates/ anew beside its place, and put it there."""
    for left in (NEW, OLD):   # by a command that was killed
        shutil.rmtree(folder / left, ignore_errors=True)
    for name in names:
        write_picks(folder, name, threshold, formats, into=NEW)
    if (folder / COORDINATES).exists():
        (folder / COORDINATES).rename(folder / OLD)
    (folder / NEW).rename(folder / COORDINATES)
    shutil.rmtree(folder / OLD, ignore_errors=True)
