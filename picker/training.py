"""Training a picker's network: batches drawn by number, gradients summed so that no rank or order shows, two recipes.

A batch is cut into parts of PART tiles. A part is normalised by itself ("ghost batches", Hoffer, Hubara & Soudry
2017), and its gradient is computed by one rank; all gradients are rounded to multiples of one power of two before
they are added (kernels/exact.py). The result therefore has the same bits for any number of ranks.

Where only some particles are labelled, some of the background is not: with ρ the share of the places called negative
that hold a particle, the loss of the true background is (E_u l⁻ − ρ E_p l⁻) / (1 − ρ), and at least zero (du Plessis
2015; Kiryo 2017), E_u over the places called negative and E_p over labelled ones.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.comm import largest_over_ranks, sum_over_ranks
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.picker.labels import Augmentation, Sampler
from vitrea.picker.network import FORGETTING, backward, forward, initial_parameters, initial_statistics

PART = 8                  # tiles that are normalised together
POSITIVE_SHARE = 1 / 3    # of the weight of a batch that lies on positive places
MOMENT1, MOMENT2, ADAM_EPSILON = 0.9, 0.999, 1e-8   # Kingma & Ba 2015
WARM_UP = 0.05            # of the steps in which the rate rises
COUNTED_DRAWS = 256       # from which the share of positive places is estimated


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: tiles with outputs² places, loss ("bce", "mse"), optimizer ("adam", "sgd";
    "freeze_aware" of picker/steered.py)."""

    steps: int
    batch: int
    outputs: int
    loss: str
    optimizer: str
    rate: float
    augmentation: Augmentation
    falling: bool = True   # the rate falls to zero along a cosine


# DeepEM's: squared errors, plain descent at rate 1, batches of 50, 20 epochs of 6,400 boxes at quarter turns. The
# batches are of 48 here, whole parts.
QUARTERS = Augmentation(any_angle=False, mirror=False, shift=0.0, contrast=0.0, offset=0.0, noise=0.0, decoys=0.0)
PUBLISHED = Recipe(steps=2667, batch=48, outputs=1, loss="mse", optimizer="sgd", rate=1.0, falling=False,
                   augmentation=QUARTERS)
DEFAULT = Recipe(steps=500, batch=32, outputs=5, loss="bce", optimizer="adam", rate=4e-3, augmentation=Augmentation())
# Of the network vitrea, by the key `optimiser`. Plain descent still learns at a rate of 1; 0.3 was not tuned.
RECIPES = {"adam": DEFAULT, "sgd": replace(DEFAULT, optimizer="sgd", rate=0.3),
           "freeze_aware": replace(DEFAULT, optimizer="freeze_aware", rate=0.3)}


@dataclass
class State:
    """Everything that training has come to after `step` steps."""

    parameters: dict
    statistics: dict
    moments: tuple[dict, dict]
    step: int = 0
    loss: float = float("nan")


def train(micrographs, network, diameter, recipe, *, seed, comm, begun=None):
    """Generator of State, one after each step; the last one is the trained network. Collective.

    micrographs are LabelledMicrographs, the same on every rank; diameter [px] of prepared images. begun: the State
    after which to go on, to the same bits as without a break.
    """
    sampler = Sampler(micrographs, network, diameter, recipe.outputs, recipe.augmentation, seed)
    state = begun or start(network, seed)
    weights = loss_weights(sampler)
    for step in range(state.step, recipe.steps):
        parts = range(comm.rank, recipe.batch // PART, comm.size)
        found = [of_part(network, state.parameters, sampler, recipe, weights, step, part) for part in parts]
        gradient, statistics, loss = mean_of_parts(network, found, recipe.batch // PART, comm)
        state = _stepped(state, gradient, statistics, recipe, loss)
        yield state


def start(network, seed):
    """The state before the first step."""
    parameters = initial_parameters(network, np.random.default_rng((seed, 0)))
    zeros = [{name: np.zeros(values.shape) for name, values in parameters.items()} for _ in range(2)]
    return State(parameters, initial_statistics(network), tuple(zeros))


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
    terms = [{**gradients, **statistics, "loss": np.array([loss])} for gradients, statistics, loss in found]
    statistics = {name: values.shape for name, values in initial_statistics(network).items()}
    shapes = network.shapes() | statistics | {"loss": (1,)}
    largest = [max((float(np.abs(each[name]).max()) for each in terms), default=0.0) for name in shapes]
    units = quantum(n_parts * largest_over_ranks(np.array(largest), comm=comm))
    # One message for all: they are small, and a step of training is short.
    sums = [sum((to_quanta(each[name], unit).ravel() for each in terms), np.zeros(int(np.prod(shape))))
            for (name, shape), unit in zip(shapes.items(), units)]
    total = sum_over_ranks(np.concatenate(sums), comm=comm) / n_parts
    ends = np.cumsum([part.size for part in sums])[:-1]
    mean = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), np.split(total, ends))}
    loss = float(mean.pop("loss")[0])
    return {name: mean[name] for name in network.shapes()}, {name: mean[name] for name in statistics}, loss


def _stepped(state, gradient, statistics, recipe, loss):
    """The state after a step of the optimizer."""
    step, rate = state.step + 1, _rate(recipe, state.step)
    first, second, parameters = {}, {}, {}
    for name, slope in gradient.items():
        if recipe.optimizer == "adam":
            first[name] = MOMENT1 * state.moments[0][name] + (1 - MOMENT1) * slope
            second[name] = MOMENT2 * state.moments[1][name] + (1 - MOMENT2) * slope**2
            spread = np.sqrt(second[name] / (1 - MOMENT2**step)) + ADAM_EPSILON
            slope = first[name] / (1 - MOMENT1**step) / spread
        parameters[name] = (state.parameters[name] - rate * slope).astype(np.float32)
    running = {name: (1 - FORGETTING) * state.statistics[name] + FORGETTING * values if state.step else values
               for name, values in statistics.items()}
    return State(parameters, running, (first, second), step, loss)


def _rate(recipe, step):
    if not recipe.falling:
        return recipe.rate
    warm = min(1.0, (step + 1) / max(1.0, WARM_UP * recipe.steps))
    return recipe.rate * warm * 0.5 * (1 + np.cos(np.pi * step / recipe.steps))
