"""The pose convention: fixed numbers everywhere, and RELION's own word for it where RELION is installed."""
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest

from vitrea.engine.poses import apply_pose, place, recentre, rotate_offset, wrap_degrees

BOXES = [48, 47]
BLOBS_XY = np.array([[9.0, 2.0], [-6.0, 7.5], [-3.0, -9.0], [1.0, 3.5]])
WEIGHTS = np.array([1.5, 1.0, 0.7, 0.5])
SIGMA = 2.2


def draw(points_xy, box_size):
    """Gaussian blobs at `points_xy` [px from pixel L//2]."""
    axis = np.arange(box_size) - box_size // 2
    columns = np.exp(-0.5 * ((axis - points_xy[:, :1]) / SIGMA) ** 2)
    rows = np.exp(-0.5 * ((axis - points_xy[:, 1:]) / SIGMA) ** 2)
    return np.einsum("n,ny,nx->yx", WEIGHTS, rows, columns)


def image_by_hand(psi, origin, box_size):
    """The convention applied to the blobs' coordinates: u = R(psi) v − o."""
    c, s = np.cos(np.deg2rad(psi)), np.sin(np.deg2rad(psi))
    x, y = BLOBS_XY.T
    return draw(np.stack([c * x + s * y - origin[1], -s * x + c * y - origin[0]], axis=1), box_size)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_a_quarter_turn_takes_plus_x_to_minus_y():
    view = np.zeros((9, 9))
    view[4, 6] = 1.0
    expected = np.zeros((9, 9))
    expected[2, 4] = 1.0
    np.testing.assert_allclose(place(view, 90.0, (0.0, 0.0)), expected, atol=1e-6)


@pytest.mark.parametrize("box_size", [8, 9])
def test_a_positive_origin_means_the_particle_lies_at_lower_pixels(box_size):
    view = np.zeros((box_size, box_size))
    view[4, 4] = 1.0
    image = place(view, 0.0, (1.0, 2.0))
    assert np.unravel_index(image.argmax(), image.shape) == (3, 2)


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize(("psi", "origin"), [(30.0, (0.0, 0.0)), (0.0, (1.3, -2.6)), (-141.0, (-1.7, 2.3))])
def test_place_equals_the_analytic_image(box_size, psi, origin):
    image = place(draw(BLOBS_XY, box_size), psi, origin)
    np.testing.assert_allclose(image, image_by_hand(psi, origin, box_size), atol=1e-4)


@pytest.mark.parametrize("box_size", BOXES)
def test_apply_pose_brings_the_image_back_to_the_view(box_size):
    view, origin = draw(BLOBS_XY, box_size), (-1.7, 2.3)
    np.testing.assert_allclose(apply_pose(image_by_hand(77.0, origin, box_size), 77.0, origin), view, atol=1e-3)


@pytest.mark.parametrize("box_size", [16, 17])
def test_the_null_pose_leaves_even_white_noise_untouched(box_size):
    noise = np.random.default_rng(3).normal(size=(box_size, box_size))
    np.testing.assert_allclose(place(noise, 0.0, (0.0, 0.0)), noise, atol=1e-6)


@pytest.mark.parametrize("box_size", BOXES)
def test_the_fourier_and_polar_statements_of_the_convention(box_size):
    psi, origin = 34.0, np.array([-1.7, 2.3])
    view, image = draw(BLOBS_XY, box_size), image_by_hand(psi, origin, box_size)
    axis = np.arange(box_size) - box_size // 2

    def transform(array, radius, theta):
        ky, kx = radius * np.sin(theta) / box_size, radius * np.cos(theta) / box_size
        return np.exp(-2j * np.pi * ky * axis) @ array @ np.exp(-2j * np.pi * kx * axis)

    for radius, theta in [(2.0, 0.3), (3.5, 2.0), (5.0, -1.1)]:
        k_yx = radius * np.array([np.sin(theta), np.cos(theta)])
        expected = np.exp(2j * np.pi * k_yx @ origin / box_size) * transform(view, radius, theta + np.deg2rad(psi))
        assert abs(transform(image, radius, theta) - expected) < 1e-3


