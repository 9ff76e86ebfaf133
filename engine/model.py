"""The model of classify2d, the sums over particles that determine it, and the M step.

X_i = C_i · T_t R_ψ A_k + noise; noise of variance σ²_g(r) per real component by optics group and ring, a Gaussian
prior of power τ²_k(r) on the references, priors on classes and shifts (regularised likelihood: Scheres 2012, J. Mol.
Biol. 415, 406–418). The M step is

    A_k = Σ w (C/σ²) R_−ψ T_−t X  ÷  [Σ w C²/σ² + 1/(T τ²_k)],

a division at every point of the polar grid, then the circular mask.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.kernels.exact import quantum, to_quanta
from vitrea.kernels.fourier import RingTransform
from vitrea.kernels.mask import apply_harmonic_disc
from vitrea.kernels.polar import rings_to_table, table_to_rings

LEAST_SIGMA_OFFSET = 0.7   # px: a shift prior narrower than the grid would freeze the shifts
SCALE_RANGE = (0.5, 2.0)   # brightness factors of particles stay within
LARGEST_LOG_LIKELIHOOD = 50.0   # nats a pixel: bound of one particle's log-likelihood, for exact sums


@dataclass(frozen=True)
class Model:
    """Parameters. references complex64[K, size] on the full grid, zero beyond `rings`; sigma2 float64[G, R] per real
    component; tau2 float64[K, R]; ssnr float64[K, R]; class_prior float64[K]; sigma_offset [px]; rings to use next,
    rings_before: those the references were made with."""

    references: np.ndarray
    sigma2: np.ndarray
    tau2: np.ndarray
    ssnr: np.ndarray
    class_prior: np.ndarray
    sigma_offset: float
    rings: int
    rings_before: int = 0

    @property
    def n_classes(self):
        return len(self.references)

    def ring_weight(self, grid):
        """float64[G, R]: n_r/(2σ²), the weight of ring r in scores and sums."""
        return grid.pixels_on_ring / (2.0 * self.sigma2)


@dataclass
class Totals:
    """Sums over all particles of an iteration, on a grid of the rings in use; every term a multiple of its quantum.

    data complex128[K, size]; ctf2 complex128[K, J, R']; class_weight float64[K]; residual float64[G, R']: Σ −2 Re
    X·CA + |CA|², power float64[G, R]: Σ s²|X|², count float64[G]; assigned float64[K]: particles whose best pose, in
    this pass or the last that saw them, is in each class; scalars float64 as named in SCALARS. All that ranks have to
    tell one another in an iteration is in here, so that one message carries it.
    """

    data: np.ndarray
    ctf2: np.ndarray
    class_weight: np.ndarray
    residual: np.ndarray
    power: np.ndarray
    count: np.ndarray
    assigned: np.ndarray
    scalars: np.ndarray

    SCALARS = ("shift2", "log_likelihood", "pmax", "changed", "met", "scale", "particles", "stopping", "save")

    def __getattr__(self, name):
        if name in Totals.SCALARS:
            return float(self.scalars[Totals.SCALARS.index(name)])
        raise AttributeError(name)

    @classmethod
    def zeros(cls, n_classes, n_groups, n_terms, grid, n_rings):
        return cls(
            np.zeros((n_classes, grid.size), np.complex128),
            np.zeros((n_classes, n_terms, grid.n_rings), np.complex128),
            np.zeros(n_classes),
            np.zeros((n_groups, grid.n_rings)),
            np.zeros((n_groups, n_rings)),
            np.zeros(n_groups),
            np.zeros(n_classes),
            np.zeros(len(cls.SCALARS)),
        )

    def arrays(self):
        return (self.data, self.ctf2, self.class_weight, self.residual, self.power, self.count, self.assigned,
                self.scalars)

    def pack(self):
        """All sums as one float64 vector: one message."""
        return np.concatenate([a.view(np.float64).ravel() for a in self.arrays()])

    def unpack(self, vector):
        """Take the sums from a vector that `pack` laid out."""
        start = 0
        for array in self.arrays():
            flat = array.view(np.float64).reshape(-1)
            flat[:] = vector[start:start + flat.size]
            start += flat.size
        return self

    def regrid(self, source, target):
        """The same sums on the rings of another grid: outer rings dropped or zero."""
        rings = min(source.n_rings, target.n_rings)
        if target.n_rings >= source.n_rings:
            data = target.embed(self.data, source)
        else:
            data = source.crop(self.data, target)
        ctf2 = np.zeros((*self.ctf2.shape[:2], target.n_rings), dtype=np.complex128)
        ctf2[..., :rings] = self.ctf2[..., :rings]
        residual = np.zeros((len(self.residual), target.n_rings))
        residual[:, :rings] = self.residual[:, :rings]
        return replace(self, data=data, ctf2=ctf2, residual=residual)

    def scaled(self, factor):
        """All sums multiplied by a number."""
        return Totals(*(factor * array for array in self.arrays()))

    def split(self, changes, references, grid):
        """The sums of classes after re-seeding, {new class: old class}: half of the old one's weight, and data that
        give the new references complex64[K, size] back. Otherwise the memory of a running average would undo it."""
        data, ctf2, weight = self.data.copy(), self.ctf2.copy(), self.class_weight.copy()
        for new, old in changes.items():
            data[old], ctf2[old], weight[old] = 0.5 * data[old], 0.5 * ctf2[old], 0.5 * weight[old]
            ctf2[new], weight[new] = 0.0, weight[old]
            ctf2[new, 0] = ctf2[old, 0]
            data[new] = references[new] * ctf2[new, 0][grid.ring_of]
        return replace(self, data=data, ctf2=ctf2, class_weight=weight)

    def blend(self, other, rate):
        """(1 − rate)·self + rate·other: the running average of online EM (Cappé & Moulines 2009)."""
        mixed = [(1.0 - rate) * a + rate * b for a, b in zip(self.arrays(), other.arrays())]
        return Totals(*mixed)


@dataclass(frozen=True)
class Settings:
    """What the M step is told: T, the mask as operators on harmonics, and whether τ² is pooled over classes."""

    tau2_fudge: float
    operators: list
    pooled: bool = False


@dataclass(frozen=True)
class Quanta:
    """The rounding that makes sums exact (kernels/exact.py), from bounds that are the same on every rank."""

    data: np.ndarray      # float64[size]
    ctf2: np.ndarray      # float64[R']
    one: float            # for sums of weights
    shift2: float
    residual: float
    power: np.ndarray     # float64[R]
    log_likelihood: float


def make_quanta(n, grid, weight, peak, model, geometry, offset_range):
    """n: particles; grid: rings in use; weight float64[R] the largest ring weight of any group; peak float64[R]:
    largest |coefficient| of any particle on each ring."""
    rings, largest = grid.n_rings, SCALE_RANGE[1]
    per_ring = n * largest * weight[:rings] * np.maximum(peak[:rings], 1e-30)
    size = grid.n_harmonics * 2.0
    reference = float(np.abs(model.references).max(initial=1e-30)) * size
    residual = n * (2.0 * largest * float(peak.max()) * reference + reference**2)
    return Quanta(data=quantum(per_ring)[grid.ring_of], ctf2=quantum(n * weight[:rings]), one=float(quantum(2.0 * n)),
                  shift2=float(quantum(n * (offset_range + 1.0) ** 2)), residual=float(quantum(residual)),
                  power=quantum(n * (largest * size * np.maximum(peak, 1e-30)) ** 2),
                  log_likelihood=float(quantum(n * LARGEST_LOG_LIKELIHOOD * geometry.box_size**2)))


def add_block(totals, quanta, sums, block_statistics):
    """Add the sums of one block, each term rounded to its quantum, so that the order of blocks does not matter."""
    group, statistics = block_statistics.group, block_statistics
    totals.data += to_quanta(sums.data.real, quanta.data) + 1j * to_quanta(sums.data.imag, quanta.data)
    totals.ctf2 += to_quanta(sums.ctf2.real, quanta.ctf2) + 1j * to_quanta(sums.ctf2.imag, quanta.ctf2)
    totals.class_weight += to_quanta(sums.class_weight, quanta.one)
    totals.residual[group] += to_quanta(statistics.residual, quanta.residual)
    totals.power[group] += to_quanta(statistics.power, quanta.power)
    totals.count[group] += statistics.particles
    totals.scalars += [float(to_quanta(sums.shift2, quanta.shift2)),
                       float(to_quanta(statistics.log_likelihood, quanta.log_likelihood)),
                       float(to_quanta(statistics.pmax, quanta.one)), statistics.changed, statistics.met,
                       float(to_quanta(statistics.scale, quanta.one)), statistics.particles, 0.0, 0.0]


@dataclass(frozen=True)
class BlockStatistics:
    """What a block adds besides the sums of the E step: float64[R'] residual, float64[R] power, and scalars; changed:
    particles whose class is not that of the pass before, or that had none; met: particles that had one."""

    group: int
    residual: np.ndarray
    power: np.ndarray
    log_likelihood: float
    pmax: float
    changed: float
    met: float
    scale: float
    particles: int


def block_residual(sums, templates, references, grid, weight):
    """float64[R']: Σ_i Σ_poses w ⟨−2 Re conj(X) C A + |C A|²⟩ on each ring, from sums that carry `weight`
    float64[R']."""
    cross = np.real(np.conj(references.astype(np.complex128)) * sums.data) * grid.multiplicity
    by_ring = np.zeros(grid.n_rings)
    np.add.at(by_ring, grid.ring_of, cross.sum(axis=0))
    power = templates.power.transpose(2, 0, 1)
    multiplicity = np.where(np.arange(power.shape[1]) == 0, 1.0, 2.0)[None, :, None]
    square = np.sum(np.real(sums.ctf2 * np.conj(power)) * multiplicity, axis=(0, 1))
    return (square - 2.0 * by_ring) / weight


def solve_references(totals, grid, prior):
    """A = data ÷ (Σ w C² + prior) at every point of the polar grid: complex64[K, size].

    prior float64[K, R'] in the units of the sums, n_r/(2Tτ²).
    """
    if totals.ctf2.shape[1] == 1:
        denominator = totals.ctf2[:, 0].real + prior
        return (totals.data / denominator[:, grid.ring_of]).astype(np.complex64)
    rings = RingTransform(len(prior), grid.n_rings, grid.n_angles)
    rings.array[:] = 0
    for j in range(min(totals.ctf2.shape[1], (grid.n_angles + 2) // 4)):  # few rings need, and resolve, only the first
        rings.array[:, :, 2 * j] = totals.ctf2[:, j]
        if j:
            rings.array[:, :, -2 * j] = np.conj(totals.ctf2[:, j])
    rings.to_angles()
    # astigmatic weights can dip between few particles; the isotropic part bounds them from below
    floor = 0.01 * totals.ctf2[:, 0].real[:, :, None]
    denominator = np.maximum(rings.array.real, floor) + prior[:, :, None]
    table_to_rings(totals.data.astype(np.complex64), grid.first_ring, grid.offset, rings.array)
    rings.to_angles()
    rings.array /= denominator.astype(np.float32)
    rings.to_harmonics()
    out = np.empty(totals.data.shape, dtype=np.complex64)
    rings_to_table(rings.array, grid.first_ring, grid.offset, out)
    return out


def restrict(operators, grid):
    """Mask operators of the full grid for a grid of fewer rings."""
    return [operator[:n, :n] for operator, n in zip(operators, np.diff(grid.offset))]


def maximise(model, totals, grid, geometry, settings):
    """The M step: a new Model from the totals on `grid`; see Settings."""
    tau2 = np.where(model.tau2[:, :grid.n_rings] > 0, model.tau2[:, :grid.n_rings], _unregularised_power(totals, grid))
    prior = grid.pixels_on_ring / (2.0 * settings.tau2_fudge * np.maximum(tau2, 1e-30))
    references = solve_references(totals, grid, prior)
    apply_harmonic_disc(grid, restrict(settings.operators, grid), references)
    references[totals.class_weight <= 0] = 0
    ssnr = np.zeros_like(model.ssnr)
    ssnr[:, :grid.n_rings] = totals.ctf2[:, 0].real / prior
    return replace(
        model, references=geometry.grid.embed(references, grid), sigma2=noise_variance(model, totals, grid, geometry),
        tau2=signal_power(references, totals.class_weight, grid, geometry, settings.pooled), ssnr=ssnr,
        class_prior=totals.class_weight / totals.class_weight.sum(),
        sigma_offset=max(np.sqrt(totals.shift2 / (2.0 * totals.particles)), LEAST_SIGMA_OFFSET))


def _unregularised_power(totals, grid):
    """½ ring mean of |Σ w C X / Σ w C²|²: the first τ² of rings that come into use, noise included; EM then shrinks
    it."""
    weight = totals.ctf2[:, 0].real
    return 0.5 * grid.ring_power(totals.data) / np.maximum(weight, 1e-30) ** 2


def noise_variance(model, totals, grid, geometry):
    """σ²_g(r) per real component: mean squared residual on rings in use, image power beyond; the mask's share taken
    out."""
    squares = totals.power.copy()
    squares[:, :grid.n_rings] += totals.residual
    count = np.maximum(totals.count, 1.0)[:, None]
    fresh = squares / (2.0 * geometry.mask_fraction * count)
    floor = 1e-3 * totals.power / (2.0 * geometry.mask_fraction * count) + 1e-30
    return np.where(totals.count[:, None] > 0, np.maximum(fresh, floor), model.sigma2)


def signal_power(references, class_weight, grid, geometry, pooled):
    """τ²_k(r) = ½ ring mean of |A_k|² per real component; averaged over classes by weight when `pooled`.

    The references are masked, and all their power comes from inside the mask. The filter acts there, where the signal
    is stronger by the mask's share of the box than the ring says; so the ring's power is divided by that share.
    """
    tau2 = np.zeros((len(references), geometry.grid.n_rings))
    tau2[:, :grid.n_rings] = 0.5 / geometry.reference_fraction * grid.ring_power(references)
    if pooled:
        tau2[:] = (class_weight / class_weight.sum()) @ tau2
    return tau2
