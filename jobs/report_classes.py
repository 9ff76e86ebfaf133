"""The classes of a run as a page shows them: a tile for each, its figures, and histograms of its particles."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from vitrea.engine.stability import read_half_sets, read_stability
from vitrea.engine.tiles import tiles

IMAGE_BUDGET = 7_500_000   # bytes of all tiles; as text they are a third more, and the page is to stay under 15 MB
BINS = 12
LEAST_SHARE = 0.02         # of a class: fewer particles that might go elsewhere are not told
MICROMETRE = 1e4           # Å


def class_page(run, scores=None):
    """(one plain dict for each class of a FinishedRun, largest first; what the page's script needs of all of them).

    scores: what engine/class_scores.py found, if the classes are to be shown with it.
    """
    pictures, pixels = tiles(run.averages, IMAGE_BUDGET)
    columns = particle_columns(run)
    facts = _facts(run, columns)
    counted = {name: histograms(run.class_number, run.n_classes, column.values, column.edges)
               for name, column in columns.items()}
    entries = []
    for k in np.argsort(-run.sizes, kind="stable").tolist():
        resolution = None if np.isnan(run.resolution[k]) else float(run.resolution[k])
        entry = {"number": k + 1, "size": int(run.sizes[k]), "share": float(run.sizes[k] / max(run.sizes.sum(), 1)),
                 "resolution": resolution, "resolution_words": f"{resolution:.1f} Å" if resolution else "–",
                 "image": data_uri(pictures[k], "png"), "pixels": pixels, "frc": rounded(run.expected_frc[k]),
                 "score": None, "reasons": [], "facts": facts[k],
                 "histograms": {name: counted[name][k].tolist() for name in columns}}
        if scores is not None and run.sizes[k]:
            entry |= {"score": round(float(scores.score[k]), 4), "reasons": scores.reasons(k)}
        entries.append(entry)
    return entries, _shared(run, entries, columns)


NO_CLASSES = {"classes": [], "frequency": [], "measured": False, "histograms": {}}


def _shared(run, entries, columns):
    """The classes without their images, which are in the page already, and what the classes share."""
    kept = ("number", "size", "share", "resolution", "score", "reasons", "frc", "facts", "histograms")
    return {"classes": [{key: entry[key] for key in kept} for entry in entries],
            "frequency": rounded(run.frequency, 5), "measured": run.frc is not None,
            "histograms": {name: {"title": column.title, "xlabel": column.unit,
                                  "x": rounded((column.edges[:-1] + column.edges[1:]) / 2)}
                           for name, column in columns.items()}}


def _facts(run, columns):
    """(name, value in words) of each class: medians over its particles, and its stability where it is known."""
    medians = {name: _medians(run, column.values) for name, column in columns.items()}
    facts = [[(column.words, column.form.format(medians[name][k])) for name, column in columns.items()
              if np.isfinite(medians[name][k])] for k in range(run.n_classes)]
    stability = read_stability(run.folder, run.n_classes) or {"classes": []}
    for k, value in enumerate(stability["classes"]):
        if value is not None:
            facts[k].append(("stability between runs", f"{value:.2f}, by chance {stability['chance'][k]:.2f}, with "
                             f"class {stability['partner'][k]} of {stability['other']}"))
    for k, words in _half_set_facts(run):
        facts[k].append(("stability between halves", words))
    return facts


def _half_set_facts(run):
    """(class, what half_sets.json tells of it in words) of those that it knows."""
    found = read_half_sets(run.folder, run.n_classes) or {"classes": []}
    for k, value in enumerate(found["classes"]):
        if value is not None:
            shared = f"; {found['share'][k]:.0%} would go to class {found['shares_with'][k]}" \
                if found["share"][k] >= LEAST_SHARE else ""
            yield k, f"{value:.2f}, by chance {found['chance']:.2f}{shared}"


@dataclass(frozen=True)
class Column:
    """A number that each particle has: values float64[n]; edges of histogram bins; how it is called, its median in
    words and as a format, and its unit."""

    values: np.ndarray
    edges: np.ndarray
    title: str
    words: str
    form: str
    unit: str


def particle_columns(run):
    """{name: Column} of what the STAR file tells of the particles; what it lacks is left out."""
    number = run.numbers
    u, v = number("rlnDefocusU"), number("rlnDefocusV")
    x, y = number("rlnOriginXAngst"), number("rlnOriginYAngst")
    circle, share = np.linspace(-180, 180, BINS + 1), np.linspace(0, 1, BINS + 1)
    found = {
        "defocus": (None if u is None or v is None else (u + v) / 2 / MICROMETRE, None, "Defocus", "median defocus",
                    "{:.2f} µm", "underfocus [µm]"),
        "shift": (None if x is None or y is None else np.hypot(x, y), None, "Distance from the box centre",
                  "median shift", "{:.1f} Å", "shift [Å]"),
        "psi": (number("rlnAnglePsi"), circle, "In-plane angle", "median in-plane angle", "{:.0f}°", "angle [°]"),
        "pmax": (number("rlnMaxValueProbDistribution"), share, "Probability of the best pose", "median of pmax",
                 "{:.2f}", "pmax"),
        "norm": (number("rlnNormCorrection"), None, "Brightness", "median brightness", "{:.3f}",
                 "amplitude relative to the mean")}
    return {name: Column(values, _spread(values) if edges is None else edges, *words)
            for name, (values, edges, *words) in found.items() if values is not None and len(values)}


def histograms(number, n_classes, values, edges):
    """int64[K, bins] of values float64[n] by class number int[n]; what lies outside is counted in the outer bins."""
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    flat = np.bincount(number.astype(np.int64) * (len(edges) - 1) + place, minlength=n_classes * (len(edges) - 1))
    return flat.reshape(n_classes, -1)


def data_uri(content, kind):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def rounded(values, digits=3):
    """A list of numbers as short as a plot needs them; null for what is not finite."""
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def _medians(run, values):
    """float64[K]: median of values float64[n] by class, NaN where there is none."""
    order = np.lexsort((values, run.class_number))
    ends = np.cumsum(run.sizes)
    starts, ends = ends - run.sizes, ends - 1
    middle = np.full(run.n_classes, np.nan)
    there = run.sizes > 0
    low, high = ((starts + ends) // 2)[there], ((starts + ends + 1) // 2)[there]
    middle[there] = (values[order[low]] + values[order[high]]) / 2
    return middle


def _spread(values):
    """Edges from the first to the 99th percentile: a few odd particles do not squeeze all others into one bin."""
    low, high = np.percentile(values, (0.5, 99.5))
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)
