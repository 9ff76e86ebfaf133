"""Noticing a rank that does not come: the others would wait in a collective for ever, and pay for it.

A thread on each rank looks now and then whether its rank is inside a collective, and for how long. After half of the
patience it says so in a file of the run folder, which all ranks see; after all of it, the ranks whose files are missing
are the late ones. Nothing is sent over MPI, which is what does not work then, and a collective costs two assignments.
Time is counted in turns of the thread, so that a run that is suspended as a whole, as schedulers do, is not late.
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

    folder: seen by all ranks; hosts: of all ranks. Use `enter` and `leave` around every collective, and `close`.
    """

    def __init__(self, folder, rank, hosts, seconds, end):
        self._place, self._rank, self._hosts, self._seconds = Path(folder) / FOLDER, rank, hosts, seconds
        self._inside, self._end, self._closed = None, end, threading.Event()
        self._turn = min(1.0, seconds / TURNS)
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
        with suppress(OSError):   # not empty as long as others wait
            self._place.rmdir()

    def _watch(self):
        seen, waited, said, last = None, 0.0, False, time.monotonic()
        while not self._closed.wait(self._turn):
            now = time.monotonic()
            turn, last = min(now - last, LONGEST_TURN * self._turn), now
            inside = self._inside
            if inside is not seen:
                if said:
                    self._say(None)
                seen, waited, said = inside, 0.0, False
            elif inside is not None:
                waited += turn
                if waited > self._seconds / 2 and not said:
                    said = self._say(inside)
                if waited > self._seconds:
                    self._judge(inside)
                    return

    def _say(self, inside):
        """Note what this rank waits in, or that it does not; whether that was possible."""
        path = self._place / str(self._rank)
        try:
            if inside is None:
                path.unlink(missing_ok=True)
            else:
                beside = path.with_name(f".{path.name}.tmp")
                beside.write_text(json.dumps([inside[0], inside[1]]))
                os.replace(beside, path)
        except OSError:
            return False
        return True

    def _judge(self, inside):
        name, number, members = inside
        waiting = {rank: self._heard(rank) for rank in members()}
        waiting[self._rank] = [name, number]
        there = [rank for rank, heard in waiting.items() if heard]
        newest = max(heard[1] for heard in waiting.values() if heard)
        late = [rank for rank, heard in waiting.items() if not heard or heard[1] < newest]
        if self._rank != min(rank for rank in there if rank not in late or rank == self._rank):
            time.sleep(SPEAKER_SECONDS)
        self._end(*self._sentence(name, waiting, late))

    def _heard(self, rank):
        with suppress(OSError, ValueError):
            name, number = json.loads((self._place / str(rank)).read_text())
            return [str(name), int(number)]
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
