"""The E step: posterior probabilities of (class, angle, shift) for each particle of a block, and the sums the M step
needs.

A block is a fixed part of the data, so the arithmetic inside a block, and hence every bit of its sums, does not
depend on the number of ranks or threads. A coarse level decides which classes are looked at on the fine one. There the
lines (class, shift) whose best score is not far below the particle's best are written out; when all have been seen
their sum is the likelihood, and the smallest set of them that holds nearly all of it is averaged.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.phases import PhaseClock
from vitrea.engine.scoring import Particles, Scorer, Templates, ctf_terms, pieces
from vitrea.engine.search import Shifter
from vitrea.kernels.angles import keep_lines, log_sum_lines
from vitrea.kernels.fourier import LinesToHarmonics
from vitrea.kernels.harmonic import accumulate_lines, refine_pose
from vitrea.kernels.posterior import (
    SIGNIFICANCE_BINS,
    significant_poses,
    smallest_line_sets,
    smallest_sets,
    sum_lines,
    weigh_lines,
)

LINES = 128            # lines of weights transformed at once
SCORE_BUDGET = 2**26   # float32 scores that may be kept at once, a thread: 256 MB, only taken if so many matter
LINES_LOST = 0.1       # the weight that lines may lose, of what the search may lose
LINES_KEPT = 0.25      # share of the lines that is expected to matter at most; fewer particles are taken if more do
KEPT = np.dtype([("row", np.int32), ("column", np.int32), ("peak", np.float32)])


@dataclass(frozen=True)
class Search:
    """What all particles of an iteration share: fine templates, coarse ones (or None for a single level), temperature,
    whether the best poses are refined below the grid, which only those that are written need, and whether the posterior
    of the classes is kept by particle."""

    fine: Templates
    coarse: Templates | None
    adaptive_fraction: float
    temperature: float = 1.0
    refined: bool = True
    by_class: bool = False


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


class Workspace:
    """Plans and buffers of one thread for one search."""

    def __init__(self, search):
        level, n_classes = search.fine.level, search.fine.n_classes
        self.fine = Scorer(search.fine)
        self.coarse = Scorer(search.coarse) if search.coarse else None
        self.lines = KeptLines(max(SCORE_BUDGET // level.n_angles, n_classes * level.n_shifts), level.n_angles)
        self.shifter = Shifter(level)
        self.weights = LinesToHarmonics(LINES, level.n_angles)
        # the angles are ψ_j = 2π(j + ½)/n
        self.half_step = np.exp(-1j * np.pi / level.n_angles * np.arange(level.n_angles // 2 + 1)).astype(np.complex64)
        self.sums = np.zeros((n_classes * level.n_shifts, level.grid.size), dtype=np.complex64)
        self.touched = np.zeros(n_classes * level.n_shifts, dtype=bool)
        self.by_class = None   # float64[n, K] of the last block, where a search asks for it
        self.clock = PhaseClock()


class KeptLines:
    """Lines that may matter to some particles: scores float32[count, n_angles] and about float32[count] of KEPT.

    The memory is only taken when it is written to.
    """

    def __init__(self, capacity, n_angles):
        self.capacity = capacity
        self._scores = np.empty((capacity, n_angles), dtype=np.float32)
        self._about = np.empty(capacity, dtype=KEPT)
        self._scratch = np.zeros(n_angles, dtype=np.float32)
        self.count = 0

    @property
    def scores(self):
        return self._scores[:self.count]

    @property
    def about(self):
        return self._about[:self.count]

    def keep(self, scorer, rows, columns, first, overall):
        """Take from the scorer's tile of particles `rows` the lines not far below `overall` float32, which is updated.

        first: column of all classes and shifts at which the `columns` of the tile begin. False if they do not fit.
        """
        self.count = keep_lines(scorer.folded, rows, columns, first, overall, scorer.peak, self._scores, self._about,
                                self.count)
        return self.count >= 0

    def sums(self, best):
        """float64[count]: Σ exp(score − best of its particle)."""
        out = np.empty(self.count)
        sum_lines(self.scores, self.about, best, self._scratch, out)
        return out


def expect(particles, search, work):
    """The E step over one block: (Poses[n], BlockSums)."""
    poses = Poses.empty(len(particles))
    work.clock.start()
    active = _active_classes(particles, search, work)
    work.clock.end("coarse")
    work.touched[:] = False
    work.by_class = np.zeros(active.shape) if search.by_class else None
    terms = ctf_terms(particles, search.fine, search.temperature)
    gathered = _Gathered.sums_of(search.fine, particles)
    start, most = 0, len(particles)
    while start < len(particles):
        where = slice(start, start + _how_many(active[start:start + most], search.fine.level, work.lines))
        chunk = _Chunk(particles, where, active[where], terms[:, where])
        if _expect_chunk(chunk, search, work, poses, gathered):
            start = where.stop
        else:
            most = max(1, len(chunk) // 2)
    sums = _block_sums(search.fine, work, gathered)
    work.clock.end("accumulate")
    return poses, sums


def _active_classes(particles, search, work):
    """bool[n, K]: the smallest set of classes holding the adaptive fraction of each particle's coarse posterior."""
    if search.coarse is None:
        return np.ones((len(particles), search.fine.n_classes), dtype=bool)
    evidence = coarse_evidence(particles, search, work)
    active = np.zeros(evidence.shape, dtype=bool)
    smallest_sets(evidence, search.adaptive_fraction, active)
    return active


