"""Annealing of manifold learning: from just below the temperature where classes appear, down to where they stop paying.

Above T_c = λ·h all nodes hold the mean (engine/components.py). The run begins just below, so that the data and not the
start choose what splits first, and cools by a factor whenever EM has settled. Particles held out judge the classes of
each temperature by their log-likelihood at T = 1; cooling ends at T = 1, or where it has risen and then not improved
for two temperatures, and the best classes are finished with all particles. While cooling, classes weigh the same: a
learnt weight would feed the class that splits off first. The prior of the classes, found by its evidence, is no
narrower than the signal that the principal components show: nodes that are still alike would find one as narrow as
their mean is weak, and where many unrelated classes leave their mean no power, none could appear. Components for junk
come in at the end: "any signal on top of the nearest class" would take everything while there are no classes.

The nodes of a chain had to find their order while they were still alike, and seldom did. So its best classes are put in
order, neighbours alike, and cooled once more from a little above the temperature at which they were best.
"""
from dataclasses import dataclass, fields, replace

import numpy as np

from vitrea.engine.manifold import (
    Manifold,
    Maximisation,
    Totals,
    manifold_arrays,
    manifold_from_arrays,
)
from vitrea.engine.minibatches import step_size
from vitrea.engine.starts import in_order

BELOW_CRITICAL = 0.95
REHEATED = 1.5            # times the best temperature: classes in order may still exchange places with neighbours
WORSE = 2                 # temperatures without a better judgement after which cooling ends


@dataclass(frozen=True)
class Schedule:
    """cooling: factor between temperatures; sweeps: most iterations at one; settle: most iterations at the end;
    tolerance: change of the log-likelihood [nats a particle] below which a temperature has settled; coldest: end of
    cooling; batch: particles of a mini-batch while cooling, 0 for all; seed of the draw of batches; step: α of a
    mini-batch, (t + 2)^−0.6 for the t-th of a temperature by default."""

    cooling: float = 0.8
    sweeps: int = 8
    settle: int = 30
    tolerance: float = 0.01
    coldest: float = 1.0
    batch: int = 0
    seed: int = 0
    step: float | None = None


@dataclass(frozen=True)
class State:
    """All that an iteration depends on. stage: "cool", "settle" or "done"; iteration of all; in_stage: at this
    temperature or in settling; last: tempered log-likelihood of the iteration before; previous: the temperature
    before this one, 0 for none, and judgement its judgement; best: classes judged best so far, best_held_out their
    judgement, worse: how many temperatures came after them since judgements have risen at all; ordered: whether the
    classes were put in order; critical: T_c; running: averaged sums of online EM, or None."""

    manifold: Manifold
    critical: float = np.nan
    stage: str = "cool"
    iteration: int = 0
    in_stage: int = 0
    last: float = -np.inf
    previous: float = 0.0
    best: Manifold = None
    best_held_out: float = -np.inf
    worse: int = 0
    ordered: bool = False
    risen: bool = False
    judgement: float = np.inf
    running: Totals = None


def begin(manifold, critical, coldest=1.0):
    """The first State: just below T_c, the largest eigenvalue of the components (engine/components.py)."""
    return replace(begin_at(manifold, max(BELOW_CRITICAL * critical, coldest)), critical=float(critical))


def begin_at(manifold, temperature):
    """The first State at a given temperature, to be cooled from there."""
    return State(replace(manifold, temperature=float(temperature)))


def begin_reheated(manifold, temperature):
    """The first State of classes in order that were best at `temperature`."""
    return replace(begin_at(manifold, REHEATED * temperature), ordered=True)


def begin_settled(manifold, temperature=1.0):
    """The first State of EM at one temperature with all particles, without annealing."""
    return State(replace(manifold, temperature=temperature), stage="settle")


