"""The experiments of `job: dynamics` on the two-valley model: what each simulates, and its verdict.

Every cell of a result has what was simulated, with its standard error, beside what the theory (F4, F5: no fitted
factor) says, and beside the authors' own simulation where they published that cell. A verdict's lines begin with
`agrees`, `differs`, or `note` where nothing was expected; tolerances are those of the acceptance tests in
docs/dynamics.md, widened as 1/√n where there are fewer trajectories than those were set for.
"""
from collections.abc import Callable, Mapping

import numpy as np

from vitrea.engine import two_valleys_published as published
from vitrea.engine.dynamics import Laboratory, Procedure
from vitrea.engine.dynamics_options import SCHEDULES, DynamicsOptions
from vitrea.engine.errors import JobError
from vitrea.engine.two_valleys import ANTI_ITO, ITO, Landscape, occupancy
from vitrea.engine.two_valleys_ensemble import Cell, Setting, simulate
from vitrea.engine.two_valleys_pictures import draw_cooling, draw_courses, draw_phases, draw_quench, draw_scan
from vitrea.engine.two_valleys_printed import printed_freezing_y, printed_occupancy, printed_transient_occupancy
from vitrea.engine.two_valleys_transient import Course, quenched, transient
from vitrea.kernels.langevin import CROSSED, CROSSED_Y, X, Y

SMALL_RATE = 0.03           # up to it, a learning rate is small against the valleys' widths, as the theory wants it
PRINTED_EPSILON = 30.0      # what the plotted curve of the authors' repository amounts to
STEPS_PER_SECOND = 4e7      # of one core, for outlooks only
RELIABLE_TIME = 5.0         # freezing times below it are of a few hops, and Poisson's
LEAST_ERROR = 1e-12         # of a mean over one trajectory, or over some that are alike
LATE, MOST_LATE = 0.1, 0.1   # of the run; of the trajectories: where more cross as late as that, nothing has frozen
CLOSE_STRENGTHS = 1e-3      # relative: a learning rate or noise strength is that of a published table

Result = Mapping[str, object]


# ---- what experiments share

def _setting(options: DynamicsOptions, trajectories: int, start_y: float, marks: tuple[float, ...] = ()) -> Setting:
    return Setting(Landscape.of(options), options.trajectories or trajectories, options.start_y or start_y,
                   options.noise_power, options.seed, ANTI_ITO if options.rule == "anti_ito" else ITO,
                   options.noise == "full", marks)


def _pairs(options: DynamicsOptions, rates, strengths) -> list[tuple[float, float]]:
    return [(rate, strength) for rate in options.learning_rates or rates
            for strength in options.noise_strengths or strengths]


def _conditions(setting: Setting, steps: int) -> dict[str, object]:
    """What of the run the verdict and the picture need to know."""
    return {"trajectories": setting.trajectories, "iterations": steps, "start_y": setting.start_y,
            "noise_power": setting.noise_power, "place": setting.place, "landscape": vars(setting.landscape)}


def _as_published(setting: Setting, start_y: float, power: int = 1) -> bool:
    """Whether the setting is that of a published table."""
    return (setting.landscape == Landscape() and setting.place == ITO and setting.noise_power == power
            and setting.start_y == start_y)


def _ended(state: np.ndarray, cell: Cell) -> dict[str, float]:
    """What is said of every cell: state float64[4, n] at its end."""
    rate = cell.learning_rate
    n, flat = state.shape[1], state[X] >= 0
    p_flat, crossed = float(flat.mean()), state[CROSSED] > 0
    y_freeze = np.where(crossed, state[CROSSED_Y], np.nan)
    return {"p_flat": p_flat, "p_flat_error": float(np.sqrt(p_flat * (1 - p_flat) / n)),
            "normalised_freezing_time": float(rate * state[CROSSED].mean()), "never_crossed": float(1 - crossed.mean()),
            "freezing_time_error": float(rate * state[CROSSED].std() / np.sqrt(n)),
            "crossed_late": float((state[CROSSED] > (1 - LATE) * cell.steps).mean()),
            "y_end": float(state[Y].mean()), "y_crossed": float(np.nanmean(y_freeze)) if crossed.any() else np.nan}


