"""The E step as a whole: from a particle's coefficients to the weights of its poses.

`estep` scores every pose on one level: product, angular transforms, posterior. What expect does after the weights are
known, the sums for the M step, is measured by clocks inside it and taken off. `estep --adaptive` runs the coarse and
the fine level on simulated particles, whose posteriors decide how much the fine one has to do; `marginal` is the
coarse pass alone. The limit is time-weighted: the operations of the product at the measured sgemm rate, plus one
transform a line at FFTW's measured rate; nothing is granted for the posterior.
"""
import tempfile
from pathlib import Path

import numpy as np

from vitrea.benchmarks.kernels import COMPLEX_MAC, agree
from vitrea.benchmarks.machine import Work, transform_flops
from vitrea.benchmarks.specimens import make_search_of, particles_of
from vitrea.engine import expectation
from vitrea.engine.expectation import Search, Workspace, coarse_evidence
from vitrea.engine.scoring import Particles, ctf_terms
from vitrea.kernels.posterior import smallest_sets

CHECKED = 2             # particles compared with the twin: all their poses
MATTERS = 8.0           # nats below the best: classes whose evidence is compared
NATS = 2e-2             # agreement of log-likelihoods of some 1e2 nats, from 16-bit coefficients and float32 scores


def reference_scores(particles, row, templates, k):
    """float64[T, n]: scores of one particle against all poses of class k, by numpy.fft in double precision.

    The angles are those of the level, ψ_j = 2π(j + ½)/n.
    """
    level, grid = templates.level, templates.level.grid
    image = particles.table.take(particles.rows[row:row + 1], grid, particles.ring_weight, particles.scale[row:row + 1])
    products = image[0].astype(np.complex128)[:, None] * conjugated_templates(templates, k)
    lines = np.zeros((level.n_angles // 2 + 1, level.n_shifts), dtype=np.complex128)
    lines[:grid.n_harmonics] = np.add.reduceat(products, grid.offset[:-1], axis=0)
    term = ctf_terms(_some(particles, [row]), templates, 1.0)[k, 0]
    resolved = min(len(term), (level.n_angles + 2) // 4)
    lines[0:2 * resolved:2] += term[:resolved, None]
    lines *= np.exp(1j * np.pi / level.n_angles * np.arange(len(lines)))[:, None]
    return np.fft.irfft(lines.T, level.n_angles, axis=1) * level.n_angles + templates.log_prior[k][:, None]


def conjugated_templates(templates, k):
    """complex64[size, T]: conjugated coefficients of all shifts of class k."""
    grid, (matrix, first) = templates.level.grid, templates.of_class(k)
    columns = slice(first, first + templates.level.n_shifts)
    width = np.diff(grid.offset)
    real = np.arange(grid.size) + np.repeat(grid.offset[:-1], width)
    return matrix[real, columns] - 1j * matrix[real + np.repeat(width, width), columns]


def reference_posterior(particles, row, templates):
    """(log Σ exp score by class float64[K], best score by class float64[K]) of one particle, over all its poses."""
    sums, best = np.empty(templates.n_classes), np.empty(templates.n_classes)
    for k in range(len(sums)):
        scores = reference_scores(particles, row, templates, k)
        best[k] = scores.max()
        sums[k] = best[k] + np.log(np.exp(scores - best[k]).sum())
    return sums, best


def _some(particles, rows):
    """The particles `rows` of a block."""
    rows = np.asarray(rows)
    return Particles(particles.table, particles.rows[rows], particles.ctf2[rows], particles.ring_weight,
                     particles.scale[rows])


def level_work(templates, pairs):
    """Work of `pairs` of a particle and a class on one level: the products and transforms of all its shifts."""
    level = templates.level
    return Work(product_flops=pairs * COMPLEX_MAC * level.n_shifts * level.grid.size,
                transform_flops=pairs * level.n_shifts * transform_flops(level.n_angles))


def search_work(search, n):
    """Work of `n` particles on the first level of a search, which compares them with all classes."""
    templates = search.coarse or search.fine
    return level_work(templates, n * templates.n_classes)


class EStep:
    """Every pose of every particle on one level."""

    unit, twin = "particle", "all scores by numpy.fft in float64, their log-sum-exp, best class and largest weight"

    def __init__(self, sizes):
        self.particles, self.true = particles_of(sizes)
        self.search, self.units = make_search_of(sizes), sizes.particles
        self.space = Workspace(self.search)

    def run(self):
        # by its place in the module: a clock may lie round it
        return expectation.expect(self.particles, self.search, self.space)[0]

    def check(self):
        poses, worst = self.run(), 0.0
        for row in range(min(CHECKED, self.units)):
            by_class, best = reference_posterior(self.particles, row, self.search.fine)
            worst = max(worst, abs(agree_on_pose(poses, row, by_class, best)))
        return worst

    @property
    def work(self):
        return search_work(self.search, self.units)

    def found(self):
        """What the answers are worth, beside the speed."""
        poses = self.run()
        return {"right_class": float(np.mean(poses.class_number == self.true)),
                "pmax": float(np.mean(poses.pmax)), "significant": float(np.median(poses.n_significant))}


def agree_on_pose(poses, row, by_class, best):
    """Compare one particle's log-likelihood, class and pmax with the twin's; the relative difference of the first."""
    expected = float(np.logaddexp.reduce(by_class))
    if abs(poses.log_likelihood[row] - expected) > NATS:
        agree("estep log-likelihood", poses.log_likelihood[row], np.array(expected))
    agree("estep best class", best[poses.class_number[row]], np.array(best.max()))
    agree("estep largest weight", poses.pmax[row], np.array(np.exp(best.max() - expected)), 2 * NATS)
    return (poses.log_likelihood[row] - expected) / max(abs(expected), 1.0)


class Marginal:
    """The coarse pass: log Σ exp over all poses of each class, many particles at a time."""

    unit, twin = "particle", "all scores by numpy.fft in float64, and the log posteriors of the classes"

    def __init__(self, sizes):
        self.particles, _ = particles_of(sizes)
        single = make_search_of(sizes)
        self.search = Search(single.fine, single.fine, single.adaptive_fraction, refined=False)
        self.units = sizes.particles
        self.space = Workspace(self.search)

    def run(self):
        return coarse_evidence(self.particles, self.search, self.space)

    def check(self):
        evidence, worst = self.run(), 0.0
        for row in range(min(CHECKED, self.units)):
            error = self._error(row, evidence[row])
            worst = max(worst, agree("marginal [nats]", 1.0 + error, np.array(1.0), NATS))
        return worst

    def _error(self, row, evidence):
        """Largest difference [nats] of the log posteriors of the classes that matter."""
        expected, _ = reference_posterior(self.particles, row, self.search.coarse)
        expected, found = (values - np.logaddexp.reduce(values) for values in (expected, evidence))
        return float(np.abs(found - expected)[expected > expected.max() - MATTERS].max())

    @property
    def work(self):
        return search_work(self.search, self.units)


class Adaptive(EStep):
    """The coarse pass over all classes and the fine one over those that hold the posterior, on simulated particles.

    Views and particles are simulated with CTF and noise at an SNR of 0.1, loaded as a job loads them, and searched with
    `rings` rings, the fine level having `rotations` angles and `shifts` shifts. The references are the noise-free
    views, two classes a view, as when a run has converged. The limit is that of the coarse pass over all classes and
    of the fine level over those that hold adaptive_fraction of a particle's coarse posterior, and no others.
    """

    twin = "share of some particles whose class is not that of the exhaustive search by numpy.fft in float64"

    def __init__(self, sizes):
        with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as folder:
            self.particles, self.search, self.true = simulated_block(sizes, Path(folder))
        self.units = sizes.particles
        self.space = Workspace(self.search)
        self.fine_pairs = int(self._searched_again().sum())

    def _searched_again(self):
        """bool[n, K]: the classes that the coarse posterior leaves to the fine level."""
        evidence = coarse_evidence(self.particles, self.search, self.space)
        active = np.zeros(evidence.shape, dtype=bool)
        smallest_sets(evidence, self.search.adaptive_fraction, active)
        return active

    @property
    def work(self):
        coarse, fine = search_work(self.search, self.units), level_work(self.search.fine, self.fine_pairs)
        return Work(product_flops=coarse.product_flops + fine.product_flops,
                    transform_flops=coarse.transform_flops + fine.transform_flops)

    def check(self):
        """The share of particles whose class differs from that of the exhaustive search over the fine level."""
        poses, differ = self.run(), 0
        checked = min(4 * CHECKED, self.units)
        for row in range(checked):
            by_class, best = reference_posterior(self.particles, row, self.search.fine)
            if poses.class_number[row] == best.argmax():
                agree("adaptive largest weight", poses.pmax[row], np.exp(best.max() - np.logaddexp.reduce(by_class)),
                      5e-2)
            else:
                differ += 1
        if differ > checked // 4:
            agree("adaptive search: share of other classes", np.array(differ / checked), np.array(0.0), 0.25)
        return differ / checked

    def found(self):
        poses = self.run()
        return {"right_view": float(np.mean(poses.class_number // 2 == self.true)), "pmax": float(np.mean(poses.pmax)),
                "significant": float(np.median(poses.n_significant)),
                "fine_classes": self.fine_pairs / self.units,
                "coarse_poses": int(np.prod(_shape(self.search.coarse))),
                "fine_poses": int(np.prod(_shape(self.search.fine)))}


def _shape(templates):
    return templates.n_classes, templates.level.n_shifts, templates.level.n_angles


def simulated_block(sizes, folder):
    """(Particles, Search, view int64[n]) of a simulated stack in `folder`, as an iteration of classify2d has them."""
    from vitrea.engine.comm import StopRequest, world
    from vitrea.engine.geometry import make_geometry
    from vitrea.engine.load import read_shard, read_table
    from vitrea.engine.log import NullLog
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles
    from vitrea.engine.star import read_star

    views = -(-sizes.classes // 2)
    simulate_particles(ParticleSimulation(n=max(sizes.particles, views), views=views, box_size=sizes.box_size,
                                          pixel_size=2.0, snr=0.1, seed=sizes.seed), folder)
    options, comm = _options(sizes, folder), world()
    table = read_table(options, comm=comm)
    geometry = make_geometry(table, options)
    with StopRequest(comm=comm) as stop:
        shard, _ = read_shard(table, options, geometry, stop, NullLog(), comm=comm)
    true = read_star(folder / "truth.star")["particles"]["rlnClassNumber"].astype(int)[shard.rows] - 1
    model = _model(sizes, shard, geometry, folder / "views.mrcs")
    local = np.arange(sizes.particles)
    kept = shard.take(local)
    particles = Particles(kept.table, kept.rows, kept.ctf2, model.ring_weight(geometry.grid)[0],
                          np.ones(len(local), np.float32))
    return particles, _search(model, geometry, options), true[local]


def _options(sizes, folder):
    """Job options whose fine level has the sizes asked for: the coarse one has twice the steps."""
    from vitrea.engine.options import Classify2dOptions

    step = 2.0
    return Classify2dOptions(
        input=folder / "particles.star", output=folder / "run", n_classes=sizes.classes,
        particle_diameter=2.0 * 2.0 * sizes.grid.support * 0.8, psi_step=2.0 * 360.0 / sizes.rotations,
        offset_range=step * sizes.offset_range, offset_step=2.0 * step, center_classes=False,
        max_resolution=sizes.box_size * 2.0 / sizes.rings)


def _model(sizes, shard, geometry, views_path):
    """A Model whose references are the noise-free views, every one twice, the second with a tenth of change."""
    import mrcfile

    from vitrea.engine.model import Model
    from vitrea.kernels.mask import disc_image

    grid, box = geometry.grid, sizes.box_size
    views = mrcfile.read(views_path) * disc_image(box, geometry.particle_radius, geometry.mask_edge)
    tables = _tables(grid, views.astype(np.float32))
    random = np.random.default_rng(sizes.seed)
    twins = tables * (1.0 + 0.1 * random.normal(size=tables.shape))
    references = np.stack([tables, twins], axis=1).reshape(-1, grid.size)[:sizes.classes].astype(np.complex64)
    sigma2 = shard.power_sum.sum(axis=0)[None] / len(shard) / (2.0 * geometry.mask_fraction)
    nothing = np.zeros((sizes.classes, grid.n_rings))
    return Model(references, sigma2, nothing, nothing, np.full(sizes.classes, 1.0 / sizes.classes), 3.0, grid.n_rings)


def _tables(grid, images):
    """complex64[n, size]: harmonics of images float32[n, L, L]."""
    from vitrea.kernels.fourier import RingTransform
    from vitrea.kernels.polar import PolarTransform, complete_rings, rings_to_table

    transform, rings = PolarTransform(grid, 1), RingTransform(1, grid.n_rings, grid.n_angles)
    out = np.empty((len(images), grid.size), dtype=np.complex64)
    for i, image in enumerate(images):
        complete_rings(transform.forward(image[None]), rings.array)
        rings.to_harmonics()
        rings_to_table(rings.array, grid.first_ring, grid.offset, out[i:i + 1])
    return out


def _search(model, geometry, options):
    from vitrea.engine.errors import JobError
    from vitrea.engine.levels import make_search

    search = make_search(model, geometry, options)
    if search.coarse is None:
        raise JobError(f"--rings: {model.rings} rings are searched on one level; expected enough for a coarse and a "
                       "fine one; use more --rings, or leave --adaptive out")
    return search
