"""From the harmonics of scores to scores at all angles, and what is asked of a line of them.

The transform over angles is a product with the matrix of the discrete Fourier transform: at the lengths of a class
average (≤ 500) it takes the time of an FFT, and everything between images and scores is a real matrix product with
nothing moved in between (figures: docs/performance.md). With Re and Im of the even and of the odd harmonics in four
blocks,
    A = Σ_even c_m Re z cos mψ,   B = −Σ_even c_m Im z sin mψ,   C, D the same over odd m   (c_0 = 1, else 2),
one quarter of the circle gives all of it:
    score(ψ) = A + B + C + D,       score(−ψ) = A − B + C − D,
    score(π − ψ) = A − B − C + D,   score(π + ψ) = A + B − C − D,
on angles ψ_j = 2π(j + ½)/n, of which none is its own mirror image. A line is (image, class, shift), and the four
parts are kept angle by angle, lines side by side, so that a maximum over angles runs over whole vector registers.
"""
import numba
import numpy as np

from vitrea.kernels.posterior import NEGLIGIBLE, REASSOCIATE, exp_line


def harmonic_order(n_rows):
    """int64[n_rows]: where harmonic m stands among the even ones, then the odd ones."""
    m = np.arange(n_rows)
    return np.where(m % 2 == 0, m // 2, (n_rows + 1) // 2 + m // 2)


def quarter_matrices(n_angles, n_rows):
    """Cosines and −sines of even, then of odd harmonics m < n_rows: four float32[n/4, harmonics]; 4 divides n."""
    psi = 2.0 * np.pi * (np.arange(n_angles // 4) + 0.5) / n_angles
    matrices = []
    for parity in (0, 1):
        m = np.arange(parity, n_rows, 2)
        factor = np.where(m == 0, 1.0, 2.0)
        matrices += [factor * np.cos(psi[:, None] * m), -factor * np.sin(psi[:, None] * m)]
    return [matrix.astype(np.float32) for matrix in matrices]


def quarters(product, matrices, out):
    """A, B, C, D of lines: product float32[rows, 2, lines] in `harmonic_order`, out float32[4, n/4, lines]."""
    even = matrices[0].shape[1]
    for i, matrix in enumerate(matrices):
        rows = product[:even, i % 2] if i < 2 else product[even:, i % 2]
        np.matmul(matrix, rows, out=out[i])


@numba.njit(nogil=True, cache=True)
def add_priors(log_prior, ctf_terms, order, out):
    """Add log priors float32[c, T] to m = 0 and CTF terms complex64[c, n, J] to m = 0, 2, … of float32[rows, 2n, c·T].

    Harmonics that the rows do not hold are dropped.
    """
    n_classes, n, terms = ctf_terms.shape
    n_shifts = log_prior.shape[1]
    for j in range(min(terms, (order.size + 1) // 2)):
        rows = out[order[2 * j]]
        for i in range(n):
            for k in range(n_classes):
                real, imaginary = ctf_terms[k, i, j].real, ctf_terms[k, i, j].imag
                for t in range(k * n_shifts, (k + 1) * n_shifts):
                    rows[i, t] += real + (log_prior[k, t - k * n_shifts] if j == 0 else np.float32(0.0))
                    rows[n + i, t] += imaginary


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def line_peaks(parts, count, peak):
    """The largest score of each of `count` lines: parts float32[4, n/4, ≥ count] as `quarters` → float32[≥ count]."""
    peak[:count] = -np.inf
    for j in range(parts.shape[1]):
        a, b, c, d = parts[0, j], parts[1, j], parts[2, j], parts[3, j]
        for line in range(count):
            high, low = a[line] + b[line] + abs(c[line] + d[line]), a[line] - b[line] + abs(c[line] - d[line])
            high = high if high > low else low
            peak[line] = high if high > peak[line] else peak[line]


@numba.njit(nogil=True, cache=True)
def whole_line(parts, line, out):
    """Scores of one line at the n angles ψ_j in their order: float32[n]."""
    quarter = parts.shape[1]
    half = 2 * quarter
    for j in range(quarter):
        a, b, c, d = parts[0, j, line], parts[1, j, line], parts[2, j, line], parts[3, j, line]
        out[j] = a + b + (c + d)
        out[half - 1 - j] = a - b - (c - d)
        out[half + j] = a + b - (c + d)
        out[2 * half - 1 - j] = a - b + (c - d)


def reference_whole_lines(parts):
    """NumPy twin of `whole_line` for all lines: float32[4, n/4, lines] → float64[lines, n]."""
    a, b, c, d = parts.astype(np.float64)
    second, fourth = (a - b - c + d)[::-1], (a - b + c - d)[::-1]
    return np.concatenate([a + b + c + d, second, a + b - c - d, fourth]).T


@numba.njit(nogil=True, cache=True)
def keep_lines(parts, rows, columns, first, overall, peak, scores, kept, used):
    """Write out the lines that may matter, from `used` on; returns how many are used then.

    parts float32[4, n/4, ≥ lines], line i·columns + c being column first + c of particle rows[i]; overall float32, the
    largest score of each particle so far, is updated. A line is kept if its own largest score is at most NEGLIGIBLE
    below. Kept are scores float32[capacity, n] and kept (row int32, column int32, peak float32)[capacity]. If there are
    more than fit, −1 is returned.
    """
    line_peaks(parts, rows.size * columns, peak)
    for i in range(rows.size):
        row = rows[i]
        for line in range(i * columns, (i + 1) * columns):
            overall[row] = max(overall[row], peak[line])
        for line in range(i * columns, (i + 1) * columns):
            if peak[line] >= overall[row] - np.float32(NEGLIGIBLE):
                if used == kept.size:
                    return -1
                whole_line(parts, line, scores[used])
                kept[used].row, kept[used].column, kept[used].peak = row, first + line - i * columns, peak[line]
                used += 1
    return used


@numba.njit(nogil=True, cache=True)
def log_sum_lines(parts, n_shifts, overall, peak, scratch, out):
    """log Σ exp over shifts and angles, by image and class: float64[n, classes].

    parts float32[4, n/4, ≥ lines], lines (image, class, shift); overall float32[n], the largest score of each image so
    far, is updated; scratch float32[2, n_angles]. Lines far below the best of all are not exponentiated: a class whose
    best is far below gets its maximum alone.
    """
    n, n_classes = out.shape
    line_peaks(parts, n * n_classes * n_shifts, peak)
    for i in range(n):
        mine = peak[i * n_classes * n_shifts:(i + 1) * n_classes * n_shifts]
        overall[i] = max(overall[i], mine.max())
        negligible = overall[i] - np.float32(NEGLIGIBLE)
        for k in range(n_classes):
            first = (i * n_classes + k) * n_shifts
            best, total = peak[first:first + n_shifts].max(), 0.0
            for line in range(first, first + n_shifts):
                if peak[line] >= negligible:
                    whole_line(parts, line, scratch[0])
                    total += exp_line(scratch[0], best, scratch[1])
            out[i, k] = best + (np.log(total) if total > 0.0 else 0.0)


def reference_log_sum_lines(parts, n_shifts, out):
    """NumPy twin of `log_sum_lines`, which drops nothing."""
    n, n_classes = out.shape
    scores = reference_whole_lines(parts).reshape(n, n_classes, -1)
    best = scores.max(axis=2)
    out[:] = best + np.log(np.exp(scores - best[:, :, None]).sum(axis=2))
