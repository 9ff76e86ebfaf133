"""The course of a run as plots: what record.jsonl tells of its iterations."""

from __future__ import annotations

import numpy as np

from vitrea.engine.pictures import by_population
from vitrea.jobs.report_classes import rounded

SHOWN_CLASSES = 30      # bands of the plot of sizes; the others are one band
PHASES = {"coarse": "coarse scores", "score": "fine scores", "posterior": "posterior", "accumulate": "sums",
          "e_rest": "rest of the E step", "m_step": "M step", "reduce": "reduce and waiting",
          "checkpoint": "checkpoint", "rest": "rest"}


def iterations(records):
    """Records of the iterations of all stages in order; full passes, which count from 1 again, come after the
    mini-batches; of an iteration that was done again after a resume the later one counts."""
    found = [record for record in records if record["kind"] == "iteration"]
    batches = max((record["iteration"] for record in found if record.get("stage") == "minibatch"), default=0)
    latest = {record["iteration"] + (0 if record.get("stage") == "minibatch" else batches): record for record in found}
    return [latest[number] | {"at": number} for number in sorted(latest)]


def convergence_plots(found):
    """Plots of likelihood, resolution, class switches, posteriors, temperature and noise over iterations."""
    plots = _likelihood(found)
    for name, title, label, factor, more in (
            ("resolution", "Resolution", "resolution [Å]", 1, {"turned": True}),
            ("changed", "Particles that changed class", "share [%]", 100, {"zero": True}),
            ("mobility", "Class-switch rate of particles met again", "share [%]", 100, {"zero": True}),
            ("noise", "Noise of the mini-batches", "share of one particle's variance", 1, {"zero": True}),
            ("pmax", "Mean probability of the best pose", "pmax", 1, {"zero": True}),
            ("temperature", "Temperature", "temperature", 1, {"log": True})):
        y = _values(found, name, factor)
        if any(value is not None for value in y) and set(y) != {_WITHOUT.get(name)}:
            plots.append(_plot(found, title, label, [{"name": title, "y": y}], _from_to(y), **more))
    return plots


_WITHOUT = {"temperature": 1.0, "noise": 0.0}   # of runs that have none, which need no plot


def size_plots(found, reseeds):
    """Sizes of the classes and how many are in use over iterations; reseeds: records of that kind."""
    found = [record for record in found if record.get("class_sizes") and sum(record["class_sizes"])]
    if not found:
        return []
    n_classes = max(len(record["class_sizes"]) for record in found)
    sizes = np.array([record["class_sizes"] + [0] * (n_classes - len(record["class_sizes"])) for record in found],
                     dtype=np.float64)
    shares = 100 * sizes / sizes.sum(axis=1, keepdims=True)
    order = by_population(sizes[-1])
    series = [{"name": f"class {k + 1}", "y": rounded(shares[:, k], 2)} for k in order[:SHOWN_CLASSES]]
    if len(order) > SHOWN_CLASSES:
        series.append({"name": f"{len(order) - SHOWN_CLASSES} others",
                       "y": rounded(shares[:, order[SHOWN_CLASSES:]].sum(axis=1), 2)})
    changes = sum(len(record.get("map") or {}) for record in reseeds)
    words = f"Largest at the end below; {changes} times an emptied class began again as half of another." \
        if changes else "Largest at the end below."
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(shares / 100 * np.log(shares / 100), axis=1)
    effective = rounded(np.exp(entropy), 1)
    return [_plot(found, "Sizes of the classes", "share of the particles [%]", series, words, kind="area",
                  range=[0, 100]),
            _plot(found, "Classes in use", "exp of the entropy of the sizes",
                  [{"name": "classes in use", "y": effective}], _from_to(effective), zero=True)]


def flow_plots(found):
    """The flow of particles between classes, iteration by iteration; none if no record tells of moves."""
    steps = [{"at": record["at"], "moves": record["moves"]} for record in found if record.get("moves")]
    if not steps:
        return []
    return [{"title": "Moves between classes", "words": "At most the thirty most frequent moves of an iteration; all "
             "iterations have one scale.", "kind": "flow", "steps": steps, "x": [], "series": []}]


def timing_plots(found):
    """Seconds by phase, the balance of ranks, and memory over iterations."""
    phases = {name: _phase(found, name) for name in PHASES}
    series = [{"name": words, "y": rounded(phases[name], 3)} for name, words in PHASES.items() if phases[name].any()]
    total = sum(phases.values())
    waiting = phases["reduce"].sum() / max(total.sum(), 1e-9)
    plots = [_plot(found, "Time by phase", "seconds of an iteration", series,
                   f"{total.sum():,.0f} s in all, {100 * waiting:.0f} % of it in the message that adds up over ranks, "
                   "which includes waiting for the slowest.", kind="area")]
    busy = _values(found, "busy", 100)
    if any(value is not None for value in busy):
        known = [value for value in busy if value is not None]
        plots.append(_plot(found, "Balance of the ranks", "busy [%]", [{"name": "busy", "y": busy}],
                           f"Mean time that ranks worked in an E step, of the time until the slowest was done: "
                           f"{np.mean(known):.0f} % in the mean. What lacks to 100 % was waiting.", range=[0, 100]))
    memory = _values(found, "memory", 1e-9)
    if any(value is not None for value in memory):
        plots.append(_plot(found, "Memory of rank 0", "peak [GB]", [{"name": "peak", "y": memory}], _from_to(memory),
                           zero=True))
    return plots


def _phase(found, name):
    """float64[iterations]: seconds of one phase, those left over computed from what is known."""
    def column(key):
        return np.array([float(record.get(key) or 0.0) for record in found])

    if name == "e_rest":
        return np.maximum(0.0, column("e_step") - sum(map(column, ("coarse", "score", "posterior", "accumulate"))))
    if name == "rest":
        return np.maximum(0.0, column("seconds") - sum(map(column, ("e_step", "m_step", "reduce", "checkpoint"))))
    return column(name)


def _likelihood(found):
    series = [{"name": name, "y": _values(found, key)} for key, name in (
        ("log_likelihood", "learnt from"), ("held_out", "held out"))]
    series = [one for one in series if any(value is not None for value in one["y"])]
    if not series:
        return []
    label = "log-likelihood" + (" of a particle" if "held_out" in found[0] else "")
    return [_plot(found, "Log-likelihood", label, series, _from_to(series[0]["y"]))]


def _plot(found, title, label, series, words, kind="line", **more):
    """What plots.js draws. The dashed line is where passes over all particles begin."""
    stages = [record.get("stage") for record in found]
    mark = found[stages.index("full")]["at"] if {"minibatch", "full"} <= set(stages) else None
    if mark is not None:
        words += " Left of the dashed line: mini-batches."
    return {"title": title, "words": words.strip(), "x": [record["at"] for record in found], "xlabel": "iteration",
            "ylabel": label, "whole": True, "kind": kind, "series": series, "mark": mark} | more


def _values(found, name, factor=1.0):
    return [None if record.get(name) is None else float(f"{factor * float(record[name]):.7g}") for record in found]


def _from_to(values):
    """`From 42.7 to 15.1.`: what the plot shows, in words."""
    known = [value for value in values if value is not None]
    return f"From {_short(known[0])} to {_short(known[-1])}." if known else ""


def _short(value):
    return f"{value:.4g}".replace("-", "−")
