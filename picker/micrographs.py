"""Micrographs: read from MRC, TIFF, PNG and JPEG files, judged, and prepared for the network.

A prepared micrograph has the network's pixel size, an even background and an even contrast; it is made in the same
way for training and for picking, which is what makes the dense scan equal the boxes a network was trained on.

Row 0 is the first row that is stored, in every format. Programs that turn TIFF files round as they read them count y
from the other end: `y_axis: up` of the jobs that read coordinates is meant for them.
"""
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.engine.star import read_star
from vitrea.kernels.micrograph import clip_outliers, even_out, fourier_crop

ALREADY_THERE = 0.98     # of the wanted pixel size: a micrograph with this one is taken as it is
LEAST_PIXELS = 12   # that a particle must be wide
LEAST_SIDE = 64   # px of a micrograph; smaller images are something else
PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
# Share of the pixels with one value from which a micrograph says nothing of a specimen: of the largest value they were
# saturated; of the least one, electrons that were counted may leave many pixels at 0.
SATURATED, EMPTY = 0.25, 0.95


class BadMicrographError(JobError):
    """A micrograph that cannot be picked; it is reported and skipped, the others are picked."""


@dataclass(frozen=True)
class Micrograph:
    """An image float32[H, W], row 0 the first row stored; pixel_size [Å/px]."""

    path: Path
    image: np.ndarray
    pixel_size: float


BOX_DIAMETERS = 1.5      # side of a network's box in diameters of the particle


@dataclass(frozen=True)
class Preparation:
    """How micrographs become images for a network: pixel_size [Å/px] and window [px] of the local normalisation, which
    is window_diameters of the particle wide."""

    pixel_size: float
    window: int
    window_diameters: float = 2.0

    @classmethod
    def of(cls, network, diameter):
        """The preparation for a network and a particle's diameter [Å]: the box is BOX_DIAMETERS of it wide."""
        pixel_size = BOX_DIAMETERS * diameter / network.box
        return cls(pixel_size, round(network.window * diameter / pixel_size), network.window)

    def shape_of(self, shape, pixel_size):
        """(h, w) of the prepared image; a micrograph is never enlarged, nor cropped for less than ALREADY_THERE."""
        if pixel_size > ALREADY_THERE * self.pixel_size:
            return tuple(shape)
        return tuple(max(1, min(n, round(n * pixel_size / self.pixel_size))) for n in shape)

    def require_fit(self, path, shape, pixel_size):
        """BadMicrographError for a micrograph whose pixels are too coarse for the particle, or that is narrower."""
        diameter = self.window * self.pixel_size / self.window_diameters
        if pixel_size > diameter / LEAST_PIXELS:
            raise _bad(path, f"found pixels of {pixel_size:.4g} Å", f"at most {diameter / LEAST_PIXELS:.4g} Å for a "
                       f"particle of {diameter:.4g} Å", "check diameter and pixel size")
        if min(shape) * pixel_size < diameter:
            raise _bad(path, f"found {shape[0]} × {shape[1]} px of {pixel_size:.4g} Å, which is narrower than a "
                       f"particle of {diameter:.4g} Å", "a micrograph", "check diameter and pixel size")

    def apply(self, micrograph):
        """Prepared image float32[h, w] of a Micrograph; BadMicrographError as `require_fit`."""
        self.require_fit(micrograph.path, micrograph.image.shape, micrograph.pixel_size)
        shape = self.shape_of(micrograph.image.shape, micrograph.pixel_size)
        small = clip_outliers(micrograph.image)
        if shape != small.shape:
            small = fourier_crop(small, shape)
        return even_out(small, self.window)


def read_micrograph(path, pixel_size=None):
    """Micrograph from an MRC file of mode 0, 1, 2, 6 or 12, in either byte order, or from a TIFF, PNG or JPEG file;
    values become float32 at once.

    pixel_size [Å/px] is used instead of the header's where it is given; pictures have none of their own. Raises
    BadMicrographError for a file that cannot be read or is cut short, several images, values that are not finite, one
    value only or nearly only, or no pixel size.
    """
    image, known = _picture(path) if Path(path).suffix.lower() in PICTURES else _mrc(path)
    size = _require_size(path, image.shape, pixel_size or known)
    _require_something(path, image)
    return Micrograph(Path(path), image, size)


def header_of(listed, number, pixel_size=None):
    """((H, W) [px], pixel size [Å]) of micrograph `number` of a MicrographList; BadMicrographError for what its header
    alone says that `read_micrograph` will refuse."""
    path = listed.paths[number]
    shape, known, _ = read_size(path)
    return shape, _require_size(path, shape, pixel_size or listed.pixel_sizes[number] or known)


def _require_size(path, shape, pixel_size):
    if not pixel_size > 0:
        raise _bad(path, "the header has no pixel size", "Å per pixel", "give the key pixel_size")
    if min(shape) < LEAST_SIDE:
        raise _bad(path, f"found {shape[0]} × {shape[1]} px", f"at least {LEAST_SIDE} px", "check the file")
    return float(pixel_size)


def _mrc(path):
    """(image float32[H, W], pixel size [Å], 0 if the header has none) of an MRC file."""
    try:
        header = read_header(path)
    except JobError as error:
        raise BadMicrographError(str(error)) from error
    if header.n_images != 1:
        raise _bad(path, f"found {header.n_images} images", "one micrograph a file", "align and sum the movie first")
    try:
        values = np.fromfile(path, dtype=header.dtype, count=header.height * header.width, offset=header.data_offset)
    except OSError as error:
        raise _bad(path, f"could not be read ({error.strerror or error})", "an MRC file", "check the path") from error
    return values.reshape(header.height, header.width).astype(np.float32, copy=False), header.pixel_size


