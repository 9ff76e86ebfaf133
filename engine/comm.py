"""MPI: the communicator, whether the launcher meant it, and how ranks agree to stop. The only module that imports
mpi4py."""
import faulthandler
import functools
import os
import platform
import signal
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.watchdog import Watchdog, patience

# how many ranks the launcher started, by launcher: MPICH and Intel MPI (hydra), Open MPI, Slurm's srun
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
NETWORK_VARIABLE = "MPIR_CVAR_CH4_NETMOD"   # which of its network modules MPICH uses
STOP_TAG = 7001
WAIT_SECONDS = 0.05
STUCK_SECONDS = 1.0   # after which a process that could not end itself by a sentence is ended by a traceback
LAST_SECONDS = 5.0   # for an Abort to end this process, before it ends itself
COLLECTIVES = ("Barrier", "Bcast", "Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv", "Reduce",
               "Allreduce", "bcast", "gather", "scatter", "allgather", "reduce", "allreduce")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def world():
    """A duplicate of MPI.COMM_WORLD; JobError if there is no MPI library or the launcher belongs to another one."""
    try:
        MPI = _started()
    except (ImportError, RuntimeError) as error:
        raise JobError(
            f"MPI: no usable MPI library was found ({str(error).splitlines()[0]}); expected the site's MPI on the "
            "library path or an MPI wheel; load the site's module, or 'pip install \"vitrea[mpi]\"'"
        ) from error
    check_launcher(MPI.COMM_WORLD.Get_size(), os.environ, MPI.Get_library_version().split("\n")[0])
    check_allocation(MPI.COMM_WORLD.Get_size(), os.environ)
    return _watched()(MPI.COMM_WORLD.Dup())


def _started():
    """mpi4py's MPI at work."""
    MPI = _loaded()
    if not MPI.Is_initialized():
        if spoils_starts(MPI.Get_library_version(), os.environ):
            os.environ.setdefault(NETWORK_VARIABLE, "ofi")
        MPI.Init_thread()
    return MPI


