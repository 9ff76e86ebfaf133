"""Scores and sums as matrix products: every kernel against its NumPy twin, and the twins against the formulas."""
import numpy as np
import pytest

from vitrea.kernels.harmonic import (
    accumulate_lines,
    harmonic_product,
    pack_lines,
    reference_accumulate_lines,
    reference_harmonic_product,
    reference_pack_lines,
)
from vitrea.kernels.polar import PolarGrid

# (box, rings of the table, rings in use, support): odd and even, all rings and some, a single ring, a speck
GRIDS = [(32, 15, 15, 13.0), (33, 13, 7, 14.5), (21, 9, 1, 8.0), (40, 11, 6, 1.0)]
GUARD = np.complex64(7e7 - 3e7j)


def noise(random, *shape):
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def grids(case):
    box_size, n_rings, in_use, support = case
    wide = PolarGrid(box_size, n_rings, support)
    return wide, wide.with_rings(in_use)


def guarded(*shape):
    """An output array with a row of sentinels before and after it, and the whole it lies in."""
    whole = np.full((shape[0] + 2, *shape[1:]), GUARD, dtype=np.complex64)
    return whole[1:-1], whole


def check_guards(whole):
    np.testing.assert_array_equal(whole[[0, -1]], GUARD)


def plain_and_compiled(kernel):
    """The Python a kernel is made from, whose indices NumPy checks, and then the machine code."""
    return kernel.py_func, kernel


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize(("start", "stop", "n_shifts"), [(0, 7, 5), (2, 7, 1), (6, 7, 13), (3, 3, 4)])
def test_harmonic_product_equals_its_twin(case, start, stop, n_shifts):
    _, grid = grids(case)
    random = np.random.default_rng(1)
    images, templates = noise(random, 7 * grid.size), noise(random, grid.size * n_shifts)
    count = (stop - start) * n_shifts
    expected = np.zeros((grid.n_harmonics, count), dtype=np.complex64)
    reference_harmonic_product(images, 7, start, stop, templates, n_shifts, grid.offset, expected)
    out, whole = guarded(grid.n_harmonics, count + 3)   # a wider buffer, as the last product of a block finds it
    harmonic_product(images, 7, start, stop, templates, n_shifts, grid.offset, out)
    np.testing.assert_allclose(out[:, :count], expected, atol=1e-4)
    np.testing.assert_array_equal(out[:, count:], GUARD)
    check_guards(whole)


def test_harmonic_product_is_the_sum_over_rings_of_image_times_template():
    grid = PolarGrid(33, 9, 12.0)
    random = np.random.default_rng(2)
    y, a = noise(random, 3, grid.size), noise(random, 4, grid.size)
    images = np.concatenate([y[:, grid.offset[m]:grid.offset[m + 1]].ravel() for m in range(grid.n_harmonics)])
    out = np.zeros((grid.n_harmonics, 12), dtype=np.complex64)
    harmonic_product(images, 3, 0, 3, np.ascontiguousarray(a.conj().T).reshape(-1), 4, grid.offset, out)
    for m in range(grid.n_harmonics):
        mine = grid.harmonic_of == m
        np.testing.assert_allclose(out[m].reshape(3, 4), y[:, mine] @ a[:, mine].conj().T, atol=1e-4)


@pytest.mark.parametrize(("n_harmonics", "width"), [(1, 2), (9, 11), (16, 17), (23, 61)])
@pytest.mark.parametrize(("first", "count", "n_shifts", "terms"),
                         [(0, 1, 1, 1), (3, 17, 5, 1), (8, 16, 3, 9), (5, 20, 25, 1)])   # 9: too many for some
def test_pack_lines_equals_its_twin(n_harmonics, width, first, count, n_shifts, terms):
    random = np.random.default_rng(3)
    product = noise(random, n_harmonics, first + count + 2)
    log_prior = random.normal(size=n_shifts).astype(np.float32)
    ctf_term = noise(random, (first + count) // n_shifts + 1, terms)
    expected = np.zeros((count, width), dtype=np.complex64)
    reference_pack_lines(product, first, count, n_shifts, log_prior, ctf_term, expected)
    for kernel in plain_and_compiled(pack_lines):
        out, whole = guarded(count, width)
        kernel(product, first, count, n_shifts, log_prior, ctf_term, out)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
        check_guards(whole)


def test_pack_lines_adds_the_prior_to_every_angle_and_the_ctf_term_to_even_harmonics():
    product = np.zeros((3, 4), dtype=np.complex64)
    product[1, 2] = 5.0
    out = np.full((4, 8), GUARD, dtype=np.complex64)
    ctf_term = np.array([[1, 2j, 3], [10, 20j, 30]], dtype=np.complex64)
    pack_lines(product, 0, 4, 2, np.array([100.0, 200.0], dtype=np.float32), ctf_term, out)
    expected = np.zeros((4, 8), dtype=complex)
    expected[:, 0] = [101, 201, 110, 210]
    expected[:, 2] = [2j, 2j, 20j, 20j]
    expected[:, 4] = [3, 3, 30, 30]
    expected[2, 1] = 5.0
    np.testing.assert_array_equal(out, expected)


def test_pack_lines_drops_the_ctf_terms_that_the_angles_do_not_resolve():
    """Twelve angles resolve harmonics below 6: those beyond would fall onto others, or outside the array."""
    ctf_term = np.arange(1, 19, dtype=np.complex64).reshape(2, 9)
    for kernel in plain_and_compiled(pack_lines):
        out, whole = guarded(2, 7)
        kernel(np.zeros((1, 2), np.complex64), 0, 2, 1, np.zeros(1, np.float32), ctf_term, out)
        np.testing.assert_array_equal(out, [[1, 0, 2, 0, 3, 0, 0], [10, 0, 11, 0, 12, 0, 0]])
        check_guards(whole)


@pytest.mark.parametrize("case", GRIDS)
def test_accumulate_lines_equals_its_twin(case):
    _, grid = grids(case)
    random = np.random.default_rng(4)
    count, images = 11, noise(random, 4, grid.size)
    harmonics = noise(random, count + 2, grid.n_harmonics + 3)
    line_image, line_target = random.integers(0, 4, count), random.integers(0, 3, count)
    line_image[0], line_target[0] = 3, 2
    start = noise(random, 3, grid.size)
    expected = start.copy()
    reference_accumulate_lines(harmonics, count, line_image, line_target, grid.offset, images, expected)
    for kernel in plain_and_compiled(accumulate_lines):
        out, whole = guarded(3, grid.size)
        out[:] = start
        kernel(harmonics, count, line_image, line_target, grid.offset, images, out)
        np.testing.assert_allclose(out, expected, atol=1e-4)
        check_guards(whole)


def test_accumulate_lines_turns_the_image_back_by_the_angle_of_the_weight():
    """One weight of 1 at ψ: an image R_ψ a, of harmonics e^{−imψ} a, must come back as a."""
    grid = PolarGrid(32, 10, 12.0)
    random = np.random.default_rng(5)
    view, psi = noise(random, grid.size), 1.1
    image = view * np.exp(-1j * grid.harmonic_of * psi)
    weights = np.exp(-1j * np.arange(grid.n_harmonics) * psi)[None].astype(np.complex64)
    out = np.zeros((1, grid.size), dtype=np.complex64)
    zero = np.zeros(1, dtype=np.int64)
    accumulate_lines(weights, 1, zero, zero, grid.offset, image[None].astype(np.complex64), out)
    np.testing.assert_allclose(out[0], view, atol=1e-5)
