"""Which process works on a run: what its records say, and what this machine knows of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.log import RECORDS_NAME, read_records

ENDINGS = ("done", "stopped", "failed")
BEGAN = 19            # place of the time of its beginning in what Linux says of a process, from its state on
CLOCK_SECONDS = 2.0   # by which the clocks of records and of processes may differ


def is_gone(start: Mapping[str, object]) -> bool:
    """Whether a run was started on this machine by a process that is no more; False where that cannot be known.

    start: the run's record of that kind."""
    number = start.get("process")
    return isinstance(number, int) and start.get("host") == platform.node() and not _lives(number)


def require_idle(folder: Path) -> None:
    """JobError while another process of this machine works on the run in a folder, which two would write over each
    other. Of other machines nothing is known: there the scheduler has to see to it."""
    records = read_records(folder / RECORDS_NAME)
    start = next((record for record in reversed(records) if "process" in record), {})   # or "wait", before the first
    number = start.get("process")
    if not start or records[-1].get("kind") in ENDINGS or start.get("host") != platform.node():
        return
    if isinstance(number, int) and number != os.getpid() and _lives(number) and _began(number) < _told(start):
        raise JobError(f"{folder}: process {number} of this machine works on this run; expected one that nobody works "
                       f"on; look at it with 'vitrea watch {folder}', and wait for it, or end it first "
                       f"('kill {number}' has it write a checkpoint and leave)")


def _told(record: Mapping[str, object]) -> float:
    """When a record was written, at the latest; 0 for one that a disk has damaged."""
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp() + CLOCK_SECONDS
    except ValueError:
        return 0.0


def _lives(number: int) -> bool:
    """Whether there is a process of this number, other than one that has ended and that nobody has asked how."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:   # another user's
        return True
    return _statistics(number)[:1] != ["Z"]


def _began(number: int) -> float:
    """When a process began, in seconds of the clock: another one may have the number of a run of yesterday, and began
    after it. Infinite where Linux does not tell."""
    found = _statistics(number)
    with suppress(OSError, StopIteration, IndexError, ValueError):
        lines = Path("/proc/stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
        return boot + int(found[BEGAN]) / os.sysconf("SC_CLK_TCK")
    return float("inf")


def _statistics(number: int) -> list[str]:
    """What Linux says of a process, from its state letter on (proc(5), stat); [] if there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
