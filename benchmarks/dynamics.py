"""`vitrea bench dynamics`: the acceptance tests T1 to T12 of the two-valley model, with what is due to chance.

Each row is a claim: what was measured with its 95 % interval, what was expected, and whether it holds. The ensembles
are dealt out to the ranks it is started on; the others are small and every rank makes them.
"""
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.comm import world
from vitrea.engine.dynamics_options import DynamicsOptions
from vitrea.engine.two_valleys import (
    FLAT,
    SHARP,
    Landscape,
    hopping_rates,
    occupancy,
    passage_time,
    valley_variance,
)
from vitrea.engine.two_valleys_experiments import FREEZING_SCAN, PHASE_DIAGRAM, QUENCH, RELIABLE_TIME, SMALL_RATE
from vitrea.engine.two_valleys_frozen import FrozenEnsemble
from vitrea.engine.two_valleys_printed import printed_occupancy
from vitrea.kernels.langevin import reference_derivatives

DELTA = 1e-3         # effective noise of the tests at a frozen y
NORMAL = 1.96        # standard errors on either side of a 95 % interval
RESAMPLES = 2000     # of the bootstrap over cells
TABLE_SIZE = 2000    # trajectories of a cell of the authors' phase diagram


@dataclass(frozen=True)
class Row:
    """A claim, and what came of it."""

    test: str
    claim: str
    measured: str
    expected: str
    holds: bool


class Bench:
    """What experiments and ensembles need of a laboratory: options, ranks, and someone to tell."""

    def __init__(self, progress, comm, **keys):
        self.options = DynamicsOptions(output=Path("."), **keys)
        self.comm, self.round, self._progress = comm, 0, progress

    def plan(self, rounds):
        self._progress.step(f"dynamics: {self.options.experiment}", rounds)

    def restored(self):
        return {}

    def end_round(self, gather, words=""):
        self._progress.done()
        return True


