"""Training that is steered by its own freezing (engine/steering.py): the picker's `optimiser: freeze_aware`.

While it is hot, REPLICAS networks descend from one state, each with its share of a step's batch and so with noise of
its own; a step costs what a step of `train` costs. Where the ranks divide the replicas, each descends on a rank of its
own, without a message for ROUND steps; on more ranks, and after HOT, the parts of each batch are dealt out. A probe
cools them by full batches of tiles that are drawn once, and takes the barrier along the straight line between them; the
maps are normalised by the tiles themselves, so that the line needs no statistics. With a barrier the better one goes
on, without one their mean, which is no worse where the line has no rise. Sums over parts are exact (kernels/exact.py):
the same bits on any number of ranks, and after a break, since the whole course is in the State.
"""
from dataclasses import astuple, dataclass, field, replace
from math import ceil

import numpy as np

from vitrea.engine.anneal import allowed_barrier, separation_ratio
from vitrea.engine.comm import alone, largest_over_ranks, sum_over_ranks
from vitrea.engine.steering import Budget, Steering
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.picker.labels import Sampler
from vitrea.picker.network import FORGETTING, forward, initial_statistics
from vitrea.picker.training import LOSSES, PART, State, loss_weights, mean_of_parts, of_part, start

REPLICAS, ROUND = 2, 8
PROBES = ((4, 6), (2, 3))   # parts of tiles, steps of cooling: the first that is PROBE_SHARE at most, or the last
PROBE_SHARE = 0.035         # of the budget: four probes are within what engine/steering.py allows
LINE_POINTS = 7                    # of the straight line, ends included
GUARD_PARTS, STATISTICS_PARTS = 8, 8
GUARDED = 8                        # one micrograph in so many is held back, for its loss
FORWARD = 1 / 3                    # what a loss costs of what a gradient costs
PROBE_DRAW, GUARD_DRAW, STATISTICS_DRAW = (2**31 + k for k in (1, 2, 3))   # numbers that no step has


@dataclass(frozen=True)
class Probe:
    """What a probe found: the step, the barrier and the mean loss of the cooled replicas [nats], how far apart they are
    in units of their fluctuation, and the loss on micrographs held back (NaN without any)."""

    step: int
    barrier: float
    loss: float
    separation: float
    held_back: float

    @property
    def words(self):
        """A line for the log."""
        kept = "" if np.isnan(self.held_back) else f"   held back {self.held_back:.4f}"
        clear = "none" if self.barrier < allowed_barrier(self.loss) else f"{self.barrier:.4f}"
        return (f"probe at step {self.step}   barrier {clear}   loss {self.loss:.4f}   "
                f"separation {self.separation:.3g}{kept}")


@dataclass(frozen=True)
class Course:
    """Everything that a steered training has come to: replicas (one after HOT), statistics, decisions, the fluctuation
    of the first replica over the second half of a horizon (mean, sum of squares, states), the mean of states and of how
    many, and the probes."""

    replicas: tuple[dict, ...]
    statistics: dict
    steering: Steering
    step: int = 0
    loss: float = float("nan")
    within: tuple[dict, dict] = ({}, {})
    seen: int = 0
    average: dict = field(default_factory=dict)
    averaged: int = 0
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Leg:
    """A replica on its way: parameters, statistics, its fluctuation as in Course, and the sum of its losses."""

    parameters: dict
    statistics: dict
    within: tuple[dict, dict]
    seen: int
    loss: float = 0.0

    def noted(self):
        """With the parameters taken into the fluctuation (Welford 1962)."""
        mean, squares, seen = *self.within, self.seen + 1
        away = {name: values.astype(np.float64) - mean.get(name, 0.0) for name, values in self.parameters.items()}
        mean = {name: mean.get(name, 0.0) + away[name] / seen for name in away}
        squares = {name: squares.get(name, 0.0) + away[name] * (values - mean[name])
                   for name, values in self.parameters.items()}
        return replace(self, within=(mean, squares), seen=seen)


def train_freeze_aware(micrographs, network, diameter, recipe, *, seed, comm, begun=None):
    """As picker.training.train: a generator of State, after each step or probe; the last is the trained network.
    Collective. recipe.rate is HOT's."""
    samplers = samplers_of(micrographs, network, diameter, recipe, seed)
    return descend_freeze_aware(*samplers, network, recipe, seed=seed, comm=comm, begun=begun)


