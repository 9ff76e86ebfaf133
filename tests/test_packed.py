"""Coefficients in 16 bits: what is kept, what is gathered, and that nothing is written outside."""
import numpy as np
import pytest

from vitrea.kernels.packed import LARGEST, PackedTable, gather_by_row, gather_real, pack, reference_gather_real
from vitrea.kernels.polar import PolarGrid

# (box, rings of the table, rings in use, support): odd and even, all rings and some, a single ring, a speck
GRIDS = [(32, 15, 15, 13.0), (33, 13, 7, 14.5), (21, 9, 1, 8.0), (40, 11, 6, 1.0)]
GUARD = np.complex64(7e7 - 3e7j)


def noise(random, *shape):
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def case_of(case, n=5):
    box_size, n_rings, in_use, support = case
    wide, random = PolarGrid(box_size, n_rings, support), np.random.default_rng(box_size)
    coefficients = noise(random, 9, wide.size) * 10.0 ** random.uniform(-3, 3, wide.n_rings)[wide.ring_of]
    rows = random.permutation(9)[:n].astype(np.int64)
    weight = random.uniform(0.5, 2.0, in_use).astype(np.float32)
    return wide, wide.with_rings(in_use), coefficients, rows, weight, random.uniform(0.5, 2.0, n).astype(np.float32)


@pytest.mark.parametrize("case", GRIDS)
def test_packing_keeps_each_ring_to_half_a_unit_of_its_largest(case):
    wide, _, coefficients, *_ = case_of(case)
    table = PackedTable.of(coefficients.astype(np.complex64), wide)
    error = table.take(np.arange(9)) - coefficients
    for ring in range(wide.n_rings):
        here = wide.ring_of == ring
        largest = np.maximum(np.abs(coefficients[:, here].real), np.abs(coefficients[:, here].imag)).max(axis=1)
        bound = 0.51 * largest[:, None] / LARGEST
        assert (np.abs(error[:, here].real) <= bound).all()
        assert (np.abs(error[:, here].imag) <= bound).all()


def test_an_image_set_aside_packs_to_zeros_and_rows_are_put_where_they_belong():
    grid = PolarGrid(20, 6, 6.0)
    table = PackedTable.zeros(3, grid)
    one = noise(np.random.default_rng(0), 1, grid.size)
    table.put(np.array([2]), one)
    table.put(np.array([1]), np.zeros_like(one))
    np.testing.assert_allclose(table.take(np.array([2])), one, atol=1e-3)
    assert not table.take(np.array([0, 1])).any()


@pytest.mark.parametrize("kernel", [pack.py_func, pack])
def test_packing_in_python_and_compiled_agree(kernel):
    wide, _, coefficients, *_ = case_of(GRIDS[1])
    table, expected = PackedTable.zeros(9, wide), PackedTable.of(coefficients.astype(np.complex64), wide)
    kernel(coefficients.astype(np.complex64), np.arange(9), wide.offset, wide.first_ring, table.unit, table.quanta)
    np.testing.assert_array_equal(table.quanta, expected.quanta)


@pytest.mark.parametrize("case", GRIDS)
def test_gather_real_equals_its_twin_and_stays_inside(case):
    wide, narrow, coefficients, rows, weight, scale = case_of(case)
    table, size = PackedTable.of(coefficients.astype(np.complex64), wide), 4 * len(rows) * narrow.size
    how = (table.quanta, table.unit, rows, wide.offset, narrow.first_ring, weight, scale, narrow.offset)
    expected = np.zeros(size, np.float32)
    reference_gather_real(*how, expected)
    for kernel in (gather_real.py_func, gather_real):
        whole = np.full(size + 2, GUARD.real, np.float32)
        kernel(*how, whole[1:-1])
        np.testing.assert_allclose(whole[1:-1], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(whole[[0, -1]], GUARD.real)


@pytest.mark.parametrize("case", GRIDS)
def test_both_gathers_hold_the_cropped_rows_times_ring_weight_and_scale(case):
    wide, narrow, coefficients, rows, weight, scale = case_of(case)
    table, n = PackedTable.of(coefficients.astype(np.complex64), wide), len(rows)
    expected = wide.crop(table.take(rows), narrow) * weight[narrow.ring_of] * scale[:, None]
    np.testing.assert_allclose(table.take(rows, narrow, weight, scale), expected, rtol=1e-5)
    by_row = np.zeros((n, narrow.size), np.complex64)
    table.gather(gather_by_row.py_func, rows, narrow, weight, scale, by_row)
    np.testing.assert_allclose(by_row, expected, rtol=1e-5)
    real = np.zeros(4 * n * narrow.size, np.float32)
    table.gather(gather_real, rows, narrow, weight, scale, real)
    for m in range(narrow.n_harmonics):
        part = slice(narrow.offset[m], narrow.offset[m + 1])
        upper, lower = real[4 * n * part.start:4 * n * part.stop].reshape(2, n, 2, -1)
        np.testing.assert_allclose(upper[:, 0] + 1j * upper[:, 1], expected[:, part], rtol=1e-5)
        np.testing.assert_allclose(lower[:, 0] + 1j * lower[:, 1], -1j * expected[:, part], rtol=1e-5)
