"""The kernels of classify2d, each against its NumPy twin and then under the clock.

A benchmark is made with its Sizes (set up), `check()` compares the kernel with its twin on the very input that is
measured, `run()` is what the clock sees, and `work` says what the run must do at the least, for the machine's limit.
`unit` and `units` say what is done how often in a run.
"""
import numpy as np

from vitrea.benchmarks.machine import Work, transform_flops
from vitrea.benchmarks.specimens import Sizes, make_search_of, particles_of
from vitrea.engine.expectation import KEPT
from vitrea.engine.scoring import TILE_SCORES, Scorer
from vitrea.kernels.angles import fold_lines, folded_matrices, harmonic_order, keep_lines, reference_whole_lines
from vitrea.kernels.fourier import LinesToHarmonics, RingTransform
from vitrea.kernels.gridding import FINENESS, WIDTH
from vitrea.kernels.harmonic import (
    accumulate_lines,
    reference_accumulate_lines,
    reference_score_product,
    score_product,
)
from vitrea.kernels.packed import gather_real
from vitrea.kernels.polar import PolarTransform, filter_rings, rings_to_table
from vitrea.kernels.posterior import (
    SIGNIFICANCE_BINS,
    reference_exp_line,
    reference_sum_lines,
    smallest_line_sets,
    sum_lines,
    weigh_lines,
)

COMPLEX_MAC = 8        # operations of a complex multiply-add
EXP_FLOPS = 20         # of an exponential as kernels/posterior.py computes it, its line maximum included
LINES = 128            # lines of weights transformed at once
IMAGES = 16            # transformed at once when particles are read
SINGLE = 1e-4          # agreement expected of float32 sums, relative to the largest value
TRANSFORM_ERROR = 1e-3   # of the interpolation on the way to the rings, in single precision
CHECKED_POINTS = 50


class WrongAnswerError(ArithmeticError):
    """A kernel disagrees with its twin: its speed means nothing."""


def agree(name, found, expected, tolerance=SINGLE):
    """The largest difference relative to the largest value; WrongAnswerError if it is beyond `tolerance`."""
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(np.asarray(found, dtype=np.complex128) - expected).max()) / scale
    if not error <= tolerance:
        raise WrongAnswerError(f"{name}: the kernel differs from its NumPy twin by {error:.2g} of the largest value; "
                               f"expected at most {tolerance:g}; nothing was measured")
    return error


