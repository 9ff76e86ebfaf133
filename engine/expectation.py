"""The E step: posterior probabilities of (class, angle, shift) for each particle of a block, and the sums the M step
needs.

A block is a fixed part of the data, so the arithmetic inside a block, and hence every bit of its sums, does not
depend on the number of ranks or threads. One routine scores a class at a level of fineness; the coarse level decides
which classes are looked at again at the fine one.
"""
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vitrea.engine.search import Level, Shifter, power_harmonics
from vitrea.kernels.fourier import LinesToAngles, LinesToHarmonics
from vitrea.kernels.harmonic import (
    accumulate_lines,
    harmonic_product,
    pack_lines,
)
from vitrea.kernels.marginal import (
    add_priors,
    harmonic_order,
    line_peaks,
    log_sum_lines,
    quarter_matrices,
    quarters,
    real_product,
    real_templates,
)
from vitrea.kernels.packed import PackedTable, gather_by_harmonic, gather_real
from vitrea.kernels.posterior import (
    NEGLIGIBLE,
    SIGNIFICANCE_BINS,
    add_lines,
    best_poses,
    significant_poses,
    smallest_sets,
    weigh_lines,
)

LINES = 128  # lines of angles transformed at once: with their scores they stay in a core's L2 cache
PRODUCT_LINES = 1344  # lines of one matrix product
MARGINAL_BATCH = 128  # particles whose coarse evidence is found at once
CLASSES_TOGETHER = 2  # classes of one coarse product: BLAS is half as fast again as with one
SCORE_BUDGET = 2**25  # float32 scores kept between scoring and weighing, a thread (128 MB)


@dataclass(frozen=True)
class Templates:
    """References of one iteration at one level.

    conjugated complex64[K, size, T]; power complex64[J, R, K]: harmonics 0, 2, … of |A|²; log_prior float32[K, T]: of
    class and shift.
    """

    level: Level
    conjugated: np.ndarray
    power: np.ndarray
    log_prior: np.ndarray

    @cached_property
    def real(self):
        """The same templates as real matrices, CLASSES_TOGETHER at a time, for a coarse level (kernels/marginal.py)."""
        groups = [self.conjugated[k:k + CLASSES_TOGETHER] for k in range(0, len(self.conjugated), CLASSES_TOGETHER)]
        return [real_templates(np.concatenate(group, axis=1), self.level.grid.offset) for group in groups]


def make_templates(level, references, class_prior, sigma_offset, n_terms):
    """Templates of references complex64[K, size]; class_prior float64[K]; sigma_offset [px]."""
    shifter = Shifter(level)
    conjugated = np.empty((len(references), level.grid.size, level.n_shifts), dtype=np.complex64)
    for k, reference in enumerate(references):
        conjugated[k] = shifter.templates(reference)
    log_shift = -0.5 * np.sum(level.shifts**2, axis=1) / sigma_offset**2
    log_shift -= np.log(np.exp(log_shift).sum()) + np.log(level.n_angles)
    with np.errstate(divide="ignore"):
        log_prior = np.log(class_prior)[:, None] + log_shift
    power = power_harmonics(level.grid, references, n_terms)
    return Templates(level, conjugated, power, np.maximum(log_prior, -1e30).astype(np.float32))


@dataclass(frozen=True)
class Search:
    """What all particles of an iteration share: fine templates, coarse ones (or None for a single level),
    temperature."""

    fine: Templates
    coarse: Templates | None
    adaptive_fraction: float
    temperature: float = 1.0


@dataclass
class Poses:
    """The best pose of each of n particles; arrays by particle.

    class_number int32, 0-based, −1 for none; psi float64 [radians]: angle of the image against its class; shift
    float64[n, 2] (y, x) [px], in the frame of the class; pmax, n_significant, log_likelihood float64 (log Σ exp
    score); expected_score float64: posterior mean of the score without its priors.
    """

    class_number: np.ndarray
    psi: np.ndarray
    shift: np.ndarray
    pmax: np.ndarray
    n_significant: np.ndarray
    log_likelihood: np.ndarray
    expected_score: np.ndarray

    @classmethod
    def empty(cls, n):
        return cls(np.full(n, -1, np.int32), np.zeros(n), np.zeros((n, 2)), *(np.zeros(n) for _ in range(4)))

    def put(self, where, poses):
        """Overwrite the entries `where` int64[m] by those of `poses` of m particles."""
        for name, values in vars(poses).items():
            getattr(self, name)[where] = values


