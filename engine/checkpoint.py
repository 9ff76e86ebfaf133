"""The state of a run between two iterations, in one HDF5 file that is complete or not there."""
import hashlib

import h5py
import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside

FORMAT = 1
NAME = "checkpoint.h5"

PARTICLE = np.dtype([("row", "i8"), ("class_number", "i4"), ("psi", "f8"), ("shift", "f8", (2,)), ("pmax", "f8"),
                     ("n_significant", "f8"), ("log_likelihood", "f8"), ("scale", "f4")])


def fingerprint(table, options):
    """A digest of what must not change between a run and its continuation: the particles and the keys that matter."""
    digest = hashlib.sha256()
    for array in (table.stack_index, table.section, table.optics_index, table.defocus_u, table.defocus_v,
                  table.defocus_angle, table.phase_shift, table.origin):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_checkpoint(path, arrays, attributes):
    """Write named arrays and attributes (numbers, texts) to `path`, beside and renamed. JobError if it cannot be written."""
    with written_beside(path) as beside, h5py.File(beside, "w") as file:
        file.attrs["format"] = FORMAT
        for name, value in attributes.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def read_checkpoint(path, expected):
    """(arrays, attributes) of a checkpoint; JobError unless its attributes agree with `expected`."""
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            arrays = {name: dataset[()] for name, dataset in file.items()}
    except OSError as error:
        raise JobError(f"{path}: cannot be read as a checkpoint ({error}); expected the HDF5 file that vitrea wrote; "
                       "start the run again with another output") from error
    for name, value in {"format": FORMAT, **expected}.items():
        found = attributes.get(name)
        if found != value:
            raise JobError(f"{path}: {name} is {found}, but this job has {value}; expected the job and particles of the "
                           "run; restore them, or start a new run with another output")
    return arrays, attributes
