"""Log-sum-exp over all poses by real products: the same numbers as the definition, at odd and even numbers of
harmonics."""
import numpy as np
import pytest

from vitrea.kernels.harmonic import harmonic_product
from vitrea.kernels.marginal import (
    add_priors,
    angle_matrices,
    harmonic_order,
    line_peaks,
    log_sum_lines,
    real_product,
    real_templates,
    reference_log_sum_lines,
    reference_real_product,
)
from vitrea.kernels.packed import PackedTable, gather_by_harmonic, gather_real
from vitrea.kernels.polar import PolarGrid

N, SHIFTS = 7, 5
GRIDS = [PolarGrid(24, 5, 7.0), PolarGrid(25, 6, 7.5)]


def random_complex(*shape, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def gathered(grid):
    table = PackedTable.of(random_complex(N, grid.size), grid)
    weight = np.linspace(0.5, 2.0, grid.n_rings).astype(np.float32)
    scale = np.linspace(0.8, 1.2, N).astype(np.float32)
    return table, (np.arange(N), grid, weight, scale)


@pytest.mark.parametrize("grid", GRIDS)
def test_real_products_equal_complex_ones(grid):
    table, how = gathered(grid)
    images = np.zeros(N * grid.size, np.complex64)
    table.gather(gather_by_harmonic, *how, images)
    templates = random_complex(grid.size, SHIFTS, seed=1)
    expected = np.zeros((grid.n_harmonics, N * SHIFTS), np.complex64)
    harmonic_product(images, N, 0, N, templates.reshape(-1), SHIFTS, grid.offset, expected)

    real_images = np.zeros(2 * N * grid.size, np.float32)
    table.gather(gather_real, *how, real_images)
    order = harmonic_order(grid.n_harmonics)
    found = np.zeros((grid.n_harmonics, 2, SHIFTS * N), np.float32)
    matrix = real_templates(templates, grid.offset)
    real_product(matrix, SHIFTS, real_images, N, grid.offset, order, found)
    z = (found[order, 0] + 1j * found[order, 1]).reshape(-1, SHIFTS, N).transpose(0, 2, 1).reshape(-1, N * SHIFTS)
    np.testing.assert_allclose(z, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    twin = np.zeros_like(found)
    reference_real_product(matrix, SHIFTS, real_images, N, grid.offset, order, twin)
    np.testing.assert_allclose(found, twin, rtol=0, atol=2e-5 * np.abs(twin).max())


@pytest.mark.parametrize(("n_angles", "n_rows"), [(12, 5), (12, 6), (30, 14), (2, 1)])
def test_angle_matrices_are_the_inverse_transform(n_angles, n_rows):
    z = random_complex(n_rows, 9)
    z[0] = z[0].real
    expected = np.fft.irfft(z, n_angles, axis=0) * n_angles
    rows = np.empty((n_rows, 2, 9), np.float32)
    rows[harmonic_order(n_rows)] = np.stack([z.real, z.imag], axis=1)
    even, odd = angle_matrices(n_angles, n_rows)
    n_even = even.shape[1] // 2
    e, o = even @ rows[:n_even].reshape(-1, 9), odd @ rows[n_even:].reshape(-1, 9)
    np.testing.assert_allclose(np.concatenate([e + o, e - o]), expected, rtol=0, atol=1e-4)


def test_priors_enter_where_the_transform_makes_them_constants_and_harmonics():
    n_rows, order = 6, harmonic_order(6)
    out = np.zeros((n_rows, 2, SHIFTS * N), np.float32)
    log_prior, term = np.arange(SHIFTS, dtype=np.float32), random_complex(N, 2)
    add_priors(log_prior, term, order, out)
    z = (out[order, 0] + 1j * out[order, 1]).reshape(n_rows, SHIFTS, N)
    np.testing.assert_allclose(z[0], term[:, 0] + log_prior[:, None], rtol=1e-6)
    np.testing.assert_allclose(z[2], np.broadcast_to(term[:, 1], (SHIFTS, N)), rtol=1e-6)
    assert not z[[1, 3, 4, 5]].any()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_log_sum_is_that_of_the_definition_at_any_size(size):
    even, odd = (size * np.random.default_rng(3).normal(size=(2, SHIFTS * N, 9))).astype(np.float32)
    best, twin, peak, scratch = (np.zeros(N, np.float32), np.zeros(N, np.float32), np.zeros(SHIFTS * N, np.float32),
                                 np.zeros((2, 9), np.float32))
    line_peaks(even, odd, peak)
    np.testing.assert_array_equal(peak, np.maximum(even + odd, even - odd).max(axis=1))
    total = log_sum_lines(even, odd, peak, best, scratch)
    found = best + np.log(total)
    total = reference_log_sum_lines(even, odd, peak, twin, scratch)
    expected = twin + np.log(total)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