class Annealing:
    """Iterations of one run: `step(state)` is one; a run ends when its stage is "done". Collective, also to make."""

    def __init__(self, particles, lattice, settings, schedule, *, comm):
        self.schedule = schedule
        particles.last_class[:] = -1   # classes of another trial are not these
        held = replace(settings, learn_prior=False)
        self._cooling = Maximisation(particles, lattice, held, comm=comm)
        everything = replace(particles, held_out=np.zeros(len(particles), dtype=bool))
        self._settling = self._cooling.of(everything, settings)
        blocks = comm.allgather(len(particles.blocks))
        self._first_block, self._n_blocks = sum(blocks[:comm.rank]), sum(blocks)

    def step(self, state):
        """(State, Report) after one iteration of EM. Collective."""
        after, report = self._settle(state) if state.stage == "settle" else self._cool(state)
        return after, replace(report, iteration=state.iteration + 1, stage=state.stage)

    def _cool(self, state):
        batch = _Batch(self.schedule, state, self._first_block, self._n_blocks, self._cooling.particles)
        before = state.manifold
        manifold, report = self._cooling.step(before, batch.blocks, batch.average if batch.drawn else None)
        iteration, judging = state.iteration + 1, state.in_stage == 0 and state.previous > 0
        if batch.drawn:   # those of one batch are too few to judge temperatures that another has judged
            held_out = self._cooling.held_out_likelihood(before) if judging else np.nan
            report = replace(report, held_out=held_out)
        if judging:
            state = self._judged(state, report.held_out)
            if state.worse >= WORSE or state.previous <= self.schedule.coldest:
                return replace(self._cooled(state), critical=state.critical, iteration=iteration), report
        settled = not self.schedule.batch and abs(report.tempered - state.last) < self.schedule.tolerance
        state = replace(state, manifold=manifold, iteration=iteration, in_stage=state.in_stage + 1,
                        last=report.tempered, running=batch.running)
        return (self._cooler(state) if settled or state.in_stage >= self.schedule.sweeps else state), report

    def _cooled(self, state):
        """The State after the end of cooling: once more in order, or settling."""
        best, lattice = replace(state.best, least_signal2=np.zeros(1)), state.best.lattice   # the classes are there
        if not state.ordered and lattice.dimension == 1 and lattice.n_bias and not lattice.periodic:
            ordered = in_order(lattice, self._cooling.particles.layout, best, comm=self._cooling.comm)
            return begin_reheated(ordered, best.temperature)
        return State(best, stage="settle", best_held_out=state.best_held_out, ordered=state.ordered)

    def _judged(self, state, held_out):
        """Take note of how the classes of the temperature before do on the particles held out, if there are any."""
        risen = state.risen or held_out > state.judgement + self.schedule.tolerance
        if risen and not state.risen:   # what the start brought along, and lost again, is no mark for classes to reach
            state = replace(state, best_held_out=-np.inf)
        state = replace(state, risen=risen, judgement=held_out)
        if np.isfinite(held_out) and held_out <= state.best_held_out:
            return replace(state, worse=state.worse + risen)
        best = replace(state.manifold, temperature=state.previous)
        return replace(state, best=best, best_held_out=held_out, worse=0)

    def _cooler(self, state):
        now = state.manifold.temperature
        manifold = replace(state.manifold, temperature=max(now * self.schedule.cooling, self.schedule.coldest))
        return replace(state, manifold=manifold, in_stage=0, last=-np.inf, previous=now)

    def _settle(self, state):
        manifold = state.manifold
        if self._settling.settings.outliers and not manifold.outlier_prior.any():
            manifold = manifold.with_outliers()
        manifold, report = self._settling.step(manifold)
        if self._settling.settings.outliers:
            manifold = manifold.without_silent(self._settling.particles.layout)
        quiet = abs(report.tempered - state.last) < self.schedule.tolerance
        done = quiet or state.in_stage + 1 >= self.schedule.settle
        return replace(state, manifold=manifold, stage="done" if done else "settle", iteration=state.iteration + 1,
                       in_stage=state.in_stage + 1, last=report.tempered), report


class _Batch:
    """The blocks of an iteration and how their sums are averaged with those before: all, and not at all, by default."""

    def __init__(self, schedule, state, first_block, n_blocks, particles):
        self.blocks, self.running = None, None
        wanted = -(-n_blocks * schedule.batch // max(particles.n_total, 1))
        if not schedule.batch or wanted >= n_blocks:
            return
        drawn = np.random.default_rng([schedule.seed, 2, state.iteration]).choice(n_blocks, max(wanted, 1), False)
        own = np.sort(drawn[(drawn >= first_block) & (drawn < first_block + len(particles.blocks))]) - first_block
        self.blocks, self.running = [particles.blocks[i] for i in own], state.running
        self._rate, self._n_total = step_size(state.in_stage + 2.0, schedule.step), particles.n_total

    @property
    def drawn(self):
        """Whether this is a part of the particles."""
        return self.blocks is not None

    def average(self, totals):
        """What the M step sees: these sums, averaged with those before."""
        totals = totals.scaled(self._n_total / max(totals.learnt + totals.held_out, 1.0))
        self.running = totals if self.running is None else self.running.blend(totals, self._rate)
        return self.running


def fit(particles, state, settings, schedule, *, comm, on_iteration=None):
    """Iterate until done: the last State. Collective.

    on_iteration(state, report) is called after each iteration, on every rank; where it returns True (it must on all
    ranks alike) the run is left, and can be continued from that state with the same bits.
    """
    annealing = Annealing(particles, state.manifold.lattice, settings, schedule, comm=comm)
    while state.stage != "done":
        state, report = annealing.step(state)
        if on_iteration is not None and on_iteration(state, report):
            break
    return state


def state_arrays(state):
    """dict of arrays that determine a State, for a checkpoint; `state_from_arrays` puts it together again."""
    found = {name: np.asarray(getattr(state, name)) for name in _NUMBERS}
    for part in ("manifold", "best"):
        if getattr(state, part) is not None:
            found |= {f"{part}_{name}": value for name, value in manifold_arrays(getattr(state, part)).items()}
    if state.running is not None:
        found |= {f"running_{f.name}": getattr(state.running, f.name) for f in fields(Totals)}
    return found


def state_from_arrays(arrays):
    """The State that `state_arrays` took apart."""
    parts = {name: as_kind(np.asarray(arrays[name])) for name, as_kind in _NUMBERS.items()}
    for part in ("manifold", "best"):
        own = {name[len(part) + 1:]: arrays[name] for name in arrays
               if name.startswith(part + "_") and name not in _NUMBERS}
        if own:
            parts[part] = manifold_from_arrays(own)
    if "running_data" in arrays:
        parts["running"] = Totals(*(np.asarray(arrays[f"running_{f.name}"]) for f in fields(Totals)))
    return State(**parts)


def _text(value):
    value = value.item()
    return value.decode() if isinstance(value, bytes) else value


_NUMBERS = {"stage": _text, "iteration": int, "in_stage": int, "last": float, "previous": float,
            "best_held_out": float, "worse": int, "ordered": bool, "risen": bool, "judgement": float, "critical": float}
