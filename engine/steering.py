"""Steering a training by its own freezing: HOT → PROBE → ANNEAL → AVERAGE, as decisions, without the network.

HOT: a constant learning rate, small batches, R replicas from one state. PROBE, now and then: the replicas, which have
had noise of their own since the last probe, all over the same horizon, are cooled; is there a barrier between them?
Then all go on from one state. Where CONFIRMED probes one after the other find none, the valley had been decided at the
first of them, and HOT goes on for HOLD times as long as it took until then: in the two-valley model noise that is
turned down before freezing locks the sharp valley in, later costs nothing. It ends at CAP of the budget at the latest,
and at once if the loss on micrographs (or particles) held back rises, because holding hot means learning wrong labels
for longer. ANNEAL: the replicas' common state goes on with their batches joined, at a rate that falls to 0 along a
cosine. AVERAGE: over the last third of that, the mean of all states (Izmailov et al. 2018).

Everything is counted in steps of the budget, a step being the gradients of one joined batch. Probes take at most SHARE
of the budget, whatever they find.
"""
from dataclasses import dataclass, replace
from math import ceil, cos, inf, pi

from vitrea.engine.anneal import CONFIRMED, allowed_barrier

SHARE = 0.15          # of the budget, at most, goes into probes
EVERY = 0.04          # of the budget between two probes, at least
CAP = 0.6             # of the budget: HOT ends
HOLD = 0.5            # of the freezing time: HOT goes on after it
RISEN = 1.1           # times the lowest loss held back: it has risen
AVERAGED = 1.0 / 3.0  # of ANNEAL


@dataclass(frozen=True)
class Budget:
    """Steps of a training in all, what a probe costs of them, and the share of them after which HOT ends whatever
    the probes find (0: as they find)."""

    steps: int
    probe: int
    hot: float = 0.0

    @property
    def latest(self):
        """The step at which HOT ends at the latest."""
        return int((self.hot or CAP) * self.steps)

    @property
    def interval(self):
        """Steps between the end of a probe and the begin of the next."""
        return max(ceil(EVERY * self.steps), ceil(self.probe * CAP / SHARE) - self.probe, 1)


@dataclass(frozen=True)
class Steering:
    """What was decided so far. since: the step at which the replicas were one; quiet: probes in a row without a
    barrier, and decided: where the first of them began; frozen: the freezing time, −1 before; leave: the step at which
    HOT ends; spent: steps that went into probes; least: the lowest loss held back."""

    leave: int
    since: int = 0
    quiet: int = 0
    decided: int = 0
    frozen: int = -1
    spent: int = 0
    least: float = inf

    @classmethod
    def of(cls, budget):
        return cls(leave=budget.latest)

    def hot(self, step):
        return step < self.leave

    def probes(self, budget, step):
        """Whether a probe is due at a step: not after the last, and not where it would reach beyond HOT."""
        return (self.hot(step) and self.frozen < 0 and step - self.since >= budget.interval
                and step + budget.probe <= budget.latest)

    def probed(self, budget, step, barrier, loss, held_back=None):
        """The Steering after a probe that began at `step`: the barrier [nats] between the cooled replicas, their mean
        loss, and the loss held back, if there is any."""
        end = step + budget.probe
        clear = barrier < allowed_barrier(loss)
        quiet = self.quiet + 1 if clear else 0
        decided = self.since if quiet == 1 else self.decided
        after = replace(self, since=end, quiet=quiet, decided=decided, spent=self.spent + budget.probe)
        if quiet >= CONFIRMED and self.frozen < 0:
            leave = budget.latest if budget.hot else min(budget.latest, end + ceil(HOLD * decided))
            after = replace(after, frozen=decided, leave=leave)
        if held_back is not None:
            risen = held_back > RISEN * self.least
            after = replace(after, least=min(self.least, held_back), leave=end if risen else after.leave)
        return after

    def rate(self, budget, step):
        """The learning rate at a step, relative to HOT's."""
        if self.hot(step):
            return 1.0
        return 0.5 * (1.0 + cos(pi * (step - self.leave) / max(budget.steps - self.leave, 1)))

    def averages(self, budget, step):
        """Whether the state after a step enters the mean."""
        return not self.hot(step) and step >= budget.steps - AVERAGED * (budget.steps - self.leave)
