"""Choosing between models by particles they have not learnt from: starts, lattices, numbers of classes.

The candidates see the same particles and are judged by the same others, held out; the judgement is the log-likelihood
per particle at T = 1, so that a class, or a smoother lattice, must pay for itself.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.annealing import State, begin, fit
from vitrea.engine.starts import at_random, bent

WORSE_SIZES = 2    # sizes in a row without a better judgement after which no larger one is tried


@dataclass(frozen=True)
class Candidate:
    """A model that was tried: its name, the State it ended in and its judgement [nats a particle]."""

    name: str
    state: State
    held_out: float

    @property
    def n_classes(self):
        return self.state.manifold.n_nodes


def tried(particles, starts, critical, settings, schedule, *, comm, on_iteration=None):
    """Generate the Candidate of each of `starts`, pairs (name, Manifold). Collective.

    ValueError if no particle is held out, on any rank.
    """
    if not comm.allreduce(int(np.count_nonzero(particles.held_out))):
        raise ValueError("no particles are held out; expected some, by engine.manifold.hold_out")
    for name, manifold in starts:
        state = fit(particles, begin(manifold, critical, schedule), settings, schedule, comm=comm,
                    on_iteration=on_iteration)
        yield Candidate(name, state, state.best_held_out)


def usual_starts(lattices, layout, components, beta, n_random=6, outliers=0.0):
    """Generate pairs (name, Manifold) to try: for each lattice, nodes drawn by seeds 0, 1, … and, of a chain, an arc.

    Where the starts end differs, though annealing brings most of them to the same few places.
    """
    for lattice in lattices:
        if lattice.dimension == 1 and not lattice.periodic and len(components.eigenvalues) > 1:
            yield f"{lattice.name}, arc", bent(lattice, layout, components, beta, outliers)
        for seed in range(n_random):
            yield f"{lattice.name}, seed {seed}", at_random(lattice, layout, components, beta, seed, outliers)


def best(candidates):
    """The Candidate with the highest judgement; the first of equals."""
    return max(candidates, key=lambda candidate: candidate.held_out)


def sizes_that_pay(candidates):
    """Pass on candidates of growing size until WORSE_SIZES of them in a row were no better than one before."""
    highest, worse = -np.inf, 0
    for candidate in candidates:
        yield candidate
        worse = 0 if candidate.held_out > highest else worse + 1
        highest = max(highest, candidate.held_out)
        if worse >= WORSE_SIZES:
            return


def growing_sizes(least, most, factor=1.5):
    """Numbers of classes to try, each `factor` times the one before: a list from least to most."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, round(sizes[-1] * factor))))
    return sizes
