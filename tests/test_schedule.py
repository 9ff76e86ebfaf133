"""When a run stops, and what it says of it."""
from types import SimpleNamespace

import pytest

from vitrea.engine.classify2d import (
    BATCHES_WORTH_IT,
    LEAST_ITERATIONS,
    QUIET_ITERATIONS,
    State,
    _why_ended,
    batch_size,
    finished,
)

OPTIONS = SimpleNamespace(max_iterations=30, minibatch_size=None, n_classes=10, algorithm="auto")


def state(**values):
    return State(model=None, stage="full", **values)


def test_a_run_ends_after_quiet_iterations_but_not_before_the_least_number():
    quiet = {"quiet": QUIET_ITERATIONS, "iteration": 9}
    assert finished(OPTIONS, state(**quiet, in_stage=9))
    assert not finished(OPTIONS, state(quiet=QUIET_ITERATIONS - 1, iteration=9, in_stage=9))
    assert not finished(OPTIONS, state(quiet=QUIET_ITERATIONS, iteration=3, in_stage=LEAST_ITERATIONS - 1))
    assert finished(OPTIONS, state(quiet=QUIET_ITERATIONS, iteration=40, in_stage=3))   # after mini-batches


def test_a_run_ends_when_its_iterations_are_used_up_and_says_that_it_has_not_converged():
    ended = state(in_stage=30, iteration=30, least_changed=0.213)
    assert finished(OPTIONS, ended)
    assert _why_ended(ended) == "max_iterations reached, not converged: 21.3% of the particles still change class"
    assert _why_ended(state(quiet=QUIET_ITERATIONS)).startswith("converged: 3 passes without re-seeding")


@pytest.mark.parametrize(("n", "algorithm", "expected"), [
    (1000, "auto", 0), (2000 * BATCHES_WORTH_IT, "auto", 2000), (2000 * BATCHES_WORTH_IT - 1, "auto", 0),
    (3000, "minibatch", 2000), (2000, "minibatch", 0), (10**6, "full", 0),
])
def test_mini_batches_are_used_where_there_are_enough_of_them(n, algorithm, expected):
    assert batch_size(SimpleNamespace(**vars(OPTIONS) | {"algorithm": algorithm}), n) == expected
