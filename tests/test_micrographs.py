"""Micrographs: what is read and what is refused, and preparation that does not depend on brightness or contrast."""
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from PIL import Image

from vitrea.kernels.micrograph import (
    clip_outliers,
    deviation_ratios,
    even_out,
    fourier_crop,
    reference_deviation_ratios,
    reference_even_out,
    reference_fourier_crop,
)
from vitrea.picker.micrographs import BadMicrographError, Micrograph, Preparation, list_micrographs, read_micrograph
from vitrea.picker.network import PRESETS


def write(path, image, pixel_size=1.5, order="<"):
    with mrcfile.new(path, data=image, overwrite=True) as file:
        file.voxel_size = pixel_size
    if order == ">":
        swap(path, image)
    return path


def swap(path, image):
    """The same file as a big-endian machine writes it."""
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(bytes(raw[:1024]), mrcfile.dtypes.HEADER_DTYPE).copy()
    header = header.astype(mrcfile.dtypes.HEADER_DTYPE.newbyteorder(">"))
    header["machst"] = (0x11, 0x11, 0, 0)
    path.write_bytes(header.tobytes() + image.astype(image.dtype.newbyteorder(">")).tobytes())


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 131), (100, 75)])
@pytest.mark.parametrize("shape", [(64, 70), (65, 71), (33, 50)])
def test_fourier_crop_is_its_twin_and_keeps_what_it_can(height, width, shape):
    image = np.random.default_rng(0).normal(5.0, 1.0, size=(height, width)).astype(np.float32)
    found = fourier_crop(image, shape)
    np.testing.assert_allclose(found, reference_fourier_crop(image, shape), atol=1e-5)
    assert found.mean() == pytest.approx(image.mean(), rel=1e-5)
    y, x = np.arange(height)[:, None] / height, np.arange(width) / width
    wave = np.cos(2 * np.pi * (7 * y - 11 * x) + 0.3).astype(np.float32)   # sample 0 stays sample 0
    y, x = np.arange(shape[0])[:, None] / shape[0], np.arange(shape[1]) / shape[1]
    np.testing.assert_allclose(fourier_crop(wave, shape), np.cos(2 * np.pi * (7 * y - 11 * x) + 0.3), atol=1e-5)
    with pytest.raises(ValueError, match="cannot crop"):
        fourier_crop(image, (height + 1, 20))


@pytest.mark.parametrize("window", [7, 8])
def test_even_out_is_its_twin_and_empty_places_are_zero(window):
    image = np.random.default_rng(1).normal(100.0, 3.0, size=(40, 50)).astype(np.float32)
    image[20:, 25:] = 100.0
    found = even_out(image, window)
    np.testing.assert_allclose(found, reference_even_out(image, window), atol=2e-3)
    assert not found[30:, 35:].any()


@pytest.mark.parametrize("side", [9.0, 40.0])
def test_deviations_around_places_are_their_twin_and_show_what_is_there(side):
    image = np.random.default_rng(3).normal(100.0, 2.0, size=(150, 211)).astype(np.float32)
    image[:70, 140:] = 90 + 0.2 * (image[:70, 140:] - 100)   # flat
    image[100:, 30:80] *= 1 + np.sin(np.arange(50))           # something else
    places = np.array([[35.0, 175.0], [125.4, 55.0], [60.0, 60.0], [0.0, 0.0], [149.4, 210.4]])
    found = deviation_ratios(image, places, side)
    np.testing.assert_allclose(found, reference_deviation_ratios(image, places, side), rtol=1e-6)
    assert found[0] < 0.5 < found[2] < 2 < found[1]
    hot = image.copy()
    hot[60, 60] = 1e6
    assert deviation_ratios(hot, places, side)[2] < 2, "a hot pixel is no crystal of ice"
    assert np.isnan(deviation_ratios(np.ones((70, 70), np.float32), places[:1], side)).all()
    assert deviation_ratios(image, np.zeros((0, 2)), side).shape == (0,)


def test_outliers_come_back_to_the_limit():
    image = np.random.default_rng(2).normal(10.0, 1.0, size=(300, 310)).astype(np.float32)
    hot = image.copy()
    hot[5, 6], hot[200, 11] = 1e9, -1e9
    found = clip_outliers(hot)
    assert found.max() == pytest.approx(16, abs=0.2)
    assert found.min() == pytest.approx(4, abs=0.2)
    middle = np.abs(image - 10) < 5
    np.testing.assert_array_equal(found[middle & (hot == image)], image[middle & (hot == image)])
    np.testing.assert_array_equal(clip_outliers(np.full((20, 20), 3.0)), np.full((20, 20), 3.0))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32, np.uint16, np.float16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_in_either_byte_order_on_a_micrograph_that_is_not_square(tmp_path, dtype, order):
    image = np.random.default_rng(3).integers(0, 100, size=(80, 130)).astype(dtype)
    found = read_micrograph(write(tmp_path / "m.mrc", image, 1.25, order))
    assert found.image.dtype == np.float32
    np.testing.assert_array_equal(found.image, image.astype(np.float32))
    assert found.pixel_size == pytest.approx(1.25)
    assert read_micrograph(tmp_path / "m.mrc", 2.0).pixel_size == 2.0


