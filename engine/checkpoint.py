"""The state of a run between two iterations, in one HDF5 file that is complete or not there.

The bytes of the file are reserved before HDF5 writes it: when a disk fills up under HDF5, its library prints pages of
errors and crashes at the end of the program. It also crashes on damaged files, so the first 512 bytes, which HDF5
leaves to its users, hold a digest of the rest that is looked at before. What is held of all particles is written and
read in pieces. A checkpoint takes the place of the one before only when it has been read back from the disk, and that
one is kept: should the newest be damaged later, a run goes on from the earlier to the same end.
"""
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import options_of
from vitrea.engine.stacks import StackReader
from vitrea.engine.storage import PIECE, Memory, pieces

FORMAT = 2
USER_BLOCK = 512   # bytes, the smallest that HDF5 has
ROOM_FOR_NAMES = 400   # bytes that an array or attribute takes in the file besides its values, about
NAME, EARLIER, DAMAGED = "checkpoint.h5", "checkpoint-earlier.h5", "checkpoint-damaged.h5"
IMAGES_MARKED = 64   # of all stacks together: enough to notice another stack, few enough to cost nothing
ELSEWHERE = ("input", "output", "follow")   # keys that may change when a run folder or a project is moved

PARTICLE = np.dtype([("row", "i8"), ("class_number", "i4"), ("psi", "f8"), ("shift", "f8", (2,)), ("pmax", "f8"),
                     ("n_significant", "f8"), ("log_likelihood", "f8"), ("scale", "f4")])


# bytes; ns since 1970; of the marked images, 0 if there is none
STACK = np.dtype([("size", "i8"), ("modified", "i8"), ("digest", "u8")])


def stack_marks(table):
    """STACK[n]: size, time of the last change, and a digest of IMAGES_MARKED evenly spaced images, by stack.

    JobError if a stack cannot be read.
    """
    marks = np.zeros(len(table.headers), dtype=STACK)
    for mark, header in zip(marks, table.headers):
        status = header.path.stat()
        mark["size"], mark["modified"] = status.st_size, status.st_mtime_ns
    digests = {}
    with StackReader(table) as reader:
        for row in np.unique(np.linspace(0, len(table) - 1, IMAGES_MARKED).astype(np.int64)):
            digest = digests.setdefault(table.stack_index[row], hashlib.sha256())
            digest.update(reader.read(np.array([row])).tobytes())
    for stack, digest in digests.items():
        marks[stack]["digest"] = int.from_bytes(digest.digest()[:8], "little")
    return marks


def require_same_stacks(path, table, before, now):
    """Paths of stacks that were written to, although what is compared is the same; JobError where it is not.

    before, now: STACK[n] of the run in the checkpoint at `path`, and of the stacks as they are.
    """
    for header, was, found in zip(table.headers, before, now):
        if was["size"] != found["size"]:
            _refuse_stack(path, header.path, f"holds {found['size']:,} bytes, but {was['size']:,} when the run started")
        if was["digest"] != found["digest"]:
            _refuse_stack(path, header.path, "holds other images than when the run started, under the same names")
    return [header.path for header, was, found in zip(table.headers, before, now)
            if was["modified"] != found["modified"]]


def _refuse_stack(path, stack, found):
    raise JobError(f"{stack}: this stack {found} ({path}); expected the particles of the run; restore it, or start a "
                   "new run with another output")


def fingerprint(table, options, space=None):
    """What must not change between a run and its continuation, as a JSON text: the keys that matter, a digest of the
    particles. space: where the arrays of the table are (engine/storage.py)."""
    digest, space = hashlib.sha256(), space or Memory()
    for array in (table.stack_index, table.section, table.optics_index, table.defocus_u, table.defocus_v,
                  table.defocus_angle, table.phase_shift, table.bfactor, table.origin):
        for part in pieces(len(table)):
            digest.update(np.ascontiguousarray(array[part]))
            space.release()
    digest.update(repr(table.optics).encode())
    keys = {name: value for name, value in options.as_dict().items()
            if not options_of(type(options))[name].resumable and name not in ELSEWHERE}
    return json.dumps(keys | {"the particles": f"{len(table)} with digest {digest.hexdigest()[:8]}"})


def write_checkpoint(path, arrays, attributes, space=None):
    """Write named arrays and attributes (numbers, texts) to `path`, beside and renamed; what was there becomes EARLIER.
    JobError if it cannot be written, or does not come back from the disk as it was written. space: where the long
    arrays are (engine/storage.py)."""
    with written_beside(path) as beside:
        _write(beside, arrays, attributes, space or Memory())
        _prove(beside, path)
        _keep_earlier(Path(path))


def mend(folder):
    """Put earlier checkpoints in the place of newest ones that are damaged or gone, in a run folder and below it:
    paths of those that were. A damaged one is kept as DAMAGED. JobError if that is refused."""
    mended = []
    for earlier in sorted(Path(folder).rglob(EARLIER)):
        newest = earlier.with_name(NAME)
        if (newest.exists() and not _found_wrong(newest)) or _found_wrong(earlier):
            continue
        try:
            if newest.exists():
                os.replace(newest, newest.with_name(DAMAGED))
            os.replace(earlier, newest)
        except OSError as error:
            raise JobError(f"{newest}: this checkpoint is damaged, and the earlier one cannot be put in its place "
                           f"({error.strerror}); expected a writable run folder; rename {EARLIER} to {NAME}") from error
        mended.append(newest)
    return mended