def coarse_evidence(particles, search, work):
    """float64[n, K]: log Σ over poses of the coarse posterior, up to a constant of the particle."""
    templates, scorer = search.coarse, work.coarse
    terms = ctf_terms(particles, templates, search.temperature)
    evidence = np.empty((len(particles), templates.n_classes))
    overall = np.full(len(particles), -np.inf, dtype=np.float32)
    scratch = np.empty((2, templates.level.n_angles), dtype=np.float32)
    for piece in pieces(len(particles), scorer.images_a_product):
        scorer.gather(particles, np.arange(piece.start, piece.stop), search.temperature)
        for number, group in enumerate(templates.groups):
            for tile in scorer.tiles(number, terms[group, piece]):
                where = slice(piece.start + tile.start, piece.start + tile.stop)
                log_sum_lines(scorer.folded, templates.level.n_shifts, overall[where], scorer.peak, scratch,
                              evidence[where, group])
    return evidence


def _how_many(active, level, lines):
    """How many of the next particles are worth a try: their lines would fit if LINES_KEPT of them had to be kept."""
    held = np.cumsum(active.sum(axis=1) * level.n_shifts)
    return max(1, int(np.searchsorted(held, lines.capacity / LINES_KEPT, side="right")))


@dataclass
class _Chunk:
    """A run of particles, the classes bool[n, K] each of them is compared with, and CTF terms complex64[K, n, J]."""

    particles: Particles
    where: slice
    active: np.ndarray
    terms: np.ndarray

    def __len__(self):
        return len(self.active)

    def tasks(self, groups):
        """Yield (numbers of groups, rows int64[n] of the particles that are scored against them)."""
        if self.active.all():
            yield range(len(groups)), np.arange(len(self))
            return
        for number, group in enumerate(groups):
            yield [number], np.flatnonzero(self.active[:, group].any(axis=1))


@dataclass
class _Gathered:
    """Sums of a block while its chunks are gone through."""

    ctf2: np.ndarray
    class_weight: np.ndarray
    shift2: float = 0.0

    @classmethod
    def sums_of(cls, templates, particles):
        shape = (templates.n_classes, particles.ctf2.shape[1], templates.level.grid.n_rings)
        return cls(np.zeros(shape, dtype=np.complex128), np.zeros(templates.n_classes))


@dataclass
class _Posterior:
    """Which lines of a chunk are averaged, int64[lines], and the weight of every kept line float64; by particle: best
    score float32, log of all weight and of the weight averaged float64, and the line of the best pose int64."""

    lines: np.ndarray
    sums: np.ndarray
    best: np.ndarray
    log_total: np.ndarray
    log_held: np.ndarray
    best_line: np.ndarray


