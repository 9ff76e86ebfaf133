"""The polar transform against analysis: blobs with known transforms, energy, rotation, and the way back to pixels."""
import numpy as np
import pytest
from scipy.special import jv

from tests.tables import tables
from vitrea.engine.poses import place
from vitrea.kernels.fourier import RingTransform
from vitrea.kernels.polar import (
    PolarGrid,
    PolarSynthesis,
    PolarTransform,
    complete_rings,
    filter_rings,
    reference_filter_rings,
    rings_to_table,
    table_to_rings,
)

BOXES = [32, 33]
SIGMA = 1.9   # px, of the blobs: their transform is 1e-7 at Nyquist
POINTS = np.array([[3.1, -4.0], [-5.2, 1.3], [0.4, 5.0], [4.2, 4.1], [-2.0, -3.3]])   # (y, x)
BALANCED = np.array([1.0, 0.8, -0.9, 0.6, -1.5])   # Σ = 0: no transform at zero frequency


def blobs(box_size, weights=BALANCED):
    axis = np.arange(box_size) - box_size // 2
    rows = np.exp(-0.5 * ((axis - POINTS[:, :1]) / SIGMA) ** 2)
    columns = np.exp(-0.5 * ((axis - POINTS[:, 1:]) / SIGMA) ** 2)
    return np.einsum("n,ny,nx->yx", weights, rows, columns)


def blob_transform(q_y, q_x, weights=BALANCED):
    """∫ blobs e^{−iq·x} dx."""
    phase = q_y[..., None] * POINTS[:, 0] + q_x[..., None] * POINTS[:, 1]
    envelope = 2 * np.pi * SIGMA**2 * np.exp(-0.5 * SIGMA**2 * (q_y**2 + q_x**2))
    return envelope * (np.exp(-1j * phase) @ weights)


def half_ring_frequencies(grid):
    radius = 2 * np.pi * np.arange(1, grid.n_rings + 1)[:, None] / grid.box_size
    theta = grid.angles()[:grid.n_angles // 2]
    return radius * np.sin(theta), radius * np.cos(theta)


def grid_of(box_size, n_rings=None, support=None):
    return PolarGrid(box_size, n_rings or (box_size - 1) // 2, support or 0.42 * box_size)


def random_table(grid, n=2, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, grid.size)) + 1j * random.normal(size=(n, grid.size))).astype(np.complex64)


# ---- the transform