def _loaded():
    """mpi4py's MPI, loaded and not yet started, unless it was; it is ended with the process."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    return MPI


def spoils_starts(library, environment):
    """Whether this MPI, started by Slurm, might not start: MPICH 5.0.2 with UCX hands Slurm 22.05's PMI2 addresses
    that are cut short, in 14 of 120 starts of two ranks (docs/cluster.md); its ranks then wait for each other. The
    same library through libfabric, where it was built with both, does not.

    library: what MPI_Get_library_version says. A choice of the user's (MPIR_CVAR_CH4_NETMOD) stands.
    """
    device = next((line for line in library.splitlines() if line.startswith("MPICH Device")), "")
    return {"ch4:ucx", "ofi"} <= set(device.split()) and {"SLURM_STEP_ID", "PMI_FD"} <= set(environment)


@functools.cache
def _watched():
    """The class of communicators whose collectives tell the watchdog, if there is one, that the rank is inside."""
    from mpi4py import MPI

    class Watched(MPI.Intracomm):
        dog = None       # of this process, for all its communicators: a rank is inside one collective at a time
        entered = 0      # collectives of this communicator

        def members(self):
            """Ranks of the world."""
            everybody = MPI.COMM_WORLD.Get_group()
            return MPI.Group.Translate_ranks(self.Get_group(), None, everybody)

        def Dup(self, info=None):
            return Watched(super().Dup(info))

        def Split(self, color=0, key=0):
            return Watched(super().Split(color, key))

        def Split_type(self, kind, key=0, info=MPI.INFO_NULL):
            return Watched(super().Split_type(kind, key, info))

    def watching(name):
        plain = getattr(MPI.Intracomm, name)

        def collective(self, *arguments, **named):
            dog = Watched.dog
            if dog is None:
                return plain(self, *arguments, **named)
            self.entered += 1
            dog.enter(name, self.entered, self.members)
            try:
                return plain(self, *arguments, **named)
            finally:
                dog.leave()

        return collective

    for name in COLLECTIVES:
        setattr(Watched, name, watching(name))
    return Watched


class Start:
    """The time from the start of a process to that of its watchdog, in which MPI itself may wait for a rank.

    A context: unless `over` is called, or it is left, within VITREA_PATIENCE seconds, the process ends with a word.
    """

    _now = None

    def __init__(self, environment=os.environ):
        several = any(environment.get(name, "") not in ("", "1") for name in SIZE_VARIABLES)
        self._seconds = patience(environment) if several else 0
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True

    def __enter__(self):
        if self._seconds:
            Start._now = self._timer
            self._timer.start()
            # MPI's own start holds the interpreter, and the timer with it: this one needs no interpreter
            faulthandler.dump_traceback_later(self._seconds + STUCK_SECONDS, exit=True, file=2)
        return self

    def __exit__(self, *_):
        self.over()

    @classmethod
    def over(cls):
        """All ranks are there, and watched from now on."""
        if cls._now:
            cls._now.cancel()
            faulthandler.cancel_dump_traceback_later()
        cls._now = None

    def _end(self):
        print(f"vitrea: on {platform.node()}: not all ranks have begun after {self._seconds:g} s; expected all that "
              "the launcher started; look after the hosts of this job, then start it again",
              file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def watchdog(folder, told, *, comm):
    """A context in which a rank that does not come to a collective for VITREA_PATIENCE seconds ends all ranks.

    folder: seen by all ranks; told(message, rank, host): called on the rank that speaks for those that wait.
    Collective at its beginning.
    """
    from mpi4py import MPI

    seconds = patience(os.environ)
    hosts = comm.allgather(platform.node())
    Start.over()
    kind = _watched()
    if comm.size == 1 or not seconds or kind.dog is not None:
        yield
        return

    def end(message, rank, host):
        told(message, rank, host)
        threading.Timer(LAST_SECONDS, os._exit, [1]).start()
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            MPI.COMM_WORLD.Abort(1)
        os._exit(1)

    kind.dog = Watchdog(folder, MPI.COMM_WORLD.rank, hosts, seconds, end)
    try:
        yield
    finally:
        dog, kind.dog = kind.dog, None
        dog.close()


def alone():
    """The communicator of this process by itself, for work that needs no other rank."""
    return _started().COMM_SELF


def check_launcher(size, environment, library):
    """Refuse N singletons: a launcher of one MPI with the library of another starts N copies that each do the whole
    job."""
    for name in SIZE_VARIABLES:
        text = environment.get(name, "")
        if text.isdigit() and int(text) > 1 and size == 1:
            raise JobError(
                f"MPI: the launcher started {text} ranks ({name}), but each of them sees only itself through "
                f"{library[:60].strip()}; "
                "expected the launcher and the library of one MPI; use the mpiexec (or srun --mpi=…) of the MPI "
                "that mpi4py loads, or load the module of the one you launched with"
            )


def check_allocation(size, environment):
    """Refuse a job that uses one rank of the many tasks that Slurm has given it, or more ranks than it has given."""
    tasks = environment.get("SLURM_NTASKS", "")
    if not tasks.isdigit() or "SLURM_JOB_ID" not in environment:
        return
    launched = any(environment.get(name, "").isdigit() for name in SIZE_VARIABLES)
    if int(tasks) > 1 and not launched:
        raise JobError(
            f"MPI: the allocation has {tasks} tasks (SLURM_NTASKS), but vitrea was started once, without a launcher; "
            "expected srun or mpiexec before vitrea; for one rank on purpose, start it with 'srun -n 1'"
        )
    if size > int(tasks) and "SLURM_OVERCOMMIT" not in environment:
        raise JobError(
            f"MPI: {size} ranks were started, but the allocation has {tasks} tasks (SLURM_NTASKS); expected no more "
            "ranks than tasks, for they would share cores; ask for more tasks, or start fewer ranks"
        )


def library_name():
    """`MPICH 5.0.2`: vendor and version of the MPI library in use."""
    from mpi4py import MPI

    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def library_vendor():
    """`MPICH`, `Intel MPI`, `Open MPI`: whose library would be used; "" if there is none here. MPI is not started,
    which login nodes may forbid: for programs that hand work to others only."""
    try:
        return _loaded().get_vendor()[0]
    except (ImportError, RuntimeError):
        return ""


def node_count(comm):
    """How many machines the ranks are on."""
    from mpi4py import MPI

    return len(set(comm.allgather(MPI.Get_processor_name())))


def ranks_on_this_node(comm):
    """How many ranks share this machine's memory. Collective."""
    from mpi4py import MPI

    here = MPI.Get_processor_name()
    return comm.allgather(here).count(here)