def _expect_chunk(chunk, search, work, poses, gathered):
    """Add a chunk to `poses` and `gathered`; False, with nothing added, if its lines did not fit."""
    best = _score(chunk, search, work)
    work.clock.end("score")
    if best is None:
        return False
    posterior = _normalise(work.lines, best, 1.0 - LINES_LOST * (1.0 - search.adaptive_fraction))
    images = chunk.particles.table.take(chunk.particles.rows[chunk.where], search.fine.level.grid,
                                        chunk.particles.ring_weight, chunk.particles.scale[chunk.where])
    _record_best(chunk, search, images, work.lines, posterior, poses)
    if work.by_class is not None:
        work.by_class[chunk.where] = _of_classes(chunk, search, work.lines, posterior)
    work.clock.end("posterior")
    _weigh(chunk, search, work, images, posterior, poses, gathered)
    work.clock.end("accumulate")
    return True


def _score(chunk, search, work):
    """Fill work.lines with the lines that may matter: the best score of each particle, float32[n], or None if full."""
    templates, scorer, lines = search.fine, work.fine, work.lines
    n_shifts = templates.level.n_shifts
    best = np.full(len(chunk), -np.inf, dtype=np.float32)
    lines.count = 0
    for numbers, rows in chunk.tasks(templates.groups):
        for piece in pieces(len(rows), scorer.images_a_product):
            scorer.gather(chunk.particles, chunk.where.start + rows[piece], search.temperature)
            for number in numbers:
                group = templates.groups[number]
                columns, first = (group.stop - group.start) * n_shifts, group.start * n_shifts
                for tile in scorer.tiles(number, chunk.terms[group][:, rows[piece]]):
                    if not lines.keep(scorer, rows[piece][tile], columns, first, best):
                        return None
    return best


def _normalise(lines, best, fraction):
    """The posterior of a chunk over its kept lines: _Posterior."""
    n, sums = len(best), lines.sums(best)
    chosen, total, held = np.zeros(lines.count, dtype=bool), np.zeros(n), np.zeros(n)
    best_line = np.zeros(n, dtype=np.int64)
    smallest_line_sets(lines.about, sums, fraction, chosen, total, held, best_line)
    return _Posterior(np.flatnonzero(chosen), sums, best, best + np.log(total), best + np.log(held), best_line)


def _of_classes(chunk, search, lines, posterior):
    """float64[n, K]: posterior probability of every class, summed over angles and shifts, of the chunk's particles."""
    n_classes = chunk.active.shape[1]
    pair = lines.about["row"].astype(np.int64) * n_classes + lines.about["column"] // search.fine.level.n_shifts
    weight = np.bincount(pair, weights=posterior.sums, minlength=len(chunk) * n_classes).reshape(len(chunk), -1)
    return weight / weight.sum(axis=1, keepdims=True)


def _record_best(chunk, search, images, lines, posterior, poses):
    """Write the best poses of the chunk's particles; images complex64[n, size], weighted."""
    level = search.fine.level
    classes, shifts = np.divmod(lines.about["column"][posterior.best_line], level.n_shifts)
    angles = lines.scores[posterior.best_line].argmax(axis=1)
    refined = _refined(chunk, search, images, classes, shifts, angles) if search.refined else np.zeros((len(chunk), 3))
    poses.class_number[chunk.where] = classes
    poses.psi[chunk.where] = 2.0 * np.pi / level.n_angles * (angles + 0.5 + refined[:, 0])
    poses.shift[chunk.where] = level.shifts[shifts] + level.step * refined[:, 1:]
    poses.pmax[chunk.where] = np.exp(posterior.best - posterior.log_total)
    poses.log_likelihood[chunk.where] = posterior.log_total