def _freezing_y(state: np.ndarray, start_y: float) -> tuple[float, float, float]:
    """(mean, standard deviation, standard error) of y at the last crossing; the beginning where there was none."""
    y = np.where(state[CROSSED] > 0, state[CROSSED_Y], start_y)
    return float(y.mean()), float(y.std()), float(y.std() / np.sqrt(len(y)))


def _theory(setting: Setting, cell: Cell, deltas) -> Course:
    """F4 for a cell; `deltas` as in `transient`."""
    return transient(setting.landscape, deltas, cell.learning_rate * cell.steps, setting.start_y,
                     (setting.noise_power, setting.place))


def _courses(setting: Setting, cells: list[Cell]) -> list[Course]:
    """F4 for each of the cells, with constant noise; those of one learning rate and length together."""
    found = {}
    for rate, steps in {(cell.learning_rate, cell.steps) for cell in cells}:
        alike = [n for n, cell in enumerate(cells) if (cell.learning_rate, cell.steps) == (rate, steps)]
        course = _theory(setting, cells[alike[0]], rate * np.array([cells[n].noise_strength for n in alike]))
        for column, n in enumerate(alike):
            one = np.s_[column:column + 1]
            found[n] = Course(course.times, course.y, course.p_flat[:, one], course.freezing_y[one],
                              course.freezing_time[one])
    return [found[n] for n in range(len(cells))]


def _place(values: np.ndarray, value: float) -> int | None:
    """Where a value stands in a table, or None."""
    near = np.abs(np.asarray(values) / value - 1)
    return int(near.argmin()) if near.min() < CLOSE_STRENGTHS else None


def _looked_up(table: Mapping[float, object], strength: float) -> object | None:
    place = _place(np.array(list(table)), strength)
    return None if place is None else list(table.values())[place]


def _widened(result: Result, meant_for: int = 2000) -> float:
    """By how much tolerances grow where fewer trajectories were simulated than they are meant for."""
    return max(1.0, float(np.sqrt(meant_for / result["trajectories"])))


def _compared(words: str, differences, rms: float | None, largest: float | None, unit: str = "") -> str:
    """`agrees   F4 and simulation: rms 0.007, largest 0.020 of 50; expected at most 0.012 and 0.030`."""
    differences = np.abs(np.asarray(differences, dtype=np.float64))
    found = float(np.sqrt(np.mean(differences**2))), float(differences.max())
    limits = [(value, limit, name) for value, limit, name in zip(found, (rms, largest), ("rms", "largest"))
              if limit is not None]
    verdict = "agrees" if all(value <= limit for value, limit, _ in limits) else "differs"
    expected = " and ".join(f"{name} {limit:.3g}{unit}" for _, limit, name in limits)
    return (f"{verdict:<9}{words}: rms {found[0]:.3g}{unit}, largest {found[1]:.3g}{unit} of {len(differences)}; "
            f"expected at most {expected}")


def _against_theory(result: Result, words: str, rms: float | None, largest: float | None, kept=slice(None)) -> str:
    """The line that compares P_flat with F4 or F5. Tolerances are set for Itô's rule, with noise as the Hessian or
    isotropic; the others come near the theory only with steps that are smaller still (docs/dynamics.md)."""
    off = (_column(result, "p_flat") - _column(result, "theory_p_flat"))[kept]
    line = _compared(f"{words}, and simulated P_flat", off, rms, largest)
    if result["noise_power"] <= 1 and result["place"] == ITO:
        return line
    return "note     " + line[9:].partition(";")[0] + "; with this noise no limit is set"


def _unfrozen(result: Result) -> list[str]:
    """A line about cells whose trajectories still hop at the end, if there are any."""
    late = _column(result, "crossed_late")
    if not (late > MOST_LATE).any():
        return []
    worst = result["cells"][int(late.argmax())]
    return [f"note     {int((late > MOST_LATE).sum())} of {len(late)} cells had not frozen: more than "
            f"{100 * MOST_LATE:.0f} % of their trajectories crossed in the last {100 * LATE:.0f} % of the "
            f"{result['iterations']:,} steps, at η = {worst['learning_rate']:g}, σ = {worst['noise_strength']:g} "
            f"{100 * late.max():.0f} %; their P_flat and freezing times are those of a run cut short; make iterations "
            "larger"]


def _said(holds: bool, words: str) -> str:
    return f"{'agrees' if holds else 'differs':<9}{words}"


