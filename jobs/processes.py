"""Which process works on a run: what its records say, and what this machine knows of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.log import RECORDS_NAME, read_records

ENDINGS = ("done", "stopped", "failed")


def is_gone(start: Mapping[str, object]) -> bool:
    """Whether a run was started on this machine by a process that is no more; False where that cannot be known.

    start: the run's record of that kind."""
    number = start.get("process")
    return isinstance(number, int) and start.get("host") == platform.node() and not _lives(number)


def require_idle(folder: Path) -> None:
    """JobError while another process of this machine works on the run in a folder, which two would write over each
    other. Of other machines nothing is known: there the scheduler has to see to it."""
    records = read_records(folder / RECORDS_NAME)
    start = next((record for record in reversed(records) if record.get("kind") == "start"), {})
    number = start.get("process")
    if not start or records[-1].get("kind") in ENDINGS or start.get("host") != platform.node():
        return
    if isinstance(number, int) and number != os.getpid() and _lives(number) and b"python" in _command(number):
        raise JobError(f"{folder}: process {number} of this machine works on this run; expected one that nobody works "
                       f"on; look at it with 'vitrea watch {folder}', and wait for it, or end it first "
                       f"('kill {number}' has it write a checkpoint and leave)")


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:   # another user's
        return True
    return _state(number) != "Z"


def _state(number: int) -> str:
    """The state letter that Linux has for a process; Z has ended, and nobody has asked how. "" if there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""