def _refined(chunk, search, images, classes, shifts, angles):
    """float64[n, 3]: (Δangle, Δy, Δx) in steps of the grid from the best poses on it."""
    templates, level = search.fine, search.fine.level
    images = images / np.float32(search.temperature)   # as the scores have it
    out = np.empty((len(chunk), 3))
    for row in np.argsort(classes, kind="stable"):   # a class after the other: its templates stay in the cache
        k = classes[row]
        out[row] = refine_pose(images[row], *templates.of_class(k), level.grid.offset, chunk.terms[k, row],
                               templates.log_prior[k], level.neighbours, level.n_angles, shifts[row], angles[row])
    return out


def _weigh(chunk, search, work, images, posterior, poses, gathered):
    """Turn the scores of the chosen lines into weights and add the weighted, turned-back images to the sums."""
    level, particles, lines = search.fine.level, chunk.particles, posterior.lines
    row, target = (work.lines.about[name][lines].astype(np.int64) for name in ("row", "column"))
    work.touched[target] = True
    histogram, expected = np.zeros((len(chunk), SIGNIFICANCE_BINS, 2)), np.zeros(len(chunk))
    line_harmonics = np.zeros((len(lines), particles.ctf2.shape[1]), dtype=np.complex64)
    resolved = min(line_harmonics.shape[1], (level.n_angles + 2) // 4)
    for first in range(0, len(lines), LINES):
        part = slice(first, min(first + LINES, len(lines)))
        count = part.stop - part.start
        weigh_lines(work.lines.scores, posterior.log_held, lines[part], row[part], work.weights.values, histogram,
                    expected)
        work.weights.execute()
        harmonics = work.weights.harmonics[:count]
        harmonics *= work.half_step
        accumulate_lines(harmonics, count, row[part], target[part], level.grid.offset, images, work.sums)
        line_harmonics[part, :resolved] = harmonics[:, 0:2 * resolved:2]
    goal = search.adaptive_fraction * np.exp(posterior.log_total - posterior.log_held)
    poses.n_significant[chunk.where] = significant_poses(histogram, goal)
    weight = line_harmonics[:, 0].real.astype(np.float64)
    prior = np.bincount(row, weights=weight * search.fine.log_prior.reshape(-1)[target], minlength=len(chunk))
    poses.expected_score[chunk.where] = expected - prior
    gathered.shift2 += float(weight @ np.sum(level.shifts**2, axis=1)[target % level.n_shifts])
    _gather_weights(chunk, level, row, target, line_harmonics, gathered)


def _gather_weights(chunk, level, row, target, line_harmonics, gathered):
    """Class weights and Σ w C² from the transforms of the weights, complex64[lines, J], at harmonics 0, 2, …"""
    n, n_classes, rings = len(chunk), chunk.active.shape[1], level.grid.n_rings
    ctf2 = chunk.particles.ctf2[chunk.where, :, :rings] * chunk.particles.ring_weight[:rings]
    pair = (target // level.n_shifts) * n + row
    for j, harmonic in enumerate(line_harmonics.T):
        weights = np.bincount(pair, weights=harmonic.real, minlength=n_classes * n) \
            - 1j * np.bincount(pair, weights=harmonic.imag, minlength=n_classes * n)
        weights = weights.reshape(n_classes, n)
        gathered.ctf2[:, j] += weights @ ctf2[:, j]
        if j == 0:
            gathered.class_weight += weights.real.sum(axis=1)


def _block_sums(templates, work, gathered):
    """Shift the sums back, add over shifts, and leave the workspace clean."""
    level = templates.level
    n_classes, n_shifts = templates.n_classes, level.n_shifts
    data = np.zeros((n_classes, level.grid.size), dtype=np.complex64)
    for k in range(n_classes):
        which = np.flatnonzero(work.touched[k * n_shifts:(k + 1) * n_shifts])
        if len(which):
            data[k] = work.shifter.unshift(work.sums[k * n_shifts + which], which)
    work.sums[work.touched] = 0
    return BlockSums(data, gathered.ctf2, gathered.class_weight, gathered.shift2)
