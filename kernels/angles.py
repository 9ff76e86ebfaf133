"""From the harmonics of scores to scores at all angles, and what is asked of a line of them.

The transform over angles is a product with the matrix of the discrete Fourier transform: at the lengths of a class
average (≤ 500) it takes the time of an FFT, and everything between images and scores is a real matrix product with
nothing moved in between (figures: docs/performance.md). The symmetries of cosine and sine fold the circle, so that few
angles give all. With Re and Im of the even and of the odd harmonics apart,
    A = Σ_even c_m Re z cos mψ,   B = −Σ_even c_m Im z sin mψ,   C, D the same over odd m   (c_0 = 1, else 2),
one quarter of the circle gives all of it:
    score(ψ) = A + B + C + D,       score(−ψ) = A − B + C − D,
    score(π − ψ) = A − B − C + D,   score(π + ψ) = A + B − C − D,
and, A_0 and A_2 (B_0 and B_2) being the sums over m = 0, 2 mod 4, one eighth of it gives A and B:
    A(ψ) = A_0 + A_2,   A(π/2 − ψ) = A_0 − A_2,   B(ψ) = B_0 + B_2,   B(π/2 − ψ) = B_2 − B_0,
on angles ψ_j = 2π(j + ½)/n, 8 dividing n, of which none is its own mirror image. A line is (image, class, shift). Its
folded scores are A_0, A_2, B_0, B_2 of n/8 angles each, then C and D of n/4: n rows, lines side by side, so that a
maximum over angles runs over whole vector registers.
"""
import numba
import numpy as np

from vitrea.kernels.posterior import NEGLIGIBLE, REASSOCIATE, exp_line


def harmonic_order(n_rows):
    """int64[n_rows]: where harmonic m stands: those with m = 0 mod 4 first, then 2 mod 4, then the odd ones."""
    by_kind = np.concatenate([np.arange(first, n_rows, step) for first, step in ((0, 4), (2, 4), (1, 2))])
    order = np.empty(n_rows, dtype=np.int64)
    order[by_kind] = np.arange(n_rows)
    return order


