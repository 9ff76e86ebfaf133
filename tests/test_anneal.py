"""Noise, mobility and freezing: the definitions, against simulations of what they describe."""
import numpy as np
import pytest

from vitrea.engine.anneal import (
    allowed_barrier,
    freezing_time,
    mobility,
    noise_strength,
    separation_ratio,
    stationary_variance,
)


@pytest.mark.parametrize(("rate", "batch", "curvature"), [(0.1, 4, 1.0), (0.9, 2, 1.0), (0.3, 8, 5.0)])
def test_batches_keep_the_stationary_variance_up_in_a_well(rate, batch, curvature):
    random = np.random.default_rng(0)
    theta, found = np.zeros(20_000), []
    for step in range(400):
        theta = theta - rate * (curvature * theta + random.normal(scale=np.sqrt(3.0 / batch), size=theta.size))
        found += [theta.var()] if step > 200 else []
    assert np.mean(found) == pytest.approx(stationary_variance(rate, batch, curvature, covariance=3.0), rel=0.01)


def test_small_steps_leave_half_the_noise_strength():
    assert stationary_variance(1e-3, 8) == pytest.approx(noise_strength(1e-3, 8) / 2, rel=1e-3)
    assert stationary_variance(1.0, 8, curvature=2.0) == np.inf
    with pytest.raises(ValueError, match="expected positive"):
        noise_strength(0.1, 0)


def test_online_em_of_a_mean_has_the_variance_of_its_weight():
    random = np.random.default_rng(1)
    alpha, batch, mean, found = 0.3, 5, np.zeros(20_000), []
    for step in range(100):
        mean = (1 - alpha) * mean + alpha * random.normal(size=(batch, mean.size)).mean(axis=0)
        found += [mean.var()] if step > 50 else []
    assert np.mean(found) == pytest.approx(stationary_variance(alpha, batch), rel=0.01)


def test_mobility_is_the_share_that_changes():
    assert mobility([1, 2, 3, 4], [1, 2, 4, 3]) == 0.5
    assert mobility([], []) == 0
    with pytest.raises(ValueError, match="the same ones"):
        mobility([1, 2], [1])


def test_freezing_is_when_no_barrier_returns():
    times = [0, 10, 20, 30]
    assert freezing_time(times, [0.5, 0.01, 0.3, 0.0]) == 30
    assert freezing_time(times, [0.0, 0.01, 0.0, 0.0]) == 0
    assert freezing_time(times, [0.5, 0.0, 0.0, 0.03]) == np.inf
    assert freezing_time(times, [0.5, 0.0, 0.0, 0.03], threshold=0.05) == 10


def test_what_counts_as_no_barrier_grows_with_the_loss():
    assert allowed_barrier(0.1) == 0.02
    assert allowed_barrier(2.0) == pytest.approx(0.1)


def test_two_draws_of_one_cloud_are_one_fluctuation_apart():
    random = np.random.default_rng(2)
    spread = random.uniform(0.5, 2, 5000)
    one, other = random.normal(size=(2, 5000)) * spread
    assert separation_ratio(one, other, spread**2) == pytest.approx(1, rel=0.1)
    assert separation_ratio(one, other + 3 * spread, spread**2) == pytest.approx(1 + 9 / 2, rel=0.1)
    assert separation_ratio(one, one, np.zeros(5000)) == 0
    assert separation_ratio(one, other, np.zeros(5000)) == np.inf
