"""One iteration of EM over all ranks: search levels, E step over blocks and threads, one reduction, M step."""
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.expectation import Particles, Poses, Search, Workspace, expect, make_templates
from vitrea.engine.model import (
    SCALE_RANGE,
    BlockStatistics,
    Totals,
    add_block,
    block_residual,
    make_quanta,
    maximise,
)
from vitrea.engine.search import make_level


@dataclass(frozen=True)
class Settings:
    """What the M step is told: T, the mask as operators on harmonics, and whether τ² is pooled over classes."""

    tau2_fudge: float
    operators: list
    pooled: bool = False


def make_search(model, geometry, options, temperature=1.0):
    """Levels and templates for a model: one level while its rings cannot tell finer shifts apart, two later."""
    grid = geometry.grid.with_rings(model.rings)
    fine_step = options.offset_step / 2.0
    coarse_rings = coarse_ring_limit(geometry, options)
    single = model.rings <= coarse_rings
    step = options.offset_step if single else fine_step
    psi_step = options.psi_step if single else options.psi_step / 2.0
    fine = _templates(model, make_level(grid, options.offset_range, step, psi_step), geometry)
    coarse = None
    if not single:
        level = make_level(geometry.grid.with_rings(coarse_rings), options.offset_range, options.offset_step,
                           options.psi_step)
        coarse = _templates(model, level, geometry)
    return Search(fine, coarse, options.adaptive_fraction, temperature)


def coarse_ring_limit(geometry, options):
    """Rings on which the coarse shifts are dense enough: a phase error of at most about one radian at half a step."""
    return max(6, int(np.ceil(geometry.box_size / (2.0 * np.pi * max(options.offset_step, 1.0) * 0.5) * 1.0)))


def _templates(model, level, geometry):
    references = geometry.grid.crop(model.references, level.grid)
    return make_templates(level, references, model.class_prior, model.sigma_offset, geometry.ctf_terms)


class Pass:
    """Runs E steps over the blocks of a shard with a pool of threads, and reduces the sums over ranks."""

    def __init__(self, shard, geometry, options, peak, n_particles, *, comm):
        self.shard, self.geometry, self.options = shard, geometry, options
        self.peak, self.n_particles, self.comm = peak, n_particles, comm
        self.poses = Poses.empty(len(shard))
        self.scale = np.ones(len(shard), dtype=np.float32)
        self.seconds = {}

    def run(self, model, search, choose=None, on_block=None):
        """One pass; `choose(i)` gives the local indices of block i to use (default: all). Returns the global Totals."""
        begin = time.perf_counter()
        grid = search.fine.level.grid
        totals = Totals.zeros(model.n_classes, len(model.sigma2), self.geometry.ctf_terms, grid, self.geometry.grid.n_rings)
        weight = model.ring_weight(self.geometry.grid)
        quanta = make_quanta(self.n_particles, grid, weight.max(axis=0), self.peak, model, self.geometry,
                             self.options.offset_range)
        references = self.geometry.grid.crop(model.references, grid)
        spaces = queue.SimpleQueue()
        for _ in range(self.options.threads):
            spaces.put(None)

        def one(i):
            local = choose(i) if choose else self.shard.of_block(i)
            if not len(local):
                return None
            work = spaces.get() or Workspace(search)
            try:
                return self._block(i, local, weight, search, references, work)
            finally:
                spaces.put(work)

        with ThreadPoolExecutor(self.options.threads) as pool:
            for result in pool.map(one, range(len(self.shard.blocks))):
                if result is not None:
                    add_block(totals, quanta, *result)
        self.seconds["e_step"] = time.perf_counter() - begin
        begin = time.perf_counter()
        vector = totals.pack()
        summed = np.empty_like(vector)
        self.comm.Allreduce(vector, summed)
        self.seconds["reduce"] = time.perf_counter() - begin
        return totals.unpack(summed)

    def _block(self, i, local, weight, search, references, work):
        shard, grid, group = self.shard, search.fine.level.grid, self.shard.blocks[i].optics
        rings = grid.n_rings
        particles = Particles(self.geometry.grid, shard.table, local, shard.ctf2[local], shard.power[local],
                              weight[group], self.scale[local])
        poses, sums = expect(particles, search, work)
        scale2 = self.scale[local].astype(np.float64) ** 2
        power = scale2[:, None] * shard.power[local]
        chi = 0.5 * power[:, :rings] @ weight[group, :rings] - poses.residual * search.temperature
        freedom = 0.5 * self.geometry.mask_fraction * grid.pixels_on_ring.sum()
        constant = 0.5 * power @ weight[group]
        log_noise = self.geometry.mask_fraction * 0.5 * np.sum(
            self.geometry.grid.pixels_on_ring * np.log(2.0 * np.pi * self.geometry.grid.pixels_on_ring / (2.0 * weight[group])))
        log_likelihood = poses.log_likelihood * search.temperature - constant - log_noise
        poses.log_likelihood = log_likelihood
        changed = int(np.sum(self.poses.class_number[local] != poses.class_number))
        for name in vars(poses):
            getattr(self.poses, name)[local] = getattr(poses, name)
        if self.options.norm_correction:
            ratio = np.sqrt(np.maximum(chi, 1e-3 * freedom) / freedom)
            self.scale[local] = np.clip(self.scale[local] / ratio, *SCALE_RANGE)
        residual = block_residual(sums, search.fine, references, grid, weight[group, :rings])
        return sums, BlockStatistics(group, residual, power.sum(axis=0), log_likelihood.sum(), poses.pmax.sum(),
                                     changed, len(local))


def next_rings(model, geometry, margin):
    """Rings for the next iteration: the last ring where some class has SSNR > 1, and a margin."""
    populated = model.class_prior > 0.1 / model.n_classes
    return min(geometry.grid.n_rings, resolved_rings(model.ssnr[populated]) + margin)


def resolved_rings(ssnr):
    """The number of rings up to the first where no class has SSNR > 1."""
    below = np.flatnonzero(~(ssnr > 1.0).any(axis=0))
    return int(below[0]) if len(below) else ssnr.shape[1]


def start_model(passes, model, seed_sums, grid, settings):
    return replace(model, references=model.references)
