"""Work dealt out to the ranks as they become free, through the run folder, which all of them see.

A counter on one rank, raised by MPI's one-sided calls, would be more obvious; but MPI libraries serve such calls only
while the rank that holds the counter is itself inside MPI (measured with MPICH 5 over UCX: two ranks then take turns),
and here it is busy with a micrograph. A file that can be made only once needs nobody's attention.
"""
import os
import shutil
import tempfile
from pathlib import Path

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
