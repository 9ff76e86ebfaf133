"""The state of a run between two iterations, in one HDF5 file that is complete or not there.

The file is made in memory and written with one plain write: when a disk fills up under HDF5 itself, its library prints
pages of errors and crashes at the end of the program. It also crashes on damaged files, so the first 512 bytes, which
HDF5 leaves to its users, hold a digest of the rest that is looked at before.
"""
import hashlib
import io
import json

import h5py
import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import options_of
from vitrea.engine.stacks import StackReader

FORMAT = 2
USER_BLOCK = 512   # bytes, the smallest that HDF5 has
NAME = "checkpoint.h5"
IMAGES_MARKED = 64   # of all stacks together: enough to notice another stack, few enough to cost nothing
ELSEWHERE = ("input", "output")   # keys that may change when a run folder or a project is moved

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


def fingerprint(table, options):
    """What must not change between a run and its continuation, as a JSON text: the keys that matter, a digest of the
    particles."""
    digest = hashlib.sha256()
    for array in (table.stack_index, table.section, table.optics_index, table.defocus_u, table.defocus_v,
                  table.defocus_angle, table.phase_shift, table.bfactor, table.origin):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr(table.optics).encode())
    keys = {name: value for name, value in options.as_dict().items()
            if not options_of(type(options))[name].resumable and name not in ELSEWHERE}
    return json.dumps(keys | {"the particles": f"{len(table)} with digest {digest.hexdigest()[:8]}"})


def write_checkpoint(path, arrays, attributes):
    """Write named arrays and attributes (numbers, texts) to `path`, beside and renamed. JobError if it cannot be
    written."""
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["format"] = FORMAT
        for name, value in attributes.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    content.getbuffer()[:USER_BLOCK] = _seal(content.getbuffer())
    with written_beside(path) as beside:
        beside.write_bytes(content.getbuffer())


def read_checkpoint(path, expected):
    """(arrays, attributes) of a checkpoint; JobError unless its attributes agree with `expected`."""
    with h5py.File(_whole(path)) as file:
        attributes = dict(file.attrs)
        arrays = {name: dataset[()] for name, dataset in file.items()}
    for name, value in {"format": FORMAT, **expected}.items():
        found = attributes.get(name)
        if found != value:
            _refuse(path, name, found, value)
    return arrays, attributes


def _seal(content):
    """The user block: a line of text with the digest of what comes after it."""
    digest = hashlib.sha256(content[USER_BLOCK:]).hexdigest()
    return f"vitrea checkpoint sha256 {digest}\n".encode().ljust(USER_BLOCK, b"\0")


def _whole(path):
    """The file's content; JobError if it cannot be read or is not as it was written."""
    try:
        content = memoryview(path.read_bytes())
        found = None if content[:USER_BLOCK] == _seal(content) else "it is damaged, or was written by another program"
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        raise JobError(f"{path}: cannot be read as a checkpoint ({found}); expected the file that vitrea wrote; "
                       "bring back a copy, or start the run again with another output")
    return io.BytesIO(content)


def _refuse(path, name, found, value):
    if name == "fingerprint" and found is not None:
        found, value = json.loads(found), json.loads(value)
        name = next(key for key in value if found.get(key) != value[key])
        found, value = found.get(name), value[name]
    raise JobError(
        f"{path}: {name} was {found} in the run, but is {value} now; expected the job and particles of the run; "
        "restore them, or start a new run with another output"
    )
