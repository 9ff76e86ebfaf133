"""Log-sum-exp over all poses of a class, for many particles at once, when nothing else is asked of the scores.

With few rings a line of angles is short, and then a product with the matrix of the discrete Fourier transform beats
an FFT: everything is a real matrix product and no data is moved in between. Angles ψ and ψ + π share the even
harmonics and differ in the sign of the odd ones, which halves the work:
    score(ψ) = E(ψ) + O(ψ),   score(ψ + π) = E(ψ) − O(ψ).
Harmonics are therefore ordered with the even m first.
"""
import numba
import numpy as np

from vitrea.kernels.posterior import NEGLIGIBLE, REASSOCIATE, exp_line


def harmonic_order(n_rows):
    """int64[n_rows]: where harmonic m stands among the even ones, then the odd ones."""
    m = np.arange(n_rows)
    return np.where(m % 2 == 0, m // 2, (n_rows + 1) // 2 + m // 2)


def angle_matrices(n_angles, n_rows):
    """From (Re, Im) of harmonics m < n_rows to E and O at ψ_j = 2πj/n, j < n/2: float32[n/2, 2·even], [n/2, 2·odd]."""
    psi = 2.0 * np.pi * np.arange(n_angles // 2) / n_angles
    pair = []
    for parity in (0, 1):
        m = np.arange(parity, n_rows, 2)
        factor = np.where(m == 0, 1.0, 2.0)
        matrix = np.stack([factor * np.cos(np.outer(psi, m)), -factor * np.sin(np.outer(psi, m))], axis=2)
        pair.append(np.ascontiguousarray(matrix.reshape(len(psi), -1).astype(np.float32)))
    return tuple(pair)


def real_templates(conjugated, offset):
    """Templates complex64[size, T] as one real matrix (2T × 2R_m) per harmonic, one after the other: float32[4·size·T].

    Rows are Re z then Im z of every shift, columns Re y then Im y of every ring, z = Σ_r y conj a.
    """
    parts = []
    for m in range(len(offset) - 1):
        part = conjugated[offset[m]:offset[m + 1]].T
        parts.append(np.block([[part.real, -part.imag], [part.imag, part.real]]).ravel())
    return np.concatenate(parts).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def real_product(templates, n_shifts, images, n, offset, order, out):
    """z(m; t, i) = Σ_r y conj a_t as real products: float32[rows, 2, T·n], rows in `order`.

    templates as `real_templates`; images as `gather_real`; rows of harmonics that the grid does not have are left
    alone.
    """
    for m in range(offset.size - 1):
        width = offset[m + 1] - offset[m]
        left = templates[4 * n_shifts * offset[m]:4 * n_shifts * offset[m + 1]].reshape(2 * n_shifts, 2 * width)
        right = images[2 * n * offset[m]:2 * n * offset[m + 1]].reshape(2 * width, n)
        np.dot(left, right, out[order[m]].reshape(2 * n_shifts, n))


def reference_real_product(templates, n_shifts, images, n, offset, order, out):
    """NumPy twin of `real_product`."""
    for m in range(offset.size - 1):
        left = templates[4 * n_shifts * offset[m]:4 * n_shifts * offset[m + 1]].reshape(2 * n_shifts, -1)
        right = images[2 * n * offset[m]:2 * n * offset[m + 1]].reshape(-1, n)
        out[order[m]] = (left @ right).reshape(2, -1)


@numba.njit(nogil=True, cache=True)
def add_priors(log_prior, ctf_term, order, out):
    """Add float32[T] log priors to m = 0 and complex64[n, J] CTF terms to m = 0, 2, … of float32[rows, 2, T·n]."""
    n = ctf_term.shape[0]
    for j in range(min(ctf_term.shape[1], (order.size + 1) // 2)):
        rows = out[order[2 * j]]
        for t in range(log_prior.size):
            for i in range(n):
                rows[0, t * n + i] += ctf_term[i, j].real + (log_prior[t] if j == 0 else np.float32(0.0))
                rows[1, t * n + i] += ctf_term[i, j].imag


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def line_peaks(even, odd, peak):
    """The larger of E + O and E − O along each line, which is E + |O|: float32[lines, n/2] twice → float32[lines]."""
    for line in range(even.shape[0]):
        e, o = even[line], odd[line]
        best = e[0] + abs(o[0])
        for j in range(e.size):
            value = e[j] + abs(o[j])
            best = value if value > best else best
        peak[line] = best


@numba.njit(nogil=True, cache=True)
def log_sum_lines(even, odd, peak, best, scratch):
    """Σ exp over all lines and angles of each image, relative to its maximum: log Σ exp = best + log result.

    even, odd float32[T·n, n_angles/2], line t·n + i belonging to image i; peak float32[T·n] as `line_peaks`; best
    float32[n] receives the maxima; scratch float32[2, n_angles/2]. Lines far below the best are not exponentiated.
    """
    n = best.size
    best[:] = -np.inf
    for line in range(peak.size):
        best[line % n] = max(best[line % n], peak[line])
    total = np.zeros(n)
    values, weights = scratch[0], scratch[1]
    for line in range(peak.size):
        image = line % n
        if peak[line] < best[image] - NEGLIGIBLE:
            continue
        for sign in (np.float32(1.0), np.float32(-1.0)):
            for j in range(values.size):
                values[j] = even[line, j] + sign * odd[line, j]
            total[image] += exp_line(values, best[image], weights)
    return total


def reference_log_sum_lines(even, odd, peak, best, scratch):
    """NumPy twin of `line_peaks` and `log_sum_lines`, which drops nothing."""
    scores = np.concatenate([even + odd, even - odd], axis=1).astype(np.float64)
    scores = scores.reshape(-1, best.size, scores.shape[1])
    best[:] = scores.max(axis=(0, 2))
    return np.exp(scores - scores.max(axis=(0, 2))[None, :, None]).sum(axis=(0, 2))
