"""Coefficient tables in 16 bits a real number, with one unit per image and ring.

Half the memory of complex64 and half the traffic. A coefficient is rounded to 1/32767 of the largest on its ring: an
error of some 4e-5 of the ring's own deviation, where the image itself is mostly noise.
"""
from dataclasses import dataclass

import numba
import numpy as np

LARGEST = 32767


@dataclass(frozen=True)
class PackedTable:
    """Coefficients of N images on a polar grid: quanta int16[N, size, 2] (Re, Im) times unit float32[N, R] by ring."""

    grid: object
    quanta: np.ndarray
    unit: np.ndarray

    @classmethod
    def zeros(cls, n, grid):
        return cls(grid, np.zeros((n, grid.size, 2), np.int16), np.zeros((n, grid.n_rings), np.float32))

    @classmethod
    def of(cls, coefficients, grid):
        """Pack complex64[N, size]."""
        table = cls.zeros(len(coefficients), grid)
        table.put(np.arange(len(coefficients)), coefficients)
        return table

    def put(self, rows, coefficients):
        """Overwrite `rows` int64[n] by complex64[n, size]."""
        pack(coefficients, rows, self.grid.offset, self.grid.first_ring, self.unit, self.quanta)

    def take(self, rows, grid=None, ring_weight=None, scale=None):
        """The coefficients of `rows` on `grid` of no more rings (default: all), weighted: complex64[n, size]."""
        grid = grid or self.grid
        out = np.empty((len(rows), grid.size), dtype=np.complex64)
        ring_weight = np.ones(grid.n_rings) if ring_weight is None else ring_weight
        scale = np.ones(len(rows), np.float32) if scale is None else scale
        self.gather(gather_by_row, rows, grid, ring_weight, scale, out)
        return out

    def gather(self, kernel, rows, grid, ring_weight, scale, out):
        """Run one of the gather kernels below on this table; ring_weight float[R'], scale float32[n]."""
        weight = np.ascontiguousarray(ring_weight[:grid.n_rings], dtype=np.float32)
        kernel(self.quanta, self.unit, rows, self.grid.offset, grid.first_ring, weight, scale, grid.offset, out)


@numba.njit(nogil=True, cache=True)
def pack(coefficients, rows, offset, first_ring, unit, quanta):
    """Round complex64[n, size] to 16 bits into `rows` of unit float32[N, R] and quanta int16[N, size, 2]."""
    n_rings = unit.shape[1]
    for i in range(rows.size):
        largest = np.zeros(n_rings, dtype=np.float32)
        for m in range(first_ring.size):
            for r in range(first_ring[m], n_rings):
                value = coefficients[i, offset[m] + r - first_ring[m]]
                largest[r] = max(largest[r], abs(value.real), abs(value.imag))
        unit[rows[i]] = largest / np.float32(LARGEST)
        for m in range(first_ring.size):
            for r in range(first_ring[m], n_rings):
                c = offset[m] + r - first_ring[m]
                inverse = np.float32(LARGEST) / largest[r] if largest[r] > 0 else np.float32(0.0)
                quanta[rows[i], c, 0] = np.int16(np.rint(coefficients[i, c].real * inverse))
                quanta[rows[i], c, 1] = np.int16(np.rint(coefficients[i, c].imag * inverse))


@numba.njit(nogil=True, cache=True)
def gather_by_row(quanta, unit, rows, offset, first_ring, ring_weight, scale, out_offset, out):
    """Collect `rows` of a packed table, weighted by ring and image: complex64[n, size'], one image after the other.

    quanta int16[N, size, 2], unit float32[N, R] on a wide grid (offset); rows int64[n]; first_ring, out_offset and
    ring_weight float32[R'] of a grid of no more rings; scale float32[n].
    """
    for m in range(out_offset.size - 1):
        width, first = out_offset[m + 1] - out_offset[m], first_ring[m]
        for i in range(rows.size):
            row = rows[i]
            for r in range(width):
                weight = ring_weight[first + r] * (scale[i] * unit[row, first + r])
                source = quanta[row, offset[m] + r]
                out[i, out_offset[m] + r] = complex(weight * source[0], weight * source[1])


@numba.njit(nogil=True, cache=True)
def gather_real(quanta, unit, rows, offset, first_ring, ring_weight, scale, out_offset, out):
    """As `gather_by_row`, as left sides of real products: a matrix (2n × 2R_m) per harmonic in float32[≥ 4·n·size'].

    Row i is Re y then Im y of every ring, row n + i is Im y then −Re y: times Re a over Im a they give Re and Im of
    Σ_r y conj a.
    """
    n = rows.size
    for m in range(out_offset.size - 1):
        width, first = out_offset[m + 1] - out_offset[m], first_ring[m]
        target = out[4 * n * out_offset[m]:4 * n * out_offset[m + 1]].reshape(2 * n, 2 * width)
        for i in range(n):
            row = rows[i]
            for r in range(width):
                weight = ring_weight[first + r] * (scale[i] * unit[row, first + r])
                source = quanta[row, offset[m] + r]
                real, imaginary = weight * source[0], weight * source[1]
                target[i, r], target[i, width + r] = real, imaginary
                target[n + i, r], target[n + i, width + r] = imaginary, -real


def reference_gather_real(quanta, unit, rows, offset, first_ring, ring_weight, scale, out_offset, out):
    """NumPy twin of `gather_real`."""
    n = rows.size
    for m in range(out_offset.size - 1):
        width, first = out_offset[m + 1] - out_offset[m], first_ring[m]
        part = quanta[rows, offset[m]:offset[m] + width].astype(np.float32)
        part *= (unit[rows, first:first + width] * ring_weight[first:first + width] * scale[:, None])[:, :, None]
        real, imaginary = part[:, :, 0], part[:, :, 1]
        out[4 * n * out_offset[m]:4 * n * out_offset[m + 1]] = np.block([[real, imaginary], [imaginary, -real]]).ravel()
