"""Where a rank keeps what it knows of its particles: in memory, or in scratch files, so that its memory does not grow
with their number.

The files have no names: they are unlinked as soon as they are open, so nothing is left of them however the run ends.
Their bytes are reserved before they are used, so a full disk is a sentence and not a crash. Images, which are most of
it, are read by plain positioned reads: a disk that fails raises an exception instead of a bus error. What else is known
of a particle, some 200 bytes, are arrays in mapped files: all code treats them as any array, and `release` gives their
pages back whenever a piece of work is done.
"""
import mmap
import os
import tempfile
import weakref
from copy import copy
from dataclasses import dataclass

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.kernels.packed import PackedTable

PIECE = 65_536   # particles: arrays of all of them are gone through in pieces of so many


def pieces(n, size=PIECE):
    """slices of at most `size` that cover n."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


class Memory:
    """Arrays in memory: where the particles are few, or memory is plenty."""

    def zeros(self, shape, dtype=np.float64):
        """An array of zeros."""
        return np.zeros(shape, dtype)

    def particles(self, n, geometry):
        """Where the harmonics of n particles are kept."""
        return InMemory(n, geometry)

    def keep(self, array):
        """What gives `array` back when it is indexed by ()."""
        return array

    def release(self):
        """Nothing can be given back."""


class Scratch:
    """Arrays in unnamed files in `folder`; JobError if it cannot be written or has too little space."""

    def __init__(self, folder):
        self._folder, self._maps, self._kept = folder, weakref.WeakSet(), None

    def zeros(self, shape, dtype=np.float64):
        """An array of zeros, mapped from a file of its own."""
        count = int(np.prod(shape))
        size = max(1, count * np.dtype(dtype).itemsize)
        file = scratch_file(self._folder, size)
        mapped = mmap.mmap(file, size)
        os.close(file)
        self._maps.add(mapped)
        return np.frombuffer(mapped, dtype, count).reshape(shape)

    def particles(self, n, geometry):
        """Where the harmonics of n particles are kept."""
        return InScratch(n, geometry, self._folder)

    def keep(self, array):
        """Append `array` to one file; what gives it back when it is indexed by ()."""
        self._kept = self._kept or _Appended(self._folder)
        return self._kept.add(array)

    def release(self):
        """Give back the memory that holds pages of the arrays; the kernel brings those back that are asked for."""
        for mapped in list(self._maps):
            mapped.madvise(mmap.MADV_DONTNEED)


def scratch_file(folder, size):
    """Descriptor of an unnamed file in `folder` whose `size` bytes are reserved. JobError if there is no room."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".vitrea-scratch-") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            return os.dup(file.fileno())
    except OSError as error:
        refuse(folder, size, error)


def refuse(folder, size, error):
    """JobError: the scratch folder does not take `size` bytes."""
    raise JobError(f"scratch: {folder} does not take the {size / 1e9:.3g} GB of particles that a rank "
                   f"keeps there ({error.strerror or error}); expected a writable folder with that much free "
                   "space for each rank; free some space, choose another scratch folder, or use more memory "
                   "(storage: memory)") from error


class _Appended:
    """A file that arrays are appended to."""

    def __init__(self, folder):
        self._folder, self.size, self.file = folder, 0, scratch_file(folder, 0)
        weakref.finalize(self, os.close, self.file)

    def add(self, array):
        content, place = memoryview(np.ascontiguousarray(array)).cast("B"), self.size
        try:
            os.posix_fallocate(self.file, place, len(content))
            while len(content):
                done = os.pwrite(self.file, content, self.size)
                self.size, content = self.size + done, content[done:]
        except OSError as error:
            refuse(self._folder, self.size + len(content), error)
        return _Stored(self, place, array.dtype, array.shape)


@dataclass(frozen=True)
class _Stored:
    """An array in a file of appended arrays."""

    place: _Appended
    offset: int
    dtype: np.dtype
    shape: tuple

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, everything):
        array = np.empty(self.shape, self.dtype)
        rest, offset = memoryview(array.view(np.uint8)), self.offset
        while len(rest):
            done = os.preadv(self.place.file, [rest], offset)
            if not done:
                raise OSError("a scratch file ends too early")
            rest, offset = rest[done:], offset + done
        return array[everything]


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
        self.file = scratch_file(folder, self.nbytes)
        weakref.finalize(self, os.close, self.file)

    def write(self, local, records):
        """Write an array of len(local) records to the places `local` int64[m]. JobError if the disk refuses."""
        try:
            self._transfer(os.pwritev, local, records)
        except OSError as error:
            refuse(self._folder, self.nbytes, error)

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
