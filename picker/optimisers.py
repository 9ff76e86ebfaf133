"""How a network follows its gradients: rules of descent, each a function from the State of a training to the next.

A rule asks `gradient_of(parameters)` for (gradient, statistics, loss) of the step's batch, as often as it needs, and
reads its numbers from a Recipe (picker/training.py). What it must remember is in State.moments, two dicts of arrays
that a checkpoint keeps, so that a training goes on to the same bits. `freeze_aware` is more than a rule:
picker/steered.py. Which rule is the best on equal terms: docs/dynamics.md.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.picker.network import FORGETTING

MOMENT1, MOMENT2, ADAM_EPSILON = 0.9, 0.999, 1e-8   # Kingma & Ba 2015
WARM_UP = 0.05                     # of the steps in which the rate rises, before it falls along a cosine
DROPS = (0.5, 0.75)                # of the steps, after which the schedule "steps" takes a tenth of the rate
DROP = 0.1                         # what is left of the rate after a drop
LEAST_SAMPLES, TESTS = 16, 25      # steps since a drop that a test of stationarity needs; tests in a training
CONFIDENCE = 1.645                 # standard errors: two-sided 90 %
AVERAGE_STATISTICS = 64            # tiles that the statistics of an average are taken from


@dataclass
class State:
    """Everything that training has come to after `step` steps."""

    parameters: dict
    statistics: dict
    moments: tuple[dict, dict]
    step: int = 0
    loss: float = float("nan")


def rate_at(recipe, step):
    """The learning rate of a step (from 0) by recipe.schedule: "constant"; "cosine", to zero after a warm-up; "steps",
    a tenth after each of DROPS."""
    done = step / recipe.steps
    if recipe.schedule == "cosine":
        warm = min(1.0, (step + 1) / max(1.0, WARM_UP * recipe.steps))
        return recipe.rate * warm * 0.5 * (1 + np.cos(np.pi * done))
    if recipe.schedule == "steps":
        return recipe.rate * DROP ** sum(done >= drop for drop in DROPS)
    if recipe.schedule == "constant":
        return recipe.rate
    raise ValueError(f"schedule {recipe.schedule!r}; expected constant, cosine or steps")


def sgd(state, gradient_of, recipe):
    """θ ← θ − η g."""
    gradient, statistics, loss = gradient_of(state.parameters)
    return _next(state, _moved(state.parameters, gradient, rate_at(recipe, state.step)), statistics, loss)


def adam(state, gradient_of, recipe, decay=0.0):
    """θ ← θ − η m̂/(√v̂ + ε), the first and second moments without their bias (Kingma & Ba 2015)."""
    gradient, statistics, loss = gradient_of(state.parameters)
    step, rate = state.step + 1, rate_at(recipe, state.step)
    first, second, parameters = {}, {}, {}
    for name, slope in gradient.items():
        first[name] = MOMENT1 * state.moments[0].get(name, 0.0) + (1 - MOMENT1) * slope
        second[name] = MOMENT2 * state.moments[1].get(name, 0.0) + (1 - MOMENT2) * slope**2
        spread = np.sqrt(second[name] / (1 - MOMENT2**step)) + ADAM_EPSILON
        slope = first[name] / (1 - MOMENT1**step) / spread
        if decay and name.startswith("weights"):
            slope = slope + decay * state.parameters[name]
        parameters[name] = (state.parameters[name] - rate * slope).astype(np.float32)
    return _next(state, parameters, statistics, loss, (first, second))


def adamw(state, gradient_of, recipe):
    """Adam, whose kernels shrink by η·weight_decay in every step, apart from the moments (Loshchilov & Hutter 2019)."""
    return adam(state, gradient_of, recipe, recipe.weight_decay)


def sam(state, gradient_of, recipe):
    """θ ← θ − η g(θ + ρ g/‖g‖), ρ = recipe.radius: the gradient where the loss nearby is about the largest (Foret et
    al. 2021). Two gradients a step."""
    gradient, statistics, loss = gradient_of(state.parameters)
    length = np.sqrt(sum(np.sum(slope**2) for slope in gradient.values()))
    above = _moved(state.parameters, gradient, -recipe.radius / max(length, 1e-12))
    uphill, _, _ = gradient_of(above)
    return _next(state, _moved(state.parameters, uphill, rate_at(recipe, state.step)), statistics, loss)


def sasa(state, gradient_of, recipe):
    """Plain descent whose rate drops to a tenth as soon as it is seen to be stationary (after Lang et al. 2019).

    ‖θ'‖² − ‖θ‖² = −2η (⟨θ, g⟩ − η‖g‖²/2), which is zero in the mean once nothing changes any more (Yaida 2019). It is
    called so if the whole interval of the mean of ⟨θ, g⟩ − η‖g‖²/2, from means of batches of steps because they are
    correlated, lies within recipe.tolerance of the mean of η‖g‖²/2. The later half of the steps since a drop counts.
    """
    gradient, statistics, loss = gradient_of(state.parameters)
    factor, inner, squares = (state.moments[1].get(name, empty) for name, empty in (
        ("factor", np.ones(1)), ("inner", np.zeros(0)), ("squares", np.zeros(0))))
    rate = recipe.rate * factor[0]
    inner = np.append(inner, sum(np.sum(state.parameters[name] * slope) for name, slope in gradient.items()))
    squares = np.append(squares, sum(np.sum(slope**2) for slope in gradient.values()))
    due = (state.step + 1) % max(recipe.steps // TESTS, 1) == 0 and len(inner) >= LEAST_SAMPLES
    if due and stationary(inner, rate * squares / 2, recipe.tolerance):
        factor, inner, squares = DROP * factor, inner[:0], squares[:0]
    moments = {}, {"factor": factor, "inner": inner, "squares": squares}
    return _next(state, _moved(state.parameters, gradient, rate), statistics, loss, moments)


def stationary(inner, half_squares, tolerance):
    """Whether the later halves of float64[n] ⟨θ, g⟩ and η‖g‖²/2 have the same mean: the 90 % interval of the difference
    lies within ± tolerance of the latter's mean."""
    inner, half_squares = (each[len(each) // 2:] for each in (inner, half_squares))
    batches = int(np.sqrt(len(inner)))
    means = np.array([part.mean() for part in np.array_split(inner - half_squares, batches)])
    reach = CONFIDENCE * means.std(ddof=1) / np.sqrt(batches)
    return bool(abs(means.mean()) + reach < tolerance * half_squares.mean())


def swa(state, gradient_of, recipe):
    """Plain descent; what comes out is the mean of the states of the last recipe.averaged of the steps (Izmailov et al.
    2018), whose statistics are taken from AVERAGE_STATISTICS tiles, in steps of their own."""
    last = recipe.steps - -(-AVERAGE_STATISTICS // recipe.batch)
    if state.step >= last:
        _, statistics, loss = gradient_of(state.parameters)
        return _next(state, state.parameters, statistics, loss, share=1 / (state.step - last + 1))
    moved = sgd(state, gradient_of, recipe)
    begin = int((1 - recipe.averaged) * recipe.steps)
    if moved.step <= begin:
        return moved
    n = moved.step - begin
    mean = {name: state.moments[0].get(name, 0.0) * (n - 1) / n + values.astype(np.float64) / n
            for name, values in moved.parameters.items()}
    if moved.step < last:
        return State(moved.parameters, moved.statistics, (mean, {}), moved.step, moved.loss)
    return State({name: values.astype(np.float32) for name, values in mean.items()}, moved.statistics, ({}, {}),
                 moved.step, moved.loss)


RULES = {"sgd": sgd, "adam": adam, "adamw": adamw, "sam": sam, "sasa": sasa, "swa": swa}


def _moved(parameters, gradient, rate):
    return {name: (parameters[name] - rate * slope).astype(np.float32) for name, slope in gradient.items()}


def _next(state, parameters, statistics, loss, moments=({}, {}), share=FORGETTING):
    """The state after a step; the batch's statistics enter the running ones by a share, the first batch's wholly."""
    running = {name: (1 - share) * state.statistics[name] + share * values if state.step else values
               for name, values in statistics.items()}
    return State(parameters, running, moments, state.step + 1, loss)
