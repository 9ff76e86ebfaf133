"""`vitrea run JOB.yaml --follow DIR`: a job that takes in what a microscope delivers while it runs, in rounds.

Rank 0 looks into the folder. A file counts when neither its size nor its time has changed between two looks, and a STAR
file when the same holds of all its stacks, and they are whole. What counts is appended to arrived.star in the run
folder (engine/arrivals.py), a round is run on it, the results and the report are written anew, and the next look
follows. The run ends when a file STOP is in the folder or nothing new has come for `follow_minutes`: all that is there
is taken in first, and classify2d ends with full passes. Ctrl-C and SIGTERM leave a checkpoint to go on from.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vitrea.engine import arrivals, rounds
from vitrea.engine.arrivals import LIST_NAME, Arrived, read_arrived, round_ends, write_arrived
from vitrea.engine.checkpoint import NAME as CHECKPOINT_NAME
from vitrea.engine.checkpoint import read_attributes
from vitrea.engine.comm import StopRequest, wait_for_all
from vitrea.engine.errors import JobError
from vitrea.engine.files import from_here
from vitrea.engine.log import RunLog
from vitrea.engine.options import FollowOptions
from vitrea.jobs.jobfile import Job
from vitrea.jobs.launcher import on_rank_0
from vitrea.picker.micrographs import PICTURES

STOP_NAME = "STOP"
EARLIER_NAME = ".arrived-earlier.star"
LOOK_SECONDS = 5.0          # between two looks; what is the same in both is complete
ROUND_SHARE = 0.05          # of the particles there are: so many new ones are worth a round at once,
ROUND_SECONDS = 300.0       # and any number after this time
FIRST_A_CLASS = 20          # particles a class that the first round waits for
NAP = 0.25                  # seconds between two thoughts of ending
WAIT, ROUND, END = "wait", "round", "end"
TAKEN, MOVING, LEFT = "taken", "moving", "left"
PARTICLES, MICROGRAPHS = "particles", "micrographs"


def follow(job: Job, refreshed: Callable[[Path], object], *, comm) -> str:
    """Run a job that follows a folder: "done" or "stopped". Collective. refreshed(run folder) is called on rank 0 after
    every round."""
    with StopRequest(comm=comm, signals=rounds.SIGNALS) as stop:
        return _followed(job, _kind(job), refreshed, stop, comm)


def _followed(job: Job, kind: str, refreshed: Callable[[Path], object], stop: StopRequest, comm) -> str:
    folder = job.options.output
    on_rank_0(lambda: _checked(job, kind), comm=comm)
    for number in on_rank_0(lambda: _unfinished(folder, kind), comm=comm):
        if _round(job, number, False, comm) == "stopped":
            return "stopped"
    watch = Watch(job.options, kind) if comm.rank == 0 else None
    on_rank_0(lambda: _tell(folder, "wait", wanted=_wanted(kind), place=str(job.options.follow),
                            end=_end_words(job.options), host=platform.node(), process=os.getpid()), comm=comm)
    while True:
        what = _waited(watch, stop, comm)
        if what == WAIT:
            on_rank_0(lambda: _tell(folder, "stopped", stage="wait", reason=stop.reason), comm=comm)
            return "stopped"
        number = on_rank_0(lambda: read_arrived(folder, kind).rounds, comm=comm)
        if not number:
            raise JobError(f"{job.options.follow}: nothing came that could be taken in; expected {_wanted(kind)} before"
                           f" {STOP_NAME} or the end of follow_minutes; look into the log for what was left out")
        if _round(job, number, what == END, comm) == "stopped":
            return "stopped"
        if what == END:
            return "done"
        on_rank_0(lambda: refreshed(folder), comm=comm)


def check(job: Job) -> list[str]:
    """Lines for `vitrea check`; JobError for what `follow` would refuse."""
    kind = _kind(job)
    _checked(job, kind)
    found = sum(1 for _ in _files(job.options.follow, kind))
    return [f"follows     {job.options.follow}, where {found} {_wanted(kind)} are now; what they hold is not looked at",
            f"ends        {_end_words(job.options)}"]


def _end_words(options: FollowOptions) -> str:
    minutes = options.follow_minutes
    return f"with a file {STOP_NAME} there" + (
        "" if minutes is None else f", or after {minutes:g} minutes without new ones")


def _kind(job: Job) -> str:
    return PARTICLES if job.type.name == "classify2d" else MICROGRAPHS


def _wanted(kind: str) -> str:
    return "STAR files with particles" if kind == PARTICLES else "micrographs"


def _checked(job: Job, kind: str) -> None:
    options = job.options
    if not options.follow.is_dir():
        raise JobError(f"follow: {options.follow} is not a folder; expected the one that the microscope delivers into; "
                       "make it, or correct the path")
    same = options.input.exists() and os.path.samefile(options.input, options.follow)
    if not same and (kind == MICROGRAPHS or not options.input.is_file()):
        raise JobError(f"input: {options.input}, and follow: {options.follow}; expected the followed folder as input"
                       + (", or a STAR file of particles that go before" if kind == PARTICLES else "")
                       + f"; write input: {options.follow}")


def _files(folder: Path, kind: str) -> list[Path]:
    """Files of a folder that may be taken in, by name."""
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if kind == PARTICLES:
        return [path for path in names if path.suffix == ".star"]
    pictures = [path for path in names if path.suffix.lower() in PICTURES]
    return [path for path in names if path.suffix == ".mrc"] or pictures   # as list_micrographs does


class Watch:
    """Rank 0's eyes on the folder, and the list of what was taken in and what will be."""

    def __init__(self, options: FollowOptions, kind: str) -> None:
        self._options, self._kind, self._folder = options, kind, options.output
        self._arrived = self._pending = read_arrived(self._folder, kind)
        self._seen: dict[Path, tuple[int, int]] = {}    # marks at the last look
        self._stacks: dict[Path, tuple[int, int]] = {}  # and of stacks, when they were looked at last
        self._told: dict[Path, str] = {}                # why files were left out
        self._since, self._waiting = time.monotonic(), None

    def look(self) -> str:
        """What to do now: WAIT, ROUND or END; before a ROUND the list in the run folder is longer."""
        ending = (self._options.follow / STOP_NAME).exists()
        before, self._seen = self._seen, {path: _mark(path) for path in self._candidates()}
        known = self._pending.marks()
        new = [path for path, mark in self._seen.items() if known.get(from_here(path.absolute())) != mark]
        outcomes = [self._take(path, before) for path in new]
        if any(outcome in (TAKEN, MOVING) for outcome in outcomes):
            self._since = time.monotonic()
        if self._waiting is None and len(self._pending) > len(self._arrived):
            self._waiting = time.monotonic()
        minutes = self._options.follow_minutes
        quiet = minutes is not None and time.monotonic() - self._since > 60.0 * minutes
        if (ending or quiet) and MOVING not in outcomes:
            self._commit()
            return END
        if not self._worth_a_round():
            return WAIT
        self._commit()
        return ROUND

    def _candidates(self) -> list[Path]:
        """The files to be looked at, in the order in which they are taken in."""
        first = [self._options.input] if self._options.input.is_file() else []
        return [*first, *_files(self._options.follow, self._kind)]

    def _take(self, path: Path, before: Mapping[Path, tuple[int, int]]) -> str:
        """Add a new file to what is pending: TAKEN; MOVING if it, or a stack of it, has changed since the last look;
        LEFT, and a line in the log, if it cannot be used as it is."""
        if before.get(path) != self._seen[path]:
            return MOVING
        number = self._arrived.rounds + 1
        if self._kind == MICROGRAPHS:
            self._pending = arrivals.with_micrograph(self._pending, path, number)
            return TAKEN
        try:
            pending, table = arrivals.with_particles(self._pending, path, number)
        except JobError as problem:   # a stack may still come
            if self._told.get(path) != str(problem):
                _tell(self._folder, None, f"left out for now   {problem}")
            self._told[path] = str(problem)
            return LEFT
        stacks = {header.path: _mark(header.path) for header in table.headers}
        moving = any(self._stacks.get(stack) != mark for stack, mark in stacks.items())
        self._stacks |= stacks
        if moving:
            return MOVING
        self._pending = pending
        return TAKEN

    def _worth_a_round(self) -> bool:
        new = len(self._pending) - len(self._arrived)
        if not new:
            return False
        if not len(self._arrived) and self._kind == PARTICLES:
            return new >= FIRST_A_CLASS * self._options.n_classes
        return new >= ROUND_SHARE * len(self._arrived) or time.monotonic() - self._waiting > ROUND_SECONDS

    def _commit(self) -> None:
        """Write the list with what is pending."""
        new = len(self._pending) - len(self._arrived)
        files = len(self._pending.arrivals) - len(self._arrived.arrivals)
        if files:
            write_arrived(self._folder, self._pending)
            came = (f"{files} new file{'s' if files > 1 else ''} with {f'{new:,}' if new else 'no'} new "
                    f"{self._kind[:-1] if new == 1 else self._kind}")
            _tell(self._folder, None, f"round {self._pending.rounds}   {came}, {len(self._pending):,} in all" if new
                  else came)
        self._arrived, self._waiting = self._pending, None


