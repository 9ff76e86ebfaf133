"""Scores of particles against all shifts and angles of groups of classes, streamed in tiles that stay in the cache.

Everything between a particle's coefficients and its scores is a real matrix product: over rings (kernels/harmonic.py),
then over harmonics (kernels/angles.py). Products are made of many classes and particles at once, because BLAS is twice
as fast with large matrices as with small ones; the scores appear a tile at a time, a few particles against the classes
of one group, and are looked at before the next tile takes their place.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.search import Level, Shifter, power_harmonics
from vitrea.kernels.angles import add_priors, fold_lines, folded_matrices, harmonic_order
from vitrea.kernels.harmonic import real_templates, score_product
from vitrea.kernels.packed import PackedTable, gather_real

CLASSES_TOGETHER = 8        # at most, in one product
TILE_SCORES = 2**18        # float32 scores of a tile (1 MB)
PRODUCT_SIZE = 5 * 2**20    # float32 numbers of a product (20 MB): what a core may have of the L3 cache
LEAST_IMAGES, MOST_IMAGES = 16, 128   # of a product


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


@dataclass(frozen=True)
class Templates:
    """References of one iteration at one level.

    groups: slices of neighbouring classes that are scored together; matrices: float32[2·size, classes·T] of each group,
    as `real_templates`; power complex64[J, R, K]: harmonics 0, 2, … of |A|²; log_prior float32[K, T]: of class and
    shift.
    """

    level: Level
    groups: tuple
    matrices: tuple
    power: np.ndarray
    log_prior: np.ndarray

    @property
    def n_classes(self):
        return len(self.log_prior)

    def of_class(self, k):
        """(matrix, first column) of one class."""
        together = self.groups[0].stop
        return self.matrices[k // together], (k % together) * self.level.n_shifts


def make_templates(level, references, class_prior, sigma_offset, n_terms, together=CLASSES_TOGETHER):
    """Templates of references complex64[K, size]; class_prior float64[K]; sigma_offset [px].

    together: classes of a group, fewer if a particle's scores of that many do not fit into a tile; 1 for a level that
    scores different particles for every class.
    """
    n_classes, shifter = len(references), Shifter(level)
    together = min(together, max(1, TILE_SCORES // (level.n_angles * level.n_shifts)))
    groups = tuple(slice(k, min(k + together, n_classes)) for k in range(0, n_classes, together))
    matrices = tuple(
        real_templates(np.stack([shifter.templates(reference) for reference in references[group]]), level.grid.offset)
        for group in groups)
    log_shift = -0.5 * np.sum(level.shifts**2, axis=1) / sigma_offset**2
    log_shift -= np.log(np.exp(log_shift).sum()) + np.log(level.n_angles)
    with np.errstate(divide="ignore"):
        log_prior = np.log(class_prior)[:, None] + log_shift
    power = power_harmonics(level.grid, references, n_terms)
    return Templates(level, groups, matrices, power, np.maximum(log_prior, -1e30).astype(np.float32))


def ctf_terms(particles, templates, temperature):
    """complex64[K, n, J]: harmonics 0, 2, … of −½ Σ_r w_r C²(r, θ) |A(r, θ − ψ)|² as a function of ψ."""
    grid = templates.level.grid
    weighted = particles.ctf2[:, :, :grid.n_rings] * (-0.5 / temperature * particles.ring_weight[:grid.n_rings])
    terms = np.einsum("njr,jrk->knj", weighted, np.conj(templates.power), optimize=True)
    return np.ascontiguousarray(terms.astype(np.complex64))


def pieces(n, size):
    """Slices of at most `size` that cut n evenly."""
    count = -(-n // size)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


class Scorer:
    """Products and tiles of one thread and level; `folded` float32[n_angles, lines] holds the present tile."""

    def __init__(self, templates):
        self.templates, level = templates, templates.level
        columns = templates.groups[0].stop * level.n_shifts
        terms = 2 * len(templates.power) - 1
        n_rows = min(max(level.grid.n_harmonics, terms), level.n_angles // 2)
        self.images_a_product = int(np.clip(PRODUCT_SIZE // (2 * n_rows * columns), LEAST_IMAGES, MOST_IMAGES))
        self.images_a_tile = max(1, TILE_SCORES // (level.n_angles * columns))
        self._order, self._matrices = harmonic_order(n_rows), folded_matrices(level.n_angles, n_rows)
        self._images = np.zeros(4 * self.images_a_product * level.grid.size, dtype=np.float32)
        self._product = np.zeros(2 * n_rows * self.images_a_product * columns, dtype=np.float32)
        lines = self.images_a_tile * columns
        self.folded = np.zeros((level.n_angles, lines), dtype=np.float32)
        self.peak = np.zeros(lines, dtype=np.float32)

    def gather(self, particles, positions, temperature):
        """Take the particles at `positions`, at most `images_a_product`, as the images of the next products."""
        grid = self.templates.level.grid
        self._n = len(positions)
        particles.table.gather(gather_real, particles.rows[positions], grid, particles.ring_weight / temperature,
                               particles.scale[positions], self._images)

    def tiles(self, number, terms):
        """Yield slices of the gathered particles whose scores against group `number` stand in `folded`.

        terms complex64[classes of the group, n, J]: as `ctf_terms`. A line is (particle of the slice, class, shift).
        """
        matrix, n = self.templates.matrices[number], self._n
        product = self._multiply(matrix, terms, number)
        columns = matrix.shape[1]
        lines = product.reshape(len(product), 2, n * columns)
        for first in range(0, n, self.images_a_tile):
            images = slice(first, min(first + self.images_a_tile, n))
            part = lines[:, :, first * columns:images.stop * columns]
            fold_lines(part, self._matrices, self.folded[:, :part.shape[2]])
            yield images

    def _multiply(self, matrix, terms, number):
        """Products with priors and CTF terms: float32[rows, 2n, columns]."""
        grid, n_rows = self.templates.level.grid, len(self._order)
        shape = (n_rows, 2 * self._n, matrix.shape[1])
        product = self._product[:np.prod(shape)].reshape(shape)
        product[self._order[grid.n_harmonics:]] = 0
        score_product(self._images, self._n, matrix, grid.offset, self._order, product)
        add_priors(self.templates.log_prior[self.templates.groups[number]], terms, self._order, product)
        return product