def samplers_of(micrographs, network, diameter, recipe, seed):
    """(Sampler of the tiles, that of the micrographs held back or None): every GUARDED-th, where any is labelled."""
    guards = micrographs[GUARDED - 1::GUARDED]
    guarded = any(len(each.positives) for each in guards)
    kept = [each for k, each in enumerate(micrographs) if (k + 1) % GUARDED] if guarded else micrographs
    return tuple(Sampler(which, network, diameter, recipe.outputs, recipe.augmentation, seed) if which else None
                 for which in (kept, guards if guarded else []))


def descend_freeze_aware(sampler, guard, network, recipe, *, seed, comm, begun=None):
    """As `train_freeze_aware`, on the tiles of Samplers, the second of micrographs held back (or None)."""
    trainer = _Trainer(sampler, guard, network, recipe, seed, comm)
    course = _course_of(begun) if begun else trainer.begin()
    while course.step < recipe.steps:
        course = trainer.advance(course)
        yield _state_of(course)


def last_probe(state):
    """The Probe that a State of `train_freeze_aware` has just come from, or None."""
    rows = state.moments[1].get("probes")
    if rows is None or not len(rows):
        return None
    probe = _probe_of(rows[-1])
    since = int(state.moments[1]["steering"][1])
    return probe if since == state.step else None


def steering_of(state):
    """The Steering that a State of a steered training has come to."""
    return _course_of(state).steering