def _write(beside, arrays, attributes, space):
    with open(beside, "w+b") as handle:
        size = ROOM_FOR_NAMES * (len(arrays) + len(attributes)) + len(repr(attributes)) + sum(
            np.asarray(array).nbytes for array in arrays.values())
        os.posix_fallocate(handle.fileno(), 0, USER_BLOCK + size)
        with h5py.File(_Reserved(handle), "w", userblock_size=USER_BLOCK) as file:
            file.attrs["format"] = FORMAT
            for name, value in attributes.items():
                file.attrs[name] = value
            for name, array in arrays.items():
                _write_array(file, name, array, space)
        handle.flush()
        seal = _seal(handle)
        handle.seek(0)
        handle.write(seal)


def _prove(beside, path):
    """JobError unless the file comes back from the disk as it was written."""
    with open(beside, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)   # not from the kernel's cache
    if found := _found_wrong(beside):
        raise JobError(f"{path}: what was written did not come back from the disk ({found}); expected a disk that "
                       "keeps what it is given; the checkpoint before is still good; try again on another disk")


def _keep_earlier(path):
    """Give the checkpoint at `path`, if there is one, the name EARLIER too; it keeps its own until it is replaced."""
    if not path.exists():
        return
    earlier = path.with_name(EARLIER)
    beside = earlier.with_name(f".{EARLIER}.tmp-{os.getpid()}")
    with suppress(FileNotFoundError):
        beside.unlink()
    try:
        os.link(path, beside)
        os.replace(beside, earlier)
    except OSError:   # a file system without hard links: for a moment there is only the earlier one
        os.replace(path, earlier)


def _write_array(file, name, array, space):
    if not np.ndim(array) or len(array) <= PIECE:
        file.create_dataset(name, data=array)
        return
    dataset = file.create_dataset(name, shape=array.shape, dtype=array.dtype)
    for part in pieces(len(array)):
        dataset[part] = array[part]
        space.release()


class _Reserved:
    """A file whose bytes are there already, as HDF5 wants to see it: empty, and growing as it is written."""

    def __init__(self, handle):
        self._handle, self._end = handle, 0

    def seek(self, offset, whence=os.SEEK_SET):
        return self._handle.seek(self._end if whence == os.SEEK_END else offset)

    def tell(self):
        return self._handle.tell()

    def read(self, size=-1):
        return self._handle.read(size)

    def readinto(self, buffer):
        return self._handle.readinto(buffer)

    def write(self, content):
        count = self._handle.write(content)
        self._end = max(self._end, self._handle.tell())
        return count

    def truncate(self, size):
        self._end = size
        return self._handle.truncate(size)

    def flush(self):
        self._handle.flush()


def read_checkpoint(path, expected, space=None):
    """(arrays, attributes) of a checkpoint, long arrays in `space` (engine/storage.py; memory by default); JobError
    unless its attributes agree with `expected`."""
    space = space or Memory()
    with open(_whole(path), "rb") as handle, h5py.File(handle, "r") as file:
        attributes = dict(file.attrs)
        require(path, attributes, {"format": FORMAT, **expected})
        arrays = {name: _read_array(dataset, space) for name, dataset in file.items()}
    return arrays, attributes


def read_attributes(path):
    """The attributes of a checkpoint; JobError if it is none."""
    with open(_whole(path), "rb") as handle, h5py.File(handle, "r") as file:
        return dict(file.attrs)


def require(path, attributes, expected):
    """JobError unless the attributes of the checkpoint at `path` have the values `expected`."""
    for name, value in expected.items():
        if (found := attributes.get(name)) != value:
            _refuse(path, name, found, value)


def _read_array(dataset, space):
    if not dataset.shape or len(dataset) <= PIECE:
        return dataset[()]
    array = space.zeros(dataset.shape, dataset.dtype)
    for part in pieces(len(array)):
        array[part] = dataset[part]
        space.release()
    return array


def _seal(handle):
    """The user block: a line of text with the digest of what comes after it."""
    digest = hashlib.sha256()
    handle.seek(USER_BLOCK)
    while content := handle.read(2**20):
        digest.update(content)
    return f"vitrea checkpoint sha256 {digest.hexdigest()}\n".encode().ljust(USER_BLOCK, b"\0")


def _whole(path):
    """The path; JobError if the file cannot be read or is not as it was written."""
    if found := _found_wrong(path):
        raise JobError(f"{path}: cannot be read as a checkpoint ({found}); expected the file that vitrea wrote; "
                       "bring back a copy, or start the run again with another output")
    return path


def _found_wrong(path):
    """Why a file is no checkpoint as it was written; None if it is one."""
    try:
        with open(path, "rb") as handle:
            return None if handle.read(USER_BLOCK) == _seal(handle) else \
                "it is damaged, or was written by another program"
    except OSError as error:
        return error.strerror or str(error)


def _refuse(path, name, found, value):
    if name == "fingerprint" and found is not None:
        found, value = json.loads(found), json.loads(value)
        name = next(key for key in value if found.get(key) != value[key])
        found, value = found.get(name), value[name]
    raise JobError(
        f"{path}: {name} was {found} in the run, but is {value} now; expected the job and particles of the run; "
        "restore them, or start a new run with another output"
    )
