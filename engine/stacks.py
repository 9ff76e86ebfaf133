"""Particle stacks in MRC format: headers, images by row, and stacks written whole.

Images are read with plain positioned reads rather than a memory map: a file that shrinks or a file system that fails
then ends in a sentence instead of a bus error, and the memory of a rank stays what was promised before the start.
"""
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}   # MRC2014; 12 is half precision (RELION 4, IMOD)
LARGEST_BOX = 65535        # px; a smaller positive number, byte-swapped, is always larger: so it tells the byte order
OPEN_FILES = 64            # stacks held open at a time, far below the usual limit of 1024
IMOD_STAMP, IMOD_SIGNED = 1146047817, 1   # imodStamp, and the bit of imodFlags for signed bytes (IMOD's mrc_format)
IMOD_FIELDS = slice(40, 48)               # bytes of the two within `extra2`


@dataclass(frozen=True)
class StackHeader:
    """What the header of one stack says; `data_offset` [bytes] and `dtype` (with byte order) locate the images."""

    path: Path
    n_images: int
    height: int
    width: int
    pixel_size: float   # [Å/px], 0 where the header does not say
    mode: int
    dtype: np.dtype
    data_offset: int

    @property
    def box_size(self):
        """Width [px]; equal to the height for every stack that read_particles lets pass."""
        return self.width

    @property
    def image_bytes(self):
        return self.height * self.width * self.dtype.itemsize


def read_header(path):
    """Read the header of an MRC stack or single image: modes 0, 1, 2, 6, 12, either byte order, extended headers.

    Raises JobError for a file that is missing, not MRC, of another mode, or shorter than its header says.
    """
    path = Path(path)
    raw, n_bytes = _header_bytes(path)
    header = _in_its_byte_order(raw, path)
    mode = int(header["mode"])
    if mode not in MODES:
        raise JobError(f"{path}: found MRC mode {mode}; expected one of {', '.join(map(str, MODES))}; "
                       "convert the stack to mode 2 (32-bit float)")
    stack = StackHeader(
        path=path, n_images=int(header["nz"]), height=int(header["ny"]), width=int(header["nx"]),
        pixel_size=_pixel_size(header), mode=mode, dtype=_pixel_type(header),
        data_offset=HEADER_DTYPE.itemsize + int(header["nsymbt"]))
    expected = stack.data_offset + stack.n_images * stack.image_bytes
    if n_bytes < expected:
        raise JobError(f"{path}: found {n_bytes:,} bytes; expected {expected:,} for {stack.n_images} images of "
                       f"{stack.width} × {stack.height} px; the stack is cut short, copy or extract it again")
    return stack


class StackReader:
    """Reads the images of a ParticleTable by row; owns the files it holds open (at most OPEN_FILES) until close()."""

    def __init__(self, table):
        self._table = table
        self._open = OrderedDict()   # stack number -> file, the one used last at the end
        self._marks = {}             # stack number -> what tells it from another, when it was opened first

    def read(self, rows):
        """Images of `rows` (int[n], any order, repeats allowed) as float32[n, L, L], in the order of `rows`.

        Neighbouring sections of one stack are read in one piece. Raises JobError naming STAR file, row and stack when
        a file cannot be read; ValueError when the rows have boxes of different sizes. Values are not checked here.
        """
        rows = np.asarray(rows, dtype=np.int64)
        box_size = _common_box_size(self._table, rows)
        images = np.empty((len(rows), box_size, box_size), dtype=np.float32)
        for stack, first, places in _runs(self._table.stack_index[rows], self._table.section[rows]):
            images[places] = self._sections(stack, first, len(places), rows[places[0]])
        return images

    def changed(self):
        """A sentence about a stack that was written to, replaced or removed since it was opened here; None if none was.

        Half of its particles may be of before, half of after: what is read then belongs to no stack at all.
        """
        for stack, mark in self._marks.items():
            path = self._table.stacks[stack]
            if mark_of(path) != mark:
                return (f"{path}: this stack has changed while it was read; expected particles that stay as they are; "
                        "wait for what writes it to end, then run or resume again")
        return None

    def close(self):
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _sections(self, stack, first, count, row):
        header = self._table.headers[stack]
        n_values = count * header.height * header.width
        try:
            file = self._file(stack)
            file.seek(header.data_offset + first * header.image_bytes)
            values = np.fromfile(file, dtype=header.dtype, count=n_values)
        except OSError as error:
            raise self._failure(row, f"{header.path} could not be read ({error.strerror or error})") from error
        if len(values) < n_values:
            raise self._failure(row, f"{header.path} ends within image {first + 1 + len(values) * count // n_values}")
        return values.reshape(count, header.height, header.width)

    def _failure(self, row, found):
        return JobError(f"{self._table.path} row {self._table.row_number[row]}: {found}; expected the stack as it was "
                        "when the run started; restore it, then run or resume again")

    def _file(self, stack):
        if stack not in self._open:
            if len(self._open) == OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[stack] = open(self._table.stacks[stack], "rb", buffering=0)
            self._marks.setdefault(stack, mark_of(self._table.stacks[stack]))
        self._open.move_to_end(stack)
        return self._open[stack]