class _Trainer:
    """What does not change in a training."""

    def __init__(self, sampler, guard, network, recipe, seed, comm):
        self._sampler, self._guard = sampler, guard
        self._network, self._recipe, self._seed, self._comm = network, recipe, seed, comm
        self._weights = loss_weights(sampler)
        self._parts = recipe.batch // PART
        if self._parts % REPLICAS:
            raise ValueError(f"batches of {recipe.batch} tiles; expected a multiple of {REPLICAS * PART}")
        self._last = recipe.steps - ceil(FORWARD * STATISTICS_PARTS / self._parts)   # statistics of the mean cost, too
        most = PROBE_SHARE * self._last * self._parts
        self._tiles, self._cooling = next((each for each in PROBES if self._probe_parts(*each) <= most), PROBES[-1])
        probe = ceil(self._probe_parts(self._tiles, self._cooling) / self._parts)
        self.budget = Budget(self._last, probe, recipe.hot)

    def _probe_parts(self, tiles, cooling):
        """Gradients of parts that a probe costs."""
        losses = LINE_POINTS * tiles + REPLICAS * GUARD_PARTS * (self._guard is not None)
        return REPLICAS * cooling * tiles + FORWARD * losses

    def begin(self):
        state = start(self._network, self._seed)
        return Course((state.parameters,) * REPLICAS, state.statistics, Steering.of(self.budget))

    def advance(self, course):
        """The course after a step, a probe, or the end."""
        if course.step >= self._last:
            return self._ended(course)
        if course.steering.probes(self.budget, course.step):
            return self._probed(course)
        return self._advanced(course)

    # ---- steps

    def _advanced(self, course):
        """The course after a round of HOT, or a step after it."""
        if course.steering.hot(course.step):
            return self._round(course)
        if len(course.replicas) > 1:   # HOT has ended
            common = _mean(course.replicas) if course.steering.frozen >= 0 else course.replicas[0]
            course = replace(course, replicas=(common,))
        leg = self._leg(course, 0, course.step + 1, self._comm)
        return self._averaged(replace(course, replicas=(leg.parameters,), statistics=leg.statistics,
                                      step=course.step + 1, loss=leg.loss))

    def _round(self, course):
        """The replicas, each a way of its own, up to the next probe or the end of HOT, ROUND steps at most."""
        n, size, end = len(course.replicas), self._comm.size, course.step + 1
        while (end < min(course.step + ROUND, course.steering.leave, self._last)
               and not course.steering.probes(self.budget, end)):
            end += 1
        apart = n % size == 0
        legs = [self._leg(course, number, end, alone() if apart else self._comm)
                if not apart or number % size == self._comm.rank else None for number in range(n)]
        if apart and size > 1:
            legs = [_told_to_all(leg, course, number % size, self._comm) for number, leg in enumerate(legs)]
        return replace(course, replicas=tuple(leg.parameters for leg in legs), statistics=legs[0].statistics, step=end,
                       loss=float(np.mean([leg.loss for leg in legs])) / (end - course.step), within=legs[0].within,
                       seen=legs[0].seen)

    def _leg(self, course, number, end, comm):
        """The Leg of one replica up to a step."""
        leg = Leg(course.replicas[number], course.statistics, course.within, course.seen)
        for step in range(course.step, end):
            rate = self._recipe.rate * course.steering.rate(self.budget, step)
            parts = range(number, self._parts, len(course.replicas))
            gradient, found, loss = self._gradient(self._sampler, leg.parameters, step, parts, comm)
            parameters = _descended(leg.parameters, gradient, rate)
            statistics = {name: (1 - FORGETTING) * leg.statistics[name] + FORGETTING * values if step else values
                          for name, values in found.items()}
            leg = replace(leg, parameters=parameters, statistics=statistics, loss=leg.loss + loss)
            if course.steering.hot(step + 1) and step + 1 - course.steering.since > self.budget.interval // 2:
                leg = leg.noted()
        return leg

    def _averaged(self, course):
        """Take the new state into the mean of the last states."""
        if not course.steering.averages(self.budget, course.step):
            return course
        n = course.averaged + 1
        average = {name: course.average.get(name, 0.0) * (n - 1) / n + values.astype(np.float64) / n
                   for name, values in course.replicas[0].items()}
        return replace(course, average=average, averaged=n)

    def _ended(self, course):
        """The mean of the last states, with statistics of its own."""
        parameters = {name: values.astype(np.float32) for name, values in course.average.items()} or course.replicas[0]
        _, statistics = self._losses(self._sampler, [parameters], STATISTICS_DRAW, STATISTICS_PARTS)
        return replace(course, replicas=(parameters,), statistics=statistics, step=self._recipe.steps)

    # ---- probes

    def _probed(self, course):
        cooled = [self._cooled(parameters) for parameters in course.replicas]
        one, other = cooled
        along = np.linspace(0, 1, LINE_POINTS)
        line = [{name: (one[name] + t * (other[name] - one[name])).astype(np.float32) for name in one} for t in along]
        losses, _ = self._losses(self._sampler, line, PROBE_DRAW, self._tiles)
        barrier = float(np.max(losses - losses[0] - along * (losses[-1] - losses[0])))
        held_back = (float(self._losses(self._guard, cooled, GUARD_DRAW, GUARD_PARTS)[0].mean()) if self._guard
                     else float("nan"))
        found = Probe(course.step, barrier, float(losses[[0, -1]].mean()), self._separation(course, cooled), held_back)
        steering = course.steering.probed(self.budget, course.step, found.barrier, found.loss,
                                          held_back if self._guard else None)
        best = course.replicas[0 if losses[0] <= losses[-1] else 1]
        common = _mean(course.replicas) if barrier < allowed_barrier(found.loss) else best
        return replace(course, replicas=(common,) * REPLICAS, steering=steering, step=course.step + self.budget.probe,
                       within=({}, {}), seen=0, probes=(*course.probes, found))

    def _cooled(self, parameters):
        for _ in range(self._cooling):
            gradient, _, _ = self._gradient(self._sampler, parameters, PROBE_DRAW, range(self._tiles), self._comm)
            parameters = _descended(parameters, gradient, self._recipe.rate)
        return parameters

    def _separation(self, course, cooled):
        if course.seen < 2:
            return float("inf")
        within = _flat(course.within[1]) / (course.seen - 1)
        return separation_ratio(*(_flat(each) for each in cooled), within)

    # ---- sums over parts, dealt to the ranks

    def _gradient(self, sampler, parameters, draw, parts, comm):
        """(gradient, statistics, loss) of parts of a draw, dealt to the ranks of `comm`. Collective."""
        found = [of_part(self._network, parameters, sampler, self._recipe, self._weights, draw, part)
                 for part in parts[comm.rank::comm.size]]
        return mean_of_parts(self._network, found, len(parts), comm)

    def _losses(self, sampler, networks, draw, parts):
        """(float64[n] losses of several networks on parts of a draw, mean statistics of the first). Collective."""
        shapes = {name: values.shape for name, values in initial_statistics(self._network).items()}
        sums = []
        for part in range(self._comm.rank, parts, self._comm.size):
            tiles, target, weight = sampler.draws(draw, range(part * PART, (part + 1) * PART))
            found = [forward(self._network, each, tiles) for each in networks]
            losses = [LOSSES[self._recipe.loss](logits.astype(np.float64), target, weight, self._weights)[0]
                      for logits, _, _ in found]
            sums.append(np.concatenate([losses, *(np.ravel(found[0][2][name]) for name in shapes)]))
        terms = np.array(sums).reshape(len(sums), len(networks) + sum(int(np.prod(each)) for each in shapes.values()))
        unit = quantum(parts * largest_over_ranks(np.abs(terms).max(axis=0, initial=0.0), comm=self._comm))
        total = sum_over_ranks(to_quanta(terms, unit).sum(axis=0), comm=self._comm) / parts
        pieces = np.split(total, np.cumsum([len(networks), *(int(np.prod(each)) for each in shapes.values())])[:-1])
        return pieces[0], {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces[1:])}


