"""From scores to posterior probabilities: log-sum-exp per particle, weights, significance, sub-grid peaks.

Scores are float32 logarithms up to a constant of the particle. Nothing is exponentiated before the particle's maximum
is subtracted, so neither overflow nor "all weights are zero" can happen. Lines far below the best are never
exponentiated.
"""
import numba
import numpy as np

NEGLIGIBLE = 16.0  # nats below the best: a factor of 1e-7
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
LOWEST = np.float32(-80.0)
REASSOCIATE = {"reassoc", "contract", "nnan", "nsz"}  # lets sums and maxima use all lanes of a vector register
SMALLEST_WEIGHT = np.float32(1e-7)
SIGNIFICANCE_BINS = 64
BINS_PER_NAT = 4.0


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def exp_line(values, shift, out):
    """out = exp(values − shift) for values ≤ shift, at least e^−80; float32[n]. Returns the sum.

    e^x = 2^k p, k an integer written into the exponent bits, p a polynomial (Cephes expf, relative error 2e-7), so
    that LLVM vectorises both loops; a call of the C library would take five times as long.
    """
    bits = out.view(np.int32)
    total = np.float32(0.0)
    for j in range(values.size):
        k = np.floor(max(values[j] - shift, LOWEST) * LOG2_E + np.float32(0.5))
        bits[j] = (np.int32(k) + np.int32(127)) << np.int32(23)
    for j in range(values.size):
        x = max(values[j] - shift, LOWEST)
        k = np.floor(x * LOG2_E + np.float32(0.5))
        f = x - k * LN2_HIGH - k * LN2_LOW
        p = np.float32(1.9875691500e-4)
        p = p * f + np.float32(1.3981999507e-3)
        p = p * f + np.float32(8.3334519073e-3)
        p = p * f + np.float32(4.1665795894e-2)
        p = p * f + np.float32(1.6666665459e-1)
        p = p * f + np.float32(5.0000001201e-1)
        weight = out[j] * (p * f * f + f + np.float32(1.0))
        out[j] = weight
        total += weight
    return total


def reference_exp_line(values, shift, out):
    """NumPy twin of `exp_line`."""
    out[:] = np.exp(np.maximum(values - np.float32(shift), LOWEST))
    return out.sum()


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def line_maximum(values):
    """The largest of float32[n]."""
    best = values[0]
    for value in values:
        best = value if value > best else best
    return best


@numba.njit(nogil=True, cache=True)
def sum_lines(scores, kept, best, scratch, out):
    """Σ exp(score − best of its particle) of every line: float64[lines]; 0 for lines that are far below.

    scores float32[≥ lines, n]; kept (row, column, peak)[lines] as `keep_lines` (kernels/angles.py); best float32[rows];
    scratch float32[n].
    """
    for line in range(kept.size):
        row = kept[line].row
        out[line] = 0.0
        if kept[line].peak >= best[row] - np.float32(NEGLIGIBLE):
            out[line] = exp_line(scores[line], best[row], scratch)


def reference_sum_lines(scores, kept, best):
    """NumPy twin of `sum_lines`, which drops nothing."""
    return np.exp(scores[:len(kept)].astype(np.float64) - best[kept["row"], None]).sum(axis=1)


@numba.njit(nogil=True, cache=True)
def smallest_line_sets(kept, sums, fraction, chosen, total, held, best_line):
    """Choose for every particle the smallest set of lines that holds `fraction` of its weight.

    kept (row, column, peak)[lines]; sums float64[lines] as `sum_lines`. Written: chosen bool[lines]; by particle total
    and held float64, the weight of all its lines and of those chosen, and best_line int64, where its largest score is.
    """
    n_rows = total.size
    start = np.zeros(n_rows + 1, dtype=np.int64)
    for line in range(kept.size):
        start[kept[line].row + 1] += 1
    start = np.cumsum(start)
    place, member = start[:-1].copy(), np.empty(kept.size, dtype=np.int64)
    for line in range(kept.size):
        row = kept[line].row
        member[place[row]] = line
        place[row] += 1
    chosen[:] = False
    for row in range(n_rows):
        mine = member[start[row]:start[row + 1]]
        total[row], held[row], best_line[row] = sums[mine].sum(), 0.0, mine[0]
        for line in mine:
            if kept[line].peak > kept[best_line[row]].peak:
                best_line[row] = line
        for i in np.argsort(-sums[mine]):
            if held[row] >= fraction * total[row] or sums[mine[i]] == 0.0:
                break
            chosen[mine[i]] = True
            held[row] += sums[mine[i]]


@numba.njit(nogil=True, cache=True)
def smallest_sets(log_weights, fraction, out):
    """Mark per row the smallest set of columns that holds `fraction` of the row's weight.

    log_weights float64[n, K] (any constant per row), −inf allowed; out bool[n, K]. A row without finite weight marks
    nothing.
    """
    n, n_classes = log_weights.shape
    for i in range(n):
        out[i] = False
        order = np.argsort(-log_weights[i])
        peak = log_weights[i, order[0]]
        if not np.isfinite(peak):
            continue
        total = 0.0
        for k in range(n_classes):
            total += np.exp(log_weights[i, k] - peak)
        held = 0.0
        for k in order:
            if held >= fraction * total:
                break
            out[i, k] = True
            held += np.exp(log_weights[i, k] - peak)