def folded_matrices(n_angles, n_rows):
    """[(rows of the product, 0 for Re or 1 for Im, float32[angles, harmonics])] of A_0, A_2, B_0, B_2, C, D.

    n_angles: a multiple of 8; n_rows: harmonics m < n_rows, in `harmonic_order`.
    """
    matrices, begin = [], 0
    for first, step, n_folded in ((0, 4, n_angles // 8), (2, 4, n_angles // 8), (1, 2, n_angles // 4)):
        m = np.arange(first, n_rows, step)
        turn = 2.0 * np.pi * (np.arange(n_folded)[:, None] + 0.5) / n_angles * m
        factor = np.where(m == 0, 1.0, 2.0)
        rows, begin = slice(begin, begin + len(m)), begin + len(m)
        matrices.append([(rows, part, (factor * wave).astype(np.float32))
                         for part, wave in enumerate((np.cos(turn), -np.sin(turn)))])
    (a_0, b_0), (a_2, b_2), (c, d) = matrices
    return [a_0, a_2, b_0, b_2, c, d]


def fold_lines(product, matrices, out):
    """Folded scores of lines: product float32[n_rows, 2, lines] in `harmonic_order`, out float32[n_angles, lines]."""
    first = 0
    for rows, part, matrix in matrices:
        np.matmul(matrix, product[rows, part], out=out[first:first + len(matrix)])
        first += len(matrix)


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
def line_peaks(folded, count, peak):
    """The largest score of each of `count` lines: folded float32[n, ≥ count] as `fold_lines` → float32[≥ count]."""
    n = folded.shape[0]
    eighth, quarter, half = n // 8, n // 4, n // 2
    peak[:count] = -np.inf
    for j in range(eighth):
        a_0, a_2, b_0, b_2 = folded[j], folded[eighth + j], folded[quarter + j], folded[quarter + eighth + j]
        c, d = folded[half + j], folded[half + quarter + j]
        far_c, far_d = folded[half + quarter - 1 - j], folded[n - 1 - j]
        for line in range(count):
            a, b = a_0[line] + a_2[line], b_0[line] + b_2[line]
            far_a, far_b = a_0[line] - a_2[line], b_2[line] - b_0[line]
            high, low = a + b + abs(c[line] + d[line]), a - b + abs(c[line] - d[line])
            high = high if high > low else low
            peak[line] = high if high > peak[line] else peak[line]
            high = far_a + far_b + abs(far_c[line] + far_d[line])
            low = far_a - far_b + abs(far_c[line] - far_d[line])
            high = high if high > low else low
            peak[line] = high if high > peak[line] else peak[line]


@numba.njit(nogil=True, cache=True)
def whole_line(folded, line, out):
    """Scores of one line at the n angles ψ_j in their order: float32[n]."""
    n = out.size
    eighth, quarter, half = n // 8, n // 4, n // 2
    for j in range(quarter):
        i, sign = (j, np.float32(1.0)) if j < eighth else (quarter - 1 - j, np.float32(-1.0))
        a = folded[i, line] + sign * folded[eighth + i, line]
        b = folded[quarter + eighth + i, line] + sign * folded[quarter + i, line]
        c, d = folded[half + j, line], folded[half + quarter + j, line]
        out[j] = a + b + (c + d)
        out[half - 1 - j] = a - b - (c - d)
        out[half + j] = a + b - (c + d)
        out[n - 1 - j] = a - b + (c - d)


def reference_whole_lines(folded):
    """NumPy twin of `whole_line` for all lines: float32[n, lines] → float64[lines, n]."""
    a_0, a_2, b_0, b_2, *odd = np.split(folded.astype(np.float64), 8)
    a, b = np.concatenate([a_0 + a_2, (a_0 - a_2)[::-1]]), np.concatenate([b_0 + b_2, (b_2 - b_0)[::-1]])
    c, d = np.concatenate(odd[:2]), np.concatenate(odd[2:])
    second, fourth = (a - b - c + d)[::-1], (a - b + c - d)[::-1]
    return np.concatenate([a + b + c + d, second, a + b - c - d, fourth]).T


@numba.njit(nogil=True, cache=True)
def keep_lines(folded, rows, columns, first, overall, peak, scores, kept, used):
    """Write out the lines that may matter, from `used` on; returns how many are used then.

    folded float32[n, ≥ lines] as `fold_lines`, line i·columns + c being column first + c of particle rows[i]; overall
    float32, the largest score of each particle so far, is updated. A line is kept if its own largest score is at most
    NEGLIGIBLE below. Kept are scores float32[capacity, n] and kept (row int32, column int32, peak float32)[capacity].
    If there are more than fit, −1 is returned.
    """
    line_peaks(folded, rows.size * columns, peak)
    for i in range(rows.size):
        row = rows[i]
        for line in range(i * columns, (i + 1) * columns):
            overall[row] = max(overall[row], peak[line])
        for line in range(i * columns, (i + 1) * columns):
            if peak[line] >= overall[row] - np.float32(NEGLIGIBLE):
                if used == kept.size:
                    return -1
                whole_line(folded, line, scores[used])
                kept[used].row, kept[used].column, kept[used].peak = row, first + line - i * columns, peak[line]
                used += 1
    return used


@numba.njit(nogil=True, cache=True)
def log_sum_lines(folded, n_shifts, overall, peak, scratch, out):
    """log Σ exp over shifts and angles, by image and class: float64[n, classes].

    folded float32[n, ≥ lines] as `fold_lines`, lines (image, class, shift); overall float32[n], the largest score of
    each image so far, is updated; scratch float32[2, n_angles]. Lines far below the best of all are not exponentiated:
    a class whose best is far below gets its maximum alone.
    """
    n, n_classes = out.shape
    line_peaks(folded, n * n_classes * n_shifts, peak)
    for i in range(n):
        mine = peak[i * n_classes * n_shifts:(i + 1) * n_classes * n_shifts]
        overall[i] = max(overall[i], mine.max())
        negligible = overall[i] - np.float32(NEGLIGIBLE)
        for k in range(n_classes):
            first = (i * n_classes + k) * n_shifts
            best, total = peak[first:first + n_shifts].max(), 0.0
            for line in range(first, first + n_shifts):
                if peak[line] >= negligible:
                    whole_line(folded, line, scratch[0])
                    total += exp_line(scratch[0], best, scratch[1])
            out[i, k] = best + (np.log(total) if total > 0.0 else 0.0)


def reference_log_sum_lines(folded, n_shifts, out):
    """NumPy twin of `log_sum_lines`, which drops nothing."""
    n, n_classes = out.shape
    scores = reference_whole_lines(folded).reshape(n, n_classes, -1)
    best = scores.max(axis=2)
    out[:] = best + np.log(np.exp(scores - best[:, :, None]).sum(axis=2))