def _column(result: Result, name: str) -> np.ndarray:
    """float64[cells]: NaN where a cell lacks it."""
    return np.array([np.nan if cell.get(name) is None else cell[name] for cell in result["cells"]], dtype=np.float64)


def _outlook(cells_of: Callable[[DynamicsOptions], list[Cell]], trajectories: int):
    def lines(options: DynamicsOptions) -> list[str]:
        cells = cells_of(options)
        count = options.trajectories or trajectories
        steps = sum(cell.steps for cell in cells) * count
        slower = 2 if options.rule == "anti_ito" or options.noise == "full" else 1
        return [f"ensemble    {len(cells)} cells of {count:,} trajectories   {steps:.3g} steps in all, about "
                f"{slower * steps / STEPS_PER_SECOND:,.0f} s of one core"]
    return lines


# ---- phase diagram

def _phase_cells(options: DynamicsOptions) -> list[Cell]:
    return [Cell(rate, strength, options.iterations or 20_000)
            for rate, strength in _pairs(options, published.GRID.tolist(), published.GRID.tolist())]


def _measure_phases(laboratory: Laboratory) -> Result | None:
    options = laboratory.options
    cells, setting = _phase_cells(options), _setting(options, 2000, 5.0)
    ends = simulate(cells, setting, laboratory)
    if ends is None:
        return None
    steps = cells[0].steps
    found = []
    for cell, state, course in zip(cells, ends["state"], _courses(setting, cells)):
        theory = {"theory_p_flat": float(course.p_flat[-1, 0]), "theory_freezing_time": float(course.freezing_time[0])}
        authors = _published_phase(cell, setting) if steps == 20_000 else {}
        found.append({"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength,
                      **_ended(state, cell), **theory, **authors})
    return {**_conditions(setting, steps), "cells": found}


def _published_phase(cell: Cell, setting: Setting) -> dict[str, float]:
    if _as_published(setting, 5.0, 2) and cell.learning_rate == cell.noise_strength:
        place = _place(published.SQUARED_GRID, cell.learning_rate)
        return {} if place is None else {"authors_p_flat": float(published.SQUARED_P_FLAT[place])}
    if not _as_published(setting, 5.0):
        return {}
    row, column = _place(published.GRID, cell.learning_rate), _place(published.GRID, cell.noise_strength)
    if row is None or column is None:
        return {}
    return {"authors_p_flat": float(published.PHASE_P_FLAT[row, column]),
            "authors_freezing_time": float(published.PHASE_FREEZING_TIME[row, column])}


def _judge_phases(result: Result) -> list[str]:
    p_flat, times, wide = _column(result, "p_flat"), _column(result, "normalised_freezing_time"), _widened(result)
    lines = []
    small = _column(result, "learning_rate") <= SMALL_RATE
    if small.any():
        lines.append(_against_theory(result, f"theory F4, no fitted factor, where η ≤ {SMALL_RATE}", 0.012 * wide,
                                     0.03 * wide, small))
    known = np.isfinite(_column(result, "authors_p_flat"))
    if known.any():
        lines.append(_compared("the authors' P_flat and ours", (p_flat - _column(result, "authors_p_flat"))[known],
                               0.012 * wide, 0.05 * wide))
    theirs = _column(result, "authors_freezing_time")
    late = known & (theirs > RELIABLE_TIME)
    if late.any():
        lines.append(_compared(f"the authors' freezing times and ours, where above {RELIABLE_TIME:g}",
                               100 * (times / theirs - 1)[late], 8 * wide, None, " %"))
    delta = _column(result, "learning_rate") * _column(result, "noise_strength")
    low, high = int(delta.argmin()), int(delta.argmax())
    lines.append(f"note     from the weakest to the strongest noise P_flat goes from {p_flat[low]:.3f} to "
                 f"{p_flat[high]:.3f}, the freezing time η t_f from {times[low]:.2f} to {times[high]:.2f}")
    return lines + _unfrozen(result)


# ---- where hopping freezes, by noise strength

def _scan_cells(options: DynamicsOptions) -> list[Cell]:
    return [Cell(rate, strength, options.iterations or 100_000)
            for rate, strength in _pairs(options, (0.01,), tuple(published.SCAN))]