@numba.njit(nogil=True, cache=True)
def weigh_lines(scores, log_total, lines, line_row, out, histogram, expected):
    """Weights of `lines` of scores: out[j] = exp(scores[lines[j]] − log_total[row]), float32[≥ lines, n].

    scores float32[L, n]; log_total float64[rows]; lines, line_row int[count]. Added to, by row: expected
    float64[rows], the mean score Σ W·score; histogram float64[rows, SIGNIFICANCE_BINS, 2], the number of poses and
    their weight by how far the weight lies below 1 (BINS_PER_NAT a nat), from which the number of significant poses
    is read.
    """
    for j in range(lines.size):
        row, line = line_row[j], scores[lines[j]]
        shift = np.float32(log_total[row])
        exp_line(line, shift, out[j])
        # of large scores float32 cannot hold the logarithm of the sum: what rounding took is put back as a factor
        rounding = np.float32(np.exp(np.float64(shift) - log_total[row]))
        for a in range(line.size):
            out[j, a] *= rounding
            weight = out[j, a]
            if weight > SMALLEST_WEIGHT:
                index = min(int(np.float32(log_total[row] - line[a]) * BINS_PER_NAT), SIGNIFICANCE_BINS - 1)
                histogram[row, max(index, 0), 0] += 1
                histogram[row, max(index, 0), 1] += weight
                expected[row] += weight * line[a]


@numba.njit(nogil=True, cache=True)
def significant_poses(histogram, goal):
    """How many poses hold the weight `goal` float64[n], to the width of a bin: float64[n] from float64[n, BINS, 2]."""
    out = np.zeros(histogram.shape[0])
    for i in range(histogram.shape[0]):
        held = 0.0
        for b in range(histogram.shape[1]):
            number, weight = histogram[i, b, 0], histogram[i, b, 1]
            if weight > 0.0 and held + weight >= goal[i]:
                out[i] += np.ceil(number * (goal[i] - held) / weight)
                break
            out[i] += number
            held += weight
    return out


@numba.njit(nogil=True, cache=True, inline="always")
def peak_offset(before, here, after):
    """Where the parabola through three equidistant values has its maximum, in steps, within ±½; 0 if there is none."""
    curvature = before - 2.0 * here + after
    if curvature >= 0.0:
        return 0.0
    return min(max(0.5 * (before - after) / curvature, -0.5), 0.5)


@numba.njit(nogil=True, cache=True)
def refine_peak(scores, shift, angle, neighbours):
    """Sub-grid position of a maximum of scores float[T, n] at (shift, angle): (Δangle, Δy, Δx) in grid steps.

    The maximum of the paraboloid through the neighbours: a turn and a shift compensate each other where a class lies
    off centre, so the three must be found together. Where that paraboloid has no maximum within one step, the parabola
    along each axis is used. neighbours int64[T, 4]: index of the shift one step along −y, +y, −x, +x, or −1 at the rim,
    where no step is taken along that axis.
    """
    n = scores.shape[1]
    before, after = (angle - 1) % n, (angle + 1) % n
    here = scores[shift, angle]
    separate = np.zeros(3)
    gradient, hessian = np.zeros(3), -np.eye(3)
    separate[0] = peak_offset(scores[shift, before], here, scores[shift, after])
    gradient[0] = 0.5 * (scores[shift, after] - scores[shift, before])
    hessian[0, 0] = scores[shift, before] - 2.0 * here + scores[shift, after]
    for axis in range(2):
        low, high = neighbours[shift, 2 * axis], neighbours[shift, 2 * axis + 1]
        if low < 0 or high < 0:
            continue
        separate[1 + axis] = peak_offset(scores[low, angle], here, scores[high, angle])
        gradient[1 + axis] = 0.5 * (scores[high, angle] - scores[low, angle])
        hessian[1 + axis, 1 + axis] = scores[low, angle] - 2.0 * here + scores[high, angle]
        mixed = scores[high, after] - scores[high, before] - scores[low, after] + scores[low, before]
        hessian[0, 1 + axis] = hessian[1 + axis, 0] = 0.25 * mixed
    hessian[1, 2] = hessian[2, 1] = _mixed_shift(scores[:, angle], shift, neighbours)
    if np.linalg.eigvalsh(hessian)[2] >= 0.0:
        return separate
    joint = np.linalg.solve(hessian, -gradient)
    return separate if np.abs(joint).max() > 1.0 else joint


@numba.njit(nogil=True, cache=True)
def _mixed_shift(values, shift, neighbours):
    """∂²/∂y∂x of values[T] from the four diagonal neighbours; 0 where one is missing."""
    total = 0.0
    for y in range(2):
        row = neighbours[shift, y]
        for x in range(2):
            corner = neighbours[row, 2 + x] if row >= 0 else -1
            if corner < 0:
                return 0.0
            total += values[corner] if x == y else -values[corner]
    return 0.25 * total