def of_this_node(comm):
    """A communicator of the ranks that share this machine. Collective."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)


def first_ranks(n, *, comm):
    """A communicator of ranks 0 … n − 1; None on the others. Collective."""
    part = comm.Split(int(comm.rank >= n), comm.rank)
    if comm.rank < n:
        return part
    part.Free()
    return None


def wait_for_all(*, comm):
    """A barrier in which waiting takes no processor time. Collective."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(WAIT_SECONDS)


def sum_over_ranks(array, *, comm):
    """Element-wise sum; exact in any order if the terms are multiples of their quanta (kernels/exact.py)."""
    total = np.empty_like(array)
    comm.Allreduce(np.ascontiguousarray(array), total)
    return total


def largest_over_ranks(array, *, comm):
    """Element-wise maximum."""
    from mpi4py import MPI

    total = np.empty_like(array)
    comm.Allreduce(np.ascontiguousarray(array), total, op=MPI.MAX)
    return total


def gather_rows(records, *, comm):
    """Structured array[n] of every rank, one after the other, on rank 0; None elsewhere."""
    counts = comm.gather(len(records), root=0)
    everything = np.empty(sum(counts), dtype=records.dtype) if comm.rank == 0 else None
    row = np.zeros(1, dtype=records.dtype).nbytes
    received = None
    if comm.rank == 0:
        from mpi4py import MPI

        received = [everything.view(np.uint8), [count * row for count in counts], None, MPI.BYTE]
    comm.Gatherv(np.ascontiguousarray(records).view(np.uint8), received, root=0)
    return everything


class StopRequest:
    """SIGTERM and SIGUSR1 ask a run to leave at the next block; a rank that was asked tells the others.

    Use as a context manager; earlier handlers come back at its end. `asked()` is called between blocks, by the main
    thread. signals: which ask, where Ctrl-C (SIGINT) is one of them too.
    """

    def __init__(self, *, comm, signals=STOP_SIGNALS):
        self._comm, self._signal, self._told, self._earlier, self._signals = comm, None, False, {}, signals
        self._messages = []   # a message whose request is forgotten may lose its buffer before it is sent

    def __enter__(self):
        for number in self._signals:
            self._earlier[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_):
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
            if self._signal == signal.Signals(number).name and getattr(handler, "__func__", 0) is StopRequest._notice:
                handler(number, None)   # to the one around this, which may have more to do

    def _notice(self, number, _frame):
        self._signal = signal.Signals(number).name

    @property
    def reason(self):
        """Name of the signal, or None."""
        return self._signal

    def asked(self):
        """Whether this rank, or another that told us, was asked to stop. Not collective."""
        if self._signal is None and self._comm.Iprobe(tag=STOP_TAG):
            self._signal = self._comm.recv(tag=STOP_TAG)
            self._told = True
        if self._signal and not self._told:
            self._told = True
            others = [rank for rank in range(self._comm.size) if rank != self._comm.rank]
            self._messages = [self._comm.isend(self._signal, dest=rank, tag=STOP_TAG) for rank in others]
        return self._signal is not None

    def agreed(self):
        """Whether any rank was asked to stop. Collective."""
        reasons = [reason for reason in self._comm.allgather(self._signal) if reason]
        self._signal = reasons[0] if reasons else None
        return self._signal is not None