def _measure_scan(laboratory: Laboratory) -> Result | None:
    options = laboratory.options
    cells, setting = _scan_cells(options), _setting(options, 2000, 1.0)
    ends = simulate(cells, setting, laboratory)
    if ends is None:
        return None
    steps = cells[0].steps
    found = []
    for cell, state, course in zip(cells, ends["state"], _courses(setting, cells)):
        delta = cell.learning_rate * cell.noise_strength
        mean, deviation, error = _freezing_y(state, setting.start_y)
        authors = _looked_up(published.SCAN, cell.noise_strength)
        known = (authors is not None and cell.learning_rate == 0.01 and steps == 100_000
                 and _as_published(setting, 1.0))
        found.append({"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength, "delta": delta,
                      **_ended(state, cell), "freezing_y": mean, "freezing_y_deviation": deviation,
                      "freezing_y_error": error, "theory_p_flat": float(course.p_flat[-1, 0]),
                      "theory_freezing_y": float(course.freezing_y[0]),
                      "printed_freezing_y": float(printed_freezing_y(setting.landscape, delta, PRINTED_EPSILON)),
                      "printed_p_flat": float(printed_transient_occupancy(setting.landscape, delta, PRINTED_EPSILON)),
                      **({"authors_p_flat": authors[0], "authors_freezing_y": authors[1]} if known else {})})
    return {**_conditions(setting, steps), "printed_epsilon": PRINTED_EPSILON, "cells": found}


def _judge_scan(result: Result) -> list[str]:
    p_flat, y, wide = _column(result, "p_flat"), _column(result, "freezing_y"), _widened(result)
    lines = [_against_theory(result, "theory F4, no fitted factor", None, 0.03 * wide)]
    known = np.isfinite(_column(result, "authors_p_flat"))
    if known.any():
        lines.append(_compared("the authors' P_flat and ours", (p_flat - _column(result, "authors_p_flat"))[known],
                               None, 0.03 * wide))
        lines.append(_compared("the authors' y at freezing and ours",
                               100 * (y / _column(result, "authors_freezing_y") - 1)[known], None, 6 * wide, " %"))
    order = np.argsort(_column(result, "delta"), kind="stable")
    if len(order) > 1:
        error = _column(result, "freezing_y_error")[order]
        rises = np.diff(y[order]) / np.maximum(np.hypot(error[1:], error[:-1]), LEAST_ERROR)
        lines.append(_said(bool((rises > 0).all()), "y at freezing rises with the noise from each strength to the next,"
                           f" at least by {rises.min():.1f} standard errors"))
        gain = p_flat[order[-1]] - p_flat[order[0]]
        spread = np.hypot(*_column(result, "p_flat_error")[order[[0, -1]]])
        lines.append(_said(gain > 3 * spread, f"P_flat is higher by {gain:.3f} with the strongest noise than with the "
                           f"weakest, {gain / max(spread, LEAST_ERROR):.1f} standard errors"))
    return lines + _unfrozen(result)


# ---- the fraction in the flat valley along the way

def _course_cells(options: DynamicsOptions) -> list[Cell]:
    return [Cell(rate, strength, options.iterations or 100_000)
            for rate, strength in _pairs(options, (0.01,), tuple(published.COURSE))]


def _measure_courses(laboratory: Laboratory) -> Result | None:
    options = laboratory.options
    marks = options.positions or tuple(published.COURSE[0.1])
    cells, setting = _course_cells(options), _setting(options, 2000, 1.0, marks)
    ends = simulate(cells, setting, laboratory)
    if ends is None:
        return None
    steps, found = cells[0].steps, []
    for cell, passed, course in zip(cells, ends["passed"], _courses(setting, cells)):
        delta = cell.learning_rate * cell.noise_strength
        authors = _looked_up(published.COURSE, cell.noise_strength) or {}
        known = cell.learning_rate == 0.01 and _as_published(setting, 1.0)
        for y, came in zip(marks, passed):
            n = int((came != 0).sum())
            if n == 0:
                continue
            p_flat = float((came == 1).sum() / n)
            given = _looked_up(authors, y) if authors and known else None
            found.append({"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength, "y": y,
                          "p_flat": p_flat, "p_flat_error": float(np.sqrt(p_flat * (1 - p_flat) / n)),
                          "theory_p_flat": float(np.interp(y, course.y, course.p_flat[:, 0])),
                          "steady_p_flat": float(occupancy(setting.landscape, y, delta, setting.noise_power,
                                                           setting.place)),
                          "printed_p_flat": float(printed_occupancy(setting.landscape, y, delta)),
                          **({"authors_p_flat": given} if given is not None else {})})
    if not found:
        furthest = float(ends["state"][:, Y].max())
        raise JobError(f"positions: no trajectory came to y = {min(marks):g}; the furthest is at {furthest:.3g} after "
                       f"{steps:,} steps; expected positions on the way; make them smaller, or iterations larger")
    return {**_conditions(setting, steps), "cells": found}