def _mark(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return -1, 0


def _waited(watch: Watch | None, stop: StopRequest, comm) -> str:
    """ROUND or END, or WAIT if the run was asked to stop. Collective; nobody takes processor time meanwhile."""
    while True:
        found = on_rank_0_sleeping(watch.look if watch else None, comm)
        if stop.agreed():
            return WAIT
        if found != WAIT:
            return found
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until and not stop.asked():
            time.sleep(min(NAP, LOOK_SECONDS))


def on_rank_0_sleeping(work: Callable[[], str] | None, comm) -> str:
    """As on_rank_0, the others asleep meanwhile. Collective."""
    outcome = None
    if comm.rank == 0:
        try:
            outcome = (work(), None)
        except JobError as mistake:
            outcome = (None, str(mistake))
    wait_for_all(comm=comm)
    found, mistake = comm.bcast(outcome, root=0)
    if mistake:
        raise JobError(mistake)
    return found


def _unfinished(folder: Path, kind: str) -> list[int]:
    """The rounds that a run that begins again looks at first: that of its checkpoint, which may be short of its end,
    and those that were listed after it."""
    arrived = read_arrived(folder, kind)
    if not arrived.rounds:
        return []
    path = folder / CHECKPOINT_NAME
    first = arrived.rounds if kind == MICROGRAPHS else read_attributes(path).get("round", 1) if path.exists() else 1
    return list(range(int(first), arrived.rounds + 1))


def _round(job: Job, number: int, last: bool, comm) -> str:
    """Run one round: "done" or "stopped". Collective."""
    folder, kind = job.options.output, _kind(job)
    listed = on_rank_0(lambda: _list_of(folder, kind, number), comm=comm)
    if kind == PARTICLES:
        ended = rounds.run(replace(job.options, input=listed), last=last, comm=comm)
    else:
        ended = job.type.load_runner()(replace(job.options, input=listed, follow=None), resume=True, comm=comm)
        if ended == "done" and not last:
            on_rank_0(lambda: _tell(folder, "round", number=number), comm=comm)
    if listed.name != LIST_NAME:
        on_rank_0(lambda: listed.unlink(missing_ok=True), comm=comm)
    return ended


def _list_of(folder: Path, kind: str, number: int) -> Path:
    """The list as it was in round `number`: what is listed, or, of an earlier round, a copy without the later ones."""
    arrived = read_arrived(folder, kind)
    if number == arrived.rounds or kind == MICROGRAPHS:
        return folder / LIST_NAME
    n = int(round_ends(arrived.items[arrivals.ROUND].astype(int))[number - 1])
    groups = set(arrived.items[arrivals.GROUP][:n].tolist())
    kept = [group in groups for group in arrived.optics[arrivals.GROUP].tolist()]
    write_arrived(folder, Arrived(kind, {label: column[kept] for label, column in arrived.optics.items()},
                                  {label: column[:n] for label, column in arrived.items.items()},
                                  tuple(each for each in arrived.arrivals if each.round <= number)), EARLIER_NAME)
    return folder / EARLIER_NAME


def _tell(folder: Path, kind: str | None, line: str = "", **fields: object) -> None:
    with RunLog(folder, echo=True) as log:
        if kind:
            log.tell(kind, **fields)
        if line:
            log.line(line)
