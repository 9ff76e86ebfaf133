"""Soft circular masks, on pixels and on angular harmonics."""
import numba
import numpy as np
from scipy.special import jv

QUADRATURE_POINTS_PER_PIXEL = 2.0


def soft_disc(distance, radius, edge):
    """1 within `radius`, 0 beyond `radius + edge`, a raised cosine between; all in px, any shape. Returns float64."""
    ramp = np.clip((np.asarray(distance, dtype=np.float64) - radius) / max(edge, 1e-6), 0.0, 1.0)
    return 0.5 + 0.5 * np.cos(np.pi * ramp)


def disc_image(box_size, radius, edge):
    """float32[L, L]: the soft disc about the box centre L//2."""
    axis = np.arange(box_size) - box_size // 2
    return soft_disc(np.hypot(axis[:, None], axis), radius, edge).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def moved_disc(centre_y, centre_x, radius, edge, out):
    """The soft disc of `radius` and `edge` about (centre_y, centre_x), in px from pixel L//2: out float64[L, L]."""
    half, outer2, inner2 = out.shape[0] // 2, (radius + edge) ** 2, radius**2
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            distance2 = (i - half - centre_y) ** 2 + (j - half - centre_x) ** 2
            if distance2 <= inner2:
                out[i, j] = 1.0
            elif distance2 >= outer2:
                out[i, j] = 0.0
            else:
                out[i, j] = 0.5 + 0.5 * np.cos(np.pi * (np.sqrt(distance2) - radius) / max(edge, 1e-6))


def reference_moved_disc(centre_y, centre_x, radius, edge, out):
    """NumPy twin of `moved_disc`."""
    axis = np.arange(len(out)) - len(out) // 2
    out[:] = soft_disc(np.hypot((axis - centre_y)[:, None], axis - centre_x), radius, edge)


def harmonic_disc(grid, radius, edge):
    """The soft disc as an operator on angular harmonics: a list over m of float32[R_m, R_m].

    A circular mask commutes with rotations, so it maps harmonic m to itself: Fourier rings → radius → mask → Fourier
    rings,
        H_m(r, r') = (2π/L)² r' ∫ mask(ρ) J_m(2πrρ/L) J_m(2πr'ρ/L) ρ dρ,
    which needs no image and no interpolation. `a(m, ·) ← H_m a(m, ·)` masks an image.
    """
    outer = radius + edge
    nodes, weights = np.polynomial.legendre.leggauss(int(QUADRATURE_POINTS_PER_PIXEL * outer) + 16)
    rho = 0.5 * outer * (nodes + 1.0)
    weights = 0.5 * outer * weights * rho * soft_disc(rho, radius, edge)
    rings = np.arange(1, grid.n_rings + 1)
    step = 2.0 * np.pi / grid.box_size
    phase = step * rings[:, None] * rho
    operators = []
    for m in range(grid.n_harmonics):
        first = grid.first_ring[m]
        bessel = jv(m, phase[first:])
        kernel = step**2 * (bessel * weights) @ bessel.T
        operators.append((kernel * rings[None, first:]).astype(np.float32))
    return operators


def apply_harmonic_disc(grid, operators, coefficients):
    """complex64[K, size] masked in place, harmonic by harmonic."""
    for m, operator in enumerate(operators):
        part = coefficients[:, grid.offset[m]:grid.offset[m + 1]]
        part[...] = part @ operator.T


@numba.njit(nogil=True, cache=True)
def moments(images, pixels, out):
    """Mean and standard deviation of `pixels` int64[P] of each image float32[n, L·L], not finite where one of them is
    not: out float64[n, 2]."""
    for i in range(images.shape[0]):
        image = images[i]
        origin, total, square = np.float64(image[pixels[0]]), 0.0, 0.0   # near the mean: else Σx² would lose digits
        for p in pixels:
            value = image[p] - origin
            total += value
            square += value * value
        mean = total / pixels.size
        out[i, 0], out[i, 1] = origin + mean, np.sqrt(max(square / pixels.size - mean * mean, 0.0))
        if not np.isfinite(square):
            out[i, 1] = np.nan


def reference_moments(images, pixels, out):
    """NumPy twin of `moments`."""
    chosen = images[:, pixels].astype(np.float64)
    with np.errstate(all="ignore"):
        out[:, 0], out[:, 1] = chosen.mean(axis=1), chosen.std(axis=1)
