"""The fine search: classes are split again for as long as particles that were held out are better explained.

Every class is treated by itself, at its particles' poses: is there a principal component above the noise; if so,
annealing of two class averages on the particles that are learnt from; are those held out more likely under the two than
under one, by more than their scatter. If so, and if both are large enough, the class is replaced by its two parts, and
these are looked at in turn: every split pays for itself. The work on one class is the same on any number of ranks, and
a checkpoint follows each.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine import annealing, latent, starts
from vitrea.engine.manifold import EmbeddedParticles, Expectation, Maximisation, Settings, assign, hold_out

STANDARD_ERRORS = 3.0   # by which the held-out likelihood must rise for a class to be split
HELD_OUT = 0.25         # of a class: few particles must judge
PARTS = 2
LEVELS = 12             # splits above a class, at most
AVERAGE_STEPS = 5       # EM iterations of the one average: its noise is learnt along with it


class Stopped(Exception):
    """The run was asked to stop in the middle of a class."""


@dataclass
class Forest:
    """Classes and where they come from.

    label int32[n]: the class (a row of the tree) of each of the rank's particles; probability float32[n] of it in its
    last split. By class: parent int32 (−1 for those of the start), level, count, gain and error float64 [nats a
    particle] of the split that was tried (NaN if none was), waiting bool.
    """

    label: np.ndarray
    probability: np.ndarray
    parent: np.ndarray
    level: np.ndarray
    count: np.ndarray
    gain: np.ndarray
    error: np.ndarray
    waiting: np.ndarray

    BY_CLASS = ("parent", "level", "count", "gain", "error", "waiting")

    @classmethod
    def planted(cls, label, n_classes, *, comm):
        """Every class of the start waits to be looked at. Collective."""
        count = comm.allreduce(np.bincount(label, minlength=n_classes))
        nothing = np.full(n_classes, np.nan)
        return cls(label.astype(np.int32), np.ones(len(label), dtype=np.float32),
                   np.full(n_classes, -1, dtype=np.int32), np.zeros(n_classes, dtype=np.int32),
                   count.astype(np.int64), nothing, nothing.copy(), np.ones(n_classes, dtype=bool))

    @property
    def leaves(self):
        """int64[L]: classes that hold particles: the final ones."""
        inner = np.zeros(len(self.parent), dtype=bool)
        inner[self.parent[self.parent >= 0]] = True
        return np.flatnonzero(~inner & (self.count > 0))

    def next(self):
        """The first class that waits, or None."""
        waiting = np.flatnonzero(self.waiting)
        return int(waiting[0]) if len(waiting) else None

    def judged(self, k, gain, error):
        """The class has been looked at."""
        self.waiting[k], self.gain[k], self.error[k] = False, gain, error

    def split(self, k, mine, part, probability, *, comm):
        """Replace class k by its parts: part int[m] and its probability of the rank's particles `mine` int[m]."""
        count = comm.allreduce(np.bincount(part, minlength=PARTS))
        self.label[mine], self.probability[mine] = len(self.parent) + part, probability
        nothing, deeper = np.full(PARTS, np.nan), self.level[k] + 1
        fresh = {"parent": np.full(PARTS, k), "level": np.full(PARTS, deeper), "count": count, "gain": nothing,
                 "error": nothing, "waiting": np.full(PARTS, deeper < LEVELS)}
        for name, values in fresh.items():
            own = getattr(self, name)
            setattr(self, name, np.append(own, values.astype(own.dtype)))


def members_of(particles, mine, seed, *, comm):
    """EmbeddedParticles of some of a rank's particles (int[m], ascending), a share held out. Collective."""
    rows = particles.rows[mine]
    return EmbeddedParticles(
        particles.transformed[mine], particles.ctf2[mine], particles.power[mine], rows,
        np.searchsorted(mine, particles.starts).astype(np.int64), comm.allreduce(len(mine)), particles.layout,
        hold_out(rows, HELD_OUT, seed))


def look_at(particles, seed, asked, *, comm):
    """(part int32[n] and probability float32[n] of the rank's particles, or None, None; gain, error). Collective.

    Whether one class splits in two: gain of the held-out log-likelihood and its standard error [nats a particle].
    asked() -> whether to stop, the same on all ranks; Stopped is raised then.
    """
    components, beta = starts.analyse(particles, 2, comm=comm, seed=seed)
    if not components.significant():
        return None, None, 0.0, np.nan
    settings, schedule = Settings(), annealing.Schedule(seed=seed)
    lattice = latent.free(PARTS)
    state = annealing.begin(starts.from_components(lattice, particles.layout, components, beta),
                            float(components.eigenvalues[0]))
    learner = annealing.Annealing(particles, lattice, settings, schedule, comm=comm)
    state = _until(learner, state, "cool", asked)
    one = _one_average(particles, components, beta, settings, comm)
    gain, error = held_out_gain(particles, replace(state.manifold, temperature=1.0), one, comm=comm)
    if not gain > STANDARD_ERRORS * error:
        return None, None, gain, error
    expectation = Expectation(particles, _until(learner, state, "settle", asked).manifold)
    found = [assign(expectation, block) for block in particles.blocks if block.stop > block.start]
    part = np.concatenate([np.zeros(0, np.int32), *(each.class_number for each in found)])
    return part, np.concatenate([np.zeros(0, np.float32), *(each.probability for each in found)]), gain, error


def _until(learner, state, stage, asked):
    """Iterate for as long as the stage lasts."""
    while state.stage == stage:
        if asked():
            raise Stopped
        state, _ = learner.step(state)
    return state


def _one_average(particles, components, beta, settings, comm):
    """The Manifold of a single node, from the same particles."""
    lattice = latent.free(1)
    manifold = starts.from_references(lattice, particles.layout, components.mean[None], beta)
    learner = Maximisation(particles, lattice, settings, comm=comm)
    for _ in range(AVERAGE_STEPS):
        manifold, _ = learner.step(manifold)
    return manifold


def held_out_gain(particles, many, one, *, comm):
    """(mean, standard error) of log p(t | many) − log p(t | one) at T = 1 over the held-out particles. Collective."""
    models, gains = [Expectation(particles, manifold) for manifold in (many, one)], [np.zeros(0)]
    for block in particles.blocks:
        held = particles.held_out[block]
        if held.any():
            more, less = (model.weights(block)[2][held] for model in models)
            gains.append(more - less)
    gains = np.concatenate(comm.allgather(np.concatenate(gains)))
    if len(gains) < 2:
        return 0.0, np.inf
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