@pytest.mark.parametrize("box_size", BOXES)
def test_the_transform_of_blobs_is_the_analytic_one(box_size):
    grid = grid_of(box_size)
    found = PolarTransform(grid, 4).forward(blobs(box_size)[None].astype(np.float32))[0]
    expected = blob_transform(*half_ring_frequencies(grid)) / box_size
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("other_box", "shrink"), [(48, 1.0), (41, 1.1), (45, 0.8)])
def test_another_box_and_pixel_are_sampled_on_the_same_rings(other_box, shrink):
    """The same object in a box of L' px, each `shrink` of ours: ring r is the same frequency of the object."""
    grid = grid_of(32, n_rings=11)
    axis = shrink * (np.arange(other_box) - other_box // 2)
    rows = np.exp(-0.5 * ((axis - POINTS[:, :1]) / SIGMA) ** 2)
    columns = np.exp(-0.5 * ((axis - POINTS[:, 1:]) / SIGMA) ** 2)
    image = np.einsum("n,ny,nx->yx", BALANCED, rows, columns)
    magnification = other_box * shrink / 32
    found = PolarTransform(grid, 1, other_box, magnification).forward(image[None].astype(np.float32))[0]
    expected = blob_transform(*half_ring_frequencies(grid)) / (other_box * shrink**2)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("box_size", BOXES)
def test_a_partly_filled_batch_is_not_touched_by_what_the_batch_held_before(box_size):
    grid = grid_of(box_size)
    plan = PolarTransform(grid, 3)
    random = np.random.default_rng(1)
    plan.forward(random.normal(size=(3, box_size, box_size)).astype(np.float32))
    image = blobs(box_size)[None].astype(np.float32)
    np.testing.assert_array_equal(plan.forward(image), PolarTransform(grid, 3).forward(image))


@pytest.mark.parametrize("box_size", BOXES)
def test_the_energy_on_rings_is_the_energy_of_the_pixels(box_size):
    """Parseval for an object without zero frequency: Σ_r 2πr <|X|²> = Σ image²."""
    grid, image = grid_of(box_size), blobs(box_size)
    energy = np.sum(grid.pixels_on_ring * grid.ring_power(tables(grid, [image])[0]))
    assert energy == pytest.approx(np.sum(image**2), rel=2e-3)


@pytest.mark.parametrize("box_size", BOXES)
def test_what_the_rings_miss_of_the_energy_is_known(box_size):
    """Rings start at 1: Euler and Maclaurin leave (π/6)|X(0)|² of the energy to zero frequency."""
    grid, image = grid_of(box_size), blobs(box_size, np.abs(BALANCED))
    energy = np.sum(grid.pixels_on_ring * grid.ring_power(tables(grid, [image])[0]))
    at_zero = (image.sum() / box_size) ** 2
    assert (np.sum(image**2) - energy) / at_zero == pytest.approx(np.pi / 6, rel=0.1)


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize("psi", [37.0, -110.0])
def test_a_turned_image_has_its_harmonics_multiplied_by_a_phase(box_size, psi):
    """X = R_ψ A is x(m) = e^{−imψ} a(m), with ψ = −rlnAnglePsi."""
    grid = grid_of(box_size)
    view = blobs(box_size)
    before, after = tables(grid, [view, place(view, psi, (0.0, 0.0))])
    right, wrong = (before * np.exp(-1j * grid.harmonic_of * turn) for turn in (np.deg2rad(-psi), np.deg2rad(psi)))
    assert np.linalg.norm(after - right) < 1e-3 * np.linalg.norm(before)
    assert np.linalg.norm(after - wrong) > 0.5 * np.linalg.norm(before)


@pytest.mark.parametrize("box_size", BOXES)
def test_synthesis_gives_the_image_back(box_size):
    grid, image = grid_of(box_size), blobs(box_size)
    pictures = PolarSynthesis(grid, batch=2).images(np.repeat(tables(grid, [image]), 3, axis=0))
    assert pictures.shape == (3, box_size, box_size)
    assert pictures.dtype == np.float32
    np.testing.assert_array_equal(pictures[0], pictures[2])
    axis = np.arange(box_size) - box_size // 2
    inside = np.hypot(axis[:, None], axis) < grid.support
    assert np.corrcoef(pictures[0].ravel(), image.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(pictures[0][inside], image[inside], atol=0.02 * np.abs(image).max())


# ---- the table

@pytest.mark.parametrize(("box_size", "n_rings", "support"),
                         [(32, 15, 13.0), (33, 16, 9.5), (64, 10, 30.0), (20, 9, 2.0)])
def test_the_table_is_laid_out_as_it_says(box_size, n_rings, support):
    grid = PolarGrid(box_size, n_rings, support)
    assert grid.size == np.sum(grid.last_harmonic + 1)
    for m in range(grid.n_harmonics):
        part = slice(grid.offset[m], grid.offset[m + 1])
        np.testing.assert_array_equal(grid.harmonic_of[part], m)
        np.testing.assert_array_equal(grid.ring_of[part], np.flatnonzero(grid.last_harmonic >= m))
    assert grid.n_angles > 2 * grid.last_harmonic.max()


@pytest.mark.parametrize("box_size", BOXES)
def test_table_to_rings_to_table_changes_nothing(box_size):
    grid = grid_of(box_size)
    table = random_table(grid)
    rings = np.full((2, grid.n_rings, grid.n_angles), np.nan, dtype=np.complex64)
    table_to_rings(table, grid.first_ring, grid.offset, rings)
    back = np.zeros_like(table)
    rings_to_table(rings, grid.first_ring, grid.offset, back)
    np.testing.assert_array_equal(back, table)


@pytest.mark.parametrize("box_size", BOXES)
def test_negative_harmonics_follow_from_the_image_being_real(box_size):
    grid = grid_of(box_size)
    rings = RingTransform(1, grid.n_rings, grid.n_angles)
    half = PolarTransform(grid, 1).forward(blobs(box_size)[None].astype(np.float32))
    complete_rings(half, rings.array)
    samples = rings.array.copy()
    table_to_rings(tables(grid, [blobs(box_size)]), grid.first_ring, grid.offset, rings.array)
    rings.to_angles()
    np.testing.assert_allclose(rings.array, samples, atol=1e-3 * np.abs(samples).max())


@pytest.mark.parametrize("box_size", BOXES)
def test_embed_is_the_reverse_of_crop_and_leaves_zeros_outside(box_size):
    wide = grid_of(box_size)
    narrow = wide.with_rings(7)
    table = random_table(wide)
    cropped = wide.crop(table, narrow)
    np.testing.assert_array_equal(wide.crop(wide.embed(cropped, narrow), narrow), cropped)
    embedded = wide.embed(cropped, narrow)
    np.testing.assert_array_equal(embedded, np.where(wide.ring_of < 7, table, 0))
    assert embedded.dtype == table.dtype


def test_cropping_to_fewer_rings_is_transforming_onto_fewer_rings():
    wide = grid_of(32)
    narrow = wide.with_rings(6)
    np.testing.assert_allclose(wide.crop(tables(wide, [blobs(32)]), narrow), tables(narrow, [blobs(32)]), atol=1e-4)


def test_ring_power_is_the_mean_square_over_the_samples_of_a_ring():
    grid = grid_of(33)
    table = random_table(grid)
    table[:, :grid.offset[1]] = table[:, :grid.offset[1]].real
    rings = RingTransform(2, grid.n_rings, grid.n_angles)
    table_to_rings(table, grid.first_ring, grid.offset, rings.array)
    rings.to_angles()
    np.testing.assert_allclose(grid.ring_power(table), np.mean(np.abs(rings.array) ** 2, axis=2), rtol=1e-4)


# ---- how many harmonics are enough

@pytest.mark.parametrize(("box_size", "support"), [(32, 13.0), (33, 16.0), (64, 8.0), (128, 60.0), (400, 190.0)])
def test_harmonics_beyond_the_last_hold_less_than_a_ten_thousandth_of_the_power(box_size, support):
    """A point at the rim of the support has harmonics J_m(2πrρ/L), Σ_m J_m² = 1: the worst case."""
    grid = PolarGrid(box_size, box_size // 2 - 1, support)
    reach = 2 * np.pi * np.arange(1, grid.n_rings + 1) * support / box_size
    beyond = jv(grid.last_harmonic[:, None] + np.arange(1, 60), reach[:, None])
    assert (2.0 * np.sum(beyond**2, axis=1)).max() < 1e-4


@pytest.mark.parametrize("box_size", BOXES)
def test_noise_inside_the_support_keeps_all_but_a_ten_thousandth_of_its_power(box_size):
    grid = grid_of(box_size)
    axis = np.arange(box_size) - box_size // 2
    inside = np.hypot(axis[:, None], axis) <= grid.support
    noise = inside * np.random.default_rng(2).normal(size=(4, box_size, box_size))
    whole = np.mean(np.abs(PolarTransform(grid, 4).forward(noise.astype(np.float32))) ** 2, axis=2)
    kept = grid.ring_power(tables(grid, noise))
    assert np.abs(1.0 - kept.sum(axis=0) / whole.sum(axis=0)).max() < 1e-4


@pytest.mark.parametrize("astigmatic", [True, False])
def test_filtered_rings_are_those_of_the_twin(astigmatic):
    random = np.random.default_rng(3)
    half = (random.normal(size=(3, 5, 12)) + 1j * random.normal(size=(3, 5, 12))).astype(np.complex64)
    transfer = random.normal(size=(3, 5, 12 if astigmatic else 1)).astype(np.float32)
    found, expected = ((np.empty((3, 5, 24), np.complex64), np.empty((3, 5), np.float32)) for _ in range(2))
    filter_rings(half, transfer, *found)
    reference_filter_rings(half, transfer, *expected)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5)
