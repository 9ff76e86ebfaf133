"""Particles of any number of stacks in one file, to be read again by any job: `vitrea convert particles.star all.h5`.

The file is HDF5, so that other programs can read it: `images_0`, `images_1`, … float16 or float32 [n, L, L], one for
each box and pixel size, `star`, the STAR file as bytes, and `description`, JSON. Every dataset is one contiguous piece.
Vitrea itself looks up places and digests in the description, which the first 4096 bytes (HDF5 leaves them to its users)
locate and seal, and reads images as it reads those of a stack: in large pieces, by as many ranks as like, without the
HDF5 library, which crashes on damaged files.

description: format, version (of the layout), written_by, dtype, particles, normalisation ("as in the source"), rounding
(largest deviation that float16 made, in deviations of its image), star {offset, bytes, sha256}, rows (the same) of
int32[N, 2], for every row of the STAR file its dataset and its place in it, datasets [{name, offset, images, box_size,
pixel_size [Å]}], sources [{name, named (in the STAR file), bytes, modified (ns since 1970), sha256, images}].
"""
import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.stacks import LARGEST_BOX, StackHeader, StackReader

SUFFIXES = (".h5", ".hdf5")
MAGIC, FORMAT, VERSION = b"vitrea particles ", "vitrea particles", 1
USER_BLOCK = 4096
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
LARGEST_ROUNDING = 0.01     # in standard deviations of an image: coarser values are no longer those of the particle
AT_ONCE = 2**25             # bytes of float32 that are converted in one piece
LARGEST_DESCRIPTION = 2**28
LINES_AT_ONCE = 2**20       # bytes of the STAR file that are read in one piece


@dataclass(frozen=True)
class Converted:
    """What a converted file says of itself; headers: one StackHeader for each of its datasets."""

    path: Path
    description: dict
    headers: tuple[StackHeader, ...]

    def star_lines(self):
        """Yield the lines of the STAR file; JobError at its end if they are not as they were written."""
        place, digest, rest = self.description["star"], hashlib.sha256(), b""
        with open(self.path, "rb") as handle:
            handle.seek(place["offset"])
            for first in range(0, place["bytes"], LINES_AT_ONCE):
                content = handle.read(min(LINES_AT_ONCE, place["bytes"] - first))
                digest.update(content)
                *lines, rest = (rest + content).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        yield rest.decode(errors="replace")
        if digest.hexdigest() != place["sha256"]:
            _refuse(self.path, "its STAR file is damaged")

    def places(self, n):
        """(int32[n] dataset, int32[n] image in it) of the rows of the STAR file."""
        if n != self.description["particles"]:
            _refuse(self.path, f"its STAR file has {n} rows, and its description {self.description['particles']}")
        rows = _bytes_at(self.path, self.description["rows"]["offset"], 8 * n)
        if hashlib.sha256(rows).hexdigest() != self.description["rows"]["sha256"]:
            _refuse(self.path, "its list of images is damaged")
        dataset, image = np.frombuffer(rows, "<i4").reshape(n, 2).T
        if n and (dataset.min() < 0 or dataset.max() >= len(self.headers) or image.min() < 0):
            _refuse(self.path, "its list of images names datasets that it does not have")
        return dataset, image


def is_converted(path):
    """Whether a file is named like one of converted particles."""
    return Path(path).suffix in SUFFIXES


