"""Fourier plans against the sums they stand for."""
import numpy as np
import pytest

from vitrea.kernels.fourier import (
    LinesToAngles,
    LinesToHarmonics,
    PointsToPixels,
    RingTransform,
    fast_length,
)

ANGLES = [12, 30, 98]
BOXES = [16, 17]


def complex_noise(random, *shape):
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def frequencies(random, n):
    return random.uniform(-2.2, 2.2, (2, n))


def direct_modes(box_size, q_y, q_x):
    """e^{−iq·x} for every (q, pixel), x counted from pixel L//2."""
    axis = np.arange(box_size) - box_size // 2
    return np.exp(-1j * (q_y[:, None, None] * axis[:, None] + q_x[:, None, None] * axis))


def test_fast_length_is_the_next_even_product_of_two_three_and_five():
    smooth = sorted(2 * 2**a * 3**b * 5**c for a in range(9) for b in range(6) for c in range(4))
    for n in range(1, 301):
        assert fast_length(n) == min(length for length in smooth if length >= n)


@pytest.mark.parametrize("n_angles", ANGLES)
def test_lines_to_angles_sums_the_harmonics_and_their_conjugates(n_angles):
    random = np.random.default_rng(n_angles)
    plan = LinesToAngles(3, n_angles)
    harmonics = complex_noise(random, 3, n_angles // 2 + 1)
    harmonics[:, [0, -1]] = harmonics[:, [0, -1]].real
    plan.harmonics[:] = harmonics
    plan.execute()
    psi = 2 * np.pi * np.arange(n_angles) / n_angles
    waves = np.exp(1j * np.arange(n_angles // 2 + 1)[:, None] * psi)
    twice = np.full(n_angles // 2 + 1, 2.0)
    twice[[0, -1]] = 1.0   # the Nyquist harmonic is its own partner
    np.testing.assert_allclose(plan.values, np.real((harmonics * twice) @ waves), atol=2e-5 * n_angles)


@pytest.mark.parametrize("n_angles", ANGLES)
def test_lines_to_harmonics_is_the_adjoint_with_the_opposite_sign(n_angles):
    random = np.random.default_rng(n_angles)
    plan = LinesToHarmonics(4, n_angles)
    values = random.normal(size=(4, n_angles)).astype(np.float32)
    plan.values[:] = values
    plan.execute()
    psi = 2 * np.pi * np.arange(n_angles) / n_angles
    np.testing.assert_allclose(plan.harmonics, values @ np.exp(-1j * psi[:, None] * np.arange(n_angles // 2 + 1)),
                               atol=1e-5 * n_angles)


@pytest.mark.parametrize("n_angles", ANGLES)
def test_ring_transform_expands_rings_in_harmonics_and_sums_them_again(n_angles):
    random = np.random.default_rng(n_angles)
    plan = RingTransform(2, 3, n_angles)
    samples = complex_noise(random, 2, 3, n_angles)
    plan.array[:] = samples
    plan.to_harmonics()
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    m = np.arange(n_angles)
    np.testing.assert_allclose(plan.array, samples @ np.exp(-1j * theta[:, None] * m) / n_angles, atol=1e-5)
    plan.to_angles()
    np.testing.assert_allclose(plan.array, samples, atol=1e-5)


@pytest.mark.parametrize("box_size", BOXES)
def test_points_to_pixels_is_the_conjugate_sum(box_size):
    random = np.random.default_rng(box_size)
    q_y, q_x = frequencies(random, 40)
    points = complex_noise(random, 2, 40)
    plan = PointsToPixels(box_size, 2, q_y, q_x)
    plan.points[:] = points
    plan.execute()
    expected = np.einsum("qyx,bq->byx", direct_modes(box_size, q_y, q_x).conj(), points)
    np.testing.assert_allclose(plan.pixels, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("make", [lambda: LinesToAngles(5, 60), lambda: LinesToHarmonics(5, 60)])
def test_two_plans_of_one_shape_give_the_same_bits(make):
    """Ranks and threads own plans of their own; their results must not differ."""
    first, second = make(), make()
    for name in ("harmonics", "values"):
        array = getattr(first, name)
        array[:] = np.random.default_rng(0).normal(size=array.shape)
        getattr(second, name)[:] = array
    first.execute()
    second.execute()
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.harmonics, second.harmonics)
