"""Log-sum-exp over all poses of a class, for many particles at once, when nothing else is asked of the scores.

With few rings a line of angles is short, and then a product with the matrix of the discrete Fourier transform beats
an FFT: everything is a real matrix product and no data is moved in between. With Re and Im of the even and of the odd
harmonics in four blocks,
    A = Σ_even c_m Re z cos mψ,   B = −Σ_even c_m Im z sin mψ,   C, D the same over odd m   (c_0 = 1, else 2),
one quarter of the circle gives all of it:
    score(ψ) = A + B + C + D,       score(−ψ) = A − B + C − D,
    score(π − ψ) = A − B − C + D,   score(π + ψ) = A + B − C − D,
on angles ψ_j = 2π(j + ½)/n, of which none is its own mirror image.
"""
import numba
import numpy as np

from vitrea.kernels.posterior import NEGLIGIBLE, REASSOCIATE, exp_line


def harmonic_order(n_rows):
    """int64[n_rows]: where harmonic m stands among the even ones, then the odd ones."""
    m = np.arange(n_rows)
    return np.where(m % 2 == 0, m // 2, (n_rows + 1) // 2 + m // 2)


def quarter_matrices(n_angles, n_rows):
    """Cosines and −sines of even, then of odd harmonics m < n_rows: four float32[harmonics, n/4]; 4 divides n."""
    psi = 2.0 * np.pi * (np.arange(n_angles // 4) + 0.5) / n_angles
    matrices = []
    for parity in (0, 1):
        m = np.arange(parity, n_rows, 2)[:, None]
        factor = np.where(m == 0, 1.0, 2.0)
        matrices += [factor * np.cos(m * psi), -factor * np.sin(m * psi)]
    return [matrix.astype(np.float32) for matrix in matrices]


def quarters(product, matrices, out):
    """A, B, C, D of lines: product float32[rows, 2, lines] in `harmonic_order`, out float32[4, lines, n/4]."""
    even = len(matrices[0])
    for i, matrix in enumerate(matrices):
        rows = product[:even, i % 2] if i < 2 else product[even:, i % 2]
        np.matmul(rows.T, matrix, out=out[i])


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
def line_peaks(parts, peak):
    """The largest score of each line: parts float32[4, lines, n/4] as `quarters` → float32[lines]."""
    for line in range(peak.size):
        a, b, c, d = parts[0, line], parts[1, line], parts[2, line], parts[3, line]
        best = np.float32(-np.inf)
        for j in range(a.size):
            value = max(a[j] + b[j] + abs(c[j] + d[j]), a[j] - b[j] + abs(c[j] - d[j]))
            best = value if value > best else best
        peak[line] = best


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def log_sum_lines(parts, peak, overall, best, scratch):
    """Σ exp over all lines and angles of each image, relative to its maximum: log Σ exp = best + log result.

    parts float32[4, T·n, n_angles/4], line t·n + i belonging to image i; peak float32[T·n] as `line_peaks`; best
    float32[n] receives the maxima; overall float32[n], the maxima over the classes before, is updated; scratch
    float32[2, n_angles]. Lines far below the best of all are not exponentiated: an image whose maximum here is far
    below gets 1, for the maximum alone.
    """
    n, quarter = best.size, parts.shape[2]
    best[:] = -np.inf
    for line in range(peak.size):
        best[line % n] = max(best[line % n], peak[line])
    total = np.zeros(n)
    for i in range(n):
        overall[i] = max(overall[i], best[i])
        if best[i] < overall[i] - NEGLIGIBLE:
            total[i] = 1.0
    for line in range(peak.size):
        image = line % n
        if peak[line] < overall[image] - NEGLIGIBLE:
            continue
        for j in range(quarter):
            a, b, c, d = parts[0, line, j], parts[1, line, j], parts[2, line, j], parts[3, line, j]
            scratch[0, j] = a + b + (c + d)
            scratch[0, quarter + j] = a + b - (c + d)
            scratch[0, 2 * quarter + j] = a - b + (c - d)
            scratch[0, 3 * quarter + j] = a - b - (c - d)
        total[image] += exp_line(scratch[0], best[image], scratch[1])
    return total


def reference_log_sum_lines(parts, best):
    """NumPy twin of `line_peaks` and `log_sum_lines`, which drops nothing."""
    a, b, c, d = parts.astype(np.float64)
    scores = np.concatenate([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], axis=1)
    scores = scores.reshape(-1, best.size, scores.shape[1])
    best[:] = scores.max(axis=(0, 2))
    return np.exp(scores - scores.max(axis=(0, 2))[None, :, None]).sum(axis=(0, 2))
