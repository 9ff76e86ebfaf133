"""Micrographs: read from MRC files, judged, and prepared for the network.

A prepared micrograph has the network's pixel size, an even background and an even contrast; it is made in the same
way for training and for picking, which is what makes the dense scan equal the boxes a network was trained on.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.kernels.micrograph import clip_outliers, even_out, fourier_crop

ALREADY_THERE = 0.98     # of the wanted pixel size: a micrograph with this one is taken as it is
LEAST_SIDE = 64   # px of a micrograph; smaller images are something else


class BadMicrographError(JobError):
    """A micrograph that cannot be picked; it is reported and skipped, the others are picked."""


@dataclass(frozen=True)
class Micrograph:
    """An image float32[H, W], row 0 the first row stored; pixel_size [Å/px]."""

    path: Path
    image: np.ndarray
    pixel_size: float


BOX_DIAMETERS = 1.5      # side of a network's box in diameters of the particle
WINDOW_DIAMETERS = 2.0   # side of the squares of the local normalisation


@dataclass(frozen=True)
class Preparation:
    """How micrographs become images for a network: pixel_size [Å/px] and window [px] of the local normalisation."""

    pixel_size: float
    window: int

    @classmethod
    def of(cls, network, diameter):
        """The preparation for a network and a particle's diameter [Å]: the box is BOX_DIAMETERS of it wide."""
        pixel_size = BOX_DIAMETERS * diameter / network.box
        return cls(pixel_size, round(WINDOW_DIAMETERS * diameter / pixel_size))

    def shape_of(self, shape, pixel_size):
        """(h, w) of the prepared image; a micrograph is never enlarged, nor cropped for less than ALREADY_THERE."""
        if pixel_size > ALREADY_THERE * self.pixel_size:
            return tuple(shape)
        return tuple(max(1, min(n, round(n * pixel_size / self.pixel_size))) for n in shape)

    def apply(self, micrograph):
        """Prepared image float32[h, w] of a Micrograph."""
        clipped = clip_outliers(micrograph.image)
        shape = self.shape_of(clipped.shape, micrograph.pixel_size)
        small = clipped if shape == clipped.shape else fourier_crop(clipped, shape)
        return even_out(small, self.window)


def read_micrograph(path, pixel_size=None):
    """Micrograph from an MRC file of mode 0, 1, 2, 6 or 12, in either byte order; values become float32 at once.

    pixel_size [Å/px] is used instead of the header's where it is given. Raises BadMicrographError for a file that
    cannot be read or is cut short, several images, values that are not finite, one value only, or no pixel size.
    """
    try:
        header = read_header(path)
    except JobError as error:
        raise BadMicrographError(str(error)) from error
    if header.n_images != 1:
        raise _bad(path, f"found {header.n_images} images", "one micrograph a file", "align and sum the movie first")
    if min(header.height, header.width) < LEAST_SIDE:
        raise _bad(path, f"found {header.height} × {header.width} px", f"at least {LEAST_SIDE} px", "check the file")
    size = pixel_size or header.pixel_size
    if not size > 0:
        raise _bad(path, "the header has no pixel size", "Å per pixel", "give the key pixel_size")
    image = _pixels(path, header)
    if not np.isfinite(image).all():
        raise _bad(path, "found values that are not finite", "finite values", "repair or leave out the micrograph")
    if image.min() == image.max():
        raise _bad(path, f"every pixel is {image.flat[0]:g}", "an image", "leave out the micrograph")
    return Micrograph(Path(path), image, float(size))


def _pixels(path, header):
    try:
        values = np.fromfile(path, dtype=header.dtype, count=header.height * header.width, offset=header.data_offset)
    except OSError as error:
        raise _bad(path, f"could not be read ({error.strerror or error})", "an MRC file", "check the path") from error
    return values.reshape(header.height, header.width).astype(np.float32)


def _bad(path, found, expected, remedy):
    return BadMicrographError(f"{path}: {found}; expected {expected}; {remedy}")