class Polar:
    """Pixels to angular harmonics: a non-uniform transform to the rings, times the CTF, and a transform along each.

    The limit grants the non-uniform transform one FFT of the image on the finer grid and the sums over each point's
    window.
    """

    unit, twin = "image", "direct Fourier sums at some points of the rings, and numpy.fft along them"

    def __init__(self, sizes):
        self.grid, self.units = sizes.grid, IMAGES
        random = np.random.default_rng(sizes.seed)
        self.images = random.normal(size=(IMAGES, sizes.box_size, sizes.box_size)).astype(np.float32)
        self.transform = PolarTransform(self.grid, IMAGES)
        self.rings = RingTransform(IMAGES, self.grid.n_rings, self.grid.n_angles)
        self.transfer = random.uniform(-1, 1, (IMAGES, self.grid.n_rings, self.grid.n_angles // 2)).astype(np.float32)
        self.power = np.empty((IMAGES, self.grid.n_rings), dtype=np.float32)
        self.out = np.empty((IMAGES, self.grid.size), dtype=np.complex64)

    def run(self):
        filter_rings(self.transform.forward(self.images), self.transfer, self.rings.array, self.power)
        self.rings.to_harmonics()
        rings_to_table(self.rings.array, self.grid.first_ring, self.grid.offset, self.out)

    def check(self):
        grid, half = self.grid, self.transform.forward(self.images)
        random, box = np.random.default_rng(1), grid.box_size
        rings, angles = (random.integers(limit, size=CHECKED_POINTS) for limit in half.shape[1:])
        radius, theta = 2.0 * np.pi * (rings + 1) / box, grid.angles()[angles]
        axis = np.arange(box) - box // 2
        y, x = (np.exp(-1j * np.outer(part, axis)) for part in (radius * np.sin(theta), radius * np.cos(theta)))
        direct = np.einsum("py,byx,px->bp", y, self.images.astype(np.float64), x, optimize=True) / box
        error = agree("polar", half[:, rings, angles], direct, TRANSFORM_ERROR)
        self.run()
        filtered = half * self.transfer
        harmonics = np.fft.fft(np.concatenate([filtered, filtered.conj()], axis=2), axis=2) / grid.n_angles
        return max(error, agree("polar", self.out, harmonics[:, grid.ring_of, grid.harmonic_of]))

    @property
    def work(self):
        grid, fine = self.grid, (FINENESS * self.grid.box_size) ** 2
        points = grid.n_rings * grid.n_angles / 2
        transforms = transform_flops(fine) + grid.n_rings * 2.0 * transform_flops(grid.n_angles)
        return Work(transform_flops=IMAGES * transforms, other_flops=IMAGES * 4.0 * WIDTH**2 * points)


class Product:
    """The bracket of the score: for each harmonic a product (images × rings)·(rings × classes, shifts)."""

    unit, twin = "particle", "reference_score_product"

    def __init__(self, sizes):
        self.grid, self.templates = sizes.grid, make_search_of(sizes).fine
        particles, _ = particles_of(sizes)
        self.units = min(sizes.particles, Scorer(self.templates).images_a_product)
        self.images = np.zeros(4 * self.units * self.grid.size, dtype=np.float32)
        particles.table.gather(gather_real, particles.rows[:self.units], self.grid, particles.ring_weight,
                               particles.scale[:self.units], self.images)
        self.order = harmonic_order(self.grid.n_harmonics)
        self.out = np.zeros(2 * self.units * self.grid.n_harmonics * self.templates.matrices[0].shape[1], np.float32)

    def run(self):
        for matrix in self.templates.matrices:
            self._product(score_product, matrix)

    def check(self):
        found = self._product(score_product, self.templates.matrices[0]).copy()
        return agree("product", found, self._product(reference_score_product, self.templates.matrices[0]))

    def _product(self, kernel, matrix):
        shape = (self.grid.n_harmonics, 2 * self.units, matrix.shape[1])
        out = self.out[:np.prod(shape)].reshape(shape)
        kernel(self.images, self.units, matrix, self.grid.offset, self.order, out)
        return out

    @property
    def work(self):
        numbers = sum(matrix.size for matrix in self.templates.matrices)
        return Work(product_flops=0.5 * COMPLEX_MAC * self.units * numbers, bytes=4.0 * numbers)


class Angles:
    """Harmonics of a tile of lines to their scores on the folded circle: products, where FFTW's rate is the limit."""

    unit, twin = "line", "numpy.fft.irfft, turned by half a step"

    def __init__(self, sizes):
        random, self.n_angles = np.random.default_rng(sizes.seed), sizes.rotations
        self.units = TILE_SCORES // sizes.rotations
        n_rows = sizes.grid.n_harmonics
        self.order, self.matrices = harmonic_order(n_rows), folded_matrices(sizes.rotations, n_rows)
        self.product = random.normal(size=(n_rows, 2, self.units)).astype(np.float32)
        self.folded = np.zeros((sizes.rotations, self.units), dtype=np.float32)

    def run(self):
        fold_lines(self.product, self.matrices, self.folded)

    def check(self):
        harmonics = np.zeros((self.units, self.n_angles // 2 + 1), dtype=np.complex128)
        n_rows = len(self.order)
        harmonics[:, :n_rows] = (self.product[self.order, 0] + 1j * self.product[self.order, 1]).T
        harmonics *= np.exp(1j * np.pi / self.n_angles * np.arange(harmonics.shape[1]))
        harmonics[:, 0] = harmonics[:, 0].real
        self.run()
        twin = np.fft.irfft(harmonics, self.n_angles, axis=1) * self.n_angles
        return agree("angles", reference_whole_lines(self.folded), twin)

    @property
    def work(self):
        return Work(transform_flops=self.units * transform_flops(self.n_angles))


class Posterior:
    """A tile of scores to the lines that matter, their sum by particle, and the weights of those that count."""

    unit, twin = "pose", "reference_sum_lines and reference_exp_line"

    def __init__(self, sizes):
        random, self.images = np.random.default_rng(sizes.seed), max(1, TILE_SCORES // (sizes.rotations * sizes.shifts))
        self.shifts, lines = sizes.shifts, self.images * sizes.shifts
        self.folded = random.normal(scale=1.5, size=(sizes.rotations, lines)).astype(np.float32)
        self.units = self.folded.size
        self.peak, self.scratch = np.zeros(lines, np.float32), np.zeros(sizes.rotations, np.float32)
        self.scores = np.zeros((lines, sizes.rotations), np.float32)
        self.kept, self.sums = np.zeros(lines, KEPT), np.zeros(lines)
        self.weights = np.zeros_like(self.scores)
        self.run()

    def run(self):
        self.best = np.full(self.images, -np.inf, np.float32)
        used = keep_lines(self.folded, np.arange(self.images), self.shifts, 0, self.best, self.peak, self.scores,
                          self.kept, 0)
        self.about = self.kept[:used]
        sum_lines(self.scores, self.about, self.best, self.scratch, self.sums[:used])
        chosen, total, held = np.zeros(used, dtype=bool), np.zeros(self.images), np.zeros(self.images)
        smallest_line_sets(self.about, self.sums[:used], 1.0, chosen, total, held, np.zeros(self.images, np.int64))
        self.lines, self.log_total = np.flatnonzero(chosen), self.best + np.log(total)
        histogram = np.zeros((self.images, SIGNIFICANCE_BINS, 2))
        weigh_lines(self.scores, self.log_total, self.lines, self.about["row"][self.lines], self.weights, histogram,
                    np.zeros(self.images))

    def check(self):
        self.run()
        whole = reference_whole_lines(self.folded).reshape(self.images, -1)
        error = agree("posterior", self.log_total, np.log(np.exp(whole).sum(axis=1)))
        sums = self.sums[:len(self.about)]
        error = max(error, agree("posterior", sums, reference_sum_lines(self.scores, self.about, self.best)))
        twin = np.empty((len(self.lines), whole.shape[1] // self.shifts), np.float32)
        for line, out in zip(self.lines, twin):
            reference_exp_line(self.scores[line], self.log_total[self.about["row"][line]], out)
        return max(error, agree("posterior", self.weights[:len(twin)], twin))

    @property
    def work(self):
        return Work(other_flops=2.0 * EXP_FLOPS * self.units)


class Accumulate:
    """Weights of lines to harmonics by FFT, then weighted, turned-back images into the sums of the M step."""

    unit, twin = "line", "numpy.fft.rfft and reference_accumulate_lines"

    def __init__(self, sizes):
        random, self.grid, self.units = np.random.default_rng(sizes.seed), sizes.grid, LINES
        n, self.n_angles = min(sizes.particles, LINES), sizes.rotations
        shape = (n, self.grid.size)
        self.images = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
        self.weights = random.random((LINES, sizes.rotations), dtype=np.float32)
        self.plan = LinesToHarmonics(LINES, sizes.rotations)
        self.image, self.target = (random.integers(limit, size=LINES) for limit in (n, sizes.classes * sizes.shifts))
        self.out = np.zeros((sizes.classes * sizes.shifts, self.grid.size), dtype=np.complex64)

    def run(self):
        self.plan.values[:] = self.weights
        self.plan.execute()
        accumulate_lines(self.plan.harmonics, LINES, self.image, self.target, self.grid.offset, self.images, self.out)

    def check(self):
        self.out[:] = 0
        self.run()
        used, place = np.unique(self.target, return_inverse=True)
        twin = np.zeros((len(used), self.grid.size), dtype=np.complex128)
        reference_accumulate_lines(np.fft.rfft(self.weights, axis=1), LINES, self.image, place, self.grid.offset,
                                   self.images, twin)
        return agree("accumulate", self.out[used], twin)

    @property
    def work(self):
        return Work(transform_flops=LINES * transform_flops(self.n_angles),
                    product_flops=COMPLEX_MAC * LINES * self.grid.size, bytes=LINES * self.grid.size * 3 * 8)


KERNELS = {"polar": Polar, "product": Product, "angles": Angles, "posterior": Posterior, "accumulate": Accumulate}

__all__ = ["KERNELS", "Sizes", "WrongAnswerError", "agree"]
