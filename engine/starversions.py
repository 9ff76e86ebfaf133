"""Particle tables of RELION 3.0 and of 3.1 and later, one into the other.

3.0 has one table with the microscope on every row and shifts in pixels; 3.1, 4 and 5 share an optics table and shifts
in Å. Tables are {label: str array[n]}; what both versions call alike is carried along text for text. No image is read
but the header of one stack for each optics group, for the box size that 3.0 does not tell.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.engine.star import as_text, read_star

MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL = ("rlnDetectorPixelSize", "rlnMagnification")
MAGNIFICATION = 10_000.0   # with it rlnDetectorPixelSize [µm] has the number of the pixel size [Å]
OPTICS_ONLY = ("rlnOpticsGroupName", "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality", "rlnOpticsGroup")
SHIFTS = (("rlnOriginX", "rlnOriginXAngst"), ("rlnOriginY", "rlnOriginYAngst"))


@dataclass(frozen=True)
class Tables:
    """Particles as RELION 3.1 has them: optics and particles {label: str array}, and the file they were read from."""

    path: Path
    optics: dict
    particles: dict

    def __len__(self):
        return len(next(iter(self.particles.values())))

    def of_optics(self, label):
        """float64[n]: a number of the optics table for each particle, NaN where the table lacks it."""
        if label not in self.optics:
            return np.full(len(self), np.nan)
        values = numbers(self.path, self.optics, label)
        place = {group: i for i, group in enumerate(self.optics["rlnOpticsGroup"].tolist())}
        return values[[place[group] for group in self.particles["rlnOpticsGroup"].tolist()]]


def read_tables(path):
    """Tables of a particle STAR file of RELION 3.0 or later; JobError if it is none."""
    path = Path(path)
    blocks = read_star(path)
    if "particles" in blocks and "optics" in blocks:
        return _checked(Tables(path, blocks["optics"], blocks["particles"]))
    table = next((columns for columns in blocks.values() if "rlnImageName" in columns), None)
    if table is None:
        raise JobError(f"{path}: found no table with _rlnImageName; expected the particles of RELION; check the path")
    return _from_3_0(path, table)


def as_3_0(tables):
    """{label: values[n]} of one table as RELION 3.0 has it."""
    pixel = tables.of_optics("rlnImagePixelSize")
    bad = np.flatnonzero(~np.isfinite(pixel))
    if len(bad):
        raise JobError(f"{tables.path}: found no _rlnImagePixelSize in data_optics; expected one, for shifts are in "
                       "pixels in RELION 3.0; add the column")
    found = {label: column for label, column in tables.particles.items()
             if label not in OPTICS_ONLY and label not in dict(map(reversed, SHIFTS))}
    for old, new in SHIFTS:
        if new in tables.particles:
            found[old] = numbers(tables.path, tables.particles, new) / pixel
    for label in MICROSCOPE:
        if label in tables.optics:
            found[label] = tables.of_optics(label)
    return found | {"rlnDetectorPixelSize": pixel, "rlnMagnification": np.full(len(tables), MAGNIFICATION)}


def numbers(path, columns, label):
    """float64[n] of a column of words; JobError naming the row of what is none."""
    try:
        return columns[label].astype(np.float64)
    except ValueError:
        bad = next(i for i, word in enumerate(columns[label].tolist()) if not _is_number(word))
        raise JobError(f"{path} row {bad + 1}: _{label} is '{columns[label][bad]}'; expected a number; correct the row"
                       ) from None


def _is_number(word):
    try:
        float(word)
        return True
    except ValueError:
        return False


def _checked(tables):
    for label, columns, block in (("rlnOpticsGroup", tables.optics, "optics"),
                                  ("rlnOpticsGroup", tables.particles, "particles"),
                                  ("rlnImageName", tables.particles, "particles")):
        if label not in columns:
            raise JobError(f"{tables.path}: found no _{label} in data_{block}; expected one; check the file")
    unknown = set(tables.particles["rlnOpticsGroup"].tolist()) - set(tables.optics["rlnOpticsGroup"].tolist())
    if unknown:
        raise JobError(f"{tables.path}: found particles of optics group {min(unknown)}, which data_optics has not; "
                       "expected every group in it; add the group")
    return tables


def _from_3_0(path, table):
    """Tables of a table of 3.0: rows with the same microscope and pixel size are one optics group."""
    n = len(table["rlnImageName"])
    microscope = [label for label in (*MICROSCOPE, *PIXEL, "rlnImagePixelSize", "rlnPixelSize") if label in table]
    settings = np.array(list(zip(*(table[label].tolist() for label in microscope)))) if microscope else np.zeros((n, 0))
    _, first, group = np.unique(settings, axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    # Numbered as they come, as relion_convert_star does.
    order = np.argsort(first)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    first = first[order]
    optics = {"rlnOpticsGroupName": np.array([f"opticsGroup{i + 1}" for i in range(len(first))]),
              "rlnOpticsGroup": np.arange(1, len(first) + 1).astype(str)}
    optics |= {label: table[label][first] for label in MICROSCOPE if label in table}
    pixel, box = _pixel_and_box(path, table, first)
    optics |= {"rlnImagePixelSize": np.array(as_text(pixel)), "rlnImageDimensionality": np.full(len(first), "2")}
    if box is not None:
        optics["rlnImageSize"] = box.astype(str)
    particles = {label: column for label, column in table.items()
                 if label not in (*microscope, *(old for old, _ in SHIFTS))}
    each = pixel[number[group] - 1]
    for old, new in SHIFTS:
        if old in table:
            particles[new] = np.array(as_text(numbers(path, table, old) * each))
    return Tables(path, optics, particles | {"rlnOpticsGroup": number[group].astype(str)})


def _pixel_and_box(path, table, rows):
    """(pixel size [Å/px], box size [px] or None if a stack is not there) of the first particle of each group."""
    headers = [_header(path, table["rlnImageName"][row]) for row in rows]
    box = None if None in headers else np.array([header.box_size for header in headers])
    if all(label in table for label in PIXEL):
        detector, magnification = (numbers(path, table, label)[rows] for label in PIXEL)
        return detector * 1e4 / magnification, box
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in table:
            return numbers(path, table, label)[rows], box
    if box is None or not all(header.pixel_size for header in headers):
        raise JobError(f"{path}: found no pixel size (_rlnDetectorPixelSize and _rlnMagnification), and no stack that "
                       "tells it; expected one of them; add the columns")
    return np.array([header.pixel_size for header in headers]), box


def _header(path, name):
    """The header of the stack of `000001@stack.mrcs`, seen from here or from the folder of the file; None if it is not
    there."""
    stack = Path(name.rpartition("@")[2])
    place = next((each for each in (stack, path.parent / stack) if each.exists()), None)
    return read_header(place) if place else None
