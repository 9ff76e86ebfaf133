"""Training a picker's network: batches drawn by number, gradients summed so that no rank or order shows, two recipes.

A batch is cut into parts of PART tiles. A part is normalised by itself ("ghost batches", Hoffer, Hubara & Soudry
2017), and its gradient is computed by one rank; all gradients are rounded to multiples of one power of two before
they are added (kernels/exact.py). The result therefore has the same bits for any number of ranks.

Where only some particles are labelled, some of the background is not: with ρ the share of the places called negative
that hold a particle, the loss of the true background is (E_u l⁻ − ρ E_p l⁻) / (1 − ρ), and at least zero (du Plessis
2015; Kiryo 2017), E_u over the places called negative and E_p over labelled ones.
"""
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from vitrea.engine.comm import largest_over_ranks, sum_over_ranks
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.picker.labels import Augmentation, Sampler
from vitrea.picker.network import backward, forward, initial_parameters, initial_statistics
from vitrea.picker.optimisers import RULES, State

PART = 8                  # tiles that are normalised together
POSITIVE_SHARE = 1 / 3    # of the weight of a batch that lies on positive places
COUNTED_DRAWS = 256       # from which the share of positive places is estimated


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: tiles with outputs² places, loss ("bce", "mse"), optimizer (a rule of
    picker/optimisers.py, or "freeze_aware" of picker/steered.py) and its numbers.

    hot: the share of the budget after which `freeze_aware` turns the noise down, whatever its probes find; 0 as they
    find.
    """

    steps: int
    batch: int
    outputs: int
    loss: str
    optimizer: str
    rate: float
    augmentation: Augmentation
    schedule: str = "cosine"
    weight_decay: float = 0.01
    radius: float = 0.05
    tolerance: float = 0.1
    averaged: float = 1 / 3
    hot: float = 0.0


# DeepEM's: squared errors, plain descent at rate 1, batches of 50, 20 epochs of 6,400 boxes at quarter turns. The
# batches are of 48 here, whole parts.
QUARTERS = Augmentation(any_angle=False, mirror=False, shift=0.0, contrast=0.0, offset=0.0, noise=0.0, decoys=0.0)
PUBLISHED = Recipe(steps=2667, batch=48, outputs=1, loss="mse", optimizer="sgd", rate=1.0, schedule="constant",
                   augmentation=QUARTERS)
DEFAULT = Recipe(steps=500, batch=32, outputs=5, loss="bce", optimizer="adam", rate=4e-3, augmentation=Augmentation())
# Of the network vitrea, by the key `optimiser`. Plain descent still learns at a rate of 1; 0.3 was not tuned.
RECIPES = {"adam": DEFAULT, "sgd": replace(DEFAULT, optimizer="sgd", rate=0.3),
           "freeze_aware": replace(DEFAULT, optimizer="freeze_aware", rate=0.3)}


def train(micrographs, network, diameter, recipe, *, seed, comm, begun=None):
    """Generator of State, one after each step; the last one is the trained network. Collective.

    micrographs are LabelledMicrographs, the same on every rank; diameter [px] of prepared images. begun: the State
    after which to go on, to the same bits as without a break.
    """
    sampler = Sampler(micrographs, network, diameter, recipe.outputs, recipe.augmentation, seed)
    return descend(sampler, network, recipe, seed=seed, comm=comm, begun=begun)


def descend(sampler, network, recipe, *, seed, comm, begun=None):
    """As `train`, on the tiles of a Sampler."""
    state = begun or start(network, seed)
    weights, parts = loss_weights(sampler), range(recipe.batch // PART)
    for step in range(state.step, recipe.steps):
        def gradient_of(parameters, step=step):
            found = [of_part(network, parameters, sampler, recipe, weights, step, part)
                     for part in parts[comm.rank::comm.size]]
            return mean_of_parts(network, found, len(parts), comm)

        state = RULES[recipe.optimizer](state, gradient_of, recipe)
        yield state


def start(network, seed):
    """The state before the first step."""
    return State(initial_parameters(network, np.random.default_rng((seed, 0))), initial_statistics(network), ({}, {}))


def loss_weights(sampler):
    """(weight of a positive place, of a negative one, ρ), so that positive places weigh POSITIVE_SHARE of all.

    The weights of all places of a batch add up to 1 in the mean when they are divided by its number of tiles.
    """
    _, target, weight = sampler.draws(2**31, range(COUNTED_DRAWS))
    positive = max(float((target * weight).sum()), 1.0) / COUNTED_DRAWS
    negative = max(float(((1 - target) * weight).sum()), 1.0) / COUNTED_DRAWS
    return POSITIVE_SHARE / positive, (1 - POSITIVE_SHARE) / negative, sampler.unlabelled_share()


def of_part(network, parameters, sampler, recipe, weights, step, part):
    """(gradients, statistics, loss) of one part of a batch."""
    tiles, target, weight = sampler.draws(step, range(part * PART, (part + 1) * PART))
    logits, tape, statistics = forward(network, parameters, tiles)
    loss, slope = LOSSES[recipe.loss](logits.astype(np.float64), target, weight, weights)
    return backward(network, parameters, tape, slope.astype(np.float32)), statistics, loss


def cross_entropy(logits, target, weight, weights):
    """(loss, dL/dlogits) of float64[n, o, o], with the correction for unlabelled particles."""
    of_positive, of_negative, rho = weights
    n, score = len(logits), 0.5 * (1 + np.tanh(0.5 * logits))
    soft = np.logaddexp(0, logits)   # l⁻; l⁺ = l⁻ − logit
    positive, negative = target * weight * of_positive / n, (1 - target) * weight * of_negative / n
    # ρ E_p l⁻ in the units of the sum over negative places, whose weights add up to 1 − POSITIVE_SHARE.
    missed = rho * (1 - POSITIVE_SHARE) / POSITIVE_SHARE * positive
    background = np.sum((negative - missed) * soft) / (1 - rho)
    loss, slope = np.sum(positive * (soft - logits)), positive * (score - 1)
    if background > 0:
        loss, slope = loss + background, slope + (negative - missed) * score / (1 - rho)
    return loss, slope


def squared_error(logits, target, weight, weights):
    """(loss, dL/dlogits): ½ (score − target)², the mean over all places, as DeepEM has it."""
    score = 0.5 * (1 + np.tanh(0.5 * logits))
    error = weight * (score - target) / max(float(weight.sum()), 1.0)
    return 0.5 * np.sum(error * (score - target)), error * score * (1 - score)


LOSSES = {"bce": cross_entropy, "mse": squared_error}


def mean_of_parts(network, found, n_parts, comm):
    """Mean over all parts of all ranks of gradients, statistics and loss, the same bits for any number of ranks."""
    shapes, of_statistics, ends = _layout(network)
    terms = np.zeros((len(found), ends[-1]))   # one message for all: they are small, and a step of training is short
    for row, (gradients, statistics, loss) in zip(terms, found):
        both = gradients | statistics | {"loss": loss}
        np.concatenate([np.ravel(both[name]) for name in shapes], out=row)
    largest = np.maximum.reduceat(np.abs(terms).max(axis=0, initial=0.0), [0, *ends[:-1]])
    units = quantum(n_parts * largest_over_ranks(largest, comm=comm))
    quanta = to_quanta(terms, np.repeat(units, np.diff(ends, prepend=0))).sum(axis=0)
    total = sum_over_ranks(quanta, comm=comm) / n_parts
    mean = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), np.split(total, ends[:-1]))}
    loss = float(mean.pop("loss")[0])
    statistics = {name: mean.pop(name) for name in of_statistics}
    return mean, statistics, loss


@lru_cache
def _layout(network):
    """({name: shape} of parameters, statistics and the loss, names of statistics, where each ends in one row)."""
    of_statistics = {name: values.shape for name, values in initial_statistics(network).items()}
    shapes = network.shapes() | of_statistics | {"loss": (1,)}
    return shapes, tuple(of_statistics), np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