@dataclass
class BlockSums:
    """Sums over the particles of a block: what the M step needs.

    data complex64[K, size]: Σ w R_−ψ T_−s (weight·C·X); ctf2 complex128[K, J, R]: harmonics of Σ w·weight·C²;
    class_weight float64[K]; shift2: Σ w |s|² [px²].
    """

    data: np.ndarray
    ctf2: np.ndarray
    class_weight: np.ndarray
    shift2: float = 0.0


@dataclass
class Particles:
    """The particles of a block as the E step sees them.

    table: coefficients of C·X, of which `rows` int64[n] are used; ctf2 complex64[n, J, R];
    ring_weight float64[R]: n_r/(2σ²); scale float32[n]: brightness factor.
    """

    table: PackedTable
    rows: np.ndarray
    ctf2: np.ndarray
    ring_weight: np.ndarray
    scale: np.ndarray

    def __len__(self):
        return len(self.rows)


class Workspace:
    """Plans and buffers of one thread for one search."""

    def __init__(self, search):
        self.scorer = _Scorer(search.fine)
        self.marginals = _Marginals(search.coarse) if search.coarse else None
        level = search.fine.level
        self.shifter = Shifter(level)
        self.weights = LinesToHarmonics(LINES, level.n_angles)
        n_classes = len(search.fine.conjugated)
        self.sums = np.zeros((n_classes * level.n_shifts, level.grid.size), dtype=np.complex64)
        self.touched = np.zeros(n_classes * level.n_shifts, dtype=bool)


