"""Choosing between models by particles they have not learnt from: starts, lattices, numbers of classes.

The candidates see the same particles and are judged by the same others, held out; the judgement is the log-likelihood
per particle at T = 1, so that a class, or a smoother lattice, must pay for itself.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.annealing import State, begin, begin_at, fit
from vitrea.engine.latent import chain
from vitrea.engine.starts import at_random, in_order

COUPLINGS = (0.5, 0.7, 1.0)   # widths of basis functions, in node spacings, from near free to smooth
REHEATED = 1.5
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


def tried(particles, beginnings, settings, schedule, *, comm, on_iteration=None):
    """Generate the Candidate of each of `beginnings`, pairs (name, State) in their "cool" stage. Collective.

    ValueError if no particle is held out, on any rank.
    """
    if not comm.allreduce(int(np.count_nonzero(particles.held_out))):
        raise ValueError("no particles are held out; expected some, by engine.manifold.hold_out")
    for name, state in beginnings:
        state = fit(particles, state, settings, schedule, comm=comm, on_iteration=on_iteration)
        yield Candidate(name, state, state.best_held_out)


def usual_beginnings(lattices, layout, components, beta, n_random=6):
    """Generate pairs (name, State): for each lattice, nodes drawn by seeds 0, 1, …, just below T_c.

    Where starts end differs, though annealing brings most of them to the same few places.
    """
    for lattice in lattices:
        for seed in range(n_random):
            start = at_random(lattice, layout, components, beta, seed)
            yield f"{lattice.name}, seed {seed}", begin(start, components.eigenvalues[0])


def ordered_beginnings(candidate, layout, widths=COUPLINGS):
    """Generate pairs (name, State): the classes of a candidate put in order, as chains of several couplings.

    They begin at REHEATED times the temperature at which the candidate was best: what was found is not lost, but
    neighbours may still exchange their places.
    """
    found = candidate.state.manifold
    for width in widths:
        lattice = chain(found.n_nodes, basis_fraction=1.0, width=width)
        start = in_order(lattice, layout, found)
        yield f"{candidate.name}, in order, width {width:g}", begin_at(start, REHEATED * found.temperature)


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
