"""The experiments on a dense network and written digits: Procedures of `job: dynamics`, their claims and pictures.

`digits_noise` and `digits_branching` follow Yang et al. (arXiv 2601.10962), with endpoints compared at matched training
losses, a curvature that no rescaling changes, and freezing defined by barriers. `digits_starts` asks whether what noise
does for accuracy is more than one start's and one choice of digits': every repeat has its own of both, and the cells
are compared pair by pair.
"""
import numpy as np

from vitrea.engine.anneal import LEAST_BARRIER
from vitrea.engine.digits import DenseLandscape, mnist, sklearn_digits
from vitrea.engine.dynamics import Procedure
from vitrea.engine.dynamics_intervals import mean_interval
from vitrea.engine.dynamics_networks import (
    Branches,
    Cell,
    Expected,
    Study,
    branch_claims,
    branching,
    dealt,
    hot_state,
    noise_claims,
    noise_table,
    verdict,
)
from vitrea.engine.valleys import cool

CELLS = (Cell(0.05, 250), Cell(0.05, 10), Cell(0.2, 20), Cell(0.2, 10), Cell(0.3, 10), Cell(0.3, 5), Cell(0.5, 20),
         Cell(0.5, 10), Cell(0.05, 50, fresh=True))
BRANCHING_CELLS = (Cell(0.2, 10), Cell(0.3, 10), Cell(0.5, 20))
STARTS_CELLS = (Cell(0.05, 250), Cell(0.2, 20))
EXPECTED = Expected(quiet=(0.05, 250), good=(0.2, 20), loud=(0.5, 10), early=(0.2, 10), late=(0.3, 10))
REPEATS, PARENTS, STARTS = 20, 6, 40
BRANCH_TIMES = (0.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 95.0)


def digits(options, split=0):
    """DenseLandscape of a job's digits: those of MNIST if the job says where they are, scikit-learn's otherwise."""
    if options.input is None:
        return DenseLandscape(sklearn_digits(options.per_class or 50, split), options.hidden or (32, 32))
    return DenseLandscape(mnist(options.input, options.per_class or 100), options.hidden or (50, 50))


def study_of(options, landscape):
    """The Study of a job's keys."""
    return Study(landscape, options.seed, options.learning_time, tuple(sorted(options.matched_losses, reverse=True)),
                 options.replacement)


def cells_of(options, default):
    """Every learning rate with every batch size, or an experiment's own cells."""
    if options.learning_rates is None and options.batch_sizes is None:
        return default
    rates, sizes = ((getattr(options, name) or tuple(dict.fromkeys(getattr(cell, kind) for cell in default)))
                    for name, kind in (("learning_rates", "rate"), ("batch_sizes", "batch")))
    return tuple(Cell(rate, size) for rate in rates for size in sizes)


# ---- digits_noise

def _measure_noise(laboratory):
    options, landscape = laboratory.options, digits(laboratory.options)
    rows = noise_table(laboratory, study_of(options, landscape), cells_of(options, CELLS), options.repeats or REPEATS)
    return rows and noise_result(rows, landscape, EXPECTED)


def noise_result(rows, landscape, expected):
    """What result.json holds of a noise table: rows, and the claims at each matched loss."""
    losses = list(dict.fromkeys(row["matched_loss"] for row in rows))
    claims = {loss: noise_claims([row for row in rows if row["matched_loss"] == loss], expected) for loss in losses}
    return {"parameters": landscape.n_parameters, "training_samples": landscape.n_samples, "rows": rows,
            "claims": [{"matched_loss": loss, **claim} for loss in losses for claim in claims[loss]]}


def judge_claims(result):
    """The verdict's lines, for each matched loss where there are several."""
    losses = list(dict.fromkeys(claim.get("matched_loss") for claim in result["claims"]))
    if len(losses) < 2:
        return verdict(result["claims"])
    lines = [f"{sum(claim['holds'] for claim in result['claims'])} of {len(result['claims'])} claims hold"]
    for loss in losses:
        own = verdict([claim for claim in result["claims"] if claim["matched_loss"] == loss])
        lines += [f"training loss {loss}: {own[0]}", *own[1:]]
    return lines


def draw_noise(result, path):
    """Barrier, Jaccard similarity, curvature and accuracy of the cells over their noise strength."""
    figure, axes = _figure(2, 3, (12, 7))
    names = ("barrier", "jaccard", "distance", "sharpness", "invariant_sharpness", "accuracy")
    for axis, name in zip(axes.flat, names):
        for loss in dict.fromkeys(row["matched_loss"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["matched_loss"] == loss and not row["own_starts"]]
            _with_intervals(axis, [row["noise_strength"] for row in rows], [row[name] for row in rows],
                            f"training loss {loss:g}")
        axis.set(xscale="log", xlabel="noise strength η / B", ylabel=name.replace("_", " "))
        _mark_values(axis, sorted({row["noise_strength"] for row in result["rows"]}))
    axes[0, 0].set_yscale("symlog", linthresh=1e-3)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, format="png", dpi=110)


def _mark_values(axis, values):
    """The values measured at as the ticks of a logarithmic axis, whose own labels would cover each other."""
    axis.set_xticks(values, [f"{value:.2g}" for value in values], rotation=60)
    axis.set_xticks([], minor=True)


def _with_intervals(axis, x, intervals, label):
    order = np.argsort(x)
    mean, low, high = (np.array([each[part] for each in intervals], dtype=float)[order]
                       for part in ("mean", "low", "high"))
    axis.errorbar(np.asarray(x)[order], mean, np.nan_to_num([mean - low, high - mean], posinf=0), marker="o",
                  capsize=3, label=label)