class _Scorer:
    """Scores of one class against many particles, delivered line by line."""

    def __init__(self, templates):
        self.templates, level = templates, templates.level
        self.angles = LinesToAngles(LINES, level.n_angles)
        self.images_a_product = max(8, PRODUCT_LINES // level.n_shifts)
        lines = self.images_a_product * level.n_shifts
        self.product = np.zeros((level.grid.n_harmonics, lines), dtype=np.complex64)
        self.scratch = np.zeros(level.n_angles, dtype=np.float32)
        self.line_best = np.zeros(LINES, dtype=np.float32)
        self._images = np.zeros(0, dtype=np.complex64)

    def gather(self, particles, positions, temperature):
        """Coefficients of some of the particles, by harmonic: the left side of the products."""
        grid = self.templates.level.grid
        if self._images.size < len(positions) * grid.size:
            self._images = np.zeros(len(positions) * grid.size, dtype=np.complex64)
        particles.table.gather(gather_by_harmonic, particles.rows[positions], grid,
                               particles.ring_weight / temperature, particles.scale[positions], self._images)
        return self._images

    def lines(self, k, images, n, ctf_term):
        """Yield (first line, count) whose scores stand in `self.angles.values`; a line is image·T + shift."""
        level, templates = self.templates.level, self.templates
        shifts, step = level.n_shifts, self.images_a_product
        right = templates.conjugated[k].reshape(-1)
        for start in range(0, n, step):
            stop = min(start + step, n)
            harmonic_product(images, n, start, stop, right, shifts, level.grid.offset, self.product)
            total = (stop - start) * shifts
            for first in range(0, total, LINES):
                count = min(LINES, total - first)
                pack_lines(self.product, first, count, shifts, templates.log_prior[k], ctf_term[start:stop],
                           self.angles.harmonics)
                self.angles.execute()
                yield start * shifts + first, count


class _Marginals:
    """Log-sum-exp over all coarse poses of a class, many particles and a few classes at a time."""

    def __init__(self, templates):
        self._templates, level = templates, templates.level
        n_angles = level.n_angles
        n_rows = min(max(level.grid.n_harmonics, 2 * len(templates.power) - 1), n_angles // 2)
        self._order, self._matrices = harmonic_order(n_rows), quarter_matrices(n_angles, n_rows)
        lines = CLASSES_TOGETHER * level.n_shifts * MARGINAL_BATCH
        self._images = np.zeros(2 * MARGINAL_BATCH * level.grid.size, dtype=np.float32)
        self._product = np.zeros(2 * n_rows * lines, dtype=np.float32)
        self._parts = np.zeros((4, lines, n_angles // 4), dtype=np.float32)
        self._peak, self._best = np.zeros(lines, dtype=np.float32), np.zeros(MARGINAL_BATCH, dtype=np.float32)
        self._overall = np.zeros(MARGINAL_BATCH, dtype=np.float32)
        self._scratch = np.zeros((2, n_angles), dtype=np.float32)

    def gather(self, particles, part, temperature):
        """Take the particles `part` (a slice of at most MARGINAL_BATCH) as columns."""
        grid = self._templates.level.grid
        self._n = part.stop - part.start
        self._overall[:] = -np.inf
        particles.table.gather(gather_real, particles.rows[part], grid, particles.ring_weight / temperature,
                               particles.scale[part], self._images)

    def evidence(self, ctf_terms):
        """Yield (class, float64[n]): log Σ exp of its scores, or of the best alone where another class is far better.

        ctf_terms complex64[K, n, J].
        """
        level, n = self._templates.level, self._n
        for first, matrix in zip(range(0, len(ctf_terms), CLASSES_TOGETHER), self._templates.real):
            together = range(first, min(first + CLASSES_TOGETHER, len(ctf_terms)))
            shifts, lines = len(together) * level.n_shifts, level.n_shifts * n
            total, rows = shifts * n, len(self._order)
            product = self._product[:2 * rows * total].reshape(rows, 2, total)
            product[self._order[level.grid.n_harmonics:]] = 0
            real_product(matrix, shifts, self._images, n, level.grid.offset, self._order, product)
            for i, k in enumerate(together):
                part = product[:, :, i * lines:(i + 1) * lines]
                add_priors(self._templates.log_prior[k], ctf_terms[k], self._order, part)
            parts, peak = self._parts[:, :total], self._peak[:total]
            quarters(product, self._matrices, parts)
            line_peaks(parts, peak)
            for i, k in enumerate(together):
                yield k, self._log_sum(parts, peak, slice(i * lines, (i + 1) * lines))

    def _log_sum(self, parts, peak, lines):
        best = self._best[:self._n]
        total = log_sum_lines(parts[:, lines], peak[lines], self._overall[:self._n], best, self._scratch)
        return best + np.log(total)


def ctf_terms(particles, templates, temperature):
    """complex64[K, n, J]: harmonics 0, 2, … of −½ Σ_r w_r C²(r, θ) |A(r, θ − ψ)|² as a function of ψ."""
    grid = templates.level.grid
    weighted = particles.ctf2[:, :, :grid.n_rings] * (-0.5 / temperature * particles.ring_weight[:grid.n_rings])
    terms = np.einsum("njr,jrk->knj", weighted, np.conj(templates.power), optimize=True)
    return np.ascontiguousarray(terms.astype(np.complex64))


def expect(particles, search, work):
    """The E step over one block: (Poses[n], BlockSums)."""
    poses = Poses.empty(len(particles))
    active = _active_classes(particles, search, work)
    work.touched[:] = False
    terms = ctf_terms(particles, search.fine, search.temperature)
    gathered = _Gathered.sums_of(search.fine, particles)
    for chunk in _chunks(active, search.fine.level):
        _expect_chunk(_Chunk(particles, chunk, active[chunk], terms), search, work, poses, gathered)
    return poses, _block_sums(search.fine, work, gathered)


def _active_classes(particles, search, work):
    """bool[n, K]: the smallest set of classes holding the adaptive fraction of each particle's coarse posterior."""
    n_classes = len(search.fine.conjugated)
    if search.coarse is None:
        return np.ones((len(particles), n_classes), dtype=bool)
    evidence = coarse_evidence(particles, search, work)
    active = np.zeros(evidence.shape, dtype=bool)
    smallest_sets(evidence, search.adaptive_fraction, active)
    return active


def coarse_evidence(particles, search, work):
    """float64[n, K]: log Σ over poses of the coarse posterior, up to a constant of the particle."""
    terms = ctf_terms(particles, search.coarse, search.temperature)
    evidence = np.empty((len(particles), len(search.coarse.conjugated)))
    for start in range(0, len(particles), MARGINAL_BATCH):
        part = slice(start, min(start + MARGINAL_BATCH, len(particles)))
        work.marginals.gather(particles, part, search.temperature)
        for k, found in work.marginals.evidence(terms[:, part]):
            evidence[part, k] = found
    return evidence


def _chunks(active, level):
    """Cut a block into runs of particles whose fine scores fit into the budget."""
    size = active.sum(axis=1) * (level.n_shifts * level.n_angles)
    start, held = 0, 0
    for i, scores in enumerate(size):
        if held and held + scores > SCORE_BUDGET:
            yield slice(start, i)
            start, held = i, 0
        held += scores
    if start < len(size):
        yield slice(start, len(size))


@dataclass
class _Chunk:
    """A run of particles and their active (particle, class) pairs, ordered by class."""

    particles: Particles
    where: slice
    active: np.ndarray
    terms: np.ndarray
    pair_class: np.ndarray = field(init=False)
    pair_row: np.ndarray = field(init=False)

    def __post_init__(self):
        self.pair_class, self.pair_row = np.nonzero(self.active.T)

    def __len__(self):
        return len(self.active)

    def of_class(self, k):
        """(first pair, block positions of its particles)."""
        first, last = np.searchsorted(self.pair_class, [k, k + 1])
        return first, self.where.start + self.pair_row[first:last]


@dataclass
class _Gathered:
    """Sums of a block while its chunks are gone through."""

    ctf2: np.ndarray
    class_weight: np.ndarray
    shift2: float = 0.0

    @classmethod
    def sums_of(cls, templates, particles):
        n_classes = len(templates.conjugated)
        shape = (n_classes, particles.ctf2.shape[1], templates.level.grid.n_rings)
        return cls(np.zeros(shape, dtype=np.complex128), np.zeros(n_classes))


def _expect_chunk(chunk, search, work, poses, gathered):
    level = search.fine.level
    scores, line_best, evidence = _score_pairs(chunk, search, work)
    n = len(chunk)
    peak = np.full(n, -np.inf)
    np.maximum.at(peak, chunk.pair_row, evidence)
    total = np.zeros(n)
    np.add.at(total, chunk.pair_row, np.exp(evidence - peak[chunk.pair_row]))
    log_total = peak + np.log(total)
    pair_lines = line_best.reshape(-1, level.n_shifts)
    best = _record_best(chunk, level, scores, pair_lines, log_total, poses)
    lines = np.flatnonzero((pair_lines > (best - NEGLIGIBLE)[chunk.pair_row, None]).ravel())
    _weigh(chunk, search, work, scores, lines, log_total, poses, gathered)


def _score_pairs(chunk, search, work):
    """Scores float32[pairs·T, n_angles], line maxima float32[pairs·T] and log-sum-exp float64[pairs]."""
    level, scorer = search.fine.level, work.scorer
    n_pairs, n_shifts = len(chunk.pair_class), level.n_shifts
    scores = np.empty((n_pairs * n_shifts, level.n_angles), dtype=np.float32)
    line_best = np.empty(n_pairs * n_shifts, dtype=np.float32)
    best, total = np.full(n_pairs, -np.inf, dtype=np.float32), np.zeros(n_pairs)
    for k in range(chunk.active.shape[1]):
        pair, positions = chunk.of_class(k)
        if not len(positions):
            continue
        images = scorer.gather(chunk.particles, positions, search.temperature)
        for first, count in scorer.lines(k, images, len(positions), chunk.terms[k, positions]):
            line = pair * n_shifts + first
            owner = pair + np.arange(first, first + count) // n_shifts
            add_lines(scorer.angles.values, count, owner, best, total, scorer.scratch, line_best[line:line + count])
            scores[line:line + count] = scorer.angles.values[:count]
    return scores, line_best, best + np.log(total)


def _record_best(chunk, level, scores, pair_lines, log_total, poses):
    """Write the best poses of the chunk's particles; returns their scores float32[n]."""
    n = len(chunk)
    line, angle, refined = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros((n, 3))
    best = np.full(n, -np.inf, dtype=np.float32)
    best_poses(scores, pair_lines, chunk.pair_row, level.neighbours, best, line, angle, refined)
    pair, shift = np.divmod(line, level.n_shifts)
    poses.class_number[chunk.where] = chunk.pair_class[pair]
    poses.psi[chunk.where] = 2.0 * np.pi / level.n_angles * (angle + refined[:, 0])
    poses.shift[chunk.where] = level.shifts[shift] + level.step * refined[:, 1:]
    poses.pmax[chunk.where] = np.exp(best - log_total)
    poses.log_likelihood[chunk.where] = log_total
    return best


def _weigh(chunk, search, work, scores, lines, log_total, poses, gathered):
    """Turn the scores of `lines` into weights and add the weighted, turned-back images to the sums."""
    level, particles = search.fine.level, chunk.particles
    grid, n_shifts = level.grid, level.n_shifts
    positions = np.arange(chunk.where.start, chunk.where.stop)
    images = particles.table.take(particles.rows[positions], grid, particles.ring_weight, particles.scale[positions])
    pair, shift = np.divmod(lines, n_shifts)
    row, target = chunk.pair_row[pair], chunk.pair_class[pair] * n_shifts + shift
    work.touched[target] = True
    histogram = np.zeros((len(positions), SIGNIFICANCE_BINS, 2))
    expected = np.zeros(len(positions))
    line_harmonics = np.zeros((len(lines), particles.ctf2.shape[1]), dtype=np.complex64)
    resolved = min(line_harmonics.shape[1], (level.n_angles + 2) // 4)
    for first in range(0, len(lines), LINES):
        part = slice(first, min(first + LINES, len(lines)))
        count = part.stop - part.start
        weigh_lines(scores, log_total, lines[part], row[part], work.weights.values, histogram, expected)
        work.weights.execute()
        accumulate_lines(work.weights.harmonics, count, row[part], target[part], grid.offset, images, work.sums)
        line_harmonics[part, :resolved] = work.weights.harmonics[:count, 0:2 * resolved:2]
    poses.n_significant[chunk.where] = significant_poses(histogram, search.adaptive_fraction)
    weight = line_harmonics[:, 0].real.astype(np.float64)
    prior = np.bincount(row, weights=weight * search.fine.log_prior.reshape(-1)[target], minlength=len(positions))
    poses.expected_score[chunk.where] = expected - prior
    gathered.shift2 += float(weight @ np.sum(level.shifts**2, axis=1)[shift])
    _gather_weights(chunk, level, pair, line_harmonics, gathered)


def _gather_weights(chunk, level, pair, line_harmonics, gathered):
    """Class weights and Σ w C² from the transforms of the weights, complex64[lines, J], at harmonics 0, 2, …"""
    n, n_classes, n_pairs = len(chunk), chunk.active.shape[1], len(chunk.pair_class)
    rings = level.grid.n_rings
    ctf2 = chunk.particles.ctf2[chunk.where, :, :rings] * chunk.particles.ring_weight[:rings]
    for j, harmonic in enumerate(line_harmonics.T):
        weights = np.zeros((n_classes, n), dtype=np.complex128)
        weights[chunk.pair_class, chunk.pair_row] = np.bincount(pair, weights=harmonic.real, minlength=n_pairs) \
            - 1j * np.bincount(pair, weights=harmonic.imag, minlength=n_pairs)
        gathered.ctf2[:, j] += weights @ ctf2[:, j]
        if j == 0:
            gathered.class_weight += weights.real.sum(axis=1)


def _block_sums(templates, work, gathered):
    """Shift the sums back, add over shifts, and leave the workspace clean."""
    level = templates.level
    n_classes, n_shifts = len(templates.conjugated), level.n_shifts
    data = np.zeros((n_classes, level.grid.size), dtype=np.complex64)
    for k in range(n_classes):
        which = np.flatnonzero(work.touched[k * n_shifts:(k + 1) * n_shifts])
        if len(which):
            data[k] = work.shifter.unshift(work.sums[k * n_shifts + which], which)
    work.sums[work.touched] = 0
    return BlockSums(data, gathered.ctf2, gathered.class_weight, gathered.shift2)
