"""Circular masks: on pixels, and as operators on harmonics that must do the same."""
import numpy as np
import pytest

from tests.tables import tables
from vitrea.kernels.mask import (
    apply_harmonic_disc,
    disc_image,
    harmonic_disc,
    moments,
    moved_disc,
    reference_moments,
    reference_moved_disc,
    soft_disc,
)
from vitrea.kernels.polar import PolarGrid

BOXES = [48, 49]


def waves(box_size, reach, n=3):
    """Smooth images without mean, of blobs within `reach` of the centre."""
    random = np.random.default_rng(5)
    axis = np.arange(box_size) - box_size // 2
    images = []
    for _ in range(n):
        angle, distance = random.uniform(0, 2 * np.pi, 14), reach * np.sqrt(random.uniform(0, 1, 14))
        weights = random.normal(size=14)
        weights -= weights.mean()
        rows = np.exp(-0.5 * ((axis - (distance * np.sin(angle))[:, None]) / 2.0) ** 2)
        columns = np.exp(-0.5 * ((axis - (distance * np.cos(angle))[:, None]) / 2.0) ** 2)
        images.append(np.einsum("n,ny,nx->yx", weights, rows, columns))
    return np.array(images)


def masked_tables(grid, radius, edge, images):
    coefficients = tables(grid, images)
    apply_harmonic_disc(grid, harmonic_disc(grid, radius, edge), coefficients)
    return coefficients


def test_the_soft_disc_is_one_inside_zero_outside_and_half_in_the_middle_of_its_edge():
    np.testing.assert_allclose(soft_disc([0.0, 10.0, 12.5, 15.0, 40.0], 10.0, 5.0), [1, 1, 0.5, 0, 0], atol=1e-12)
    ramp = soft_disc(np.linspace(10.0, 15.0, 50), 10.0, 5.0)
    assert (np.diff(ramp) < 0).all()
    np.testing.assert_array_equal(soft_disc([9.99, 10.01], 10.0, 0.0), [1.0, 0.0])


@pytest.mark.parametrize("box_size", BOXES)
def test_the_disc_lies_about_pixel_half_the_box(box_size):
    disc = disc_image(box_size, 8.0, 4.0)
    centre = box_size // 2
    assert disc.dtype == np.float32
    assert disc[centre, centre + 8] == 1.0
    assert disc[centre - 12, centre] == 0.0
    assert disc[centre, centre + 10] == pytest.approx(0.5, abs=1e-6)
    y, x = np.meshgrid(np.arange(box_size), np.arange(box_size), indexing="ij")
    assert (disc * y).sum() / disc.sum() == pytest.approx(centre, abs=1e-4)
    assert (disc * x).sum() / disc.sum() == pytest.approx(centre, abs=1e-4)


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize(("radius", "edge"), [(9.0, 5.0), (10.5, 3.0)])
def test_masking_harmonics_is_masking_pixels(box_size, radius, edge):
    """The mask cuts through the object: the images lose power that must be lost in the same way."""
    grid = PolarGrid(box_size, box_size // 2 - 2, 20.0)
    images = waves(box_size, 14.0)
    before, expected = tables(grid, images), tables(grid, images * disc_image(box_size, radius, edge))
    found = masked_tables(grid, radius, edge, images)
    assert np.linalg.norm(before - expected) > 0.2 * np.linalg.norm(expected)
    assert np.linalg.norm(found - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("box_size", BOXES)
def test_an_object_inside_the_mask_is_left_as_it_is(box_size):
    grid = PolarGrid(box_size, box_size // 2 - 2, 20.0)
    images = waves(box_size, 5.0)
    before = tables(grid, images)
    found = masked_tables(grid, 13.0, 4.0, images)
    assert np.linalg.norm(found - before) < 5e-3 * np.linalg.norm(before)


def test_the_operator_of_fewer_rings_is_a_corner_of_the_operator():
    """Which is how a run uses it while its resolution grows."""
    wide = PolarGrid(48, 22, 20.0)
    narrow = wide.with_rings(9)
    for whole, part in zip(harmonic_disc(wide, 10.0, 5.0), harmonic_disc(narrow, 10.0, 5.0)):
        np.testing.assert_allclose(whole[:len(part), :len(part)], part, atol=1e-6)


def test_moments_are_those_of_the_twin_far_from_zero_and_not_finite_where_a_pixel_is_not():
    """A constant image of 12345.678 has no deviation at all, which is how empty images are found."""
    random = np.random.default_rng(5)
    images = (1e4 + random.normal(size=(6, 400))).astype(np.float32)
    images[1], images[2, 30], images[3, 31], images[4, 0] = 12345.678, np.nan, np.inf, -np.inf
    pixels = np.arange(0, 400, 2)
    found, expected = np.empty((6, 2)), np.empty((6, 2))
    moments(images, pixels, found)
    reference_moments(images, pixels, expected)
    np.testing.assert_allclose(found[[0, 1, 3, 5]], expected[[0, 1, 3, 5]], rtol=1e-9)
    assert found[1, 1] == 0.0
    assert np.isnan(found[[2, 4], 1]).all()


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("centre", "edge"), [((0.0, 0.0), 5.0), ((3.7, -6.2), 2.5), ((1.0, 2.0), 0.0)])
def test_a_moved_disc_is_its_twin(box, centre, edge):
    found, expected = np.empty((2, box, box))
    moved_disc(*centre, 0.3 * box, edge, found)
    reference_moved_disc(*centre, 0.3 * box, edge, expected)
    np.testing.assert_allclose(found, expected, atol=1e-12)
