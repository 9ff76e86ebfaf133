"""Images on a polar Fourier grid, and their angular harmonics on a ragged table.

Ring r = 1, 2, … lies at r/L cycles per pixel (L the box), so that rings are Nyquist-sampled for whatever fits into
the box. On a ring X(r, θ) = Σ_m x(r, m) e^{imθ}; images are real, so x(r, −m) = (−1)^m conj x(r, m) and m ≥ 0 is
enough. An object of radius ρ px has harmonics only up to m ≈ 2πrρ/L on ring r: the table of (m, r) is a triangle,
stored by m and then by r, so that every operation that mixes rings at one m is a matrix product on contiguous memory.
"""
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from vitrea.kernels.fourier import PointsToPixels, RingTransform, fast_length
from vitrea.kernels.gridding import PixelsToPoints


@dataclass(frozen=True)
class PolarGrid:
    """Rings 1…n_rings of a box of `box_size` px for objects within `support` px of the centre."""

    box_size: int
    n_rings: int
    support: float

    @cached_property
    def last_harmonic(self):
        """int64[n_rings]: the largest m kept on each ring; a point at the rim has < 1e-4 of its power beyond it."""
        reach = 2.0 * np.pi * np.arange(1, self.n_rings + 1) * self.support / self.box_size
        return np.ceil(reach + 1.8 * np.cbrt(reach) + 1.0).astype(np.int64)

    @cached_property
    def n_harmonics(self):
        """Number of m ≥ 0."""
        return int(self.last_harmonic[-1]) + 1

    @cached_property
    def first_ring(self):
        """int64[n_harmonics]: index (ring − 1) of the first ring that has harmonic m."""
        return np.searchsorted(self.last_harmonic, np.arange(self.n_harmonics)).astype(np.int64)

    @cached_property
    def offset(self):
        """int64[n_harmonics + 1]: where each m starts in the table."""
        return np.concatenate([[0], np.cumsum(self.n_rings - self.first_ring)]).astype(np.int64)

    @property
    def size(self):
        """Number of coefficients of an image."""
        return int(self.offset[-1])

    @cached_property
    def n_angles(self):
        """Samples on a full ring: a fast even length above twice the largest harmonic."""
        return fast_length(2 * self.n_harmonics + 2)

    @cached_property
    def ring_of(self):
        """int64[size]: ring index of every coefficient."""
        return np.concatenate([np.arange(first, self.n_rings) for first in self.first_ring])

    @cached_property
    def harmonic_of(self):
        """int64[size]: m of every coefficient."""
        return np.repeat(np.arange(self.n_harmonics), np.diff(self.offset))

    @cached_property
    def multiplicity(self):
        """float32[size]: 1 for m = 0 and 2 for m > 0, which stands for −m as well."""
        return np.where(self.harmonic_of == 0, 1.0, 2.0).astype(np.float32)

    @cached_property
    def pixels_on_ring(self):
        """float64[n_rings]: Fourier pixels a ring stands for, 2πr."""
        return 2.0 * np.pi * np.arange(1, self.n_rings + 1)

    def angles(self):
        """float64[n_angles]: θ_j [radians from x towards y]."""
        return 2.0 * np.pi * np.arange(self.n_angles) / self.n_angles

    def with_rings(self, n_rings):
        """The same grid with fewer rings."""
        return PolarGrid(self.box_size, min(n_rings, self.n_rings), self.support)

    def crop(self, coefficients, target):
        """complex64[..., size] of this grid → complex64[..., target.size] of `target`, which has fewer rings."""
        index = self.offset[target.harmonic_of] + target.ring_of - self.first_ring[target.harmonic_of]
        return np.ascontiguousarray(coefficients[..., index])

    def embed(self, coefficients, source):
        """The reverse of `crop`: coefficients of `source` with zeros on the outer rings."""
        index = self.offset[source.harmonic_of] + source.ring_of - self.first_ring[source.harmonic_of]
        wide = np.zeros((*coefficients.shape[:-1], self.size), dtype=coefficients.dtype)
        wide[..., index] = coefficients
        return wide

    def ring_power(self, coefficients):
        """Mean over the ring of |X|²: complex[..., size] → float64[..., n_rings]."""
        power = self.multiplicity * np.abs(coefficients.astype(np.complex128)) ** 2
        rings = np.zeros((*coefficients.shape[:-1], self.n_rings))
        for m in range(self.n_harmonics):
            rings[..., self.first_ring[m]:] += power[..., self.offset[m]:self.offset[m + 1]]
        return rings


@numba.njit(nogil=True, cache=True)
def table_to_rings(table, first_ring, offset, out):
    """complex64[B, size] → full ring harmonics complex64[B, R, n] in FFT order, negative m from the symmetry."""
    n_rings, n = out.shape[1], out.shape[2]
    out[:] = 0
    for b in range(table.shape[0]):
        for m in range(first_ring.size):
            sign = np.float32(1 - 2 * (m % 2))
            for r in range(first_ring[m], n_rings):
                value = table[b, offset[m] + r - first_ring[m]]
                out[b, r, m] = value
                if m > 0:
                    out[b, r, n - m] = sign * np.conj(value)


