"""Noticing a rank that does not come: the others would wait in a collective for ever, and pay for it.

A thread on each rank looks now and then whether its rank is inside a collective, and for how long. After half of the
patience it says so in a file of the run folder, which all ranks see; after all of it, the ranks whose files are missing
are the late ones. Nothing is sent over MPI, which is what does not work then, and a collective costs two assignments.
Time is counted in turns of the thread, so that a run that is suspended as a whole, as schedulers do, is not late.

A rank that works alone while all others wait (it reads a long STAR file, or draws the results) gives signs of life as
long as its processor time grows: then it is waited for, up to LONGEST_WORK times the patience. A rank that hangs, in a
file system that does not answer or because its process was stopped, gives none.
"""
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from vitrea.engine.errors import JobError

PATIENCE, PATIENCE_VARIABLE = 1800.0, "VITREA_PATIENCE"
FOLDER = ".waiting"
TURNS = 20.0            # of the thread in the time of its patience, or one a second
LONGEST_TURN = 2.0      # turns that a late turn counts at most
BEATS = 8.0             # looks, in the time of the patience, for others that wait, and signs of life given to them
LIVELY = 0.02           # of the time must be processor time: more than what waiting by naps takes
LONGEST_WORK = 24.0     # times the patience that a rank is waited for that works
SPEAKER_SECONDS = 5.0   # the others let the first of those that wait speak, then end too


def patience(environment):
    """Seconds a rank may be waited for (VITREA_PATIENCE), 0 for ever; JobError if that is no number of seconds."""
    text = environment.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(text) if text else PATIENCE
        if not 0 <= seconds < 1e9:
            raise ValueError(text)
    except ValueError as error:
        raise JobError(f"{PATIENCE_VARIABLE}: '{text}' was found; expected seconds, or 0 to wait for ever; correct "
                       "the environment") from error
    return seconds


class Watchdog:
    """Watches one rank; `end` is called, by its thread, with (message, late rank or None, its host) when it is over.

    folder: seen by all ranks; hosts: of all ranks; clock: processor seconds of this rank. Use `enter` and `leave`
    around every collective, and `close`.
    """

    def __init__(self, folder, rank, hosts, seconds, end, clock=None):
        self._place, self._rank, self._hosts, self._seconds = Path(folder) / FOLDER, rank, hosts, seconds
        self._inside, self._end, self._closed = None, end, threading.Event()
        self._turn = min(1.0, seconds / TURNS)
        self._clock = clock or _processor_seconds
        self._beats, self._heard_beats, self._last = 0, {}, None
        with suppress(OSError):
            self._place.mkdir(exist_ok=True)
        self._say(None)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def enter(self, name, number, members):
        """The rank enters collective `number` of a communicator; members(): its ranks."""
        self._inside = (name, number, members)

    def leave(self):
        self._inside = None

    def close(self):
        self._closed.set()
        self._thread.join()
        self._say(None)
        self._hush()
        with suppress(OSError):   # not empty as long as others wait
            self._place.rmdir()

    def _watch(self):
        seen, waited, in_all, said, last = None, 0.0, 0.0, False, time.monotonic()
        while not self._closed.wait(self._turn):
            now = time.monotonic()
            turn, last = min(now - last, LONGEST_TURN * self._turn), now
            inside = self._inside
            if inside is not seen:
                if said:
                    self._say(None)
                seen, waited, in_all, said, self._heard_beats = inside, 0.0, 0.0, False, {}
            if inside is None:
                self._work(now)
                continue
            self._hush()
            waited, in_all = waited + turn, in_all + turn
            if waited > self._seconds / 2 and not said:
                said = self._say(inside)
            if waited > self._seconds:
                if in_all < LONGEST_WORK * self._seconds and self._works(inside):
                    waited = self._seconds / 2
                    continue
                self._judge(inside)
                return

    def _work(self, now):
        """Outside of collectives: now and then a sign of life, if this rank works and others wait."""
        if self._last is None:
            self._last = now, self._clock()
        before, seconds = self._last
        if now - before < self._seconds / BEATS:
            return
        self._last = now, self._clock()
        if self._last[1] - seconds < LIVELY * (now - before) or not self._others_wait():
            return
        self._beats += 1
        self._write(f"{self._rank}.works", [os.getpid(), self._beats])

    def _hush(self):
        """No more signs of life: in a collective, or at the end."""
        self._last = None
        if self._beats:
            with suppress(OSError):
                (self._place / f"{self._rank}.works").unlink(missing_ok=True)
            self._beats = 0

    def _others_wait(self):
        with suppress(OSError):
            return any(name.isdecimal() and int(name) != self._rank for name in os.listdir(self._place))
        return False

    def _works(self, inside):
        """Whether every rank that is late has given a sign of life since this was asked last."""
        beats = {rank: self._read(f"{rank}.works") for rank in self._late(inside)[1]}
        before, self._heard_beats = self._heard_beats, beats
        return bool(beats) and all(beat and beat != before.get(rank) for rank, beat in beats.items())

    def _say(self, inside):
        """Note what this rank waits in, or that it does not; whether that was possible."""
        path = self._place / str(self._rank)
        try:
            if inside is None:
                path.unlink(missing_ok=True)
                return True
        except OSError:
            return False
        return self._write(path.name, [inside[0], inside[1]])

    def _write(self, name, words):
        beside = self._place / f".{name}.tmp"
        try:
            beside.write_text(json.dumps(words))
            os.replace(beside, self._place / name)
        except OSError:
            return False
        return True

    def _late(self, inside):
        """({rank: what it waits in, or None}, the ranks that others wait for)."""
        name, number, members = inside
        waiting = {rank: self._heard(rank) for rank in members()}
        waiting[self._rank] = [name, number]
        newest = max(heard[1] for heard in waiting.values() if heard)
        return waiting, [rank for rank, heard in waiting.items() if not heard or heard[1] < newest]

    def _judge(self, inside):
        waiting, late = self._late(inside)
        there = [rank for rank, heard in waiting.items() if heard]
        if self._rank != min(rank for rank in there if rank not in late or rank == self._rank):
            time.sleep(SPEAKER_SECONDS)
        self._end(*self._sentence(inside[0], waiting, late))

    def _heard(self, rank):
        with suppress(TypeError, ValueError):
            name, number = self._read(str(rank))
            return [str(name), int(number)]
        return None

    def _read(self, name):
        with suppress(OSError, ValueError):
            return json.loads((self._place / name).read_text())
        return None

    def _sentence(self, name, waiting, late):
        remedy = f"look after the host, then resume the run; {PATIENCE_VARIABLE} sets the patience"
        if not late and len({heard[0] for heard in waiting.values()}) == 1:
            return (f"all {len(waiting)} ranks wait in {name} for more than {self._seconds:g} s; expected the messages "
                    f"to arrive; look after the network, then resume the run", None, None)
        rank = late[0] if late else next(each for each, heard in waiting.items() if heard[0] != name)
        where = waiting[rank][0] if waiting[rank] else None
        doing = f"is in {where}" if where else "has not come"
        others = f", and {len(late) - 1} more" if len(late) > 1 else ""
        return (f"rank {rank} on {self._hosts[rank]}{others} {doing}, while others wait in {name} for more than "
                f"{self._seconds:g} s; expected all ranks there; {remedy}", rank, self._hosts[rank])


def _processor_seconds():
    """Of this process, without the thread that asks."""
    return time.process_time() - time.thread_time()
