"""Ranks that begin and end together: who speaks, and how one failing rank ends the job without a hang."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

from vitrea.engine.errors import JobError

Result = TypeVar("Result")

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "MPI_RANKID", "SLURM_PROCID")
TOGETHER_SECONDS = 10.0
LAST_WORDS_SECONDS = 0.5   # mpiexec forwards what a rank prints, and drops what it has not forwarded at an Abort


def rank_from_environment() -> int:
    """This process's rank as the launcher gave it, before (or without) MPI; 0 if there is no launcher."""
    for name in RANK_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def on_rank_0(work: Callable[[], Result], *, comm) -> Result:
    """What `work` returns on rank 0, on every rank; a JobError there is raised on every rank, a fault ends them all."""
    outcome = None
    if comm.rank == 0:
        try:
            outcome = (work(), None)
        except JobError as mistake:
            outcome = (None, str(mistake))
        except Exception as fault:
            if comm.size == 1:
                raise
            _say_fault(fault, comm)
            _abort(1, comm)
    result, mistake = comm.bcast(outcome, root=0)
    if mistake is not None:
        raise JobError(mistake)
    return result


def end_together(work: Callable[[], int], told: Callable[[str, bool], None], *, comm) -> int:
    """The exit code of `work`, which runs on every rank.

    A JobError that all ranks raise is raised again, for one of them to print. One that a single rank raises, or any
    other exception, is printed with rank and host, given to `told(message, mistake)` for the log, and ends all ranks by
    Abort: the others wait in a collective that this rank will never enter.
    """
    leaving = comm.Dup()
    try:
        code = work()
        leaving.Free()
        return code
    except JobError as mistake:
        if _all_arrive(leaving):
            if comm.rank == 0:
                told(str(mistake), True)
            raise
        _say(f"vitrea: rank {comm.rank} of {comm.size} on {platform.node()}: {mistake}")
        told(str(mistake), True)
        _abort(2, comm)
    except KeyboardInterrupt:
        if comm.size == 1:
            raise
        if comm.rank == 0:
            _say("vitrea: interrupted; 'vitrea resume' with the run folder goes on from its last checkpoint")
        _abort(130, comm)
    except Exception as fault:
        _say_fault(fault, comm)
        told(_named(fault), False)
        if comm.size > 1:
            _abort(1, comm)
        return 1


def _all_arrive(comm) -> bool:
    """Whether every rank comes here within a few seconds: a barrier that does not wait for ever."""
    request = comm.Ibarrier()
    until = time.monotonic() + TOGETHER_SECONDS
    while not request.Test():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _abort(code: int, comm) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(LAST_WORDS_SECONDS)
    comm.Abort(code)
    # MPICH's Abort may return before the launcher ends this process; nothing may run after it.
    os._exit(code)


def _named(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__


def _say_fault(fault: BaseException, comm) -> None:
    rank = f"rank {comm.rank} of {comm.size} on {platform.node()}"
    _say(f"{traceback.format_exc()}vitrea: failed on {rank}: {_named(fault)}; this is a fault of the program")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
