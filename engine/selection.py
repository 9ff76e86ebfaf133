"""Choosing between models by particles they have not learnt from: starts, lattices, numbers of classes.

The candidates see the same particles and are judged by the same others, held out; the judgement is the log-likelihood
per particle at T = 1, so that a class, or a smoother lattice, must pay for itself.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.annealing import State, begin, begin_reheated, fit
from vitrea.engine.latent import chain, free
from vitrea.engine.merging import begin_merged, wider
from vitrea.engine.starts import at_random, in_order

COUPLINGS = (0.5, 0.7, 1.0)   # widths of basis functions, in node spacings, from near free to smooth
SPARE_STARTS = 2   # of more classes than are wanted
GROWTH = 1.5       # from one number of classes to the next
WORSE_SIZES = 2    # numbers in a row without a better judgement after which no larger one is tried
CLOSE = 1.12       # two numbers of classes between which no other is tried


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


def ordered_beginnings(candidate, layout, widths=COUPLINGS, *, comm):
    """Generate pairs (name, State): the classes of a candidate put in order, as chains of several couplings.

    They begin at REHEATED times the temperature at which the candidate was best: what was found is not lost, but
    neighbours may still exchange their places.
    """
    found = candidate.state.manifold
    for width in widths:
        lattice = chain(found.n_nodes, basis_fraction=1.0, width=width)
        start = in_order(lattice, layout, found, comm=comm)
        yield f"{candidate.name}, in order, width {width:g}", begin_reheated(start, found.temperature)


def best(candidates):
    """The Candidate with the highest judgement; the first of equals."""
    return max(candidates, key=lambda candidate: candidate.held_out)


def chosen(particles, components, beta, n_classes, settings, schedule, *, comm):
    """The Candidate judged best of free classes and chains, each with the usual starts, of more free classes merged,
    and of the best of these put in order as chains of several couplings. Collective."""
    lattices = (free(n_classes), chain(n_classes, basis_fraction=1.0, width=0.7))
    begun = usual_beginnings(lattices, particles.layout, components, beta)
    first = [*tried(particles, begun, settings, schedule, comm=comm)]
    begun = usual_beginnings((free(wider(n_classes)),), particles.layout, components, beta, SPARE_STARTS)
    spare = best(tried(particles, begun, settings, schedule, comm=comm))
    state = begin_merged(particles, spare.state, n_classes, 1, free, settings, comm=comm)
    first = best([*first, *tried(particles, [(f"{spare.name}, merged", state)], settings, schedule, comm=comm)])
    begun = ordered_beginnings(first, particles.layout, comm=comm)
    return best([first, *tried(particles, begun, settings, schedule, comm=comm)])


def next_size(judged, least, most):
    """The number of classes to try next, least to most; None if enough are known.

    judged: {number of classes: judgement}. Numbers grow by GROWTH until WORSE_SIZES of them in a row are no better than
    the best; then the wider gap beside the best is halved for as long as it is wider than CLOSE.
    """
    if not judged:
        return least
    best_size, largest = min(judged, key=lambda size: (-judged[size], size)), max(judged)
    if largest < most and sum(size > best_size for size in judged) < WORSE_SIZES:
        return min(most, max(largest + 1, round(GROWTH * largest)))
    gaps = [(max(pair) / min(pair), round(np.sqrt(pair[0] * pair[1]))) for pair in (
        (best_size, max((size for size in judged if size < best_size), default=best_size)),
        (best_size, min((size for size in judged if size > best_size), default=best_size)))]
    gaps = [(width, middle) for width, middle in gaps if width > CLOSE and middle not in judged]
    return max(gaps)[1] if gaps else None
