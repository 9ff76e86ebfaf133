"""Trajectories at a frozen progress y, where the stationary formulas F1 to F3 hold: occupancies, variances, passages.

All of it is one process's own work: an ensemble of a few hundred trajectories, whose spread gives the standard errors.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.two_valleys import FLAT, Landscape
from vitrea.kernels.langevin import IN_FLAT, PASSED, SQUARE_FLAT, SQUARE_SHARP, SUM_FLAT, SUM_SHARP, advance_frozen

PASSAGE_CHUNK = 4096   # steps between two looks whether all trajectories have passed


@dataclass(frozen=True)
class Measured:
    """A mean over independent trajectories, and its standard error."""

    value: float
    error: float

    @classmethod
    def over(cls, samples: np.ndarray) -> "Measured":
        return cls(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples))))


@dataclass(frozen=True)
class FrozenEnsemble:
    """Trajectories at progress y: learning rate η, noise (σ, power, place), and where their random numbers start."""

    landscape: Landscape
    y: float
    learning_rate: float
    noise: tuple[float, int, float]
    trajectories: int = 256
    seed: int = 0

    def occupancy(self, duration: float, settling: float = 0.1) -> Measured:
        """Fraction of the time, learning rate × steps, spent in the flat valley; the `settling` part is left out."""
        steps = int(duration / self.learning_rate)
        state = self._begin(np.where(np.arange(self.trajectories) % 2, -0.01, 0.01))
        first = 2 * int(settling * steps / 2)
        self._advance(state, 0, first)
        before = state[IN_FLAT].copy()
        made = self._advance(state, first, steps - first)
        return Measured.over((state[IN_FLAT] - before) / made)

    def variances(self, steps: int) -> tuple[Measured, Measured]:
        """Var(x) within the flat and the sharp valley, from `steps` steps of each of half the trajectories; for y so
        far that none hops."""
        minima = self.landscape.minima(self.y)
        halves = np.arange(self.trajectories) % 2
        state = self._begin(np.where(halves, -minima[1], minima[0]))
        self._advance(state, 0, 200)   # from the minimum, the variance settles within some 2 f/η steps
        before = state.copy()
        made = self._advance(state, 200, steps)
        change = (state - before)[:, :]
        found = []
        for half, total, square in ((0, SUM_FLAT, SQUARE_FLAT), (1, SUM_SHARP, SQUARE_SHARP)):
            mine = halves == half
            found.append(Measured.over(change[square][mine] / made - (change[total][mine] / made) ** 2))
        return found[0], found[1]

    def passage(self, start: int) -> Measured:
        """Mean time, learning rate × steps, from the minimum of valley `start` until the other minimum is reached."""
        minima = self.landscape.minima(self.y)
        ends = (minima[0], -minima[1])
        state = self._begin(np.full(self.trajectories, ends[start]))
        done, target = 0, ends[1 - start]
        while not state[PASSED].all():
            done += self._advance(state, done, PASSAGE_CHUNK, target)
        return Measured.over(self.learning_rate * state[PASSED])

    def _begin(self, x: np.ndarray) -> np.ndarray:
        state = np.zeros((7, self.trajectories))
        state[0] = x
        return state

    def _advance(self, state: np.ndarray, first: int, steps: int, target: float = np.inf) -> int:
        """Make steps, after `first` that were made before; how many, an even number."""
        steps += steps % 2
        model = self.landscape.frozen_model(self.y, self.learning_rate, self.noise, target)
        key = np.array([self.seed & 0xFFFFFFFF, self.seed >> 32, FLAT, first], dtype=np.uint64)
        advance_frozen(state, np.arange(self.trajectories, dtype=np.uint64), steps, model, key)
        return steps