def read_converted(path):
    """Converted of a file. JobError if it is none, is damaged or cut short, or if a stack that it was made of is there
    and has changed since."""
    path = Path(path)
    description = _description(path)
    try:
        _require_whole(path, description)
        headers = tuple(_header(path, each, DTYPES[description["dtype"]]) for each in description["datasets"])
        _require_same_sources(path, description["sources"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        _refuse(path, f"its description lacks {str(error)[:100]}")
    return Converted(path, description, headers)


def write_converted(path, table, dtype="float32"):
    """Write the particles of a ParticleTable to `path` as `dtype`, whole or not at all; the description.

    JobError if a stack cannot be read or changes meanwhile, if there is no room, or if float16 cannot hold the images:
    values too large, or rounded by more than LARGEST_ROUNDING deviations.
    """
    star = Path(table.path).read_bytes()
    order, groups = _order(table)
    sizes = [(len(rows), box) for (box, _), rows in groups]
    with written_beside(path) as beside, StackReader(table) as reader:
        offsets = _laid_out(beside, sizes, DTYPES[dtype], len(star), len(table))
        with open(beside, "r+b") as handle:
            rounding = _write_images(handle, table, reader, groups, offsets, DTYPES[dtype])
            _write_at(handle, offsets["star"], star)
            rows = np.ascontiguousarray(order.astype("<i4")).tobytes()
            _write_at(handle, offsets["rows"], rows)
            if (changed := reader.changed()) is not None:
                raise JobError(changed)
        datasets = [{"name": f"images_{i}", "offset": offsets[f"images_{i}"], "images": n, "box_size": box,
                     "pixel_size": groups[i][0][1]} for i, (n, box) in enumerate(sizes)]
        description = {
            "format": FORMAT, "version": VERSION, "written_by": f"vitrea {importlib.metadata.version('vitrea')}",
            "dtype": dtype, "particles": len(table), "normalisation": "as in the source", "rounding": rounding,
            "star": _sealed(offsets["star"], star), "rows": _sealed(offsets["rows"], rows), "datasets": datasets,
            "sources": _sources(table)}
        _describe(beside, description)
    return description


# ---- reading

def _description(path):
    try:
        with open(path, "rb") as handle:
            head = handle.read(USER_BLOCK)
            words = head[len(MAGIC):].split(b"\n")[0].split()
            if not head.startswith(MAGIC) or len(words) != 4:
                _refuse(path, "it does not begin like one")
            version, offset, size = (int(word) for word in words[:3])
            if version != VERSION:
                _refuse(path, f"its layout is of version {version}, and this program reads {VERSION}")
            if not 0 < size <= LARGEST_DESCRIPTION or offset < 0:
                _refuse(path, "its first line is damaged")
            handle.seek(offset)
            content = handle.read(size)
        if hashlib.sha256(content).hexdigest().encode() != words[3]:
            _refuse(path, "its description is damaged or cut short")
        return json.loads(content)
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected a file of converted "
                       "particles; check the path and its permissions") from error
    except (ValueError, OverflowError, RecursionError) as error:
        _refuse(path, f"its first line is damaged ({str(error)[:60]})")


def _refuse(path, found):
    raise JobError(f"{path}: cannot be read as converted particles: {found}; expected a file that 'vitrea convert' "
                   "wrote; convert the particles again")


def _require_whole(path, description):
    """JobError unless all places lie within the file; KeyError, TypeError or ValueError for what is no description."""
    itemsize = DTYPES[description["dtype"]].itemsize
    numbers = [description["particles"], *(description[name]["offset"] for name in ("star", "rows")),
               description["star"]["bytes"]]
    for each in description["datasets"]:
        numbers += [each["offset"], each["images"] - 1, each["box_size"] - 1, LARGEST_BOX - each["box_size"]]
        if not 0 < float(each["pixel_size"]) < float("inf"):
            raise ValueError("a pixel size above 0")
    texts = [description[name]["sha256"] for name in ("star", "rows")]
    texts += [source[name] for source in description["sources"] for name in ("name", "named")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names and digests")
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("whole numbers for places and sizes")
    ends = [description["star"]["offset"] + description["star"]["bytes"]]
    ends += [each["offset"] + each["images"] * each["box_size"] ** 2 * itemsize for each in description["datasets"]]
    if os.stat(path).st_size < max(ends):
        _refuse(path, f"it holds {os.stat(path).st_size:,} bytes, and its images end at {max(ends):,}")


def _header(path, dataset, dtype):
    return StackHeader(path=path.absolute(), n_images=int(dataset["images"]), height=int(dataset["box_size"]),
                       width=int(dataset["box_size"]), pixel_size=float(dataset["pixel_size"]), mode=2, dtype=dtype,
                       data_offset=int(dataset["offset"]))


def _require_same_sources(path, sources):
    """JobError if a stack is there and is not the one that was converted; one that is gone is what this file is for."""
    for source in sources:
        try:
            status = os.stat(source["name"])
        except OSError:
            continue
        if status.st_size != source["bytes"] or status.st_mtime_ns != source["modified"]:
            raise JobError(f"{path}: {source['name']} has changed since it was converted; expected the same particles; "
                           "convert them again, or restore the stack")


def _bytes_at(path, offset, size):
    with open(path, "rb") as handle:
        handle.seek(offset)
        content = handle.read(size)
    if len(content) < size:
        _refuse(path, "it is cut short")
    return content


# ---- writing

def _order(table):
    """(int64[N, 2]: dataset and place of every row; [((box size, pixel size [Å]), rows int64[n] in the order in which
    they are written)]: sorted by stack and section, so that a stack is read from its beginning to its end)."""
    kinds = [(group.box_size, float(group.pixel_size)) for group in table.optics]
    distinct = sorted(set(kinds))
    kind_of = np.array([distinct.index(kind) for kind in kinds])[table.optics_index]
    places, groups = np.empty((len(table), 2), dtype=np.int64), []
    for kind in distinct:
        number, rows = len(groups), np.flatnonzero(kind_of == distinct.index(kind))
        if not len(rows):
            continue
        rows = rows[np.lexsort((table.section[rows], table.stack_index[rows]))]
        places[rows, 0], places[rows, 1] = number, np.arange(len(rows))
        groups.append((kind, rows))
    return places, groups


def _laid_out(beside, sizes, dtype, star_bytes, n):
    """Make the HDF5 file with its datasets, each one contiguous piece whose bytes are reserved: {name: offset}."""
    shapes = {"star": (np.dtype("u1"), (star_bytes,)), "rows": (np.dtype("<i4"), (n, 2))}
    shapes |= {f"images_{i}": (dtype, (count, box, box)) for i, (count, box) in enumerate(sizes)}
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(beside, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        offsets = {}
        for name, (kind, shape) in shapes.items():
            space, stored = h5py.h5s.create_simple(shape), h5py.h5t.py_create(kind)
            offsets[name] = h5py.h5d.create(file.id, name.encode(), stored, space, layout).get_offset()
    with open(beside, "r+b") as handle:   # a full disk is a sentence, and not pages of HDF5
        os.posix_fallocate(handle.fileno(), 0, os.stat(beside).st_size)
    return offsets


def _write_images(handle, table, reader, groups, offsets, dtype):
    """Write the images in their order: the largest deviation by rounding, in deviations of its image."""
    rounding = 0.0
    for number, ((box, _), rows) in enumerate(groups):
        step = max(1, AT_ONCE // (4 * box * box))
        for first in range(0, len(rows), step):
            some = rows[first:first + step]
            images = reader.read(some)
            stored, off = _stored(images, dtype, table, some)
            rounding = max(rounding, off)
            _write_at(handle, offsets[f"images_{number}"] + first * box * box * dtype.itemsize, stored.tobytes())
    return rounding


def _stored(images, dtype, table, rows):
    """(images as `dtype`, the largest deviation of a pixel, root mean square over its image, in deviations of it)."""
    if dtype.itemsize == 4:
        return images.astype(dtype, copy=False), 0.0
    with np.errstate(over="ignore"):
        stored = images.astype(dtype)
    flat = images.reshape(len(images), -1)
    deviation = flat.std(axis=1)
    with np.errstate(invalid="ignore"):
        wrong = np.sqrt(np.mean((stored.reshape(flat.shape).astype(np.float32) - flat) ** 2, axis=1))
        relative = np.where(deviation > 0, wrong / np.maximum(deviation, 1e-30), 0.0)
    # a bad image stays as bad as it was: jobs set it aside
    bad = np.flatnonzero(np.isfinite(flat).all(axis=1) & ~(relative <= LARGEST_ROUNDING))
    if len(bad):
        raise JobError(f"{table.path} row {table.row_number[rows[bad[0]]]}: float16 changes the image by "
                       f"{relative[bad[0]]:.3g} of its standard deviation; expected at most {LARGEST_ROUNDING:g}, as "
                       "of particles whose background has mean 0 and deviation 1; use --dtype float32")
    return stored, float(np.nanmax(np.where(np.isfinite(relative), relative, 0.0), initial=0.0))


def _write_at(handle, offset, content):
    handle.seek(offset)
    handle.write(content)


def _sealed(offset, content):
    return {"offset": offset, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sources(table):
    """Every stack with what tells it from another; its bytes are read once more, for their digest."""
    counts = np.bincount(table.stack_index, minlength=len(table.headers))
    found = []
    for name, header, count in zip(table.stack_names, table.headers, counts.tolist()):
        status, digest = header.path.stat(), hashlib.sha256()
        with open(header.path, "rb") as handle:
            while piece := handle.read(2**24):
                digest.update(piece)
        found.append({"name": str(header.path), "named": name, "bytes": status.st_size, "modified": status.st_mtime_ns,
                      "sha256": digest.hexdigest(), "images": count})
    return found


def _describe(beside, description):
    """Append the description as a dataset, and say in the user block where it is."""
    content = json.dumps(description, indent=1).encode()
    with h5py.File(beside, "r+") as file:
        dataset = file.create_dataset("description", data=np.frombuffer(content, "u1"))
        file.flush()
        offset = dataset.id.get_offset()
    line = MAGIC + f"{VERSION} {offset} {len(content)} {hashlib.sha256(content).hexdigest()}\n".encode()
    with open(beside, "r+b") as handle:
        handle.write(line.ljust(USER_BLOCK, b"\0"))