def measure(trajectories, seed, progress, comm):
    """(rows, record) of all tests; trajectories of a cell of the phase diagram, the other sizes go with it. Collective.
    """
    cpu = time.process_time()
    rows = [derivatives(), *variances(seed), *occupancies(seed), *isotropic(seed), *passages(seed)]
    small = time.process_time() - cpu
    lab = {"seed": seed, "progress": progress, "comm": comm}
    phases = _result(PHASE_DIAGRAM, "phase_diagram", trajectories, **lab)
    grid = time.process_time() - cpu - small
    rows += phase_rows(phases)
    scan = _result(FREEZING_SCAN, "freezing_scan", trajectories // 2, **lab)
    rows += scan_rows(scan)
    rows += quench_rows(_result(QUENCH, "quench", 2 * trajectories, **lab))
    rows += squared_rows(_result(PHASE_DIAGRAM, "phase_diagram", trajectories, noise_power=2,
                                 learning_rates=(0.1, 10**-(5 / 3)), noise_strengths=(0.1, 10**-(5 / 3)), **lab))
    rows.sort(key=lambda row: int(row.test[1:]))
    record = {"benchmark": "dynamics", "name": "acceptance", "trajectories": trajectories, "seed": seed,
              "ranks": comm.size, "seconds_small": small, "seconds_grid": grid,
              "seconds": time.process_time() - cpu, "rows": [vars(row) | {"holds": bool(row.holds)} for row in rows]}
    return rows, record | surroundings()


def _result(procedure, experiment, trajectories, *, seed, progress, comm, **keys):
    return procedure.measure(Bench(progress, comm, experiment=experiment, seed=seed, trajectories=trajectories, **keys))


# ---- at a frozen y

def derivatives():
    """T1: the steps' derivatives are those of the loss; barriers are equal, and x*² over the width."""
    landscape, random = Landscape(), np.random.default_rng(1)
    x, y = random.uniform(0.02, 1, 500) * random.choice([-1, 1], 500), random.uniform(0.5, 60, 500)
    h, model = 1e-4, landscape.model(0.1, 0.1, 1)

    def slope(function, dx, dy):
        return (8 * (function(x + h * dx, y + h * dy) - function(x - h * dx, y - h * dy))
                - function(x + 2 * h * dx, y + 2 * h * dy) + function(x - 2 * h * dx, y - 2 * h * dy)) / (12 * h)

    found = reference_derivatives(x, y, model)
    expected = [slope(landscape.loss, 1, 0), slope(landscape.loss, 0, 1),
                slope(lambda *at: reference_derivatives(*at, model)[0], 1, 0)]
    errors = [np.max(np.abs(one - other) / np.maximum(np.abs(other), 1e-3)) for one, other in zip(found, expected)]
    minima = landscape.minima(y)
    for side, sign in ((FLAT, 1), (SHARP, -1)):
        height = landscape.loss(0 * y, y) - landscape.loss(sign * minima[:, side], y)
        errors += [np.max(np.abs(height / landscape.barrier(y) - 1)),
                   np.max(np.abs(landscape.barrier(y) * landscape.widths(y)[:, side] / minima[:, side] ** 2 - 1))]
    return Row("T1", "derivatives and finite differences; L(0) - L(x*) = ΔL in both valleys; ΔL f = x*²",
               f"{max(errors):.1e} relative, at most", "1e-6", bool(max(errors) < 1e-6))


def variances(seed):
    """T2: F1 in both valleys."""
    for eta in (0.1, 0.03):
        found = FrozenEnsemble(Landscape(), 60.0, eta, (DELTA / eta, 1, 0.0), seed=seed).variances(16_000)
        exact = valley_variance(Landscape(), 60.0, eta, DELTA)
        off = max(abs(one.value / other - 1) for one, other in zip(found, exact))
        yield Row("T2", f"variance within the valleys, η = {eta:g}", " and ".join(
            f"{1e3 * one.value:.4f} ± {1e3 * NORMAL * one.error:.4f}" for one in found) + " · 10⁻³",
            f"F1: {1e3 * exact[0]:.4f} and {1e3 * exact[1]:.4f}, within 2 %", off < 0.02)


def occupancies(seed):
    """T3: F2 at a frozen y, extrapolated to small steps."""
    etas = np.array([1e-2, 2.5e-3, 6.25e-4])
    for y in (1.0, 2.0, 3.0):
        found = [FrozenEnsemble(Landscape(), y, eta, (DELTA / eta, 1, 0.0), seed=seed).occupancy(1000.0)
                 for eta in etas]
        value, error = extrapolated(etas, found)
        exact, printed = float(occupancy(Landscape(), y, DELTA)), float(printed_occupancy(Landscape(), y, DELTA))
        holds = abs(value - exact) < 0.008 and (y == 2.0 or abs(value - printed) > abs(value - exact))
        yield Row("T3", f"P_flat at y = {y:g}, Δ = {DELTA:g}, extrapolated in √η from η = 0.01 … 0.0006",
                  f"{value:.4f} ± {NORMAL * error:.4f}", f"F2: {exact:.4f}, within 0.008; as printed {printed:.4f}",
                  holds)


def extrapolated(etas, found):
    """(value, standard error) at η = 0 of a straight line in √η through Measured occupancies."""
    weights = 1 / np.array([one.error for one in found])
    design = np.stack([np.ones(len(etas)), np.sqrt(etas)], axis=1) * weights[:, None]
    covariance = np.linalg.inv(design.T @ design)
    line = covariance @ design.T @ (weights * np.array([one.value for one in found]))
    return float(line[0]), float(np.sqrt(covariance[0, 0]))


def isotropic(seed):
    """T4: with isotropic noise the widths alone decide."""
    gamma = Landscape().gamma
    exact = np.sqrt(gamma) / (1 + np.sqrt(gamma))
    for y, delta in ((1.0, 1e-3), (3.0, 2e-2)):
        found = FrozenEnsemble(Landscape(), y, 1e-3, (delta / 1e-3, 0, 0.0), 512, seed).occupancy(400.0)
        yield Row("T4", f"null: isotropic noise, P_flat at y = {y:g}, Δ = {delta:g}",
                  f"{found.value:.4f} ± {NORMAL * found.error:.4f}", f"√γ/(1+√γ) = {exact:.4f}, within 0.01",
                  abs(found.value - exact) < 0.01)


def passages(seed):
    """T5: F3, valley to valley."""
    for y, delta in ((3.0, 1e-3), (2.5, 5e-4)):
        for start, words in ((SHARP, "sharp to flat"), (FLAT, "flat to sharp")):
            found = FrozenEnsemble(Landscape(), y, 1e-3, (delta / 1e-3, 1, 0.0), 6000, seed).passage(start)
            exact, rate = passage_time(Landscape(), y, delta, 1, start), hopping_rates(Landscape(), y, delta)[start]
            yield Row("T5", f"mean time {words} at y = {y:g}, Δ = {delta:g}, η = 0.001",
                      f"{found.value:.3f} ± {NORMAL * found.error:.3f}",
                      f"F3: {exact:.3f}, within 6 %; 1/k = {1 / rate:.3f}", abs(found.value / exact - 1) < 0.06)


# ---- ensembles

def _column(result, name):
    return np.array([np.nan if cell.get(name) is None else cell[name] for cell in result["cells"]], dtype=np.float64)


def root_mean_square(differences):
    """(rms, its 95 % interval by the bootstrap over cells)."""
    random = np.random.default_rng(0)
    squares = np.asarray(differences) ** 2
    drawn = np.sqrt(squares[random.integers(len(squares), size=(RESAMPLES, len(squares)))].mean(axis=1))
    return float(np.sqrt(squares.mean())), tuple(np.percentile(drawn, [2.5, 97.5]))


def by_chance(result, other=np.inf):
    """rms of the difference of P_flat that sampling alone makes; `other` trajectories on the other side."""
    p = _column(result, "p_flat")
    hopped = _column(result, "never_crossed") < 1   # where none hopped, half and half is no draw
    variance = np.where(hopped, p * (1 - p), 0.0) * (1 - _column(result, "never_crossed"))
    return float(np.sqrt(variance.mean() * (1 / result["trajectories"] + 1 / other)))


def _rms_row(test, claim, differences, limits, chance):
    rms, (low, high) = root_mean_square(differences)
    largest = float(np.abs(differences).max())
    return Row(test, claim, f"rms {rms:.4f} ({low:.4f} … {high:.4f}), largest {largest:.3f} of {len(differences)}",
               f"rms ≤ {limits[0]:.3g}, largest ≤ {limits[1]:.3g}; by chance {chance:.4f}",
               rms <= limits[0] and largest <= limits[1])


def _widened(result, meant_for=TABLE_SIZE):
    return max(1.0, float(np.sqrt(meant_for / result["trajectories"])))


def phase_rows(result):
    """T6, T7, T9."""
    p_flat, wide = _column(result, "p_flat"), _widened(result)
    yield _rms_row("T6", f"the authors' P_flat, {result['trajectories']:,} trajectories a cell",
                   p_flat - _column(result, "authors_p_flat"), (0.012 * wide, 0.05 * wide),
                   by_chance(result, TABLE_SIZE))
    ours, theirs = _column(result, "normalised_freezing_time"), _column(result, "authors_freezing_time")
    late = theirs > RELIABLE_TIME
    rms, (low, high) = root_mean_square((ours / theirs - 1)[late])
    errors = _column(result, "freezing_time_error")[late] / ours[late]
    chance = float(np.sqrt(np.mean(errors**2) * (1 + result["trajectories"] / TABLE_SIZE)))
    yield Row("T7", f"the authors' η t_f where above {RELIABLE_TIME:g}",
              f"rms {100 * rms:.1f} % ({100 * low:.1f} … {100 * high:.1f}) of {late.sum()}",
              f"≤ {8 * wide:.3g} %; by chance {100 * chance:.1f} %", rms <= 0.08 * wide)
    small = _column(result, "learning_rate") <= SMALL_RATE
    part = {**result, "cells": [cell for cell, kept in zip(result["cells"], small) if kept]}
    yield _rms_row("T9", f"theory F4, nothing fitted, η ≤ {SMALL_RATE}",
                   (p_flat - _column(result, "theory_p_flat"))[small], (0.012 * wide, 0.03 * wide), by_chance(part))


def scan_rows(result):
    """T8, T11."""
    p_flat, y, wide = _column(result, "p_flat"), _column(result, "freezing_y"), _widened(result, 1000)
    off = np.abs(p_flat - _column(result, "authors_p_flat"))
    ratio = np.abs(y / _column(result, "authors_freezing_y") - 1)
    yield Row("T8", f"the authors' scan from y = 1, {result['trajectories']:,} trajectories",
              f"P_flat off by {off.max():.3f} at most, y at freezing by {100 * ratio.max():.1f} %",
              f"≤ {0.03 * wide:.3g} and {6 * wide:.3g} %; by chance ± {NORMAL * np.sqrt(2) * by_chance(result):.3f}",
              bool(off.max() <= 0.03 * wide and ratio.max() <= 0.06 * wide))
    theory = np.abs(p_flat - _column(result, "theory_p_flat"))
    yield Row("T8", "the same, and theory F4, nothing fitted", f"P_flat off by {theory.max():.3f} at most",
              f"≤ {0.03 * wide:.3g}", bool(theory.max() <= 0.03 * wide))
    errors = _column(result, "freezing_y_error")
    rises = np.diff(y) / np.hypot(errors[1:], errors[:-1])
    yield Row("T11", "y at freezing rises with every noise strength", f"least rise {rises.min():.1f} standard errors",
              "above 3", bool(rises.min() > 3))
    error = _column(result, "p_flat_error")
    gain, spread = p_flat[-1] - p_flat[0], np.hypot(error[-1], error[0])
    yield Row("T11", "P_flat at Δ = 0.002 above that at 0.00005", f"{gain:.3f} ± {NORMAL * spread:.3f}",
              "above 3 standard errors", bool(gain > 3 * spread))
    steady = occupancy(Landscape(), 2.0, np.array([5e-4, 1e-3, 2e-3]))
    yield Row("T11", "at a fixed y = 2 the stationary P_flat falls with the noise, Δ = 0.0005, 0.001, 0.002 (F2)",
              ", ".join(f"{value:.3f}" for value in steady), "falls", bool((np.diff(steady) < 0).all()))


def quench_rows(result):
    """T10. With 1,500 trajectories chance alone (binomial) brings one of nine times beyond 0.03 in 7 % of the runs,
    with 4,000 in 0.04 %."""
    p_flat, wide = _column(result, "p_flat"), _widened(result, 1500)
    off = np.abs(p_flat - _column(result, "theory_p_flat"))
    times = [cell["quench_time"] for cell in result["cells"]]
    yield Row("T10", f"quench law F5 at {len(times)} times, Δ = {DELTA:g}, {result['trajectories']:,} trajectories",
              f"P_flat off by {off.max():.3f} at most", f"≤ {0.03 * wide:.3g}; by chance ± "
              f"{NORMAL * by_chance(result):.3f} each", bool(off.max() <= 0.03 * wide))
    early, late = times.index(100.0), times.index(300.0)
    error = _column(result, "p_flat_error")
    gain, spread = p_flat[late] - p_flat[early], np.hypot(error[late], error[early])
    yield Row("T10", "P_flat quenched at 300 above that quenched at 100", f"{gain:.3f} ± {NORMAL * spread:.3f}",
              "≥ 0.15", bool(gain >= 0.15))


def squared_rows(result):
    """T12."""
    cells = {(round(cell["learning_rate"], 4), round(cell["noise_strength"], 4)): cell for cell in result["cells"]}
    noisy, middle = cells[0.1, 0.1], cells[0.0215, 0.0215]
    fall = middle["p_flat"] - noisy["p_flat"]
    spread = np.hypot(middle["p_flat_error"], noisy["p_flat_error"])
    yield Row("T12", "noise as H²: P_flat at η = σ = 0.1 below that at 0.0215",
              f"{noisy['p_flat']:.3f} and {middle['p_flat']:.3f}, lower by {fall:.3f} ± {NORMAL * spread:.3f}",
              "lower by ≥ 0.08; the authors' 0.869 and 0.998", bool(fall >= 0.08))


# ---- what is printed

def told(rows, record):
    """The table, as Markdown."""
    lines = ["| test | claim | measured (95 % interval) | expected | holds |", "|---|---|---|---|---|"]
    lines += [f"| {row.test} | {row.claim} | {row.measured} | {row.expected} | {'yes' if row.holds else '**no**'} |"
              for row in rows]
    ranks = record["ranks"]
    lines += ["", f"{sum(row.holds for row in rows)} of {len(rows)} hold; {record['seconds']:.0f} s of CPU on each of "
              f"{ranks} rank{'s' if ranks > 1 else ''}, {record['seconds_grid']:.0f} of them for the authors' grid"]
    return "\n".join(lines)


def command(arguments):
    """`vitrea bench dynamics`; 1 if a claim does not hold."""
    comm = world()
    rows, record = measure(arguments.trajectories, arguments.seed, SILENCE if comm.rank else arguments.progress, comm)
    if comm.rank == 0:
        keep(arguments.records, record)
        arguments.progress.result(json.dumps(record) if arguments.json else told(rows, record))
    return 0 if all(row.holds for row in rows) else 1
