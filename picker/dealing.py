"""Work dealt out to the ranks as they become free, through the run folder, which all of them see.

A counter on one rank, raised by MPI's one-sided calls, would be more obvious; but MPI libraries serve such calls only
while the rank that holds the counter is itself inside MPI (measured with MPICH 5 over UCX: two ranks then take turns),
and here it is busy with a micrograph. A file that can be made only once needs nobody's attention.
"""
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError

PREFIX = ".dealt-"


class Dealer:
    """Numbers 0 … n − 1, each given to the one rank that asks first.

    Made and left (`with`) by all ranks together, in a folder on a file system that all of them see; iterating is not
    collective. What a run that was killed has left in the folder is removed.
    """

    def __init__(self, n, folder, *, comm):
        self._n, self._comm, made = n, comm, None
        if comm.rank == 0:
            for left in Path(folder).glob(PREFIX + "*"):
                shutil.rmtree(left, ignore_errors=True)
            made = tempfile.mkdtemp(prefix=PREFIX, dir=folder)
        self._taken = Path(comm.bcast(made, root=0))

    def __iter__(self):
        for number in range(self._n):
            try:
                os.close(os.open(self._taken / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            yield number

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # After an error elsewhere the others may never come; the next run clears the folder.
        if kind is None:
            self._comm.Barrier()
            if self._comm.rank == 0:
                shutil.rmtree(self._taken, ignore_errors=True)


def deal_out(work, weights, one, folder, *, progress, stop, comm):
    """Call one(number) for the numbers in `work` that this rank is given, until all are done or `stop` is asked;
    weights float[n] are what they cost, about. Collective at its beginning and end.

    Returns the share of the time between these in which each rank was at work, float[size]. Raises, on all ranks, the
    JobError of any.
    """
    begin, busy, mistake = time.perf_counter(), 0.0, None
    before = np.concatenate([[0.0], np.cumsum(weights)])
    with Dealer(len(work), folder, comm=comm) as dealer:
        for place in dealer:
            if stop.asked() or mistake:   # whoever made a mistake takes what is left, and leaves it
                continue
            progress.tell(place, before[place] / max(before[-1], 1e-9))
            started = time.perf_counter()
            try:
                one(work[place])
            except JobError as error:
                mistake = str(error)
            busy += time.perf_counter() - started
    shares = comm.allgather(busy / max(time.perf_counter() - begin, 1e-9))
    mistakes = [each for each in comm.allgather(mistake) if each]
    if mistakes:
        raise JobError(mistakes[0])
    return shares


def agreed(work, comm):
    """What `work` gives on rank 0, on all ranks; a JobError there is raised on all."""
    outcome = None
    if comm.rank == 0:
        try:
            outcome = (work(), None)
        except JobError as mistake:
            outcome = (None, str(mistake))
    result, mistake = comm.bcast(outcome, root=0)
    if mistake:
        raise JobError(mistake)
    return result


def largest_first(listed):
    """(numbers of a MicrographList, the largest file first, so that none is begun late that takes long; their sizes
    [bytes] by number, 0 of those that are missing)."""
    sizes = [path.stat().st_size if path.exists() else 0 for path in listed.paths]
    return sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)), sizes
