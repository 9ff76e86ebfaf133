"""One pass of the E step over all blocks, threads and ranks, and the one reduction at its end."""
import queue
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vitrea.engine.comm import largest_over_ranks, sum_over_ranks
from vitrea.engine.expectation import Poses, Workspace, expect
from vitrea.engine.model import SCALE_RANGE, BlockStatistics, Totals, add_block, block_residual, make_quanta
from vitrea.engine.phases import mean_seconds
from vitrea.engine.scoring import Particles
from vitrea.engine.storage import pieces

PROGRESS_SECONDS = 2.0
LARGEST_FLOW = 200   # classes up to which moves from class to class are counted: their table goes with every message


class Pass:
    """Runs E steps over the blocks of a shard and keeps what is known of each of its particles.

    poses (Poses) and scale float32[n] (brightness factors, mean 1 over all particles) are those of the last pass that
    saw a particle, and are replaced when a pass is complete: one that is stopped leaves no trace. seconds: time spent
    by phase. busy: mean time that ranks spent in the E step, of the time until the slowest was done. moved int64[K, K]:
    particles by the class before the pass (row) and after it, of those seen; None with more than LARGEST_FLOW classes.
    """

    def __init__(self, shard, geometry, options, peak, n_particles, *, comm):
        self.shard, self.geometry, self.options = shard, geometry, options
        self.peak, self.n_particles, self.comm = peak, n_particles, comm
        self.poses, self.scale = self._empty()
        self._new_poses, self._new_scale = self._empty()
        self._seen = shard.space.zeros(len(shard), bool)
        self.seconds, self.busy, self.moved = {}, None, None
        # known once, so that gathering, which all ranks do piece by piece, needs no message about it
        self.largest_shard = int(largest_over_ranks(np.array([len(shard)]), comm=comm)[0])

    def _empty(self):
        """Poses and scales of all particles before the first pass, in the shard's space."""
        n, space, none = len(self.shard), self.shard.space, Poses.empty(1)
        poses = Poses(*(space.zeros((n, *values.shape[1:]), values.dtype) for values in vars(none).values()))
        scale = space.zeros(n, np.float32)
        for part in pieces(n):
            poses.put(part, none)
            scale[part] = 1.0
            space.release()
        return poses, scale

    def _begin_pass(self):
        """What is known becomes what the pass will know of the particles that it does not see."""
        for part in pieces(len(self.shard)):
            self._new_poses.put(part, Poses(*(values[part] for values in vars(self.poses).values())))
            self._new_scale[part], self._seen[part] = self.scale[part], False
            self.shard.space.release()

    def run(self, model, search, choose=None, on_block=None, save=lambda: False, on_classes=None):
        """The sums over the particles (Totals, of all ranks), or None if the run was asked to stop. Collective.

        choose(i): local indices of block i to use, all by default. on_block(fraction) is called after each block and
        returns True to stop; what was summed is then thrown away, on all ranks. save() is asked at the end, on each
        rank: Totals.save tells how many of them want a checkpoint. on_classes(local, posterior float64[m, K]) is told,
        from any thread, the classes' posterior of the particles `local`, if the search keeps it.
        """
        totals = self._summed(model, search, (choose, on_block, save, on_classes))
        if totals is None:
            return None
        self.poses, self._new_poses = self._new_poses, self.poses
        self.scale, self._new_scale = self._new_scale, self.scale
        return totals

    def look(self, model, search, choose, on_block):
        """As `run`, but nothing is kept of it: (Totals, classes int32[m] of this rank's chosen particles), or None."""
        totals = self._summed(model, search, (choose, on_block, lambda: False, None))
        return None if totals is None else (totals, self._new_poses.class_number[np.flatnonzero(self._seen)])

    def _summed(self, model, search, asked):
        """What `run` returns, before what is new takes the place of what was known."""
        begin = time.perf_counter()
        choose, on_block, save, on_classes = asked
        self._begin_pass()
        self._search, self._grid, self._on_classes = search, search.fine.level.grid, on_classes
        self._references = self.geometry.grid.crop(model.references, self._grid)
        self._weight = model.ring_weight(self.geometry.grid)
        self._clocks = []
        totals = Totals.zeros(model.n_classes, len(model.sigma2), self.geometry.ctf_terms, self._grid,
                              self.geometry.grid.n_rings)
        quanta = make_quanta(self.n_particles, self._grid, self._weight.max(axis=0), self.peak, model, self.geometry,
                             self.options.offset_range)
        for count, result in enumerate(self._blocks(choose or self.shard.of_block), start=1):
            if result is not None:
                add_block(totals, quanta, *result)
                self.shard.space.release()
            if on_block and not self._stopping.is_set() and on_block(count / len(self.shard.blocks)):
                self._stopping.set()
        totals.scalars[Totals.SCALARS.index("save")] = save()
        totals.assigned[:] = self._class_counts(model.n_classes)
        totals.scalars[Totals.SCALARS.index("stopping")] = self._stopping.is_set()
        self.seconds = {"e_step": time.perf_counter() - begin, **mean_seconds(self._clocks, self.options.threads)}
        self._add_up(totals, model.n_classes)
        return None if totals.stopping else totals

    def _add_up(self, totals, n_classes):
        """Sum over the ranks, in one message: the totals, and what is only told of a pass. Collective."""
        own = [np.array([self.seconds["e_step"]]), self._moves(n_classes)]
        begin = time.perf_counter()
        packed = totals.pack()
        together = sum_over_ranks(np.concatenate([packed, *own]), comm=self.comm)
        self.seconds["reduce"] = time.perf_counter() - begin
        totals.unpack(together[:len(packed)])
        e_steps, moved = together[len(packed)], together[len(packed) + 1:]
        self.busy = e_steps / self.comm.size / max(self.seconds["e_step"] + self.seconds["reduce"], 1e-9)
        self.moved = moved.reshape(n_classes, -1).astype(np.int64) if len(moved) else None

    def _moves(self, n_classes):
        """float64[K·K]: particles of this rank by class before and after, of those that this pass saw and that had a
        class; empty with more than LARGEST_FLOW classes."""
        counts = np.zeros(n_classes * n_classes if n_classes <= LARGEST_FLOW else 0)
        for part in pieces(len(self.shard)) if len(counts) else ():
            before, after = self.poses.class_number[part], self._new_poses.class_number[part]
            both = self._seen[part] & (before >= 0) & (after >= 0)
            counts += np.bincount(before[both].astype(np.int64) * n_classes + after[both], minlength=len(counts))
            self.shard.space.release()
        return counts

    def _class_counts(self, n_classes):
        """int64[K]: particles of this rank whose best pose is in each class."""
        counts = np.zeros(n_classes, dtype=np.int64)
        for part in pieces(len(self.shard)):
            numbers = self._new_poses.class_number[part]
            counts += np.bincount(numbers[numbers >= 0], minlength=n_classes)
        return counts

    def normalise_scale(self, totals):
        """Divide the brightness factors found in this pass by their mean: only their ratios are known."""
        if self.options.norm_correction and totals.scale > 0:
            for part in pieces(len(self.shard)):
                self.scale[part][self._seen[part]] /= np.float32(totals.scale / totals.particles)
                self.shard.space.release()

    def _blocks(self, choose):
        """Results of `_block` for every block of the shard, in order, None for one without particles."""
        self._stopping = threading.Event()
        spaces = queue.SimpleQueue()
        for _ in range(self.options.threads):
            spaces.put(None)

        def read(i):
            local = choose(i)
            return i, local, self.shard.take(local) if len(local) and not self._stopping.is_set() else None

        def one(found):
            if self._stopping.is_set() or found[-1] is None:
                return None
            work = spaces.get() or self._workspace()
            try:
                return self._block(*found, work)
            finally:
                spaces.put(work)

        threads, blocks = self.options.threads, range(len(self.shard.blocks))
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as workers:
            ahead = _in_order(reader, read, blocks, 1)
            yield from map(one, ahead) if threads == 1 else _in_order(workers, one, ahead, threads)

    def _workspace(self):
        work = Workspace(self._search)
        self._clocks.append(work.clock)
        return work

    def _block(self, i, local, kept, work):
        """(BlockSums, BlockStatistics) of the particles `local` of block i; their poses and scales are noted."""
        group, rings = self.shard.blocks[i].optics, self._grid.n_rings
        weight = self._weight[group]
        particles = Particles(kept.table, kept.rows, kept.ctf2, weight, self.scale[local])
        poses, sums = expect(particles, self._search, work)
        if self._on_classes and work.by_class is not None:
            self._on_classes(local, work.by_class)
        power = particles.scale[:, None].astype(np.float64) ** 2 * kept.power
        self._finish_likelihood(poses, power, weight)
        before = self.poses.class_number[local]
        changed, met = np.count_nonzero(before != poses.class_number), np.count_nonzero(before >= 0)
        self._new_poses.put(local, poses)
        self._seen[local] = True
        if self.options.norm_correction:
            self._new_scale[local] = self._rescaled(particles.scale, poses, power[:, :rings], weight[:rings])
        residual = block_residual(sums, self._search.fine, self._references, self._grid, weight[:rings])
        return sums, BlockStatistics(group, residual, power.sum(axis=0), poses.log_likelihood.sum(), poses.pmax.sum(),
                                     changed, met, self._new_scale[local].sum(dtype=np.float64), len(local))

    def _finish_likelihood(self, poses, power, weight):
        """Turn log Σ exp(score) into log p(X_i): the terms no pose changes, over the degrees of freedom inside the
        mask."""
        pixels, fraction = self.geometry.grid.pixels_on_ring, self.geometry.mask_fraction
        log_noise = 0.5 * fraction * np.sum(pixels * np.log(np.pi * pixels / weight))
        poses.log_likelihood *= self._search.temperature
        poses.log_likelihood -= 0.5 * power @ weight + log_noise

    def _rescaled(self, scale, poses, power, weight):
        """Brightness factors that bring each particle's squared residual to what its noise alone would give."""
        freedom = 0.5 * self.geometry.mask_fraction * self._grid.pixels_on_ring.sum()
        residual = 0.5 * power @ weight - poses.expected_score * self._search.temperature
        ratio = np.sqrt(np.maximum(residual / freedom, 1e-3))
        return np.clip(scale / ratio, *SCALE_RANGE)


def _in_order(pool, function, items, ahead):
    """As pool.map, but an item is taken only when no more than `ahead` results wait: what is read stays little."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
