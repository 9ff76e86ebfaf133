"""The algebra of manifold learning: generative topographic mapping (GTM) of particles with their CTF.

A particle t float[D] (kernels/embedding.py) is c∘y_k plus noise of precision β_s on shell s; the class averages y =
ΦW of the nodes k share the weights W of a few basis functions. With b = c∘t, all that the E step needs is two matrix
products,

    log p(t | k) − log p(t | empty) = b·(βy_k) − ½ Σ_s c²_s Σ_{d in s} β y²_kd,

and all that the M step needs is two more, Rᵀb and Rᵀc² (Bishop, Svensén & Williams 1998, Neural Comput. 10, 215–234,
with a CTF). Per group of components with one C², the weights solve

    (Φᵀ diag(Rᵀc²) Φ + λ) W = Φᵀ Rᵀb :

one factorisation a group, and for chains a banded one, since far basis functions do not overlap.
"""
import numba
import numpy as np
from scipy import linalg, sparse

from vitrea.kernels.posterior import REASSOCIATE, exp_line, line_maximum

NEGLIGIBLE = 1e-17    # a basis function is zero where it is smaller
NO_OVERLAP = 1e-14    # two basis functions whose product is nowhere larger do not meet: the width of the band
BANDED_PAYS = 0.25    # of the matrix: a wider band is solved as a dense one


def group_power(values, start):
    """float[K, S]: Σ over the components of each group of values float[K, D]; start int64[S]: first component."""
    return np.add.reduceat(values, start, axis=1)


def node_scores(transformed, ctf2, weighted, power, out):
    """out float[n, ≥K]: log p(t | node) − log p(t | empty), of particles b float[n, D] and C² float[n, S].

    weighted float[K, D]: βy; power float[K, S]: Σ βy² over groups. Columns of `out` beyond K are left alone.
    """
    columns = out[:, :len(weighted)]
    np.matmul(transformed, weighted.T, out=columns)
    subtract_half(np.matmul(ctf2, power.T), columns)


def reference_node_scores(transformed, ctf2, weighted, power, out):
    """Particle by particle, in float64."""
    for i, (b, c2) in enumerate(zip(transformed.astype(np.float64), ctf2.astype(np.float64))):
        out[i, :len(weighted)] = [b @ w - 0.5 * c2 @ p for w, p in zip(weighted, power)]


