"""Scores of all rotations and shifts as matrix products over rings, and the sums over weighted, turned images.

A rotation by ψ multiplies a(r, m) by e^{−imψ}. With images y = harmonics of C·X and templates a_t = harmonics of the
shifted reference,
    score(ψ, t) = Σ_m e^{imψ} z_t(m),   z_t(m) = Σ_r w_r y(r, m) conj a_t(r, m),
the bracket being, for each m, a product (images × rings)·(rings × shifts), made in real numbers so that what follows
(kernels/angles.py) is a real product as well (Rangan et al. 2020; design: docs/theory.md).
"""
import numba
import numpy as np

from vitrea.kernels.posterior import refine_peak


def real_templates(conjugated, offset):
    """Right sides of the products of some classes: conjugated complex64[c, size, T] → float32[2·size, c·T].

    For each harmonic 2R_m rows, Re a of every ring and then Im a; columns are (class, shift).
    """
    n_classes, size, n_shifts = conjugated.shape
    width = np.diff(offset)
    real_row = np.arange(size) + np.repeat(offset[:-1], width)
    out = np.empty((2 * size, n_classes, n_shifts), dtype=np.float32)
    out[real_row] = conjugated.real.transpose(1, 0, 2)
    out[real_row + np.repeat(width, width)] = -conjugated.imag.transpose(1, 0, 2)
    return out.reshape(2 * size, n_classes * n_shifts)


@numba.njit(nogil=True, cache=True)
def score_product(images, n, templates, offset, order, out):
    """z(m) of `n` images and all columns of some templates: float32[rows, 2n, columns], harmonic m in row `order[m]`.

    images float32[≥ 4·n·size] as `gather_real` (kernels/packed.py), templates as `real_templates`. Rows 0…n of a
    harmonic are Re z of the images, rows n…2n Im z; rows of harmonics that the grid does not have are left alone.
    """
    for m in range(offset.size - 1):
        width = offset[m + 1] - offset[m]
        left = images[4 * n * offset[m]:4 * n * offset[m + 1]].reshape(2 * n, 2 * width)
        np.dot(left, templates[2 * offset[m]:2 * offset[m + 1]], out[order[m]])


def reference_score_product(images, n, templates, offset, order, out):
    """NumPy twin of `score_product`, in complex numbers."""
    for m in range(offset.size - 1):
        width = offset[m + 1] - offset[m]
        left = images[4 * n * offset[m]:4 * n * offset[m + 1]].reshape(2 * n, 2 * width)
        a = templates[2 * offset[m]:2 * offset[m] + width] + 1j * templates[2 * offset[m] + width:2 * offset[m + 1]]
        z = (left[:n, :width] + 1j * left[:n, width:]) @ np.conj(a)
        out[order[m], :n], out[order[m], n:] = z.real, z.imag


@numba.njit(nogil=True, cache=True)
def accumulate_lines(harmonics, count, line_image, line_target, offset, images, out):
    """out[target] += Σ_ψ W(ψ) R_−ψ y: weighted sums of images turned back, one line of weights after the other.

    harmonics complex64[≥ count, n/2+1]: transform Σ_ψ W e^{−imψ} of the weights of each line; its conjugate turns the
    image back. (With the sign of m wrong, EM converges happily to blurred discs.) line_image, line_target int64[count];
    images complex64[n, size]; out complex64[targets, size].
    """
    for line in range(count):
        image, target = images[line_image[line]], out[line_target[line]]
        for m in range(offset.size - 1):
            weight = np.conj(harmonics[line, m])
            for c in range(offset[m], offset[m + 1]):
                target[c] += weight * image[c]


def reference_accumulate_lines(harmonics, count, line_image, line_target, offset, images, out):
    """NumPy twin of `accumulate_lines`."""
    for line in range(count):
        weight = np.repeat(np.conj(harmonics[line, :offset.size - 1]), np.diff(offset))
        out[line_target[line]] += weight * images[line_image[line]]


@numba.njit(nogil=True, cache=True)
def refine_pose(image, templates, column, offset, ctf_term, log_prior, neighbours, n_angles, shift, angle):
    """Where between the grid points a particle's score is largest, near (shift, angle): (Δangle, Δy, Δx) in grid steps.

    image complex64[size], weighted; templates as `real_templates`, the class beginning at `column`; ctf_term
    complex64[J]; log_prior float32[T]; neighbours int64[T, 4]. Only the scores around the maximum are computed, and in
    double precision, so that nothing but the kept lines need be stored (see `refine_peak`).
    """
    scores = np.zeros((neighbours.shape[0], 3))
    wanted = _around(neighbours, shift)
    turns = np.exp(2j * np.pi * (angle + np.arange(3) - 0.5) / n_angles)
    power, z = np.ones(3, dtype=np.complex128), np.zeros((2, wanted.size))
    for m in range(offset.size - 1):
        width, first = offset[m + 1] - offset[m], 2 * offset[m]
        z[:] = 0.0
        for r in range(width):
            y, real, imaginary = image[offset[m] + r], templates[first + r], templates[first + width + r]
            for i in range(wanted.size):
                a, b = real[column + wanted[i]], imaginary[column + wanted[i]]
                z[0, i] += y.real * a + y.imag * b
                z[1, i] += y.imag * a - y.real * b
        for i in range(wanted.size):
            for j in range(3):
                scores[wanted[i], j] += (power[j].real * z[0, i] - power[j].imag * z[1, i]) * (1.0 if m == 0 else 2.0)
        power *= turns
    for i in wanted:
        scores[i] += log_prior[i] + ctf_term[0].real
    for j in range(1, min(ctf_term.size, n_angles // 4)):
        common = 2.0 * (turns ** (2 * j) * ctf_term[j]).real
        for i in wanted:
            scores[i] += common
    return refine_peak(scores, shift, 1, neighbours)


@numba.njit(nogil=True, cache=True)
def _around(neighbours, shift):
    """int64[≤ 9]: a shift and those around it that exist, diagonal ones included."""
    wanted = np.zeros(neighbours.shape[0], dtype=np.bool_)
    wanted[shift] = True
    for axis in range(4):
        beside = neighbours[shift, axis]
        if beside >= 0:
            wanted[beside] = True
            for other in range(4):
                if other // 2 != axis // 2 and neighbours[beside, other] >= 0:
                    wanted[neighbours[beside, other]] = True
    return np.flatnonzero(wanted)
