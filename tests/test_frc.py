"""benchmarks/frc.py: ring correlations with known answers, the resolution read from them, and class frames undone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vitrea.engine.poses import place

PIXEL_SIZE = 4.0


@pytest.fixture(scope="module")
def frc():
    """The module by its path: benchmarks/ is no package."""
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "frc.py"
    spec = importlib.util.spec_from_file_location("benchmark_frc", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blob_view(seed, box_size=48):
    """An asymmetric, band-limited image inside the box: float64[L, L]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((box_size, box_size))
    for _ in range(14):
        y, x = (box_size // 2 + rng.uniform(-0.2, 0.2, 2) * box_size).astype(int)
        image[y, x] += rng.uniform(0.5, 1.5)
    return 20.0 * gaussian_filter(image, 1.5)


@pytest.mark.parametrize("box_size", [48, 49])
def test_equal_images_correlate_fully_whatever_their_scale(frc, box_size):
    image = np.random.default_rng(1).standard_normal((box_size, box_size))
    curve = frc.ring_correlation(image, 3.0 * image)
    assert curve.shape == (box_size // 2 + 1,)
    assert curve == pytest.approx(np.ones(box_size // 2 + 1))
    assert frc.ring_correlation(image, -image) == pytest.approx(-curve)


def test_signal_in_noise_correlates_as_theory_says(frc):
    """White signal S in image one, S + noise of variance v in image two: FRC = 1/√(1 + v) on every shell."""
    rng = np.random.default_rng(2)
    signal = rng.standard_normal((256, 256))
    noisy = signal + 2.0 * rng.standard_normal((256, 256))
    curve = frc.ring_correlation(signal, noisy)
    assert curve[20:] == pytest.approx(1.0 / np.sqrt(5.0), abs=0.15)
    assert curve[20:].mean() == pytest.approx(1.0 / np.sqrt(5.0), abs=0.01)


def test_only_the_noisy_shells_lose_correlation(frc):
    """Noise beyond shell 12 only: 1 below it, near 0 above."""
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((64, 64))
    k = np.fft.fftfreq(64, 1 / 64)
    beyond = np.rint(np.hypot(k[:, None], k)) > 12
    noise = np.fft.ifft2(np.fft.fft2(30.0 * rng.standard_normal((64, 64))) * beyond).real
    curve = frc.ring_correlation(signal, signal + noise)
    assert curve[:13] == pytest.approx(np.ones(13))
    assert np.abs(curve[14:]).max() < 0.4
    assert frc.resolution_at(curve, 64, PIXEL_SIZE) == pytest.approx(64 * PIXEL_SIZE / 12.5, rel=0.03)


def test_resolution_is_interpolated_between_shells(frc):
    curve = np.array([1.0, 1.0, 0.9, 0.7, 0.3, 0.8, 0.1])          # 0.5 lies midway between shells 3 and 4
    assert frc.resolution_at(curve, 12, PIXEL_SIZE) == pytest.approx(12 * PIXEL_SIZE / 3.5)
    assert frc.resolution_at(np.ones(7), 12, PIXEL_SIZE) == 2.0 * PIXEL_SIZE
    assert frc.resolution_at(np.full(7, 0.2), 12, PIXEL_SIZE) == np.inf


def test_a_class_is_compared_in_its_own_frame(frc):
    """A view turned by R(α) and moved by c is found again from a frame that is a degree and half a pixel off."""
    view, angle, shift = blob_view(4), 37.0, np.array([2.5, -1.25])
    average = place(view, angle, -shift)
    report = {"number": 1, "view": 1, "size": 50, "share": 1.0, "frame_angle": angle + 1.0,
              "frame_shift": ((shift + np.array([0.4, -0.3])) * PIXEL_SIZE).tolist()}
    [(_, curve)] = frc.class_curves(average[None], view[None], [report], PIXEL_SIZE, diameter=140.0)
    assert curve[1:16].min() > 0.99
    wrong = report | {"frame_angle": angle + 90.0}
    [(_, curve)] = frc.class_curves(average[None], view[None], [wrong], PIXEL_SIZE, diameter=140.0)
    assert curve[1:16].mean() < 0.8


def test_a_view_that_no_class_shows_counts_as_zero(frc):
    """Two classes of view 1, one of view 2, three views: the fuller class speaks for view 1, view 3 adds nothing."""
    def report(number, view, size):
        return {"number": number, "view": view, "size": size, "share": 1.0}

    curves = [(report(1, 1, 10), np.full(9, 0.2)), (report(2, 1, 90), np.full(9, 0.9)),
              (report(3, 2, 50), np.full(9, 0.6))]
    found = frc.summary(curves, 3, 16, PIXEL_SIZE)
    assert found["classes"] == 3
    assert found["mean_frc"] == pytest.approx((0.2 + 0.9 + 0.6) / 3, abs=1e-4)
    assert found["by_view_mean_frc"] == pytest.approx((0.9 + 0.6) / 3, abs=1e-4)
    assert frc.summary([], 3, 16, PIXEL_SIZE)["by_view_mean_frc"] == 0.0


def test_classes_without_a_frame_are_left_out(frc):
    report = {"number": 1, "view": 1, "size": 3, "share": 1.0, "frame_angle": None, "frame_shift": None}
    assert frc.class_curves(np.ones((1, 48, 48)), blob_view(5)[None], [report], PIXEL_SIZE, diameter=140.0) == []
