"""Principal components of particles with their CTF, over all ranks, and what they say about annealing.

At the symmetric state every node has the mean, y = μ = Σb/ΣC². A small spread δy grows in one EM iteration by

    δy → (1/T) D⁻¹ (Σ_n x_n x_nᵀ) β δy,   x_n = b_n − c²_n∘μ,   D = Σ_n c²_n ,

so the symmetric state is stable above T_c, the largest eigenvalue λ of β^½ D^−½ (Σ x xᵀ) D^−½ β^½ times h, the largest
eigenvalue of the centred hat matrix Φ(ΦᵀΦ + λ_r I′)⁻¹Φᵀ of the basis (1 for free classes). Noise alone gives
eigenvalues of 1 on average and up to (1 + √γ)², γ = D/N for D components and N particles (Marchenko & Pastur 1967). An
eigenvalue ℓ of the signal and the noise together is found too large, at λ = ℓ + γℓ/(ℓ − 1), and its vector turned away
by chance: cos² = (1 − γ/(ℓ − 1)²) / (1 + γ/(ℓ − 1)) (Paul 2007, Statist. Sinica 17, 1617–1642). With both corrected,
the components say how strong the signal of the classes is on each shell before there are any classes.

Found by randomised subspace iteration (Halko, Martinsson & Tropp 2011, SIAM Rev. 53, 217–288): two thin products over
the particles a pass, summed exactly, so that the bits do not depend on the ranks.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.comm import sum_over_ranks
from vitrea.engine.manifold import Totals, noise_precision
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.kernels.manifold import add_rounded

OVERSAMPLING = 8       # columns more than components wanted: convergence by the ratio to the eigenvalue after them
MOST_PASSES = 60
SETTLED = 1e-4         # relative change of the wanted eigenvalues in a pass


@dataclass(frozen=True)
class Components:
    """mean float64[D]: μ; vectors float64[D, q] of length 1 and eigenvalues float64[q], largest first, of the matrix
    above; metric float64[D]: (Dβ/N)^½, so that vectors/metric are directions in y; n: particles they were found from;
    degrees: independent components of one particle."""

    mean: np.ndarray
    vectors: np.ndarray
    eigenvalues: np.ndarray
    metric: np.ndarray
    n: float
    degrees: float

    @property
    def noise_edge(self):
        """The largest eigenvalue that noise alone would give."""
        return (1.0 + np.sqrt(self.degrees / self.n)) ** 2

    def first(self, q):
        """The first q of them."""
        return replace(self, vectors=self.vectors[:, :q], eigenvalues=self.eigenvalues[:q])

    @property
    def directions(self):
        """float64[q, D]: class averages one standard deviation of the signal along each component."""
        signal = np.sqrt(np.maximum(self.eigenvalues - 1.0, 0.0))
        return (self.vectors * signal).T / self.metric

    def project(self, y):
        """float64[K, D]: class averages brought into the space of the components, nearest in the metric."""
        return self.mean + (((y - self.mean) * self.metric) @ self.vectors) @ self.vectors.T / self.metric

    def significant(self):
        """How many eigenvalues stand above what noise alone would give."""
        return int(np.sum(self.eigenvalues > self.noise_edge))

    def signal2(self, layout):
        """float64[R]: mean square of a component of the class averages, on each shell, as the mean and the significant
        components show it once the share of the noise is taken away."""
        share, first = self.degrees / self.n, self.first(self.significant())
        sum_of_both = 1.0 - share + first.eigenvalues
        signal = 0.5 * (sum_of_both + np.sqrt(np.maximum(sum_of_both**2 - 4.0 * first.eigenvalues, 0.0))) - 1.0
        true = np.maximum(1.0 - share / signal**2, 0.0) / (1.0 + share / signal)   # of a vector's square
        squares = signal * (first.vectors**2 - (1.0 - true) / len(self.mean)) / self.metric[:, None] ** 2
        squares = np.append(squares, (self.mean**2 - 1.0 / (self.n * self.metric**2))[:, None], axis=1)
        by_shell = np.stack([np.bincount(layout.shell_of_component, column) for column in squares.T], axis=1)
        return np.maximum(by_shell, 0.0).sum(axis=1) / layout.count


def mean_image(particles, quanta, *, comm):
    """(μ float64[D], β float64[R], Totals of one node): the symmetric state. Collective.

    Of the particles that are learnt from; β is the noise precision if all of them were the mean.
    """
    totals = Totals.zeros(1, 1, particles.layout)
    for block in particles.blocks:
        learnt = (~particles.held_out[block]).astype(np.float64)
        add_rounded((learnt @ particles.transformed[block])[None], quanta.data, totals.data)
        add_rounded((learnt @ particles.ctf2[block])[None], quanta.ctf2, totals.ctf2)
        totals.power += to_quanta(learnt @ particles.power[block], quanta.power)
        totals.count += learnt.sum()
    totals = totals.reduced(comm=comm)
    mean = totals.data / np.maximum(totals.ctf2[:, particles.layout.group], 1e-30)
    return mean[0], noise_precision(totals, mean, particles.layout, 1), totals


def principal_components(particles, quanta, q, *, comm, seed=0, tolerance=SETTLED):
    """(Components: the q leading ones of the particles of all ranks, β float64[R] about the mean). Collective."""
    mean, beta, totals = mean_image(particles, quanta, comm=comm)
    ctf2, n = totals.ctf2[0, particles.layout.group], totals.count[0]
    precision = beta[particles.layout.shell_of_component]
    scale = np.sqrt(precision / np.maximum(ctf2, 1e-30))
    q = min(q, len(mean))
    columns = min(q + OVERSAMPLING, len(mean))
    product, before = np.random.default_rng([seed, 0]).normal(size=(len(mean), columns)), np.zeros(columns)
    for _ in range(MOST_PASSES):
        basis = np.linalg.qr(product)[0]
        product = _covariance_times(particles, mean, scale, basis, quanta, comm=comm)
        eigenvalues, rotation = np.linalg.eigh(basis.T @ product)
        eigenvalues, rotation = eigenvalues[::-1], rotation[:, ::-1]
        product = product @ rotation
        if np.all(np.abs(eigenvalues[:q] - before[:q]) <= tolerance * eigenvalues[:q]):
            break
        before = eigenvalues
    vectors = (basis @ rotation)[:, :q]
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(q)] < 0, -1.0, 1.0)
    degrees = float(particles.layout.degrees.sum())
    return Components(mean, vectors, eigenvalues[:q], np.sqrt(precision * ctf2 / n), float(n), degrees), beta


def _covariance_times(particles, mean, scale, basis, quanta, *, comm):
    """(scale Σ x xᵀ scale) @ basis, float64[D, p], over all ranks."""
    dtype = particles.transformed.dtype
    layout, total = particles.layout, np.zeros(basis.shape)
    right, mean = (scale[:, None] * basis).astype(dtype), mean.astype(dtype)
    bound = np.full(basis.shape[1], _covariance_quantum(particles, mean, scale, quanta))
    for block in particles.blocks:
        centred = particles.transformed[block] - particles.ctf2[block][:, layout.group] * mean
        centred[particles.held_out[block]] = 0
        add_rounded((centred.T @ (centred @ right)) * scale[:, None].astype(dtype), bound, total)
    return sum_over_ranks(total, comm=comm)


def _covariance_quantum(particles, mean, scale, quanta):
    """Quantum of the sums above, from bounds that all ranks share: |x| ≤ peak + C²|μ| in every component."""
    layout, n = particles.layout, particles.n_total
    peak = (quanta.data + quanta.ctf2[layout.group] * np.abs(mean)) * 2.0**52 / n
    length2 = float(np.sum((peak * scale) ** 2))
    return quantum(n * length2)
