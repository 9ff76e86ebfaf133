"""Rules of descent do what their formulas say: on quadratics, where every step is known in closed form."""
from dataclasses import replace

import numpy as np
import pytest

from tests.test_training import DIAMETER, QUICK, TINY, labelled
from vitrea.engine.comm import alone
from vitrea.picker.optimisers import (
    AVERAGE_STATISTICS,
    DROP,
    RULES,
    WARM_UP,
    State,
    rate_at,
    stationary,
)
from vitrea.picker.training import train

RECIPE = replace(QUICK, steps=100, batch=64, optimizer="sgd", rate=0.1, schedule="constant")


def quadratic(curvature, minimum=0.0, noise=None):
    """gradient_of for ½ h (θ − θ₀)² in one parameter, with normal noise on the gradient."""
    def gradient_of(parameters):
        away = parameters["weights1"] - minimum
        slope = curvature * away + (noise() if noise else 0.0)
        return {"weights1": np.asarray(slope, dtype=float)}, {"mean1": away}, float(0.5 * curvature * np.sum(away**2))
    return gradient_of


def at(value):
    return State({"weights1": np.array([value], dtype=np.float32)}, {"mean1": np.zeros(1)}, ({}, {}))


def descended(rule, recipe, gradient_of, start=1.0, steps=None):
    states = [at(start)]
    for _ in range(steps or recipe.steps):
        states.append(RULES[rule](states[-1], gradient_of, recipe))
    return states


def values(states):
    return np.array([state.parameters["weights1"][0] for state in states])


def test_plain_descent_on_a_quadratic_is_a_geometric_series():
    found = values(descended("sgd", RECIPE, quadratic(2.0), steps=20))
    np.testing.assert_allclose(found, (1 - 0.1 * 2.0) ** np.arange(21), rtol=1e-5)


def test_rates_follow_their_schedules():
    cosine, steps = replace(RECIPE, schedule="cosine"), replace(RECIPE, schedule="steps")
    assert [rate_at(RECIPE, step) for step in (0, 99)] == [0.1, 0.1]
    np.testing.assert_allclose([rate_at(steps, step) for step in (49, 50, 74, 75, 99)], [0.1, 0.01, 0.01, 1e-3, 1e-3])
    assert rate_at(cosine, 50) == pytest.approx(0.05)
    assert rate_at(cosine, 0) == pytest.approx(0.1 / (WARM_UP * 100))
    assert 0 < rate_at(cosine, 99) < 1e-4
    with pytest.raises(ValueError, match="schedule 'linear'; expected constant, cosine or steps"):
        rate_at(replace(RECIPE, schedule="linear"), 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adams_steps_do_not_know_the_gradients_scale(scale):
    """Where the gradient is constant, m̂/√v̂ = 1: each step is the rate."""
    constant = lambda parameters: ({"weights1": np.array([scale])}, {"mean1": np.zeros(1)}, 0.0)  # noqa: E731
    found = values(descended("adam", RECIPE, constant, steps=10))
    np.testing.assert_allclose(found, 1 - 0.1 * np.arange(11), atol=1e-4)


def test_adamw_shrinks_kernels_apart_from_the_gradient():
    flat = lambda parameters: ({name: np.zeros(1) for name in parameters}, {"mean1": np.zeros(1)}, 0.0)  # noqa: E731
    begin = State({"weights1": np.ones(1, np.float32), "beta1": np.ones(1, np.float32)}, {"mean1": 0.0}, ({}, {}))
    found = RULES["adamw"](begin, flat, replace(RECIPE, weight_decay=0.5)).parameters
    assert found["weights1"][0] == pytest.approx(1 - 0.1 * 0.5)
    assert found["beta1"][0] == 1


def test_sam_steps_along_the_gradient_uphill_and_asks_twice():
    asked = []

    def counted(parameters):
        asked.append(float(parameters["weights1"][0]))
        return quadratic(2.0)(parameters)

    found = values(descended("sam", replace(RECIPE, radius=0.25), counted, steps=1))
    np.testing.assert_allclose(asked, [1.0, 1.25], rtol=1e-6)
    assert found[1] == pytest.approx(1 - 0.1 * 2.0 * 1.25)


def test_stationarity_is_yaidas_relation():
    """Of θ ← θ − η (h θ + n) at rest ⟨θ, g⟩ and η‖g‖²/2 have the same mean; on the way down they have not."""
    random, theta, rate = np.random.default_rng(0), 0.0, 0.2
    inner, squares = [], []
    for _ in range(4000):
        slope = theta + random.normal()
        inner.append(theta * slope)
        squares.append(slope**2)
        theta -= rate * slope
    inner, squares = np.array(inner[100:]), np.array(squares[100:])
    assert abs(inner.mean() / (rate / 2 * squares.mean()) - 1) < 0.1
    assert stationary(inner, rate / 2 * squares, 0.3)
    assert not stationary(inner, rate / 2 * squares, 0.01)          # no such precision from so few
    assert not stationary(inner + 0.1, rate / 2 * squares, 0.3)     # θ still goes somewhere


def test_sasa_drops_its_rate_at_rest_and_not_on_the_way():
    random, recipe = np.random.default_rng(1), replace(RECIPE, steps=2000, tolerance=0.5)
    rest = descended("sasa", recipe, quadratic(1.0, noise=lambda: random.normal(size=1)), steps=2000)
    assert rest[-1].moments[1]["factor"][0] <= DROP
    way = descended("sasa", replace(recipe, rate=1e-4), quadratic(1.0, 10.0), steps=400)
    assert way[-1].moments[1]["factor"][0] == 1
    np.testing.assert_allclose(values(way)[-1], 10 - 9 * (1 - 1e-4) ** 400, rtol=1e-3)


def test_swa_gives_the_mean_of_the_last_states_and_their_own_statistics():
    recipe = replace(RECIPE, steps=40, averaged=0.5)
    found, plain = descended("swa", recipe, quadratic(0.5)), values(descended("sgd", recipe, quadratic(0.5)))
    own = AVERAGE_STATISTICS // recipe.batch
    mean = plain[21:41 - own].mean()
    assert found[-1].parameters["weights1"][0] == pytest.approx(mean, rel=1e-5)
    assert found[-1].statistics["mean1"][0] == pytest.approx(mean, rel=1e-5)
    assert found[-1].step == 40


@pytest.mark.parametrize("rule", sorted(RULES))
def test_trainings_go_on_from_any_state_to_the_same_bits(rule):
    recipe = replace(QUICK, steps=14, batch=16, outputs=1, optimizer=rule, rate=0.01,
                     augmentation=replace(QUICK.augmentation, decoys=0.0),
                     schedule="cosine" if rule in ("adam", "adamw", "sgd", "sam") else "constant", averaged=0.5)
    places = [labelled(1)], TINY, DIAMETER, recipe
    states = list(train(*places, seed=3, comm=alone()))
    again = list(train(*places, seed=3, comm=alone(), begun=states[8]))
    for name, tensor in states[-1].parameters.items():
        np.testing.assert_array_equal(again[-1].parameters[name], tensor, err_msg=f"{rule} {name}")
    assert np.isfinite(states[-1].loss)