@numba.njit(nogil=True, cache=True)
def rings_to_table(rings, first_ring, offset, out):
    """Full ring harmonics complex64[B, R, n] → complex64[B, size]."""
    for b in range(out.shape[0]):
        for m in range(first_ring.size):
            for r in range(first_ring[m], rings.shape[1]):
                out[b, offset[m] + r - first_ring[m]] = rings[b, r, m]


class PolarTransform:
    """Pixels ↔ half rings for one box: plans for batches of `batch` images on `grid`, stretched by `magnification`.

    magnification: ring r of the grid lies at magnification·r/box_size cycles per pixel of this box (1 for the grid's
    own box; (L_g a_g)/(L a) for an image of L_g px of a_g Å when the grid is that of L px of a Å).
    """

    def __init__(self, grid, batch, box_size=None, magnification=1.0):
        self.grid, self.batch = grid, batch
        self.box_size = box_size or grid.box_size
        radius = 2.0 * np.pi * magnification * np.arange(1, grid.n_rings + 1)[:, None] / self.box_size
        theta = grid.angles()[None, :grid.n_angles // 2]
        self._forward = PixelsToPoints(self.box_size, batch, (radius * np.sin(theta)).ravel(),
                                       (radius * np.cos(theta)).ravel())

    def forward(self, images):
        """float32[b ≤ batch, L, L] → complex64[b, R, n_angles/2], normalised by 1/L as an orthonormal transform."""
        self._forward.execute(images)
        half = np.multiply(self._forward.points[:, :len(images)].T, np.float32(1.0 / self.box_size), order="C")
        return half.reshape(len(images), self.grid.n_rings, -1)


class PolarSynthesis:
    """Harmonics → pixels: the inverse of the polar transform by quadrature over rings (2πr per ring; no DC)."""

    def __init__(self, grid, batch=16):
        self.grid, self.batch = grid, batch
        radius = 2.0 * np.pi * np.arange(1, grid.n_rings + 1)[:, None] / grid.box_size
        theta = grid.angles()[None, :grid.n_angles // 2]
        self._inverse = PointsToPixels(grid.box_size, batch, (radius * np.sin(theta)).ravel(),
                                       (radius * np.cos(theta)).ravel())
        self._rings = RingTransform(batch, grid.n_rings, grid.n_angles)
        # half rings, the other half is the complex conjugate: hence the real part and the factor 2
        self._quadrature = (2.0 * grid.pixels_on_ring / grid.n_angles / grid.box_size).astype(np.float32)[:, None]

    def images(self, coefficients):
        """complex64[K, size] → float32[K, L, L]."""
        out = np.empty((len(coefficients), self.grid.box_size, self.grid.box_size), dtype=np.float32)
        for start in range(0, len(coefficients), self.batch):
            out[start:start + self.batch] = self._batch(coefficients[start:start + self.batch])
        return out

    def _batch(self, coefficients):
        grid, count = self.grid, len(coefficients)
        table_to_rings(coefficients.astype(np.complex64), grid.first_ring, grid.offset, self._rings.array[:count])
        self._rings.to_angles()
        half = self._rings.array[:count, :, :grid.n_angles // 2] * self._quadrature
        self._inverse.points[:count] = half.reshape(count, -1)
        self._inverse.points[count:] = 0
        self._inverse.execute()
        return self._inverse.pixels[:count].real


def complete_rings(half, out):
    """Half rings complex64[B, R, n/2] → full rings complex64[B, R, n], by X(r, θ + π) = conj X(r, θ) of real images."""
    count = half.shape[2]
    out[..., :count] = half
    np.conjugate(half, out=out[..., count:])


@numba.njit(nogil=True, cache=True)
def filter_rings(half, transfer, out, power):
    """`complete_rings` of half · transfer, and power float32[B, R], the mean of |half|² on each ring.

    half complex64[B, R, n/2]; transfer float32[B, R, n/2] (or [B, R, 1]) is that of a real filter.
    """
    count, last = half.shape[2], transfer.shape[2] - 1
    for b in range(half.shape[0]):
        for r in range(half.shape[1]):
            total = 0.0
            for j in range(count):
                value = half[b, r, j]
                total += value.real * value.real + value.imag * value.imag
                value = value * transfer[b, r, min(j, last)]
                out[b, r, j], out[b, r, count + j] = value, np.conj(value)
            power[b, r] = total / count


def reference_filter_rings(half, transfer, out, power):
    """NumPy twin of `filter_rings`."""
    power[:] = np.mean(np.abs(half) ** 2, axis=2)
    complete_rings(half * transfer, out)
