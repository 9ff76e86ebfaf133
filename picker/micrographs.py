"""Micrographs: read from MRC files, judged, and prepared for the network.

A prepared micrograph has the network's pixel size, an even background and an even contrast; it is made in the same
way for training and for picking, which is what makes the dense scan equal the boxes a network was trained on.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.engine.star import read_star
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
        if source.is_dir():
            paths = sorted(source.glob("*.mrc"))
        elif any(mark in str(source) for mark in "*?["):
            paths = sorted(Path(source.anchor).glob(str(source.relative_to(source.anchor))))
        else:
            paths = [source] if source.exists() else []
        found = MicrographList(tuple(map(str, paths)), tuple(paths), (None,) * len(paths), {}, {})
    if not len(found):
        raise JobError(f"{source}: found no micrographs; expected a STAR file with _rlnMicrographName, a folder of "
                       ".mrc files, a pattern, or one .mrc file; check the path")
    twice = next((name for i, name in enumerate(found.names) if name in found.names[:i]), None)
    if twice:
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