def test_moving_the_class_average_moves_the_origins():
    view, psi, origin, shift = draw(BLOBS_XY, 48), -52.0, (1.5, -0.5), np.array([1.1, -2.6])
    moved = place(view, 0.0, -shift)
    again = place(moved, psi, recentre(psi, origin, shift))
    np.testing.assert_allclose(again, place(view, psi, origin), atol=2e-4)


def test_rotate_offset_broadcasts_over_angles():
    turned = rotate_offset(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([90.0, -90.0]))
    np.testing.assert_allclose(turned, [[-1.0, 0.0], [1.0, 0.0]], atol=1e-12)


def test_wrapped_angles_lie_in_the_half_open_circle():
    np.testing.assert_allclose(wrap_degrees([180.0, -180.0, 540.5, 10.0]), [-180.0, -180.0, -179.5, 10.0])


def relion(program, *arguments, folder):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([program, *map(str, arguments)], cwd=folder, check=True, capture_output=True, timeout=60)


def write_pose_star(path, box_size, image_names, poses):
    """A RELION 3.1 particle STAR at 1 Å/px, spelled out so that this test depends on no writer of ours."""
    labels = ["ImageName", "AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "OpticsGroup"]
    optics = ["OpticsGroup", "ImagePixelSize", "ImageSize", "ImageDimensionality", "Voltage", "SphericalAberration",
              "AmplitudeContrast"]
    lines = ["data_optics", "", "loop_", *(f"_rln{label}" for label in optics), f"1 1.0 {box_size} 2 300 2.7 0.1", "",
             "data_particles", "", "loop_", *(f"_rln{label}" for label in labels)]
    lines += [f"{name} 0 0 {psi} {x} {y} 1" for name, (psi, (y, x)) in zip(image_names, poses, strict=True)]
    path.write_text("\n".join(lines) + "\n\n")


POSES = [(0.0, (0.0, 0.0)), (30.0, (0.0, 0.0)), (0.0, (-2.1, 3.3)), (30.0, (-2.1, 3.3)), (-115.0, (1.4, 2.6))]


def test_relion_project_makes_the_images_that_place_makes(tmp_path):
    box_size = 48
    axis = np.arange(box_size) - box_size // 2
    depth = np.exp(-0.5 * (axis / SIGMA) ** 2)
    volume = (depth[:, None, None] * draw(BLOBS_XY, box_size)).astype(np.float32)
    mrcfile.write(tmp_path / "volume.mrc", volume, voxel_size=1.0)
    write_pose_star(tmp_path / "poses.star", box_size, [f"{i + 1}@none.mrcs" for i in range(len(POSES))], POSES)
    relion("relion_project", "--i", "volume.mrc", "--o", "projected", "--ang", "poses.star", "--angpix", 1,
           folder=tmp_path)
    view = volume.sum(axis=0)
    for image, (psi, origin) in zip(mrcfile.read(tmp_path / "projected.mrcs"), POSES, strict=True):
        assert correlation(image, place(view, psi, origin)) > 0.999


@pytest.mark.parametrize("box_size", BOXES)
def test_relion_stack_create_brings_placed_images_back_to_the_view(tmp_path, box_size):
    view = draw(BLOBS_XY, box_size)
    images = np.stack([place(view, psi, origin) for psi, origin in POSES]).astype(np.float32)
    mrcfile.write(tmp_path / "placed.mrcs", images, voxel_size=1.0)
    write_pose_star(tmp_path / "placed.star", box_size, [f"{i + 1}@placed.mrcs" for i in range(len(POSES))], POSES)
    relion("relion_stack_create", "--i", "placed.star", "--o", "aligned", "--apply_transformation", folder=tmp_path)
    for image in mrcfile.read(tmp_path / "aligned.mrcs"):
        assert correlation(image, view) > 0.998