@numba.njit(nogil=True, cache=True)
def subtract_half(values, out):
    """out −= ½ values, float[n, K]; `out` may be columns of a wider array."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            out[i, j] -= values.dtype.type(0.5) * values[i, j]


def reference_subtract_half(values, out):
    """NumPy twin of `subtract_half`."""
    out -= 0.5 * values


def signal_scores(power, ctf2, count, beta, signal2):
    """float64[n]: log p(t | random signal) − log p(t | empty).

    The component for junk: not a class average but any signal of spectrum signal2 float64[R] per component, variance
    1/β + C²·signal2. power float64[n, R]: Σ t² by shell; ctf2 float[n, R]: shell means; count int[R] components.
    """
    excess = ctf2.astype(np.float64) * (beta * signal2)
    return 0.5 * (power @ beta - np.sum(count * np.log1p(excess) + beta * power / (1.0 + excess), axis=1))


def log_empty(power, count, beta):
    """float64[n]: log p(t | empty), the density of noise alone."""
    return 0.5 * (np.sum(count * np.log(beta / (2.0 * np.pi))) - power @ beta)


def responsibilities(scores, log_prior, temperature, log_tempered, log_plain):
    """Turn scores float[n, K], in place, into R = softmax(log π + score/T); the two sums as logarithms, float64[n].

    log_tempered: log Σ π exp(score/T); log_plain: log Σ π exp(score), of the same scores at T = 1.
    """
    if scores.dtype == np.float32:
        weigh_nodes(scores, log_prior.astype(np.float32), np.float32(1.0 / temperature), log_tempered, log_plain)
    else:
        reference_weigh_nodes(scores, log_prior, 1.0 / temperature, log_tempered, log_plain)


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def weigh_nodes(scores, log_prior, inverse_temperature, log_tempered, log_plain):
    """See `responsibilities`; float32."""
    n, columns = scores.shape
    shifted, weights = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for i in range(n):
        row = scores[i]
        for j in range(columns):
            shifted[j] = log_prior[j] + row[j]
        peak = line_maximum(shifted)
        total = exp_line(shifted, peak, weights)
        log_plain[i] = np.float64(peak) + np.log(np.float64(total))
        if inverse_temperature != np.float32(1.0):
            for j in range(columns):
                shifted[j] = log_prior[j] + row[j] * inverse_temperature
            peak = line_maximum(shifted)
            total = exp_line(shifted, peak, weights)
        log_tempered[i] = np.float64(peak) + np.log(np.float64(total))
        scale = np.float32(1.0) / total
        for j in range(columns):
            row[j] = weights[j] * scale


def reference_weigh_nodes(scores, log_prior, inverse_temperature, log_tempered, log_plain):
    """NumPy twin of `weigh_nodes`, in the precision of the scores."""
    for out, factor in ((log_plain, 1.0), (log_tempered, inverse_temperature)):
        shifted = scores * factor + log_prior
        peak = shifted.max(axis=1, keepdims=True)
        weights = np.exp(shifted - peak)
        total = weights.sum(axis=1, keepdims=True)
        out[:] = (peak + np.log(total))[:, 0]
    scores[:] = weights / total


@numba.njit(nogil=True, cache=True)
def add_rounded(terms, quanta, out):
    """out float64[K, D] += terms float[K, D] rounded to multiples of quanta float64[D] (kernels/exact.py)."""
    inverse = 1.0 / quanta
    for k in range(terms.shape[0]):
        for d in range(terms.shape[1]):
            out[k, d] += np.rint(np.float64(terms[k, d]) * inverse[d]) * quanta[d]


def reference_add_rounded(terms, quanta, out):
    """NumPy twin of `add_rounded`."""
    out += np.rint(terms.astype(np.float64) / quanta) * quanta


def solve_components(basis, weight, target, start, ridge, probes):
    """(W float64[M, D], trace float64[S]), one component at a time, by LU: the plain statement, twin of the other two.

    basis float64[K, M]: Φ; weight float64[K, S]: Rᵀc²; target float64[K, D]: Rᵀb; start int64[S]: first component of
    each group; ridge float64[S, M]: the prior's precision over β, by group and basis function; probes float64[M, P],
    of which the trace of the inverse is Σ_p z_pᵀ A⁻¹ z_p.
    """
    group = np.searchsorted(start, np.arange(target.shape[1]), side="right") - 1
    columns = [linalg.solve(_gram(basis, weight, ridge, g), basis.T @ target[:, d]) for d, g in enumerate(group)]
    traces = [np.trace(probes.T @ linalg.solve(_gram(basis, weight, ridge, g), probes)) for g in range(len(start))]
    return np.stack(columns, axis=1), np.array(traces)


def _gram(basis, weight, ridge, g):
    return basis.T @ (weight[:, g, None] * basis) + np.diag(ridge[g])


def solve_dense(basis, weight, target, start, ridge, probes):
    """As `solve_components`: one Cholesky factorisation a group, for all its components."""
    out, traces = np.empty((basis.shape[1], target.shape[1])), np.empty(len(start))
    for g, columns in enumerate(_columns(start, target.shape[1])):
        factor = linalg.cho_factor(_gram(basis, weight, ridge, g), lower=True, overwrite_a=True)
        out[:, columns] = linalg.cho_solve(factor, basis.T @ target[:, columns])
        traces[g] = np.sum(probes * linalg.cho_solve(factor, probes))
    return out, traces


def _columns(start, n_components):
    return [slice(a, b) for a, b in zip(start, np.append(start[1:], n_components))]


class BandedBasis:
    """A basis whose functions overlap their neighbours only, prepared for solving; the bias, if any, is a border.

    `solve` is as `solve_components`: banded Cholesky, then the Schur complement of the border. A closed chain is
    numbered from both ends inwards (1, M, 2, M−1, …), so that neighbours across the seam are near each other too.
    """

    def __init__(self, basis, n_bias):
        n_local = basis.shape[1] - n_bias
        local = np.where(np.abs(basis[:, :n_local]) > NEGLIGIBLE, basis[:, :n_local], 0.0)
        orders = [np.arange(n_local), _from_both_ends(n_local)]
        self.width, self._order = min(((_half_width(local[:, order]), order) for order in orders),
                                      key=lambda found: found[0])
        local = local[:, self._order]
        self._basis, self._local, self._border = basis, sparse.csr_array(local), basis[:, n_local:]
        self._products = [sparse.csr_array((local[:, :n_local - j] * local[:, j:]).T) for j in range(self.width + 1)]

    @property
    def pays(self):
        """Whether the band is narrow enough to be worth it."""
        return self.width < BANDED_PAYS * len(self._order)

    def solve(self, weight, target, start, ridge, probes):
        """(W float64[M, D], trace float64[S]); see `solve_components` for the arguments."""
        n_local = len(self._order)
        bands = self._bands(weight, ridge[:, self._order])
        right, free = self._local.T @ target, self._border.T @ target
        couplings = [self._local.T @ (weight * column[:, None]) for column in self._border.T]
        out, traces = np.empty((self._basis.shape[1], target.shape[1])), np.empty(len(start))
        for g, columns in enumerate(_columns(start, target.shape[1])):
            factor = linalg.cholesky_banded(bands[:, :, g], lower=True, check_finite=False)
            coupling = np.stack([c[:, g] for c in couplings], axis=1) if couplings else np.zeros((n_local, 0))
            corner = self._border.T @ (weight[:, g, None] * self._border) + np.diag(ridge[g, n_local:])
            both = np.concatenate([right[:, columns], probes[self._order]], axis=1)
            below = np.concatenate([free[:, columns], probes[n_local:]], axis=1)
            solved, border = _solve_bordered(factor, coupling, corner, both, below)
            n = columns.stop - columns.start
            out[self._order, columns], out[n_local:, columns] = solved[:, :n], border[:, :n]
            traces[g] = np.sum(probes[self._order] * solved[:, n:]) + np.sum(probes[n_local:] * border[:, n:])
        return out, traces

    def _bands(self, weight, ridge):
        """float64[width + 1, M, S]: the lower bands of Φᵀ diag(weight) Φ + ridge, of all groups."""
        bands = np.zeros((self.width + 1, len(self._order), weight.shape[1]))
        for j, products in enumerate(self._products):
            bands[j, :len(self._order) - j] = products @ weight
        bands[0] += ridge.T
        return bands


def _from_both_ends(n):
    """0, n − 1, 1, n − 2, …"""
    order = np.empty(n, dtype=np.int64)
    order[::2], order[1::2] = np.arange((n + 1) // 2), n - 1 - np.arange(n // 2)
    return order


def _half_width(local):
    """The largest distance |i − j| of two functions that meet at some node."""
    size = local.shape[1]
    meets = [j for j in range(1, size) if np.max(np.abs(local[:, :size - j] * local[:, j:])) > NO_OVERLAP]
    return max(meets, default=0)


def _solve_bordered(factor, coupling, corner, right, below):
    """Solve [[A, u], [uᵀ, v]] [x; z] = [right; below], A by its banded factor: (x, z)."""
    solved = np.concatenate([right, coupling], axis=1)
    substitute_banded(np.ascontiguousarray(factor), solved)
    local, toward = solved[:, :right.shape[1]], solved[:, right.shape[1]:]
    if not len(corner):
        return local, below
    border = linalg.solve(corner - coupling.T @ toward, below - coupling.T @ local, assume_a="sym")
    return local - toward @ border, border


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def substitute_banded(factor, out):
    """Solve L Lᵀ x = out in place, float64[M, n], L given by its lower bands float64[width + 1, M]."""
    width, size, n = factor.shape[0] - 1, out.shape[0], out.shape[1]
    for m in range(size):
        for j in range(min(width, m), 0, -1):
            value = factor[j, m - j]
            for i in range(n):
                out[m, i] -= value * out[m - j, i]
        value = 1.0 / factor[0, m]
        for i in range(n):
            out[m, i] *= value
    for m in range(size - 1, -1, -1):
        for j in range(min(width, size - 1 - m), 0, -1):
            value = factor[j, m]
            for i in range(n):
                out[m, i] -= value * out[m + j, i]
        value = 1.0 / factor[0, m]
        for i in range(n):
            out[m, i] *= value


def reference_substitute_banded(factor, out):
    """SciPy twin of `substitute_banded`."""
    out[:] = linalg.cho_solve_banded((factor, True), out)
