"""What a report shows of jobs on micrographs: picks on their micrographs, scores, and precision against recall."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from vitrea.engine.tiles import micrograph_jpeg
from vitrea.jobs.report_classes import data_uri, rounded
from vitrea.jobs.report_section import Section, reliability_plot
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.pictures import PICTURES, TRAINING_NAME
from vitrea.picker.recurse import ROUNDS_NAME
from vitrea.picker.results import SUMMARY_NAME, candidates_path, settled

LONGEST_SIDE = 900    # px of a micrograph in a report
BINS = 40
CURVE_POINTS = 300
TABLE_ROWS = 200


def pick_sections(folder, comparison=None):
    """Sections of a page for the folder of a pick job that is done; comparison: a PickComparison with labels."""
    threshold, _ = settled(folder)
    with (Path(folder) / SUMMARY_NAME).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [candidates_path(folder, row["micrograph"]) for row in rows]
    scores = [read_coordinates(path).score for path in paths if path.exists()]
    plots = _score_plots(np.concatenate([np.zeros(0), *scores]), [int(row["picks"]) for row in rows], threshold)
    sections = [Section("scores", "Scores", plots=plots)]
    if comparison is not None:
        sections.append(Section("judged", "Against labels", _judged_words(comparison), comparison_plots(comparison)))
    return [*sections, _micrographs(folder, rows)]


def training_section(folder, record):
    """The section of a job that trains a picker; record: its record `done`."""
    plots = []
    for key, words in (("after", "after calibration"), ("before", "before calibration")):
        found = (record.get("reliability") or {}).get(key)
        if found and found["bins"]:
            plots.append(reliability_plot([tuple(each) for each in found["bins"]], f"Reliability {words}",
                                          f"Calibration error {found['error']:.3f}, Brier score {found['brier']:.3f}."))
    pictures = _picture(folder, TRAINING_NAME, "Loss by step, precision against recall, and reliability of the scores")
    return Section("training", "Training", plots=plots, pictures=pictures, table=_rounds(folder))


def _rounds(folder):
    """(heading, rows) of what each round of a recurse job came to, None for other jobs."""
    path = Path(folder) / ROUNDS_NAME
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]


def comparison_plots(comparison):
    """Precision against recall of a PickComparison whose picks have scores."""
    if comparison.curve is None:
        return []
    recall, precision = (np.asarray(comparison.curve[name]) for name in ("recall", "precision"))
    some = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).astype(int))
    return [{"title": "Precision against recall", "words": f"Area {comparison.auprc:.3f}. Dashed: the recall at the "
             "threshold.", "kind": "line", "x": rounded(recall[some], 4), "xlabel": "recall", "ylabel": "precision",
             "range": [0, 1], "mark": round(comparison.recall, 4),
             "series": [{"name": "precision", "y": rounded(precision[some], 4)}]}]


def _judged_words(comparison):
    return (f"{comparison.particles:,} labelled particles, {comparison.picks:,} picks: precision "
            f"{comparison.precision:.3f}, recall {comparison.recall:.3f}, F1 {comparison.f1:.3f} within "
            f"{comparison.radius:g} px.")


def _score_plots(scores, picks, threshold):
    edges = np.linspace(0, 1, BINS + 1)
    middle = rounded((edges[1:] + edges[:-1]) / 2, 4)
    below, above = (np.histogram(part, edges)[0].tolist() for part in (scores[scores < threshold],
                                                                       scores[scores >= threshold]))
    return [
        {"title": "Scores of all candidates", "words": f"{sum(above):,} picks reach the threshold {threshold:.3f}, "
         f"{sum(below):,} candidates do not.", "kind": "bars", "x": middle, "xlabel": "score", "ylabel": "candidates",
         "series": [{"name": "below the threshold", "y": below, "colour": "#8a939e"},
                    {"name": "picks", "y": above, "colour": "#2e9e5b"}]},
        {"title": "Picks of each micrograph", "words": f"Median {np.median(picks) if picks else 0:g}, in the order of "
         "the input.", "kind": "line", "points": True, "zero": True, "whole": True, "x": list(range(1, len(picks) + 1)),
         "xlabel": "micrograph", "ylabel": "picks", "series": [{"name": "picks", "y": picks}]}]


def _micrographs(folder, rows):
    pictures = []
    for path in sorted((Path(folder) / PICTURES).glob("*.png")):
        place = path.name.partition("_")[0]
        row = next((row for row in rows if row["look_first"] == str(int(place))), None) if place.isdigit() else None
        words = f"{row['micrograph']}: {row['picks']} picks; {row['reason']}" if row else path.stem
        pictures.append({"image": data_uri(micrograph_jpeg(path, LONGEST_SIDE), "jpeg"), "caption": words,
                         "label": f"Micrograph with circles around its picks. {words}"})
    table = [(row["micrograph"], row["picks"], row["candidates"], row["median_score"], row["problem"])
             for row in rows[:TABLE_ROWS]]
    words = "Those to look at first. Circles: picks, orange at the threshold to green; thin red: nearly."
    if len(rows) > TABLE_ROWS:
        words += f" The table has the first {TABLE_ROWS} of {len(rows):,} micrographs; {SUMMARY_NAME} has all."
    heading = "micrograph", "picks", "candidates", "median score", "problem"
    return Section("micrographs", "Micrographs", words, pictures=pictures, table=(heading, table))


def _picture(folder, name, label):
    path = Path(folder) / name
    if not path.exists():
        return []
    return [{"image": data_uri(path.read_bytes(), "png"), "label": label, "caption": label}]
