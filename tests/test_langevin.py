"""Langevin kernels: the landscape is the paper's, the random numbers are Philox's and Gaussian, the steps are SGD's."""
import numpy as np
import pytest
from scipy import stats

from vitrea.kernels import langevin
from vitrea.kernels.langevin import (
    CROSSED,
    DRIFTING_NOISE,
    FROZEN_NOISE,
    X,
    Y,
    advance,
    advance_frozen,
    advance_general,
    reference_advance,
    reference_advance_frozen,
    reference_derivatives,
    reference_normals,
    reference_philox,
)

KEY = np.array([20260116, 10962, 3, 0], dtype=np.uint64)


def model(eta=0.05, sigma=0.08, power=1.0):
    return np.array([0.8, 0.65, 0.8**-2, 0.65**-2, 20.0, 30.0, 1 / 100, 1.0, eta, sigma, power])


def begin(n, y=5.0):
    state = np.zeros((4, n))
    state[X], state[Y] = np.where(np.arange(n) % 2, -0.01, 0.01), y
    return state, np.arange(n, dtype=np.uint64)


def loss(x, y):
    """The landscape as the paper writes it (Methods, two-valley model; Table S1)."""
    x_i = np.where(x >= 0, 0.8, 0.65)
    g = 2 * x_i * y / (y + 30)
    f = x_i**2 * (y + 20) ** 2 / (y + 30) ** 2
    return np.exp(-y / 100) + 1 + np.where(x >= 0, x * (x - g), x * (x + g)) / f


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [   # the known answers that the authors of Philox publish with their library Random123
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert " ".join(f"{int(word):08x}" for word in reference_philox(counter, key)) == words
    compiled = langevin._philox(*(np.uint64(word) for word in counter + key))
    assert " ".join(f"{int(word):08x}" for word in compiled) == words


def test_normals_are_gaussian_and_independent():
    a, b = reference_normals(np.arange(400)[:, None], DRIFTING_NOISE, np.arange(500), KEY)
    for sample in (a, b, (a + b) / np.sqrt(2), (a[1:] - a[:-1])[::2] / np.sqrt(2), (a[:, 1:] + b[:, :-1]) / np.sqrt(2)):
        assert stats.kstest(sample.ravel(), "norm").pvalue > 1e-3
        assert abs(np.mean(sample**4) - 3) < 0.1
    others = [reference_normals(0, FROZEN_NOISE, np.arange(500), KEY), reference_normals(0, DRIFTING_NOISE,
              np.arange(500), KEY + np.array([0, 0, 1, 0], dtype=np.uint64))]
    for other in others:
        assert abs(np.corrcoef(a[0], other[0])[0, 1]) < 0.2


def test_compiled_normals_are_the_reference_ones():
    words = np.random.default_rng(1).integers(0, 2**32, size=(4, 2000), dtype=np.uint64)
    words[:, :4] = [[0, 2**32 - 1, 0, 2**32 - 1]] * 2 + [[0, 2**32 - 1, 2**32 - 1, 0]] * 2
    for column in words.T:
        u, angle = 1 - ((int(column[0]) << 20) | (int(column[1]) >> 12)) * 2.0**-52, langevin._box_muller(*column)
        assert np.hypot(*angle) == pytest.approx(np.sqrt(-2 * np.log(u)), rel=1e-14, abs=1e-14)
    counters = np.arange(300, dtype=np.uint64)
    expected = reference_normals(counters, DRIFTING_NOISE, 5, KEY)
    found = [langevin._normals(counter, DRIFTING_NOISE, np.uint64(5), KEY[2], KEY[0], KEY[1]) for counter in counters]
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-13, atol=1e-15)


def test_elementary_functions_are_good_to_a_few_units_in_the_last_place():
    for function, exact, low, high in ((langevin._log, np.log, 2.0**-52, 1.0), (langevin._exp, np.exp, -40.0, 40.0)):
        for value in np.random.default_rng(2).uniform(low, high, 3000):
            assert function(value) == pytest.approx(exact(value), rel=2e-15, abs=2e-16)
    for exponent in range(-52, 1):
        assert langevin._log(2.0**exponent) == exponent * np.log(2)


def test_derivatives_are_those_of_the_papers_loss():
    random = np.random.default_rng(3)
    x, y = random.uniform(0.02, 1, 200) * random.choice([-1, 1], 200), random.uniform(0.5, 60, 200)
    compiled = np.transpose([langevin._derivatives(*point, tuple(model())) for point in zip(x, y)])
    h = 1e-4

    def central(function, dx, dy):   # a fourth-order difference
        return (8 * (function(x + h * dx, y + h * dy) - function(x - h * dx, y - h * dy))
                - function(x + 2 * h * dx, y + 2 * h * dy) + function(x - 2 * h * dx, y - 2 * h * dy)) / (12 * h)

    def slope(index):
        return lambda x, y: reference_derivatives(x, y, model())[index]

    expected = [central(loss, 1, 0), central(loss, 0, 1), central(slope(0), 1, 0), central(slope(0), 0, 1),
                central(slope(1), 0, 1)]
    np.testing.assert_allclose(reference_derivatives(x, y, model()), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(compiled, reference_derivatives(x, y, model()), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("choice", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_steps_are_those_of_the_reference(power, choice):
    found, streams = begin(37)
    expected = found.copy()
    key = KEY + np.array([0, 0, 0, 2**32 - 20], dtype=np.uint64) * (power == 0)   # long runs too
    scales = np.linspace(2, 0.5, 60)
    advance_general(found, streams, scales, model(0.1, 0.1, power), key, np.array(choice))
    reference_advance(expected, streams, scales, model(0.1, 0.1, power), key, choice)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert np.ptp(found[X]) > 0.1
    assert (found[CROSSED] > 0).any()
    if choice == (0.0, 0.0):
        fast, _ = begin(37)
        advance(fast, streams, scales, model(0.1, 0.1, power), key)
        np.testing.assert_allclose(fast, found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_frozen_steps_are_those_of_the_reference(place):
    frozen = np.array([0.05, 0.04, 0.02, 0.03, 0.02, 0.025, place, 0.05])
    found, expected = np.zeros((2, 7, 21))
    streams = np.arange(21, dtype=np.uint64)
    for each, function in ((found, advance_frozen), (expected, reference_advance_frozen)):
        each[0] = -0.04
        function(each, streams, 300, frozen, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert 0 < np.median(found[6]) < 300


def test_a_trajectory_has_the_same_bits_beside_any_others_and_in_any_pieces():
    whole, streams = begin(601)
    advance(whole, streams, np.ones(90), model(), KEY)
    for rank, size in ((0, 1), (1, 2), (2, 3), (5, 17)):
        part, _ = begin(601)
        part = np.ascontiguousarray(part[:, rank::size])
        for first, steps in ((0, 1), (1, 49), (50, 40)):
            key = KEY + np.array([0, 0, 0, first], dtype=np.uint64)
            advance(part, streams[rank::size], np.ones(steps), model(), key)
        np.testing.assert_array_equal(part, whole[:, rank::size])
