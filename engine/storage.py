"""Where a rank keeps what it has computed of its particles: in memory, or as records in a scratch file.

The file has no name: it is unlinked as soon as it is open, so nothing is left of it however the run ends. Its bytes
are reserved before the first image is read, so a full disk is a sentence at the start. It is read by plain positioned
reads rather than a memory map: the memory of a rank stays what was promised, and a disk that fails raises an exception
instead of a bus error.
"""
import os
import tempfile
import weakref
from copy import copy
from dataclasses import dataclass

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.kernels.packed import PackedTable


@dataclass(frozen=True)
class Kept:
    """What is kept of n particles: `rows` int64[n] of table (harmonics of mask·X·C); ctf2 complex64[n, J, R]; power
    float32[n, R]: ring means of |X|²."""

    table: PackedTable
    rows: np.ndarray
    ctf2: np.ndarray
    power: np.ndarray


def record_type(geometry):
    """The bytes of one particle, a NumPy dtype."""
    grid = geometry.grid
    return np.dtype([("quanta", "i2", (grid.size, 2)), ("unit", "f4", (grid.n_rings,)),
                     ("ctf2", "c8", (geometry.ctf_terms, grid.n_rings)), ("power", "f4", (grid.n_rings,))])


class InMemory:
    """Everything in arrays."""

    def __init__(self, n, geometry):
        grid = geometry.grid
        self._table = PackedTable.zeros(n, grid)
        self._ctf2 = np.zeros((n, geometry.ctf_terms, grid.n_rings), np.complex64)
        self._power = np.zeros((n, grid.n_rings), np.float32)
        self.nbytes = sum(a.nbytes for a in (self._table.quanta, self._table.unit, self._ctf2, self._power))

    def put(self, local, kept):
        """Keep particles `local` int64[m], given as Kept of m."""
        self._table.quanta[local], self._table.unit[local] = kept.table.quanta[kept.rows], kept.table.unit[kept.rows]
        self._ctf2[local], self._power[local] = kept.ctf2, kept.power

    def take(self, local):
        """Kept of the particles `local` int64[m]."""
        return Kept(self._table, local, self._ctf2[local], self._power[local])


class ScratchFile:
    """n records of `record_bytes` each in an unnamed file in `folder`, open as descriptor `file`.

    JobError if the folder cannot be written or has too little space.
    """

    def __init__(self, n, record_bytes, folder):
        self._folder, self._record_bytes, self.nbytes = folder, record_bytes, n * record_bytes
        try:
            with tempfile.TemporaryFile(dir=folder, prefix=".vitrea-scratch-") as file:
                self.file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self.file)
            if n:
                os.posix_fallocate(self.file, 0, self.nbytes)
        except OSError as error:
            self._refuse(error)

    def write(self, local, records):
        """Write an array of len(local) records to the places `local` int64[m]. JobError if the disk refuses."""
        try:
            self._transfer(os.pwritev, local, records)
        except OSError as error:
            self._refuse(error)

    def read(self, local, records):
        """Fill an array of len(local) records from the places `local` int64[m]. OSError if the disk fails."""
        self._transfer(os.preadv, local, records)

    def _transfer(self, call, local, records):
        """Read or write records, neighbouring particles in one piece."""
        for place in np.split(np.arange(len(local)), np.flatnonzero(np.diff(local) != 1) + 1):
            if len(place):
                piece = records[place[0]:place[-1] + 1].view(np.uint8).reshape(-1)
                offset, done = int(local[place[0]]) * self._record_bytes, 0
                while done < len(piece):
                    count = call(self.file, [piece[done:]], offset + done)
                    if not count:
                        raise OSError(f"the scratch file in {self._folder} ends at {offset + done} of {self.nbytes}")
                    done += count

    def _refuse(self, error):
        raise JobError(f"scratch: {self._folder} does not take the {self.nbytes / 1e9:.3g} GB of particles that a rank "
                       f"keeps there ({error.strerror or error}); expected a writable folder with that much free "
                       "space for each rank; free some space, choose another scratch folder, or use more memory "
                       "(storage: memory)") from error


class InScratch:
    """One record a particle in a ScratchFile; only what is asked for is in memory. `file`: its descriptor."""

    def __init__(self, n, geometry, folder):
        self._grid, self._type = geometry.grid, record_type(geometry)
        self._records = ScratchFile(n, self._type.itemsize, folder)
        self.file, self.nbytes = self._records.file, self._records.nbytes

    def put(self, local, kept):
        """Keep particles `local` int64[m], given as Kept of m. JobError if the disk refuses."""
        records = np.empty(len(local), self._type)
        records["quanta"], records["unit"] = kept.table.quanta[kept.rows], kept.table.unit[kept.rows]
        records["ctf2"], records["power"] = kept.ctf2, kept.power
        self._records.write(local, records)

    def take(self, local):
        """Kept of the particles `local` int64[m], read from the file. OSError if the disk fails."""
        records = np.empty(len(local), self._type)
        self._records.read(local, records)
        quanta, unit, ctf2, power = (np.ascontiguousarray(records[name]) for name in self._type.names)
        return Kept(PackedTable(self._grid, quanta, unit), np.arange(len(local)), ctf2, power)


class ScratchRows:
    """float32[n, D] in a ScratchFile, read and written by slices and int[m] of rows; what is read is a copy."""

    dtype = np.dtype(np.float32)

    def __init__(self, n, size, folder):
        self.shape, self._records = (n, size), ScratchFile(n, size * self.dtype.itemsize, folder)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        local = self._numbers(rows)
        values = np.empty((len(local), self.shape[1]), self.dtype)
        self._records.read(local, values)
        return values

    def __setitem__(self, rows, values):
        self._records.write(self._numbers(rows), np.ascontiguousarray(values, dtype=self.dtype))

    def first(self, n):
        """The first n rows, in the same file."""
        fewer = copy(self)
        fewer.shape = (n, self.shape[1])
        return fewer

    def _numbers(self, rows):
        return np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