def mark_of(path):
    """What tells a file from another of its name: (inode, bytes, time of the last change [ns]); None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_images(table, rows):
    """Images of a few rows as float32[n, L, L]: StackReader.read with the files opened and closed."""
    with StackReader(table) as reader:
        return reader.read(rows)


def write_stack(path, images, pixel_size):
    """Write images[n, L, L] as an MRC stack of mode 2 (float32) with `pixel_size` [Å/px], whole or not at all.

    The same images make the same bytes: the header carries no date.
    """
    images = np.ascontiguousarray(images, dtype="<f4")
    if images.ndim != 3 or not images.size:
        raise ValueError(f"a stack is float32[n, L, L] with n > 0, not an array of shape {images.shape}")
    with written_beside(path) as beside, open(beside, "wb") as handle:
        handle.write(_stack_header(images, pixel_size).tobytes())
        handle.write(images.data)


# ---- headers

def _stack_header(images, pixel_size):
    """MRC2014 header, little-endian: space group 0 and mz 1 say a stack of images rather than a volume."""
    header = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
    n_images, height, width = images.shape
    values = {
        "nx": width, "ny": height, "nz": n_images, "mode": 2, "mx": width, "my": height, "mz": 1, "ispg": 0,
        "cella": (width * pixel_size, height * pixel_size, pixel_size), "cellb": (90, 90, 90),
        "mapc": 1, "mapr": 2, "maps": 3, "map": b"MAP ", "machst": (0x44, 0x44, 0, 0), "nversion": 20141, "nlabl": 1,
        "dmin": images.min(), "dmax": images.max(), "dmean": images.mean(dtype=np.float64),
        "rms": images.std(dtype=np.float64)}
    for name, value in values.items():
        header[name] = value
    header["label"][0] = b"Vitrea"
    return header

def _header_bytes(path):
    try:
        with open(path, "rb") as handle:
            raw = handle.read(HEADER_DTYPE.itemsize)
            return raw, os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected an MRC stack; "
                       "check the path and its permissions") from error


def _in_its_byte_order(raw, path):
    """The header record; the byte order is told by the box, since many programs leave the machine stamp empty."""
    for order in "<>" if len(raw) == HEADER_DTYPE.itemsize else "":
        header = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order))[0]
        sizes_fit = 0 < header["nx"] <= LARGEST_BOX and 0 < header["ny"] <= LARGEST_BOX and header["nz"] > 0
        if sizes_fit and 0 <= header["mode"] <= 101 and header["nsymbt"] >= 0:
            return header
    raise JobError(f"{path}: found no MRC header in its first {HEADER_DTYPE.itemsize} bytes; expected an MRC stack "
                   "(.mrc or .mrcs, not compressed); convert or unpack the file")


def _pixel_size(header):
    """Cell width over sampling [Å/px]; 0 where either is missing or makes no sense."""
    cell, sampling = float(header["cella"]["x"]), int(header["mx"])
    return cell / sampling if sampling > 0 and np.isfinite(cell) and cell > 0 else 0.0


def _pixel_type(header):
    """The dtype of the pixels. IMOD marks its files, and bytes in them are unsigned unless a flag says signed."""
    code = MODES[int(header["mode"])]
    integer = header.dtype["nx"]
    imod_stamp, imod_flags = np.frombuffer(header["extra2"].tobytes()[IMOD_FIELDS], dtype=integer)
    if code == "i1" and imod_stamp == IMOD_STAMP and not imod_flags & IMOD_SIGNED:
        code = "u1"
    return np.dtype(code).newbyteorder(integer.byteorder)


# ---- rows to pieces of files

def _common_box_size(table, rows):
    groups = np.unique(table.optics_index[rows]) if len(rows) else [0]
    boxes = {table.optics[group].box_size for group in groups}
    if len(boxes) != 1:
        raise ValueError(f"rows to be read together must share one box size, not {sorted(boxes)}")
    return boxes.pop()


def _runs(stack, section):
    """Yield (stack, first section, places in the output) for each run of consecutive sections of one stack."""
    order = np.lexsort((section, stack))
    same_stack = np.diff(stack[order]) == 0
    next_section = np.diff(section[order]) == 1
    for places in np.split(order, np.flatnonzero(~(same_stack & next_section)) + 1):
        if len(places):
            yield int(stack[places[0]]), int(section[places[0]]), places