def _figure(rows, columns, size):
    # Slow to import, and only wanted here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _outlook_noise(options):
    cells, repeats = cells_of(options, CELLS), options.repeats or REPEATS
    steps = repeats * sum(cell.steps(options.learning_time) for cell in cells)
    return [f"descents    {len(cells)} cells × {repeats} repeats, {steps:,} steps; then cooled to training loss "
            f"{', '.join(f'{loss:g}' for loss in sorted(options.matched_losses, reverse=True))}"]


# ---- digits_branching

def _measure_branching(laboratory):
    options, landscape = laboratory.options, digits(laboratory.options)
    return branching_result(laboratory, study_of(options, landscape), cells_of(options, BRANCHING_CELLS),
                            options.repeats or PARENTS, EXPECTED, BRANCH_TIMES)


def branching_result(laboratory, study, cells, parents, expected, times):
    """What result.json holds of branches, at `times` unless the job says which; None if it was asked to stop.
    Collective."""
    options = laboratory.options
    branches = Branches(options.branch_times or times, options.children, options.horizon)
    rows = branching(laboratory, study, cells, parents, branches)
    return rows and {"matched_loss": study.losses[0], "children": branches.children, "horizon": branches.horizon,
                     "no_barrier_below": LEAST_BARRIER, "rows": rows, "claims": branch_claims(rows, expected)}


def draw_branching(result, path):
    """Barriers over the learning time at which a state branches."""
    figure, axes = _figure(1, 2, (10, 4))
    for axis, name in zip(axes[0], ("twin_barrier", "continued_barrier")):
        for row in result["rows"]:
            _with_intervals(axis, row["times"], row[name], f"η {row['learning_rate']:g}, batch {row['batch_size']}")
        axis.axhline(result["no_barrier_below"], color="0.6", linewidth=1)
        axis.set(xlabel="learning time η t of the branch", ylabel=name.replace("_", " "))
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, format="png", dpi=110)


def _outlook_branching(options):
    cells, times = cells_of(options, BRANCHING_CELLS), options.branch_times or BRANCH_TIMES
    return [f"branches    {len(cells)} cells × {options.repeats or PARENTS} parents × {len(times)} times, "
            f"{options.children} children each, over a learning time of {options.horizon:g}"]


# ---- digits_starts

def _measure_starts(laboratory):
    options, cells = laboratory.options, cells_of(laboratory.options, STARTS_CELLS)
    repeats = options.repeats or STARTS
    losses = tuple(sorted(options.matched_losses, reverse=True))
    found = dealt(laboratory, len(cells) * repeats, lambda i: _start(options, cells[i // repeats], i % repeats),
                  {"hot": (), "accuracy": (len(losses),)}, lambda i: f"start {i % repeats + 1}")
    if found is None:
        return None
    at = {"before cooling": found["hot"], **{loss: found["accuracy"][:, k] for k, loss in enumerate(losses)}}
    rows = [_starts_row(cells, loss, values.reshape(len(cells), repeats)) for loss, values in at.items()]
    claims = [{"matched_loss": row["matched_loss"], "name": "N3", "found": gain,
               "holds": gain["mean"] > 3 * gain["error"],
               "claim": f"accuracy {cell.words} - {cells[0].words}, each repeat its own start and digits, above 0 by 3 "
                        "standard errors"} for row in rows for cell, gain in zip(cells[1:], row["gain"])]
    return {"repeats": repeats, "rows": rows, "claims": claims}


def _start(options, cell, number):
    """Accuracy of a descent on digits and from a start of its own, hot and at every matched loss."""
    landscape = digits(options, split=number)
    study = study_of(options, landscape)
    theta = hot_state(study, Cell(cell.rate, cell.batch, fresh=True), number)
    hot, accuracy = 1.0 - landscape.wrong(theta).mean(), []
    for loss in study.losses:
        end = cool(landscape, theta, loss)
        theta = end.theta
        accuracy.append(end.accuracy)
    return {"hot": hot, "accuracy": accuracy}


def _starts_row(cells, loss, accuracy):
    """Mean accuracy of each cell at one loss, and its gain over the first cell, pair by pair."""
    return {"matched_loss": loss, "cells": [(cell.rate, cell.batch) for cell in cells],
            "accuracy": [mean_interval(values).as_dict() for values in accuracy],
            "gain": [mean_interval(values - accuracy[0]).as_dict() for values in accuracy[1:]],
            "values": accuracy}


def _draw_starts(result, path):
    figure, axes = _figure(1, 1, (7, 4))
    cells = result["rows"][0]["cells"]
    for number, cell in enumerate(cells[1:]):
        x = np.arange(len(result["rows"]))
        _with_intervals(axes[0, 0], x, [row["gain"][number] for row in result["rows"]], str(cell))
    axes[0, 0].axhline(0, color="0.6", linewidth=1)
    axes[0, 0].set_xticks(x, [str(row["matched_loss"]) for row in result["rows"]])
    axes[0, 0].set(xlabel="training loss", ylabel=f"accuracy above that of {cells[0]}")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, format="png", dpi=110)


def _outlook_starts(options):
    return [f"descents    {len(cells_of(options, STARTS_CELLS))} cells × {options.repeats or STARTS} repeats"]


DIGITS_NOISE = Procedure(_measure_noise, judge_claims, draw_noise, _outlook_noise)
DIGITS_BRANCHING = Procedure(_measure_branching, judge_claims, draw_branching, _outlook_branching)
DIGITS_STARTS = Procedure(_measure_starts, judge_claims, _draw_starts, _outlook_starts)
