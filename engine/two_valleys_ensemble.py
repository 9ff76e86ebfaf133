"""Ensembles of trajectories in the two-valley model, dealt out to ranks: the same bits on any number of them.

Trajectory i of a cell belongs to rank i mod size and has noise of its own (kernels/langevin.py), so its course does not
depend on the ranks, and whatever is said of an ensemble is computed from the whole, in the order of the trajectories.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.comm import sum_over_ranks
from vitrea.engine.two_valleys import ITO, Landscape
from vitrea.kernels.langevin import X, Y, advance, advance_general

START_X = 0.01      # of every other trajectory; the rest begin at minus this
ROUND_STEPS = 4e7   # steps of all trajectories in a round: a second of one core, about
MARK_STRIDE = 50    # steps between two looks whether a trajectory has come by a mark


@dataclass(frozen=True)
class Cell:
    """Trajectories that are alike but for their noise."""

    learning_rate: float
    noise_strength: float
    steps: int
    scales: np.ndarray | None = None   # float64[steps]: what the noise's variance is multiplied by; None: 1 throughout


@dataclass(frozen=True)
class Setting:
    """What all cells of an ensemble have in common."""

    landscape: Landscape
    trajectories: int
    start_y: float
    noise_power: int
    seed: int
    place: float = ITO     # where in a step the noise is evaluated
    full: bool = False     # noise from the whole Hessian, not from its diagonal
    marks: tuple[float, ...] = ()   # progress y at which it is noted in which valley a trajectory is


class Ensemble:
    """Cells of trajectories, this rank's share of them, and how far they have come.

    state   float64[cells, 4, trajectories]   the rows of kernels/langevin.py; 0 for other ranks' trajectories
    passed  int8[cells, marks, trajectories]  1 if a trajectory was in the flat valley when it came by the mark, -1 if
                                              in the sharp one, 0 if it has not come by
    """

    def __init__(self, cells: list[Cell], setting: Setting, *, comm) -> None:
        self.cells, self.setting, self.comm = cells, setting, comm
        self._mine = np.arange(comm.rank, setting.trajectories, comm.size)
        self.state = np.zeros((len(cells), 4, setting.trajectories))
        self.passed = np.zeros((len(cells), len(setting.marks), setting.trajectories), dtype=np.int8)
        self.state[:, X, self._mine] = np.where(self._mine % 2, -START_X, START_X)
        self.state[:, Y, self._mine] = setting.start_y

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take this rank's share from the arrays of `gathered`."""
        for name in ("state", "passed"):
            getattr(self, name)[..., self._mine] = arrays[name][..., self._mine]

    def gathered(self) -> dict[str, np.ndarray]:
        """state and passed of all ranks, on all ranks. Collective."""
        return {name: sum_over_ranks(getattr(self, name), comm=self.comm) for name in ("state", "passed")}

    def rounds(self) -> list[tuple[int, int, int]]:
        """(cell, first step, step after the last) of each round, in their order; the same on all ranks."""
        length = max(MARK_STRIDE, int(ROUND_STEPS / self.setting.trajectories) // MARK_STRIDE * MARK_STRIDE)
        return [(number, first, min(first + length, cell.steps)) for number, cell in enumerate(self.cells)
                for first in range(0, cell.steps, length)]

    def advance(self, number: int, first: int, last: int) -> None:
        """Make the steps first … last of this rank's trajectories of a cell."""
        cell, setting = self.cells[number], self.setting
        state = np.ascontiguousarray(self.state[number][:, self._mine])
        streams = self._mine.astype(np.uint64)
        model = setting.landscape.model(cell.learning_rate, cell.noise_strength, setting.noise_power)
        scales = np.ones(last - first) if cell.scales is None else cell.scales[first:last]
        stride = MARK_STRIDE if setting.marks else last - first
        for begin in range(0, last - first, stride):
            key = np.array([setting.seed & 0xFFFFFFFF, setting.seed >> 32, number, first + begin], dtype=np.uint64)
            self._step(state, streams, scales[begin:begin + stride], model, key)
            self._note(number, state)
        self.state[number][:, self._mine] = state

    def _step(self, *arrays: np.ndarray) -> None:
        setting = self.setting
        if setting.full or setting.place != ITO:
            advance_general(*arrays, np.array([setting.full, setting.place], dtype=np.float64))
        else:
            advance(*arrays)

    def _note(self, number: int, state: np.ndarray) -> None:
        for mark, y in enumerate(self.setting.marks):
            passed = self.passed[number, mark]
            passed[self._mine] = np.where((passed[self._mine] == 0) & (state[Y] >= y), np.where(state[X] >= 0, 1, -1),
                                          passed[self._mine])


def simulate(cells: list[Cell], setting: Setting, laboratory) -> dict[str, np.ndarray] | None:
    """state and passed (Ensemble) of all trajectories at their end, on all ranks; None if the run was asked to stop.

    Collective. A run that is resumed goes on from the laboratory's checkpoint.
    """
    ensemble = Ensemble(cells, setting, comm=laboratory.comm)
    rounds = ensemble.rounds()
    laboratory.plan(len(rounds))
    if laboratory.restored():
        ensemble.restore(laboratory.restored())
    for number, first, last in rounds[laboratory.round:]:
        ensemble.advance(number, first, last)
        words = f"η {cells[number].learning_rate:<7.4g}  σ {cells[number].noise_strength:<7.4g}  to step {last:>9,}"
        if not laboratory.end_round(ensemble.gathered, words):
            return None
    return ensemble.gathered()