def test_half_floats_whose_squares_overflow_give_finite_statistics(tmp_path):
    image = (np.random.default_rng(4).normal(size=(128, 96)) * 4000).astype(np.float16)
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.std(image))
    prepared = Preparation(3.0, 20).apply(read_micrograph(write(tmp_path / "m.mrc", image)))
    assert prepared.shape == (64, 48)
    assert np.isfinite(prepared).all()
    assert prepared.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16),
                                               (".tiff", np.float32), (".jpg", np.uint8)])
def test_pictures_are_read_row_by_row_on_a_micrograph_that_is_not_square(tmp_path, suffix, dtype):
    y, x = np.mgrid[:80, :130]
    image = (y + x / 2).astype(dtype)   # the first row stored is the darkest
    Image.fromarray(image).save(tmp_path / f"m{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    found = read_micrograph(tmp_path / f"m{suffix}", 1.5)
    assert found.image.dtype == np.float32
    np.testing.assert_allclose(found.image, image, atol=3 if suffix == ".jpg" else 0)
    with pytest.raises(BadMicrographError, match="the header has no pixel size"):
        read_micrograph(tmp_path / f"m{suffix}")


def test_pictures_that_are_cut_short_or_several_are_told(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120), dtype=np.uint8))
    for suffix in (".png", ".jpg", ".tif"):
        image.save(tmp_path / f"m{suffix}")
        whole = (tmp_path / f"m{suffix}").read_bytes()
        for kept in (len(whole) // 2, 20, 0):
            (tmp_path / f"m{suffix}").write_bytes(whole[:kept])
            with pytest.raises(BadMicrographError, match="could not be read"):
                read_micrograph(tmp_path / f"m{suffix}", 1.0)
    image.save(tmp_path / "movie.tif", save_all=True, append_images=[image])
    with pytest.raises(BadMicrographError, match="found 2 images; expected one micrograph a file"):
        read_micrograph(tmp_path / "movie.tif", 1.0)


def test_a_folder_holds_its_mrc_files_or_else_its_pictures(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_micrographs(tmp_path).paths] == ["a.JPG", "b.png"]
    (tmp_path / "m.mrc").touch()
    assert [path.name for path in list_micrographs(tmp_path).paths] == ["m.mrc"]


def test_counted_electrons_that_are_mostly_none_are_no_empty_micrograph(tmp_path):
    image = np.random.default_rng(6).poisson(0.15, size=(100, 100)).astype(np.float32)
    assert (image == 0).mean() > 0.8
    assert read_micrograph(write(tmp_path / "m.mrc", image)).image.max() >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [("saturated", "36 % of the pixels are 255, the largest value"), ("empty", "96 % of the pixels are 0"),
     ("constant", "every pixel is 7"), ("nan", "values that are not finite"), ("short", "the stack is cut short"),
     ("movie", "found 3 images; expected one micrograph a file"), ("no pixel size", "the header has no pixel size"),
     ("text", "no MRC header"), ("missing", "No such file"), ("tiny", "found 32 × 90 px")],
)
@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_micrographs_that_cannot_be_picked_are_told(tmp_path, change, words):
    image = np.random.default_rng(5).normal(size=(3, 70, 90) if change == "movie" else (70, 90)).astype(np.float32)
    image = {"constant": np.full_like(image, 7), "tiny": image[:32],
             "saturated": np.minimum(255, np.linspace(0, 400, 6300, dtype=np.float32)).reshape(70, 90),
             "empty": np.maximum(0, np.linspace(-96, 4, 6300, dtype=np.float32)).reshape(70, 90)}.get(change, image)
    if change == "nan":
        image[3, 4] = np.nan
    path = tmp_path / "m.mrc"
    if change == "text":
        path.write_text("micrograph " * 400)
    elif change != "missing":
        with np.errstate(invalid="ignore"):
            write(path, image, 0 if change == "no pixel size" else 1.5)
    if change == "short":
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadMicrographError, match=words):
        read_micrograph(path)


def test_preparation_is_blind_to_brightness_and_contrast_and_never_enlarges():
    random = np.random.default_rng(6)
    image = random.normal(size=(240, 300)).astype(np.float32)
    preparation = Preparation.of(PRESETS["vitrea"], 160.0)
    assert preparation.pixel_size == pytest.approx(5.0)   # 48 px are one and a half diameters
    assert preparation.window == 4 * 32
    assert Preparation.of(PRESETS["deepem-64"], 160.0).window == round(2 * 64 / 1.5)

    def at(image, pixel_size):
        return Micrograph(Path("mic.mrc"), image, pixel_size)

    one, other = (preparation.apply(at(each, 2.5)) for each in (image, 1000 + 40 * image))
    assert one.shape == (120, 150)
    np.testing.assert_allclose(other, one, atol=1e-3)
    assert preparation.apply(at(image, 5.05)).shape == preparation.apply(at(image, 4.95)).shape == image.shape
    assert preparation.apply(at(image, 8.0)).shape == image.shape
    assert preparation.apply(at(image, 160.0 / 12 - 0.01)).shape == image.shape
    with pytest.raises(BadMicrographError, match=r"expected at most 13\.33 Å for a particle of 160 Å"):
        preparation.apply(at(image, 160.0 / 12 + 0.05))
