"""Frequencies off the grid: the plan against the sum it stands for, its kernels against their NumPy twins."""
import numpy as np
import pytest

from vitrea.kernels import gridding
from vitrea.kernels.gridding import PixelsToPoints

BOXES = [16, 17, 40]


def frequencies(random, n):
    return random.uniform(-2.2, 2.2, (2, n))


def direct_sum(images, q_y, q_x):
    axis = np.arange(images.shape[-1]) - images.shape[-1] // 2
    waves = np.exp(-1j * (q_y[:, None, None] * axis[:, None] + q_x[:, None, None] * axis))
    return np.einsum("qyx,byx->qb", waves, images)


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize("half", [False, True])
def test_pixels_to_points_is_the_fourier_sum_about_the_box_centre(box_size, half):
    """To 1e-5 of the image, over all of the plane and over the half of it that rings are sampled on."""
    random = np.random.default_rng(box_size)
    q_y, q_x = frequencies(random, 300)
    q_y = np.abs(q_y) if half else q_y
    images = random.normal(size=(3, box_size, box_size)).astype(np.float32)
    plan = PixelsToPoints(box_size, 3, q_y, q_x)
    plan.execute(images)
    expected = direct_sum(images, q_y, q_x)
    assert np.linalg.norm(plan.points - expected) < 1.2e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(plan.points, expected, atol=3e-5 * np.abs(expected).max())


def test_an_image_is_transformed_alike_whatever_stands_beside_it():
    """Batches are filled differently on other numbers of ranks: the bits must not differ."""
    random = np.random.default_rng(0)
    plan = PixelsToPoints(24, 4, *frequencies(random, 50))
    images = random.normal(size=(4, 24, 24)).astype(np.float32)
    plan.execute(images)
    together = plan.points.copy()
    for i in range(4):
        plan.execute(images[i:i + 1])
        np.testing.assert_array_equal(plan.points[:, 0], together[:, i])
        assert not plan.points[:, 1:].any()


def test_join_waves_does_as_its_twin():
    products = np.random.default_rng(1).normal(size=(5, 2, 7, 2, 6)).astype(np.float32)
    found, expected = np.full((2, 7, 11, 5, 2), np.nan, dtype=np.float32)
    gridding.join_waves(products, found)
    gridding.reference_join_waves(products, expected)
    np.testing.assert_array_equal(found, expected)


def test_interpolate_does_as_its_twin():
    random = np.random.default_rng(2)
    n_y, n_x, width = 9, 13, 4
    grid = random.normal(size=(n_y * n_x, 10)).astype(np.float32)
    place = random.integers(0, n_y - width + 1, 30) * n_x + random.integers(0, n_x - width + 1, 30)
    weights = random.random((2, 30, width), dtype=np.float32)
    found, expected = np.full((2, 30, 10), np.nan, dtype=np.float32)
    gridding.interpolate(grid, n_x, place, *weights, found)
    gridding.reference_interpolate(grid, n_x, place, *weights, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
