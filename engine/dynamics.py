"""`job: dynamics`: an experiment of SGD's physics, from its keys to numbers, a picture and a verdict.

The experiment is a Procedure; the runner gives it a Laboratory, with the communicator, the log, and checkpoints, and
writes what comes of it: result.json, result.png, and the verdict's lines, which set formula beside simulation.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.checkpoint import ELSEWHERE, NAME, read_checkpoint, write_checkpoint
from vitrea.engine.comm import StopRequest, library_name, node_count
from vitrea.engine.dynamics_options import EXPERIMENTS, DynamicsOptions
from vitrea.engine.files import written_beside
from vitrea.engine.log import NullLog, RunLog, format_clock
from vitrea.engine.options import options_of

RESULT_NAME, PICTURE_NAME = "result.json", "result.png"


@dataclass(frozen=True)
class Procedure:
    """What an experiment is made of.

    measure(laboratory) -> a mapping for result.json, the same on all ranks, or None if it was asked to stop; collective
    judge(result) -> the verdict: lines for people, the first of which says whether formula and simulation agree
    draw(result, path) writes a PNG
    outlook(options) -> lines for `vitrea check`
    """

    measure: Callable[[Laboratory], Mapping[str, object] | None]
    judge: Callable[[Mapping[str, object]], list[str]]
    draw: Callable[[Mapping[str, object], Path], None]
    outlook: Callable[[DynamicsOptions], list[str]]


def run(options: DynamicsOptions, *, resume: bool, comm) -> str:
    """Carry the experiment out: "done" or "stopped". Collective; the result has the same bits on any number of ranks.

    Raises JobError if the run folder cannot be written, or its checkpoint is of another job.
    """
    procedure = EXPERIMENTS[options.experiment].load()
    folder = Path(options.output)
    log = RunLog(folder, echo=True) if comm.rank == 0 else NullLog()
    with threadpool_limits(1), log, StopRequest(comm=comm) as stop:
        laboratory = Laboratory(options, stop, log, comm)
        laboratory.begin(resume)
        result = procedure.measure(laboratory)
        if result is None:
            log.tell("stopped", reason=stop.reason, iteration=laboratory.round, of=laboratory.rounds)
            return "stopped"
        if comm.rank == 0:
            lines = procedure.judge(result)
            _write_result(folder / RESULT_NAME, options, result, lines)
            with written_beside(folder / PICTURE_NAME) as beside:
                procedure.draw(result, beside)
            for line in lines:
                log.line(line)
            log.line(f"done   {options.experiment}   {format_clock(log.elapsed)}")
            log.record("done", experiment=options.experiment, verdict=lines, files=[RESULT_NAME, PICTURE_NAME])
        comm.Barrier()
    return "done"


def check(options: DynamicsOptions) -> list[str]:
    """Lines for `vitrea check`."""
    experiment = EXPERIMENTS[options.experiment]
    return [f"experiment  {options.experiment}: {experiment.summary}", *experiment.load().outlook(options)]


class Laboratory:
    """What the runner gives to an experiment: options, comm, log, and rounds between which it may be stopped.

    An experiment divides its work into rounds, each a second or a few of every rank's work, and calls `end_round` after
    each on all ranks. Between rounds a signal is answered, a checkpoint written, and progress told.
    """

    def __init__(self, options: DynamicsOptions, stop: StopRequest, log: RunLog | NullLog, comm) -> None:
        self.options, self.comm, self.log = options, comm, log
        self.round, self.rounds, self._first = 0, None, 0
        self._stop, self._began, self._saved, self._spoke = stop, 0.0, time.monotonic(), 0.0
        self._path, self._restored = Path(options.output) / NAME, {}
        self._attributes = {"job": "dynamics", "fingerprint": _fingerprint(options)}

    def begin(self, resume: bool) -> None:
        """Tell the start, and read the checkpoint of a run that is resumed. Collective."""
        comm, options = self.comm, self.options
        nodes = node_count(comm)
        self.log.record("start", job="dynamics", output=str(options.output), host=platform.node(), process=os.getpid(),
                        ranks=comm.size, nodes=nodes, mpi=library_name(), options=options.as_dict())
        self.log.line(f"dynamics   {options.experiment}   {options.output}   seed {options.seed}   "
                      f"{comm.size} rank{'s' if comm.size > 1 else ''} on {nodes} node{'s' if nodes > 1 else ''}")
        if resume:
            self._restored, attributes = read_checkpoint(self._path, self._attributes)
            self.round = self._first = int(attributes["round"])
            self.log.tell("resumed", total=self.round, iteration=self.round, of=int(attributes["rounds"]))

    def restored(self) -> dict[str, np.ndarray]:
        """The arrays of the checkpoint that the run goes on from; none at a beginning. On all ranks."""
        return self._restored

    def plan(self, rounds: int) -> None:
        """How many rounds there will be in all."""
        self.rounds, self._began = rounds, time.monotonic()

    def end_round(self, gather: Callable[[], dict[str, np.ndarray]], words: str = "") -> bool:
        """Whether to go on. Collective.

        gather() -> the arrays that the experiment can be continued from, on rank 0; collective; called when a
        checkpoint is due. words say what was just done.
        """
        self.round += 1
        stopped = self._stop.agreed()
        due = time.monotonic() - self._saved >= 60 * self.options.checkpoint_minutes
        if stopped or self.comm.bcast(due, root=0):
            arrays = gather()
            if self.comm.rank == 0:
                write_checkpoint(self._path, arrays, self._attributes | {"round": self.round, "rounds": self.rounds})
            self._saved = time.monotonic()
        if self.comm.rank == 0:
            self._tell(words)
        return not stopped

    def _tell(self, words: str) -> None:
        gone = time.monotonic() - self._began
        each = gone / (self.round - self._first)
        left = each * (self.rounds - self.round)
        last = self.round == self.rounds
        if not last and gone - self._spoke < LINE_SECONDS and self._spoke:
            return
        self._spoke = gone
        self.log.record("iteration", iteration=self.round, of=self.rounds, stage="ensemble", seconds=each, eta=left)
        self.log.line(f"round {self.round:>4}/{self.rounds:<4}   {words}   {format_clock(left)} left")


LINE_SECONDS = 5.0   # between two lines about rounds


def _fingerprint(options: DynamicsOptions) -> str:
    """What must not change between a run and its continuation, as a JSON text."""
    known = options_of(type(options))
    return json.dumps({name: value for name, value in options.as_dict().items()
                       if not known[name].resumable and name not in ELSEWHERE})


def _write_result(path: Path, options: DynamicsOptions, result: Mapping[str, object], lines: list[str]) -> None:
    whole = {"experiment": options.experiment, "seed": options.seed, **result, "verdict": lines}
    with written_beside(path) as beside:
        beside.write_text(json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    """Arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