def _judge_courses(result: Result) -> list[str]:
    p_flat, wide = _column(result, "p_flat"), _widened(result)
    lines = [_against_theory(result, "theory F4, no fitted factor, at each y", None, 0.035 * wide)]
    known = np.isfinite(_column(result, "authors_p_flat"))
    if known.any():
        lines.append(_compared("the authors' P_flat and ours at each y",
                               (p_flat - _column(result, "authors_p_flat"))[known], None, 0.035 * wide))
    y, strength = _column(result, "y"), _column(result, "noise_strength")
    lowest = y == y.min()
    order = np.flatnonzero(lowest)[np.argsort(strength[lowest])]
    if len(order) > 1 and result["noise_power"] > 0:   # isotropic noise fills the valleys by their widths alone
        values = ", ".join(f"{p_flat[each]:.3f} at σ = {strength[each]:g}" for each in order)
        lines.append(_said(bool((np.diff(p_flat[order]) < 0).all()),
                           f"at one y, {y.min():g}, more noise has fewer in the flat valley: {values}"))
    return lines


# ---- noise that is turned down

def _quench_cells(options: DynamicsOptions) -> list[Cell]:
    steps = options.iterations or 100_000
    times = options.quench_times or (25.0, 50.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, np.inf)
    return [Cell(rate, strength, steps, np.where(rate * np.arange(steps) >= time, options.quench_factor, 1.0))
            for rate, strength in _pairs(options, (0.01,), (0.1,)) for time in times]


def _measure_quench(laboratory: Laboratory) -> Result | None:
    options = laboratory.options
    cells, setting = _quench_cells(options), _setting(options, 2000, 1.0)
    ends = simulate(cells, setting, laboratory)
    if ends is None:
        return None
    found = []
    for cell, state, held in zip(cells, ends["state"], _courses(setting, cells)):
        quenched_at = np.flatnonzero(cell.scales < 1)
        time = float(cell.learning_rate * quenched_at[0]) if len(quenched_at) else np.inf
        delta = cell.learning_rate * cell.noise_strength
        course = _theory(setting, cell, quenched(delta, [time], options.quench_factor))
        found.append({"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength, "quench_time": time,
                      **_ended(state, cell), "theory_p_flat": float(course.p_flat[-1, 0]),
                      "held_freezing_time": float(held.freezing_time[0])})
    return {**_conditions(setting, cells[0].steps), "quench_factor": options.quench_factor, "cells": found}


def _judge_quench(result: Result) -> list[str]:
    p_flat = _column(result, "p_flat")
    lines = [_against_theory(result, "theory F5, no fitted factor, at each time of quenching", None,
                             0.03 * _widened(result, 1500))]
    time, t_f = _column(result, "quench_time"), _column(result, "held_freezing_time")
    time = np.where(np.isnan(time), np.inf, time)
    early, late = np.flatnonzero(time <= 0.55 * t_f), np.flatnonzero((time >= 1.4 * t_f) & np.isfinite(time))
    if len(early) and len(late):
        gain = p_flat[late].mean() - p_flat[early].mean()
        lines.append(_said(gain > 0.1, f"quenched before half the freezing time {t_f[0]:.0f}, P_flat is lower by "
                           f"{gain:.3f} than after 1.4 of it"))
    never = np.flatnonzero(np.isinf(time))
    if len(never) and len(late):
        loss = p_flat[never].mean() - p_flat[late].mean()
        spread = float(np.hypot(_column(result, "p_flat_error")[never].mean(),
                                _column(result, "p_flat_error")[late].mean()))
        lines.append(_said(abs(loss) < 3 * spread, f"quenched later, it costs nothing: {loss:+.3f} ± {spread:.3f}"))
    return lines


