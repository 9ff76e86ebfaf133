"""The poses that are searched: discs of shifts, angles, and templates that are the references of shifted images."""
import numpy as np
import pytest

from tests.tables import tables
from vitrea.engine.poses import place
from vitrea.engine.search import Shifter, disc_shifts, make_level, power_harmonics, shift_neighbours
from vitrea.kernels.polar import PolarGrid

BOXES = [32, 33]
SIGMA = 1.9
POINTS = np.array([[3.1, -4.0], [-4.2, 1.3], [0.4, 4.6], [3.2, 3.1], [-2.0, -3.3]])   # (y, x)
WEIGHTS = np.array([1.0, 0.8, -0.9, 0.6, -1.5])


def view(box_size):
    axis = np.arange(box_size) - box_size // 2
    rows = np.exp(-0.5 * ((axis - POINTS[:, :1]) / SIGMA) ** 2)
    columns = np.exp(-0.5 * ((axis - POINTS[:, 1:]) / SIGMA) ** 2)
    return np.einsum("n,ny,nx->yx", WEIGHTS, rows, columns)


def grid_of(box_size):
    return PolarGrid(box_size, 13, 14.0)


def random_tables(grid, n):
    """Tables of real images: harmonic 0 is real."""
    random = np.random.default_rng(n)
    out = random.normal(size=(n, grid.size)) + 1j * random.normal(size=(n, grid.size))
    out[:, :grid.offset[1]].imag = 0
    return out.astype(np.complex64)


def inner(grid, a, b):
    """Σ over rings and all harmonics of conj(a) b."""
    return np.sum(grid.multiplicity * np.real(np.conj(a) * b), dtype=np.float64)


# ---- shifts and angles

@pytest.mark.parametrize(("radius", "step"), [(0.0, 2.0), (1.0, 1.0), (5.0, 2.0), (5.0, 1.0), (3.0, 0.3), (2.9, 0.7)])
def test_shifts_are_all_points_of_the_grid_within_the_radius(radius, step):
    shifts = disc_shifts(radius, step)
    reach = 20
    grid = step * np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), axis=-1).reshape(-1, 2)
    expected = grid[np.hypot(*grid.T) <= radius * (1 + 1e-9)]
    np.testing.assert_allclose(shifts, expected, atol=1e-12)
    assert (np.abs(shifts) < 1e-12).all(axis=1).sum() == 1


@pytest.mark.parametrize(("radius", "step"), [(0.0, 1.0), (5.0, 2.0), (3.0, 0.3)])
def test_neighbours_are_one_step_away_on_their_axis(radius, step):
    shifts = disc_shifts(radius, step)
    moves = step * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    for i, row in enumerate(shift_neighbours(shifts, step)):
        for neighbour, move in zip(row, moves):
            distance = np.abs(shifts - (shifts[i] + move)).max(axis=1)
            assert neighbour == (distance.argmin() if distance.min() < 1e-9 else -1)


@pytest.mark.parametrize("psi_step", [1.0, 6.0, 30.0])
def test_angles_are_as_fine_as_asked_and_as_the_rings_need(psi_step):
    level = make_level(grid_of(32), 2.0, 1.0, psi_step)
    assert 360.0 / level.n_angles <= psi_step
    assert level.n_angles >= 2 * level.grid.n_harmonics


# ---- templates

@pytest.mark.parametrize("box_size", BOXES)
def test_templates_are_the_harmonics_of_shifted_images(box_size):
    """T_s A(x) = A(x − s): place() with origin −s."""
    grid, image = grid_of(box_size), view(box_size)
    level = make_level(grid, 2.5, 0.8, 6.0)
    found = Shifter(level).templates(tables(grid, [image])[0])
    expected = np.conj(tables(grid, [place(image, 0.0, -shift) for shift in level.shifts])).T
    assert found.shape == (grid.size, level.n_shifts)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("box_size", BOXES)
def test_unshifting_shifted_references_gives_the_reference_once_for_each(box_size):
    grid = grid_of(box_size)
    level = make_level(grid, 2.0, 1.0, 6.0)
    shifter, reference = Shifter(level), tables(grid, [view(box_size)])[0]
    shifted = np.ascontiguousarray(np.conj(shifter.templates(reference)).T)
    which = np.array([0, 3, 12, 7])
    found = shifter.unshift(shifted[which], which)
    assert np.linalg.norm(found - 4 * reference) < 2e-3 * np.linalg.norm(4 * reference)


@pytest.mark.parametrize("box_size", BOXES)
def test_unshifting_is_the_adjoint_of_making_templates(box_size):
    """Σ_t ⟨T_t a, y_t⟩ = ⟨a, Σ_t T_−t y_t⟩ for any y: the gradient of the scores is what the M step gathers."""
    grid = grid_of(box_size)
    level = make_level(grid, 2.0, 1.0, 6.0)
    shifter, reference = Shifter(level), random_tables(grid, 1)[0]
    which = np.array([1, 2, 5, 11])
    sums = random_tables(grid, 4)
    shifted = np.conj(shifter.templates(reference)).T[which]
    assert inner(grid, shifted, sums) == pytest.approx(inner(grid, reference, shifter.unshift(sums, which)), rel=1e-4)


@pytest.mark.parametrize("box_size", BOXES)
def test_templates_do_not_depend_on_what_was_shifted_before(box_size):
    grid = grid_of(box_size)
    level = make_level(grid, 1.0, 1.0, 6.0)
    used, reference = Shifter(level), tables(grid, [view(box_size)])[0]
    used.templates(random_tables(grid, 1)[0])
    used.unshift(random_tables(grid, 2), np.array([0, 1]))
    np.testing.assert_array_equal(used.templates(reference), Shifter(level).templates(reference))


@pytest.mark.parametrize("box_size", BOXES)
def test_power_harmonics_are_those_of_the_squared_amplitude(box_size):
    grid = grid_of(box_size)
    found = power_harmonics(grid, tables(grid, [view(box_size), 2 * view(box_size).T]), 4)
    assert found.shape == (4, grid.n_rings, 2)
    fine = 256
    theta = 2 * np.pi * np.arange(fine) / fine
    radius = 2 * np.pi * np.arange(1, grid.n_rings + 1)[:, None] / box_size
    phase = radius[..., None] * (np.sin(theta)[:, None] * POINTS[:, 0] + np.cos(theta)[:, None] * POINTS[:, 1])
    envelope = 2 * np.pi * SIGMA**2 * np.exp(-0.5 * SIGMA**2 * radius**2) / box_size
    power = np.abs(envelope * (np.exp(-1j * phase) @ WEIGHTS)) ** 2
    expected = np.fft.fft(power, axis=1)[:, 0:8:2].T / fine
    np.testing.assert_allclose(found[:, :, 0], expected, atol=1e-4 * expected.real.max())
    np.testing.assert_allclose(found[0], grid.ring_power(tables(grid, [view(box_size), 2 * view(box_size).T])).T,
                               rtol=1e-3, atol=1e-6)


def test_power_harmonics_that_the_rings_do_not_resolve_are_zero():
    grid = PolarGrid(64, 2, 8.0)
    found = power_harmonics(grid, random_tables(grid, 1), 20)
    resolved = (grid.n_angles + 2) // 4
    assert found.shape == (20, 2, 1)
    assert 2 * (resolved - 1) < grid.n_angles / 2 <= 2 * resolved
    assert not found[resolved:].any()
    np.testing.assert_array_equal(found[:resolved], power_harmonics(grid, random_tables(grid, 1), resolved))
