"""Sums that do not depend on their order: the same bits for every permutation, grouping and tree."""
import math

import numpy as np
import pytest

from vitrea.kernels.exact import quantum, to_quanta


def rough_terms(n, seed=0):
    """Terms of both signs over twelve decades, whose plain sum does depend on the order."""
    random = np.random.default_rng(seed)
    return random.normal(size=n) * 10.0 ** random.uniform(-9, 3, n)


def tree_sum(terms):
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], [*terms[1::2], 0.0])]
    return terms[0]


def plain_sum(terms):
    total = 0.0
    for term in terms:
        total += term
    return total


def test_the_terms_are_such_that_a_plain_sum_depends_on_the_order():
    terms = rough_terms(4001)
    random = np.random.default_rng(1)
    assert len({plain_sum(random.permutation(terms)) for _ in range(10)}) > 1


@pytest.mark.parametrize("n", [1, 2, 7, 4001])
def test_any_order_any_grouping_and_any_tree_give_the_same_bits(n):
    terms = rough_terms(n)
    rounded = to_quanta(terms, quantum(np.abs(terms).sum()))
    random = np.random.default_rng(2)
    sums = {plain_sum(rounded), plain_sum(rounded[::-1]), tree_sum(list(rounded)), float(np.sum(rounded))}
    for ranks in (1, 2, 3, 5, 16):
        order = random.permutation(rounded)
        sums.add(plain_sum([plain_sum(share) for share in np.array_split(order, ranks)]))
        sums.add(tree_sum([float(np.sum(share)) for share in np.array_split(order, ranks)]))
    assert len(sums) == 1


def test_the_sum_is_exact_and_close_to_that_of_the_terms():
    terms = rough_terms(4001)
    bound = np.abs(terms).sum()
    rounded = to_quanta(terms, quantum(bound))
    assert plain_sum(rounded) == math.fsum(rounded)
    assert abs(plain_sum(rounded) - math.fsum(terms)) < 1e-12 * bound


def test_partial_sums_may_reach_the_bound_in_any_direction():
    """All terms of one sign add up to the bound itself, and every addition on the way is still exact."""
    random = np.random.default_rng(3)
    terms = random.uniform(0.5, 1.0, 3000)
    rounded = to_quanta(terms, quantum(terms.sum()))
    assert plain_sum(rounded) == math.fsum(rounded) == plain_sum(random.permutation(rounded))
    assert plain_sum(-rounded) == -plain_sum(rounded)


@pytest.mark.parametrize("bound", [0.0, 1e-300, 3e-30, 1.0, 7.3, 1e30])
def test_the_quantum_is_a_power_of_two_of_which_the_bound_holds_no_more_than_fit(bound):
    step = quantum(bound)
    assert np.frexp(step)[0] == 0.5
    assert bound / step <= 2.0**52
    assert np.isfinite(to_quanta(0.3 * bound, step))


def test_quanta_broadcast_over_arrays_of_bounds():
    bounds = np.array([1.0, 1e6, 1e-6])
    terms = np.array([[0.3, 3e5, 3e-7], [0.1, 1e5, 1e-7]])
    rounded = to_quanta(terms, quantum(bounds))
    np.testing.assert_allclose(rounded, terms, rtol=1e-12)
    np.testing.assert_array_equal(np.rint(rounded / quantum(bounds)), rounded / quantum(bounds))
