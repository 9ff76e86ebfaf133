"""The kernels of classify2d, each against its NumPy twin and then under the clock.

A benchmark is made with its Sizes (set up), `check()` compares the kernel with its twin on the very input that is
measured, `run()` is what the clock sees, and `work` says what the run must do at the least, for the machine's limit.
`unit` and `units` say what is done how often in a run.
"""
import numpy as np

from vitrea.benchmarks.machine import Work, transform_flops
from vitrea.benchmarks.specimens import Sizes, make_search_of, particles_of
from vitrea.kernels.fourier import LinesToAngles, LinesToHarmonics, RingTransform
from vitrea.kernels.harmonic import (
    accumulate_lines,
    harmonic_product,
    pack_lines,
    reference_accumulate_lines,
    reference_harmonic_product,
    reference_pack_lines,
)
from vitrea.kernels.packed import gather_by_harmonic
from vitrea.kernels.polar import PolarTransform, complete_rings, rings_to_table
from vitrea.kernels.posterior import (
    SIGNIFICANCE_BINS,
    add_lines,
    reference_add_lines,
    reference_exp_line,
    weigh_lines,
)

COMPLEX_MAC = 8        # operations of a complex multiply-add
EXP_FLOPS = 20         # of an exponential as kernels/posterior.py computes it, its line maximum included
SPREAD = 7             # pixels of finufft's spreading kernel at a tolerance of 1e-5
LINES = 128            # lines of angles transformed at once
IMAGES = 16            # transformed at once when particles are read
SINGLE = 1e-4          # agreement expected of float32 sums, relative to the largest value
TRANSFORM_ERROR = 1e-3   # of finufft at its tolerance, in single precision
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
    """Pixels to angular harmonics: type-2 NUFFT to the rings, then a transform along each ring."""

    unit, twin = "image", "direct Fourier sums at some points of the rings, and numpy.fft along them"

    def __init__(self, sizes):
        self.grid, self.units = sizes.grid, IMAGES
        random = np.random.default_rng(sizes.seed)
        self.images = random.normal(size=(IMAGES, sizes.box_size, sizes.box_size)).astype(np.float32)
        self.transform = PolarTransform(self.grid, IMAGES)
        self.rings = RingTransform(IMAGES, self.grid.n_rings, self.grid.n_angles)
        self.out = np.empty((IMAGES, self.grid.size), dtype=np.complex64)

    def run(self):
        complete_rings(self.transform.forward(self.images), self.rings.array)
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
        harmonics = np.fft.fft(np.concatenate([half, half.conj()], axis=2), axis=2) / grid.n_angles
        return max(error, agree("polar", self.out, harmonics[:, grid.ring_of, grid.harmonic_of]))

    @property
    def work(self):
        grid, fine = self.grid, (2 * self.grid.box_size) ** 2
        points = grid.n_rings * grid.n_angles / 2
        transforms = 5.0 * fine * np.log2(fine) + grid.n_rings * 2.0 * transform_flops(grid.n_angles)
        return Work(transform_flops=IMAGES * transforms, other_flops=IMAGES * 4.0 * SPREAD**2 * points)


class Product:
    """The bracket of the score: for each harmonic a product (images × rings)·(rings × shifts), for every class."""

    unit, twin = "particle", "reference_harmonic_product"

    def __init__(self, sizes):
        self.grid, self.shifts, self.units = sizes.grid, sizes.shifts, sizes.particles
        self.templates = make_search_of(sizes).fine.conjugated
        particles, _ = particles_of(sizes)
        self.images = np.zeros(self.units * self.grid.size, dtype=np.complex64)
        particles.table.gather(gather_by_harmonic, particles.rows, self.grid, particles.ring_weight, particles.scale,
                               self.images)
        self.out = np.zeros((self.grid.n_harmonics, self.units * sizes.shifts), dtype=np.complex64)

    def run(self):
        for templates in self.templates:
            self._product(harmonic_product, templates, self.out)

    def check(self):
        twin = np.zeros_like(self.out)
        self._product(harmonic_product, self.templates[0], self.out)
        self._product(reference_harmonic_product, self.templates[0], twin)
        return agree("product", self.out, twin)

    def _product(self, kernel, templates, out):
        kernel(self.images, self.units, 0, self.units, templates.reshape(-1), self.shifts, self.grid.offset, out)

    @property
    def work(self):
        return Work(product_flops=COMPLEX_MAC * self.units * self.templates.size, bytes=self.templates.nbytes)


class Angles:
    """Harmonics of lines (image, shift) to scores at all angles: packing and inverse FFT, LINES at a time."""

    unit, twin = "line", "reference_pack_lines and numpy.fft.irfft"

    def __init__(self, sizes):
        random, self.units, self.n_angles = np.random.default_rng(sizes.seed), LINES, sizes.rotations
        self.shifts, images = sizes.shifts, -(-LINES // sizes.shifts)
        shape = (sizes.grid.n_harmonics, images * sizes.shifts)
        self.product = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
        self.log_prior = random.normal(size=sizes.shifts).astype(np.float32)
        self.ctf_term = random.normal(size=(images, 1)).astype(np.complex64)
        self.plan = LinesToAngles(LINES, sizes.rotations)

    def run(self):
        pack_lines(self.product, 0, LINES, self.shifts, self.log_prior, self.ctf_term, self.plan.harmonics)
        self.plan.execute()

    def check(self):
        twin = np.zeros(self.plan.harmonics.shape, dtype=np.complex128)
        reference_pack_lines(self.product, 0, LINES, self.shifts, self.log_prior, self.ctf_term, twin)
        self.run()
        return agree("angles", self.plan.values, np.fft.irfft(twin, self.n_angles, axis=1) * self.n_angles)

    @property
    def work(self):
        return Work(transform_flops=LINES * transform_flops(self.n_angles))


class Posterior:
    """Scores to log-sum-exp per particle, and to the weights of the lines that count."""

    unit, twin = "pose", "reference_add_lines and reference_exp_line"

    def __init__(self, sizes):
        random, lines = np.random.default_rng(sizes.seed), LINES - LINES % sizes.shifts or sizes.shifts
        self.scores = random.normal(scale=3.0, size=(lines, sizes.rotations)).astype(np.float32)
        self.owner = np.arange(lines) // sizes.shifts
        self.units, self.images = self.scores.size, int(self.owner[-1]) + 1
        self.scratch = np.zeros(sizes.rotations, dtype=np.float32)
        self.line_best = np.zeros(lines, dtype=np.float32)
        self.weights = np.zeros_like(self.scores)
        self.run()

    def run(self):
        best, total = self._sums(add_lines)
        self.log_total = best + np.log(total)
        histogram = np.zeros((self.images, SIGNIFICANCE_BINS, 2))
        lines = np.arange(len(self.scores))
        weigh_lines(self.scores, self.log_total, lines, self.owner, self.weights, histogram, np.zeros(self.images))

    def check(self):
        self.run()
        best, total = self._sums(reference_add_lines)
        error = agree("posterior", self.log_total, best + np.log(total))
        twin = np.empty_like(self.scores)
        for line, row in enumerate(self.owner):
            reference_exp_line(self.scores[line], self.log_total[row], twin[line])
        return max(error, agree("posterior", self.weights, twin))

    def _sums(self, kernel):
        best, total = np.full(self.images, -np.inf, dtype=np.float32), np.zeros(self.images)
        kernel(self.scores, len(self.scores), self.owner, best, total, self.scratch, self.line_best)
        return best, total

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
