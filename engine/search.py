"""The set of poses that is scored: shifts on a disc, all in-plane angles, and the shifted references as templates.

The shifts are applied to the references, once an iteration, instead of to the particles: {R_ψ T_s} covers the same
poses as {T_t R_ψ}, with t = R_ψ s, and a particle's coefficients are then computed once and never touched again. The
shift s is in the frame of the class.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.kernels.fourier import RingTransform, fast_length
from vitrea.kernels.polar import PolarGrid, rings_to_table, table_to_rings

GRID_TOLERANCE = 1e-6
FEW = 4   # shifts moved back at once: late in a run few shifts of a class carry weight


def disc_shifts(radius, step):
    """float64[T, 2]: points (y, x) [px] of a square grid within `radius`, the origin among them, in rows of y."""
    reach = int(np.floor(radius / step + GRID_TOLERANCE))
    axis = step * np.arange(-reach, reach + 1)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = np.hypot(y, x) <= radius + GRID_TOLERANCE
    return np.stack([y[inside], x[inside]], axis=1)


def shift_neighbours(shifts, step):
    """int64[T, 4]: the indices of the shifts one step along −y, +y, −x, +x, −1 where there is none."""
    index = {tuple(key): i for i, key in enumerate(np.rint(shifts / step).astype(int))}
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return np.array([[index.get((y + dy, x + dx), -1) for dy, dx in moves] for y, x in index], dtype=np.int64)


@dataclass(frozen=True)
class Level:
    """One fineness of the search.

    grid: rings in use; shifts float64[T, 2] (y, x) [px] on a grid of `step` px; n_angles: in-plane angles 2πj/n; ramp
    complex64[T, R, n/2]: e^{−iq·s} on half rings; neighbours int64[T, 4] as `shift_neighbours`.
    """

    grid: PolarGrid
    shifts: np.ndarray
    step: float
    n_angles: int
    ramp: np.ndarray
    neighbours: np.ndarray

    @property
    def n_shifts(self):
        return len(self.shifts)


def make_level(grid, offset_range, step, psi_step):
    """A level whose angles are at most `psi_step` degrees apart and never undersample the rings."""
    shifts = disc_shifts(offset_range, step)
    n_angles = level_angles(grid, psi_step)
    radius = 2.0 * np.pi * np.arange(1, grid.n_rings + 1)[:, None] / grid.box_size
    theta = grid.angles()[:grid.n_angles // 2]
    phase = (shifts[:, 0, None, None] * radius * np.sin(theta) + shifts[:, 1, None, None] * radius * np.cos(theta))
    return Level(grid, shifts, step, n_angles, np.exp(-1j * phase).astype(np.complex64),
                 shift_neighbours(shifts, step))


def level_angles(grid, psi_step):
    """How many in-plane angles: at most `psi_step` [degrees] apart, enough for the grid, and a multiple of 8."""
    needed = max(2 * grid.n_harmonics, int(np.ceil(360.0 / psi_step - GRID_TOLERANCE)))
    return 4 * fast_length(-(-needed // 4))


class Shifter:
    """Applies a level's shifts to coefficient tables: workspaces for one thread."""

    def __init__(self, level):
        self.level, grid = level, level.grid
        self._one = RingTransform(1, grid.n_rings, grid.n_angles)
        self._few = RingTransform(FEW, grid.n_rings, grid.n_angles)
        self._many = RingTransform(level.n_shifts, grid.n_rings, grid.n_angles)
        self._table = np.zeros((level.n_shifts, grid.size), dtype=np.complex64)

    def templates(self, reference):
        """complex64[size, T] of one reference complex64[size]: conjugated coefficients of all its shifts."""
        grid = self.level.grid
        half = self._angles(self._one, reference[None])
        self._fill(self._many.array, half * self.level.ramp)
        self._many.to_harmonics()
        rings_to_table(self._many.array, grid.first_ring, grid.offset, self._table)
        return np.conj(self._table).T

    def unshift(self, sums, which):
        """Σ_t T_−t sums_t: complex64[T', size] of the shifts `which` int64[T'] → complex64[size]."""
        grid = self.level.grid
        total = np.zeros((1, grid.n_rings, grid.n_angles // 2), dtype=np.complex64)
        for first in range(0, len(which), FEW):
            some = which[first:first + FEW]
            total[0] += (self._angles(self._few, sums[first:first + FEW]) * np.conj(self.level.ramp[some])).sum(axis=0)
        self._fill(self._one.array, total)
        self._one.to_harmonics()
        out = np.empty((1, grid.size), dtype=np.complex64)
        rings_to_table(self._one.array, grid.first_ring, grid.offset, out)
        return out[0]

    def _angles(self, rings, tables):
        grid = self.level.grid
        table_to_rings(tables, grid.first_ring, grid.offset, rings.array[:len(tables)])
        rings.to_angles()
        return rings.array[:len(tables), :, :grid.n_angles // 2]

    def _fill(self, array, half):
        count = half.shape[-1]
        array[:len(half), :, :count] = half
        np.conjugate(half, out=array[:len(half), :, count:])


def power_harmonics(grid, coefficients, n_terms):
    """Angular harmonics 0, 2, …, 2(J−1) of |A(r, θ)|²: complex64[K, size] → complex64[J, R, K].

    Zero for those that the samples of a ring do not resolve, 2j ≥ n/2; few rings need only the first.
    """
    rings = RingTransform(len(coefficients), grid.n_rings, grid.n_angles)
    table_to_rings(coefficients, grid.first_ring, grid.offset, rings.array)
    rings.to_angles()
    rings.array[:] = np.abs(rings.array) ** 2
    rings.to_harmonics()
    out = np.zeros((n_terms, grid.n_rings, len(coefficients)), dtype=np.complex64)
    resolved = min(n_terms, (grid.n_angles + 2) // 4)
    out[:resolved] = rings.array[:, :, 0:2 * resolved:2].transpose(2, 1, 0)
    return out
