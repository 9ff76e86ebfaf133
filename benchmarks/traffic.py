"""A communicator that counts: every collective call, the bytes this rank gives to it, and the time it takes."""
from dataclasses import fields, is_dataclass

import numpy as np

NUMBER_BYTES = 8
ARRAYS = ("Allreduce", "Bcast", "Gatherv", "Reduce", "Allgather")      # upper case: contiguous buffers
OBJECTS = ("allgather", "allreduce", "bcast", "gather", "scatter")     # lower case: any object, serialised
EMPTY = ("Barrier",)


class CountedComm:
    """Behaves as the communicator it wraps, its copies (Dup) too, and notes its collective calls in `calls`.

    calls: list of (stage, operation, bytes, seconds); the stage is what `stage` was when the call was made.
    """

    def __init__(self, comm, clocks=None, shared=None):
        self._comm, self._clocks = comm, clocks
        self._shared = shared if shared is not None else {"calls": [], "stage": "start"}

    @property
    def calls(self):
        return self._shared["calls"]

    def enter(self, stage):
        """Calls from now on belong to `stage`."""
        self._shared["stage"] = stage

    def Dup(self):
        return CountedComm(self._comm.Dup(), self._clocks, self._shared)

    def __getattr__(self, name):
        plain = getattr(self._comm, name)
        if name in ARRAYS or name in OBJECTS or name in EMPTY:
            return self._counted(name, plain)
        return plain

    def _counted(self, name, call):
        timed = self._clocks.timed("reduce", call) if self._clocks else call

        def counted(*arguments, **keywords):
            root = keywords.get("root", 0)
            gives = name not in ("bcast", "Bcast", "scatter") or self._comm.rank == root
            sent = payload(arguments[0]) if arguments and gives else 0
            before = self._clocks.seconds.get("reduce", 0.0) if self._clocks else 0.0
            try:
                return timed(*arguments, **keywords)
            finally:
                took = self._clocks.seconds.get("reduce", 0.0) - before if self._clocks else 0.0
                self.calls.append((self._shared["stage"], name, sent, took))

        return counted


def payload(value):
    """Bytes of what an object holds: arrays and texts as they are, numbers as 8; without the words that frame them."""
    if isinstance(value, np.ndarray):
        return value.nbytes if value.dtype != object else sum(map(payload, value.ravel()))
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(payload(key) + payload(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return sum(map(payload, value))
    if is_dataclass(value):
        return sum(payload(getattr(value, each.name)) for each in fields(value))
    return NUMBER_BYTES
