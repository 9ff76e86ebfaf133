"""Log-sum-exp over all poses by real products: the same numbers as the definition, at odd and even numbers of
harmonics."""
import numpy as np
import pytest

from vitrea.kernels.harmonic import harmonic_product
from vitrea.kernels.marginal import (
    add_priors,
    harmonic_order,
    line_peaks,
    log_sum_lines,
    quarter_matrices,
    quarters,
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


@pytest.mark.parametrize(("n_angles", "n_rows"), [(12, 5), (12, 6), (32, 14), (4, 1), (4, 2)])
def test_a_quarter_of_the_circle_gives_the_scores_at_all_angles(n_angles, n_rows):
    z = random_complex(n_rows, 9)
    z[0] = z[0].real
    product = np.empty((n_rows, 2, 9), np.float32)
    product[harmonic_order(n_rows)] = np.stack([z.real, z.imag], axis=1)
    parts = np.empty((4, 9, n_angles // 4), np.float32)
    quarters(product, quarter_matrices(n_angles, n_rows), parts)
    a, b, c, d = parts
    psi = 2 * np.pi * (np.arange(n_angles // 4) + 0.5) / n_angles
    m = np.arange(n_rows)[:, None]
    for angle, found in ((psi, a + b + c + d), (-psi, a - b + c - d), (np.pi - psi, a - b - c + d),
                         (np.pi + psi, a + b - c - d)):
        factor = np.where(m == 0, 1, 2)
        np.testing.assert_allclose(found, np.real(z.T @ (factor * np.exp(1j * m * angle))), rtol=0, atol=1e-4)


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
    parts = (size * np.random.default_rng(3).normal(size=(4, SHIFTS * N, 9))).astype(np.float32)
    best, twin, peak, scratch = (np.zeros(shape, np.float32) for shape in (N, N, SHIFTS * N, (2, 36)))
    line_peaks(parts, peak)
    overall = np.full(N, -np.inf, np.float32)
    total = log_sum_lines(parts, peak, overall, best, scratch)
    expected = reference_log_sum_lines(parts, twin)
    np.testing.assert_array_equal(overall, best)
    np.testing.assert_allclose(best, twin, rtol=1e-6)
    np.testing.assert_allclose(best + np.log(total), twin + np.log(expected), rtol=1e-6)


def test_an_image_far_below_a_class_before_gets_its_maximum_alone():
    parts = np.random.default_rng(4).normal(size=(4, SHIFTS * N, 9)).astype(np.float32)
    best, peak, scratch = (np.zeros(shape, np.float32) for shape in (N, SHIFTS * N, (2, 36)))
    line_peaks(parts, peak)
    overall = np.full(N, -np.inf, np.float32)
    plain = log_sum_lines(parts, peak, overall, best, scratch)
    overall[2] += 100.0
    found = log_sum_lines(parts, peak, overall, best, scratch)
    assert found[2] == 1.0
    np.testing.assert_array_equal(np.delete(found, 2), np.delete(plain, 2))
