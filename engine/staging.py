"""Images copied once per node to its own scratch disk before they are read: one copy, shared by the node's ranks.

Ranks read runs of a few neighbouring images here and there, for blocks are fair samples of the data; on a file system
that many nodes share, that is many small requests. Staging asks for the images of all ranks of a node at once, sorted
by stack and section, in pieces of PIECE bytes, every rank its part of them. The copy is a file without a name by the
time it is filled, so nothing is left of it however the run ends, and its bytes are reserved before: a disk that is too
small is refused before anything is copied.
"""
import os
import tempfile
from contextlib import contextmanager

import numpy as np

from vitrea.engine.agreement import on_each
from vitrea.engine.comm import of_this_node
from vitrea.engine.errors import JobError
from vitrea.engine.stacks import StackReader, mark_of

PIECE = 2**24   # bytes read at once


@contextmanager
def images_of(table, rows, options, stop, log, *, comm):
    """A reader of the images `rows` int64[m], which this rank works on: of the stacks themselves, or, where the job
    stages them, of the node's copy. Collective. JobError, on all ranks, as StackReader.read, or if scratch has no room.
    """
    if not options.staging:
        with StackReader(table) as reader:
            yield reader
        return
    staged = StagedImages(table, rows, options.scratch or options.output, stop, comm=comm)
    log.line(f"staged   {staged.total / 1e9:.3g} GB of images on {staged.nodes} node{'s' * (staged.nodes > 1)}, a copy "
             f"each, in {options.scratch or options.output}")
    try:
        yield staged
    finally:
        staged.close()


class StagedImages:
    """The images of this node's ranks in one file without a name in `folder`; reads as a StackReader does.

    total: bytes on all nodes; nodes: how many. Made by all ranks together; JobError on all of them if one cannot.
    """

    def __init__(self, table, rows, folder, stop, *, comm):
        self._table, self._file, node = table, None, of_this_node(comm)
        self._rows, self._offset = _places(table, rows, node)
        self._place = np.argsort(self._rows)
        self._sorted = self._rows[self._place]
        path = on_each(lambda: self._made(folder) if node.rank == 0 else None, comm)
        path = node.bcast(path, root=0)
        on_each(lambda: self._opened(path) if node.rank else None, comm)
        node.Barrier()
        if node.rank == 0:
            os.unlink(path)
        share = slice(len(self._rows) * node.rank // node.size, len(self._rows) * (node.rank + 1) // node.size)
        on_each(lambda: self._copy(share, stop), comm)
        sizes = comm.allgather(int(self._offset[-1]) if node.rank == 0 else -1)
        self.total, self.nodes = sum(size for size in sizes if size >= 0), sum(size >= 0 for size in sizes)
        node.Free()

    def read(self, rows):
        """Images of `rows` (int[n], any order, of those that were staged) as float32[n, L, L], in the order of
        `rows`."""
        rows = np.asarray(rows, dtype=np.int64)
        headers = [self._table.headers[stack] for stack in self._table.stack_index[rows]]
        places = self._place[np.searchsorted(self._sorted, rows)]
        images = np.empty((len(rows), headers[0].height, headers[0].width), np.float32)
        for image, header, place in zip(images, headers, places):
            values = np.empty((header.height, header.width), header.dtype)
            _transfer(os.preadv, self._file, values.reshape(-1).view(np.uint8), int(self._offset[place]))
            image[:] = values
        return images

    def changed(self):
        """None: the copy is nobody else's."""
        return

    def close(self):
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _made(self, folder):
        """Make the file, its bytes reserved: its path. JobError if there is no room."""
        size = int(self._offset[-1])
        try:
            self._file, path = tempfile.mkstemp(dir=folder, prefix=".vitrea-staged-")
            if size:
                os.posix_fallocate(self._file, 0, size)
            return path
        except OSError as error:
            if self._file is not None:
                os.unlink(path)
            raise JobError(f"scratch: {folder} does not take the {size / 1e9:.3g} GB of images that a node keeps "
                           f"there ({error.strerror or error}); expected a writable folder with that much free space "
                           "on every node; free some, choose another scratch folder, or leave staging out") from error

    def _opened(self, path):
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise JobError(f"scratch: {path} cannot be opened by all ranks of its node ({error.strerror}); expected a "
                           "folder that they share; choose another scratch folder") from error

    def _copy(self, share, stop):
        """Copy this rank's part of the images, stack by stack. JobError if a stack cannot be read or has changed."""
        table, rows = self._table, self._rows[share]
        stack, section = table.stack_index[rows], table.section[rows]
        new_stack = np.flatnonzero(np.diff(stack)) + 1
        for places in np.split(np.arange(len(rows)), new_stack):
            if not len(places) or stop.asked():
                continue
            header = table.headers[stack[places[0]]]
            try:
                before = mark_of(header.path)
                with open(header.path, "rb", buffering=0) as source:
                    for run in _runs(section[places], max(1, PIECE // header.image_bytes)):
                        content = np.empty(len(run) * header.image_bytes, np.uint8)
                        start = header.data_offset + int(section[places[run[0]]]) * header.image_bytes
                        _transfer(os.preadv, source.fileno(), content, start)
                        _transfer(os.pwritev, self._file, content, int(self._offset[share.start + places[run[0]]]))
                after = mark_of(header.path)
            except OSError as error:
                row = table.row_number[rows[places[0]]]
                raise JobError(f"{table.path} row {row}: {header.path} could not be copied to scratch "
                               f"({error.strerror or error}); expected the stack as it was when the run started; "
                               "restore it, or look after the disks") from error
            if before != after:
                raise JobError(f"{header.path}: this stack has changed while it was copied; expected particles that "
                               "stay as they are; wait for what writes it to end, then run or resume again")


def _places(table, rows, node):
    """(int64[n]: the rows of all ranks of a node, by stack and section; int64[n + 1]: where each image begins in the
    copy). Collective over the node."""
    wanted = np.zeros(len(table), np.uint8)
    wanted[rows] = 1
    together = np.empty_like(wanted)
    node.Allreduce(wanted, together)   # every row is one rank's
    found = np.flatnonzero(together)
    found = found[np.lexsort((table.section[found], table.stack_index[found]))]
    size = np.array([header.image_bytes for header in table.headers], np.int64)[table.stack_index[found]]
    return found, np.concatenate([[0], np.cumsum(size)]).astype(np.int64)


def _runs(section, most):
    """Places of consecutive sections, at most so many at a time."""
    for run in np.split(np.arange(len(section)), np.flatnonzero(np.diff(section) != 1) + 1):
        yield from (run[first:first + most] for first in range(0, len(run), most))


def _transfer(call, file, content, offset):
    """Read or write all of uint8[n] at an offset; OSError if the file ends before."""
    done = 0
    while done < len(content):
        count = call(file, [content[done:]], offset + done)
        if not count:
            raise OSError(f"it ends at byte {offset + done}")
        done += count