def _cooling_cells(options: DynamicsOptions) -> list[tuple[str, float, Cell]]:
    """(name, τ, cell) of each course of the noise."""
    steps = options.iterations or 40_000
    named = [(name, tau) for name in options.schedules or SCHEDULES
             for tau in (options.cooling_times if name == "exponential" else (np.nan,))]
    return [(name, tau, Cell(rate, strength, steps, _scales(name, tau, rate * np.arange(steps), rate * steps)))
            for rate, strength in _pairs(options, (0.01,), (0.2,)) for name, tau in named]


def _scales(name: str, tau: float, t: np.ndarray, duration: float) -> np.ndarray:
    """float64[m]: the noise's variance at times t over that of the beginning, by a schedule of SCHEDULES."""
    part = t / duration
    if name == "exponential":
        return np.exp(-t / tau)
    if name == "restarts":
        part, name = (4 * part) % 1.0, "cosine"
    return {"constant": np.ones_like(t), "linear": 1 - part, "cosine": (1 + np.cos(np.pi * part)) / 2}[name]


def _measure_cooling(laboratory: Laboratory) -> Result | None:
    options = laboratory.options
    named, setting = _cooling_cells(options), _setting(options, 2000, 1.0)
    ends = simulate([cell for _, _, cell in named], setting, laboratory)
    if ends is None:
        return None
    found = []
    for (name, tau, cell), state in zip(named, ends["state"]):
        found.append({"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength, "schedule": name,
                      "cooling_time": tau, **_ended(state, cell),
                      "theory_p_flat": _cooled(setting, name, tau, cell)})
    return {**_conditions(setting, named[0][2].steps), "cells": found}


def _cooled(setting: Setting, name: str, tau: float, cell: Cell) -> float:
    """F4 with the noise of a schedule."""
    delta, duration = cell.learning_rate * cell.noise_strength, cell.learning_rate * cell.steps
    course = _theory(setting, cell, lambda t: delta * np.maximum(_scales(name, tau, t, duration), 1e-12)[:, None])
    return float(course.p_flat[-1, 0])


def _judge_cooling(result: Result) -> list[str]:
    p_flat, error = _column(result, "p_flat"), _column(result, "p_flat_error")
    names = [cell["schedule"] for cell in result["cells"]]
    lines = [_against_theory(result, "theory F4 with the schedule, no fitted factor", None, 0.03 * _widened(result))]
    tau = _column(result, "cooling_time")
    cooled = np.flatnonzero([name == "exponential" for name in names])
    if len(cooled) > 1:
        slow, fast = cooled[tau[cooled].argmax()], cooled[tau[cooled].argmin()]
        gain, spread = p_flat[slow] - p_flat[fast], np.hypot(error[slow], error[fast])
        lines.append(_said(gain > 3 * spread, f"slow cooling has more in the flat valley: τ = {tau[slow]:g} more than "
                           f"{tau[fast]:g} by {gain:.3f} ± {spread:.3f}"))
    if "constant" in names and len(names) > 1:
        held = names.index("constant")
        others = np.array([each for each in range(len(names)) if names[each] != "constant"])
        best = others[p_flat[others].argmax()]
        gain, spread = p_flat[best] - p_flat[held], np.hypot(error[best], error[held])
        lines.append(_said(gain < 3 * spread, "no schedule has more in the flat valley than constant noise: the best, "
                           f"{names[best]}, {gain:+.3f} ± {spread:.3f}"))
    return lines


PHASE_DIAGRAM = Procedure(_measure_phases, _judge_phases, draw_phases, _outlook(_phase_cells, 2000))
FREEZING_SCAN = Procedure(_measure_scan, _judge_scan, draw_scan, _outlook(_scan_cells, 2000))
FLAT_PROBABILITY = Procedure(_measure_courses, _judge_courses, draw_courses, _outlook(_course_cells, 2000))
QUENCH = Procedure(_measure_quench, _judge_quench, draw_quench, _outlook(_quench_cells, 2000))
COOLING = Procedure(_measure_cooling, _judge_cooling, draw_cooling,
                    _outlook(lambda options: [cell for _, _, cell in _cooling_cells(options)], 2000))
