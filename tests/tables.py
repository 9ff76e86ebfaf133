"""Coefficient tables as tests of kernels make them: images through the public pieces."""
import numpy as np

from vitrea.kernels.fourier import RingTransform
from vitrea.kernels.polar import PolarTransform, complete_rings, rings_to_table


def polar_half(grid, images):
    """Images → half of each polar transform."""
    return PolarTransform(grid, len(images)).forward(np.asarray(images, dtype=np.float32))


def tables_of_half(grid, half):
    """Half of each polar transform → tables complex64[N, grid.size]."""
    rings = RingTransform(len(half), grid.n_rings, grid.n_angles)
    complete_rings(half, rings.array)
    rings.to_harmonics()
    out = np.zeros((len(half), grid.size), dtype=np.complex64)
    rings_to_table(rings.array, grid.first_ring, grid.offset, out)
    return out


def tables(grid, images):
    """Images → tables complex64[N, grid.size]."""
    return tables_of_half(grid, polar_half(grid, images))
