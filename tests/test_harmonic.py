"""Scores and sums as matrix products: every kernel against its NumPy twin, and the twins against the formulas."""
import numpy as np
import pytest

from vitrea.engine.search import disc_shifts, shift_neighbours
from vitrea.kernels.harmonic import (
    accumulate_lines,
    real_templates,
    reference_accumulate_lines,
    reference_score_product,
    refine_pose,
    score_product,
)
from vitrea.kernels.polar import PolarGrid
from vitrea.kernels.posterior import refine_peak

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


def gathered(grid, y):
    """Left sides of the products of complex64[n, size], as `gather_real` lays them out, from the definition."""
    parts = [y[:, grid.offset[m]:grid.offset[m + 1]] for m in range(grid.n_harmonics)]
    return np.concatenate([np.block([[p.real, p.imag], [p.imag, -p.real]]).ravel() for p in parts]).astype(np.float32)


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize(("n", "n_classes", "n_shifts"), [(7, 1, 5), (1, 3, 1), (4, 2, 13)])
def test_score_product_equals_its_twin_and_leaves_other_rows_alone(case, n, n_classes, n_shifts):
    _, grid = grids(case)
    random = np.random.default_rng(1)
    images = gathered(grid, noise(random, n, grid.size))
    templates = real_templates(noise(random, n_classes, grid.size, n_shifts), grid.offset)
    order = random.permutation(grid.n_harmonics + 2)
    shape = (len(order), 2 * n, n_classes * n_shifts)
    expected, out = np.full(shape, 7e7, np.float32), np.full(shape, 7e7, np.float32)
    reference_score_product(images, n, templates, grid.offset, order, expected)
    score_product(images, n, templates, grid.offset, order, out)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert (out[order[grid.n_harmonics:]] == np.float32(7e7)).all()


def test_score_product_is_the_sum_over_rings_of_image_times_conjugated_template():
    grid = PolarGrid(33, 9, 12.0)
    random = np.random.default_rng(2)
    y, a = noise(random, 3, grid.size), noise(random, 2, grid.size, 4)
    out = np.zeros((grid.n_harmonics, 6, 8), dtype=np.float32)
    score_product(gathered(grid, y), 3, real_templates(np.conj(a), grid.offset), grid.offset,
                  np.arange(grid.n_harmonics), out)
    for m in range(grid.n_harmonics):
        mine = grid.harmonic_of == m
        expected = np.einsum("nr,krt->nkt", y[:, mine], np.conj(a[:, mine])).reshape(3, 8)
        np.testing.assert_allclose(out[m, :3] + 1j * out[m, 3:], expected, atol=1e-4)


# ---- between the grid points

CROSS = shift_neighbours(disc_shifts(1.5, 1.0), 1.0)   # nine shifts, 3 × 3


def direct_scores(image, conjugated, grid, ctf_term, log_prior, angles):
    """float64[T, angles]: Σ_m e^{imψ} z(m) over positive and negative m, the CTF term and the prior."""
    products = image[:, None] * conjugated
    score = np.zeros((conjugated.shape[1], len(angles)))
    for m in range(grid.n_harmonics):
        z = products[grid.harmonic_of == m].sum(axis=0)
        score += (1 if m == 0 else 2) * np.real(z[:, None] * np.exp(1j * m * angles))
    for j, term in enumerate(ctf_term):
        score += (1 if j == 0 else 2) * np.real(term * np.exp(2j * j * angles))
    return score + log_prior[:, None]


@pytest.mark.parametrize("shift", [4, 1, 0], ids=["middle", "edge", "corner"])
@pytest.mark.parametrize("angle", [0, 7, 31])
def test_a_pose_is_refined_on_the_scores_that_the_definition_gives(shift, angle):
    grid, n_angles = PolarGrid(24, 6, 8.0), 32
    random = np.random.default_rng(6)
    image, classes = noise(random, grid.size), noise(random, 3, grid.size, 9)
    ctf_term, log_prior = noise(random, 2), random.normal(size=9).astype(np.float32)
    angles = 2.0 * np.pi * (np.arange(n_angles) + 0.5) / n_angles
    scores = direct_scores(image, classes[1], grid, ctf_term, log_prior, angles)
    found = refine_pose(image, real_templates(classes, grid.offset), 9, grid.offset, ctf_term, log_prior, CROSS,
                        n_angles, shift, angle)
    np.testing.assert_allclose(found, refine_peak(scores, shift, angle, CROSS), atol=1e-5)


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