def _picture(path):
    """(image float32[H, W], 0) of a TIFF, PNG or JPEG file; of colours, their luminance."""
    # A detector's image is larger than Pillow takes a honest picture to be.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) != 1:
                raise _bad(path, f"found {picture.n_frames} images", "one micrograph a file",
                           "align and sum the movie first")
            of_values = picture.mode in ("L", "F", "I") or picture.mode.startswith("I;16")
            return np.asarray(picture if of_values else picture.convert("L")).astype(np.float32), 0.0
    except BadMicrographError:
        raise
    except Exception as error:   # of files that are cut short or torn, each of Pillow's readers raises something else
        words = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise _bad(path, f"could not be read ({words})", "a TIFF, PNG or JPEG file", "copy or convert it again"
                   ) from error


def _require_something(path, image):
    """BadMicrographError for values that are not finite, or are nearly all one value."""
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _bad(path, "found values that are not finite", "finite values", "repair or leave out the micrograph")
    if low == high:
        raise _bad(path, f"every pixel is {low:g}", "an image", "leave out the micrograph")
    saturated, empty = np.mean(image == high), np.mean(image == low)
    if saturated > SATURATED or empty > EMPTY:
        value, share, words = (high, saturated, ", the largest value") if saturated > SATURATED else (low, empty, "")
        raise _bad(path, f"{100 * share:.0f} % of the pixels are {value:g}{words}", "an image that is neither "
                   "saturated nor empty", "leave out the micrograph")


def _bad(path, found, expected, remedy):
    return BadMicrographError(f"{path}: {found}; expected {expected}; {remedy}")


def read_size(path):
    """((H, W) [px], pixel size [Å], 0 if the file has none, bytes of a value) as the header says; BadMicrographError
    for a file without one."""
    if Path(path).suffix.lower() in PICTURES:
        Image.MAX_IMAGE_PIXELS = None
        try:
            with Image.open(path) as picture:
                return (picture.height, picture.width), 0.0, 4
        except Exception as error:
            raise _bad(path, "could not be read", "a TIFF, PNG or JPEG file", "copy or convert it again") from error
    try:
        header = read_header(path)
    except JobError as error:
        raise BadMicrographError(str(error)) from error
    return (header.height, header.width), header.pixel_size, header.dtype.itemsize


@dataclass(frozen=True)
class MicrographList:
    """The micrographs of a job: names as listed, paths, pixel sizes [Å/px] (None where only the header knows), and the
    columns of their STAR file with its optics table (empty for a folder)."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    pixel_sizes: tuple[float | None, ...]
    columns: dict
    optics: dict

    def __len__(self):
        return len(self.names)

    def read(self, number, pixel_size=None):
        """Micrograph `number`; pixel_size [Å/px] goes before what the list and the header say."""
        return read_micrograph(self.paths[number], pixel_size or self.pixel_sizes[number])


def list_micrographs(source):
    """MicrographList of a STAR file, a folder, a pattern or one file; names in a STAR file count from the working
    directory, as in RELION, or from the STAR file's own. JobError if there is none, or one is listed twice."""
    source = Path(source)
    if source.suffix == ".star":
        found = _listed(source)
    else:
        if source.is_dir():   # pictures beside MRC files are small copies for the eye
            paths = sorted(source.glob("*.mrc")) or sorted(
                path for path in source.iterdir() if path.suffix.lower() in PICTURES)
        elif any(mark in str(source) for mark in "*?["):
            paths = sorted(Path(source.anchor).glob(str(source.relative_to(source.anchor))))
        else:
            paths = [source] if source.exists() else []
        found = MicrographList(tuple(map(str, paths)), tuple(paths), (None,) * len(paths), {}, {})
    if not len(found):
        raise JobError(f"{source}: found no micrographs; expected a STAR file with _rlnMicrographName, a folder of "
                       ".mrc, .tif, .png or .jpg files, a pattern, or one file; check the path")
    if len(set(found.names)) < len(found):
        twice = next(name for i, name in enumerate(found.names) if name in found.names[:i])
        raise JobError(f"{source}: {twice} is listed twice; expected each micrograph once; remove one")
    return found


def _listed(source):
    blocks = read_star(source)
    columns = next((columns for columns in blocks.values() if "rlnMicrographName" in columns), None)
    if columns is None:
        raise JobError(f"{source}: found no _rlnMicrographName; expected the micrographs of a RELION job; "
                       "check the path")
    names = tuple(columns["rlnMicrographName"].tolist())
    paths = tuple(Path(name) if Path(name).exists() else source.parent / name for name in names)
    optics = blocks.get("optics", {})
    return MicrographList(names, paths, _listed_pixel_sizes(columns, optics, len(names)), columns, optics)


def _listed_pixel_sizes(columns, optics, n):
    label = "rlnMicrographPixelSize"
    if label in columns:
        return tuple(float(text) for text in columns[label])
    if label not in optics:
        return (None,) * n
    by_group = dict(zip(optics.get("rlnOpticsGroup", ["1"]), optics[label].astype(float).tolist()))
    groups = columns.get("rlnOpticsGroup", [next(iter(by_group))] * n)
    return tuple(by_group.get(group) for group in groups)
