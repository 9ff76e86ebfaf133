"""F4 and F5: how the valleys fill while the landscape changes and hopping freezes, without a free parameter.

Across the valleys a trajectory settles a hundred times faster than y moves, so at every moment it hops with the rates
of that y (F3), and

    dy/dt = L_d/y_d e^{-y/y_d} + 2 y_f y/(y+y_f)³          along the bottom of either valley
    dP/dt = k₋(y, Δ(t)) (1-P) - k₊(y, Δ(t)) P              from P = 1/2

give the fraction P in the flat valley at all times t = η · steps. With a constant Δ this is F4; with one that falls at
some time, the quench law F5. The thermal part of the drift along y, Δ f'/f², is a thousandth of it and left out.
"""
from dataclasses import dataclass

import numpy as np
from scipy.integrate import cumulative_simpson

from vitrea.engine.two_valleys import FLAT, ITO, SHARP, Landscape, hopping_rates, touching_rates

INTERVALS = 4000   # of time: twice as many change P by less than 1e-4
PROGRESS_POINTS = 20_001


@dataclass(frozen=True)
class Course:
    """The transient theory's answer.

    times float64[n+1]; y float64[n+1]; p_flat float64[n+1, cells]; freezing_y float64[cells], the mean y at which the
    ridge is touched for the last time; freezing_time float64[cells], the mean t of it (0 where it never is)
    """

    times: np.ndarray
    y: np.ndarray
    p_flat: np.ndarray
    freezing_y: np.ndarray
    freezing_time: np.ndarray


def transient(landscape: Landscape, deltas, duration: float, start_y: float, noise: tuple[int, float] = (1, ITO)
              ) -> Course:
    """F4: the course of P for effective noise strengths Δ over times 0 to `duration` from y = `start_y`.

    deltas: float64[cells], or a function of times float64[m] to float64[m, cells] (F5). noise: (power, place).
    """
    times = _grid(duration)
    y = _progress(landscape, times, start_y)
    middle_t, middle_y, steps = (times[1:] + times[:-1]) / 2, (y[1:] + y[:-1]) / 2, np.diff(times)[:, None]
    delta = np.asarray(deltas(middle_t) if callable(deltas) else np.broadcast_to(deltas, (len(steps), np.size(deltas))))
    rates = hopping_rates(landscape, middle_y[:, None], delta, *noise)
    total = rates.sum(axis=-1)
    steady = rates[..., SHARP] / np.maximum(total, np.finfo(float).tiny)
    kept = np.exp(-total * steps)
    p_flat = np.full((len(times), delta.shape[1]), 0.5)
    for n in range(len(steps)):   # exact for rates that are constant over an interval
        p_flat[n + 1] = steady[n] + (p_flat[n] - steady[n]) * kept[n]
    touches = touching_rates(landscape, middle_y[:, None], delta, noise[0])
    hazard = touches[..., FLAT] * p_flat[1:] + touches[..., SHARP] * (1 - p_flat[1:])
    later = 1 - np.exp(-np.cumsum((hazard * steps)[::-1], axis=0)[::-1])   # a touch after the beginning of an interval
    return Course(times, y, p_flat, start_y + (np.diff(y)[:, None] * later).sum(axis=0), (steps * later).sum(axis=0))


def quenched(delta: float, times, factor: float):
    """Δ(t) of F5, for `transient`: Δ, multiplied by `factor` from each of `times` on, a cell each."""
    return lambda t: delta * np.where(t[:, None] >= np.asarray(times)[None, :], factor, 1.0)


def _grid(duration: float) -> np.ndarray:
    """Times that are close to each other at the beginning, where weak noise freezes within few steps."""
    return duration * np.linspace(0, 1, INTERVALS + 1) ** 2


def _progress(landscape: Landscape, times: np.ndarray, start_y: float) -> np.ndarray:
    """y at the times, from t(y) = ∫ dy / (dy/dt), which does not depend on the noise."""
    fastest = landscape.loss_height / landscape.y_d + 8 / (27 * landscape.y_f)   # the barrier grows most at y = y_f/2
    y = np.linspace(start_y, start_y + fastest * times[-1], PROGRESS_POINTS)
    return np.interp(times, cumulative_simpson(1 / landscape.speed(y), x=y, initial=0), y)