def _told_to_all(leg, course, owner, comm):
    """A Leg that one rank has, on all of them: its numbers are added to the others' zeros. Collective."""
    parameters, own = course.replicas[0], comm.rank == owner
    seen = int(sum_over_ranks(np.array([leg.seen if own else 0], dtype=float), comm=comm)[0])
    parts = [parameters, course.statistics, *([parameters, parameters] if seen else [])]
    flat = np.zeros(1 + sum(np.size(values) for part in parts for values in part.values()))
    if own:
        held = [leg.parameters, leg.statistics, *(leg.within if seen else [])]
        flat[:] = np.concatenate([[leg.loss], *(np.ravel(part[name]) for part, like in zip(held, parts)
                                                for name in like)])
    flat = sum_over_ranks(flat, comm=comm)
    found, place = [], 1
    for part in parts:
        found.append({})
        for name, values in part.items():
            found[-1][name] = flat[place:place + np.size(values)].reshape(np.shape(values))
            place += np.size(values)
    single = {name: values.astype(np.float32) for name, values in found[0].items()}
    return Leg(single, found[1], tuple(found[2:]) or ({}, {}), seen, float(flat[0]))


def _descended(parameters, gradient, rate):
    return {name: (values - rate * gradient[name]).astype(np.float32) for name, values in parameters.items()}


def _mean(networks):
    return {name: np.mean([each[name] for each in networks], axis=0, dtype=np.float64).astype(np.float32)
            for name in networks[0]}


def _flat(tensors):
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])


# ---- a course as a State, whose tensors and numbers a checkpoint keeps (picker/trainings.py)

def _state_of(course):
    """State: the first replica is the network; the rest is in the places of an optimiser's moments."""
    tensors = {f"replica:{name}": values for name, values in course.replicas[-1].items()}
    for kind, part in (("mean", course.within[0]), ("squares", course.within[1]), ("average", course.average)):
        tensors |= {f"{kind}:{name}": values for name, values in part.items()}
    numbers = {"steering": np.array(astuple(course.steering), dtype=float),
               "counts": np.array([len(course.replicas), course.seen, course.averaged]),
               "probes": np.array([astuple(probe) for probe in course.probes], dtype=float).reshape(-1, 5)}
    return State(course.replicas[0], course.statistics, (tensors, numbers), course.step, course.loss)


def _course_of(state):
    """The Course that `_state_of` packed."""
    parts = {kind: {} for kind in ("replica", "mean", "squares", "average")}
    for key, values in state.moments[0].items():
        kind, name = key.split(":")
        parts[kind][name] = values
    numbers = state.moments[1]
    count, seen, averaged = (int(each) for each in numbers["counts"])
    replicas = (state.parameters, parts["replica"])[:count]
    *integers, least = numbers["steering"]
    return Course(replicas, state.statistics, Steering(*(int(each) for each in integers), float(least)), state.step,
                  state.loss, (parts["mean"], parts["squares"]), seen, parts["average"], averaged,
                  tuple(_probe_of(row) for row in numbers["probes"]))


def _probe_of(row):
    return Probe(int(row[0]), *(float(each) for each in row[1:]))
