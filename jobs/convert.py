"""`vitrea convert`: particles and coordinates from one program's files to another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrea.engine.converted import is_converted, write_converted
from vitrea.engine.cryosparc import tables_of, write_class_cs, write_cs
from vitrea.engine.errors import JobError
from vitrea.engine.finished import DATA_NAME, read_finished
from vitrea.engine.log import format_bytes
from vitrea.engine.particles import read_particles
from vitrea.engine.star import read_star, write_star
from vitrea.engine.starversions import as_3_0, read_tables
from vitrea.picker.coordinates import EMAN_SUFFIXES, SUFFIXES, read_coordinates, write_coordinates

STAR_FORMATS = ("3.1", "3.0")   # RELION 4 and 5 read 3.1
NEEDS_BOX = (".box", ".cbox")
WRITTEN = (".star", ".csv", ".json", *NEEDS_BOX)


def convert(sources, target, *, star="3.1", box=None, invert_y=False, dtype="float32"):
    """Convert files to the format of the target's suffix; lines that tell what was written.

    sources: a particle STAR file, a .cs file and its passthrough files, a run folder, or a coordinate file. dtype: of
    the images in an .h5 file, float32 or float16.
    """
    sources, target = [Path(source) for source in sources], Path(target)
    if target.exists():
        raise JobError(f"{target}: this file is there already; expected a new one; choose another name or remove it")
    if not target.absolute().parent.is_dir():
        raise JobError(f"{target}: there is no folder {target.parent}; expected one that is there; make it, or correct "
                       "the path")
    if is_converted(sources[0]) and sources[0].exists():
        raise JobError(f"{sources[0]}: converted particles are an input of every job as they are; expected files to "
                       "convert; give the STAR file that it was made of")
    if target.suffix in WRITTEN and _are_coordinates(sources[0]):
        return [_coordinates(sources, target, box, invert_y)]
    if is_converted(target):
        return [_to_one_file(sources, target, dtype)]
    if target.suffix == ".cs":
        return _to_cs(sources, target, invert_y)
    if target.suffix != ".star":
        raise JobError(f"{target}: particles cannot be written as '{target.suffix}'; expected .star, .cs or .h5; "
                       "choose another name")
    tables = _tables(sources, invert_y)
    if star == "3.0":
        write_star(target, {"": as_3_0(tables)}, version=None)
    else:
        write_star(target, {"optics": tables.optics, "particles": tables.particles})
    return [f"{target}   {len(tables):,} particles   RELION {star}"]


def _to_one_file(sources, target, dtype):
    """The images of a STAR file in one HDF5 file."""
    if len(sources) > 1 or sources[0].suffix != ".star":
        raise JobError(f"{sources[-1]}: expected one particle STAR file to be converted to {target.suffix}; convert "
                       "to .star first")
    table = read_particles(sources[0])
    described = write_converted(target, table, dtype)
    size = format_bytes(target.stat().st_size)
    rounded = f"   rounded by at most {described['rounding']:.1e} deviations" if dtype == "float16" else ""
    return f"{target}   {len(table):,} particles   {dtype}   {size}{rounded}"


def _to_cs(sources, target, invert_y):
    tables = _tables(sources, invert_y)
    write_cs(target, tables)
    told = [f"{target}   {len(tables):,} particles   cryoSPARC"]
    if sources[0].is_dir():
        classes = target.with_name(f"{target.stem}_class_averages.cs")
        write_class_cs(classes, read_finished(sources[0]))
        told.append(f"{classes}   class averages")
    return told


def _tables(sources, invert_y):
    if sources[0].is_dir():
        read_finished(sources[0])   # tells what is missing from a run folder
        sources = [sources[0] / DATA_NAME, *sources[1:]]
    if sources[0].suffix == ".cs":
        return tables_of(sources, invert_y=invert_y)
    if len(sources) > 1:
        raise JobError(f"{sources[1]}: a second input was given; expected one, or a .cs file with its passthrough "
                       "files; convert them one by one")
    return read_tables(sources[0])


def _are_coordinates(path):
    """Whether a file holds the coordinates of one micrograph rather than particle images."""
    if path.suffix != ".star" or not path.exists():
        return path.suffix in SUFFIXES[1:] + EMAN_SUFFIXES
    blocks = read_star(path)
    return not any("rlnImageName" in columns for columns in blocks.values())


def _coordinates(sources, target, box, invert_y):
    if len(sources) > 1:
        raise JobError(f"{sources[1]}: a second input was given; expected the coordinates of one micrograph; convert "
                       "them one by one")
    if invert_y:
        raise JobError("--invert-y: expected with .cs files only; coordinates of one micrograph do not tell its "
                       "height; leave it out")
    if target.suffix in NEEDS_BOX and box is None:
        raise JobError(f"--box is missing; expected the side of a box [px], for {target.suffix} holds corners; add it")
    found = read_coordinates(sources[0])
    write_coordinates(target, found.x, found.y, np.nan_to_num(found.score, nan=1.0), box=box)
    return f"{target}   {len(found):,} coordinates"
