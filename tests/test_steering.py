"""Steering by freezing: probes stay within their share, hot lasts beyond freezing, and no longer than is good."""
from itertools import pairwise

import numpy as np
import pytest

from vitrea.engine.anneal import CONFIRMED, LEAST_BARRIER
from vitrea.engine.steering import CAP, HOLD, SHARE, Budget, Steering

BUDGET = Budget(steps=500, probe=14)


def course(budget, barriers, held_back=lambda step: None):
    """(Steering at the end of HOT, steps at which probes began) where barriers(since) is what a probe finds."""
    steering, step, begun = Steering.of(budget), 0, []
    while steering.hot(step):
        if steering.probes(budget, step):
            begun.append(step)
            steering = steering.probed(budget, step, barriers(steering.since), 0.1, held_back(step))
            step += budget.probe
        else:
            step += 1
    return steering, begun


@pytest.mark.parametrize("budget", [BUDGET, Budget(2667, 14), Budget(60, 14), Budget(100, 1), Budget(37, 30)])
def test_probes_take_no_more_than_their_share_of_the_budget_whatever_they_find(budget):
    for found in (0.0, 1.0, *np.random.default_rng(0).uniform(0, 0.04, 20)):
        steering, begun = course(budget, lambda since, found=found: found)
        assert steering.spent == len(begun) * budget.probe <= SHARE * budget.steps
        assert all(after - before >= budget.interval for before, after in pairwise(begun))
        assert steering.leave <= CAP * budget.steps
    assert len(course(BUDGET, lambda since: 1.0)[1]) >= 4   # and they are made use of


def test_hot_goes_on_beyond_the_freezing_time_that_was_measured():
    steering, begun = course(BUDGET, lambda since: 1.0 if since < 100 else 0.0)
    ends = [step + BUDGET.probe for step in begun]
    assert steering.frozen == next(end for end in ends if end >= 100)
    assert len(begun) == ends.index(steering.frozen) + 1 + CONFIRMED
    assert steering.leave == min(BUDGET.latest, ends[-1] + int(np.ceil(HOLD * steering.frozen)))


def test_one_probe_without_a_barrier_is_not_believed():
    found = iter([1.0, 0.0, 1.0, 0.0, 1.0])
    steering, _ = course(BUDGET, lambda since: next(found))
    assert steering.frozen == -1
    assert steering.leave == BUDGET.latest


def test_what_is_decided_from_the_start_is_annealed_as_soon_as_that_is_confirmed():
    steering, begun = course(BUDGET, lambda since: 0.0)
    assert len(begun) == 2
    assert steering.frozen == 0
    assert steering.leave == begun[1] + BUDGET.probe


def test_a_barrier_counts_in_proportion_to_the_loss():
    steering = Steering.of(BUDGET).probed(BUDGET, 50, 2 * LEAST_BARRIER, loss=0.1)
    assert steering.quiet == 0
    assert Steering.of(BUDGET).probed(BUDGET, 50, 2 * LEAST_BARRIER, loss=1.0).quiet == 1


def test_hot_ends_at_once_where_the_loss_held_back_rises():
    steering, begun = course(BUDGET, lambda since: 1.0, held_back=lambda step: 0.3 if step < 150 else 0.35)
    risen = next(step for step in begun if step >= 150)
    assert steering.leave == risen + BUDGET.probe
    steady, _ = course(BUDGET, lambda since: 1.0, held_back=lambda step: 0.3 + 0.01 * np.cos(step))
    assert steady.leave == BUDGET.latest


def test_the_rate_is_constant_then_falls_to_nothing_and_the_last_third_is_averaged():
    steering = Steering(leave=200)
    rates = [steering.rate(BUDGET, step) for step in range(501)]
    assert rates[:201] == [1.0] * 201
    assert all(after < before for before, after in pairwise(rates[200:]))
    assert rates[350] == pytest.approx(0.5)
    assert rates[500] == pytest.approx(0)
    assert [step for step in range(500) if steering.averages(BUDGET, step)] == list(range(400, 500))
