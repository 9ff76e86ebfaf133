"""How long an Allreduce takes between the ranks this was started on: `mpiexec -n R vitrea bench network`.

One iteration of classify2d is one Allreduce, so its time at the sizes of the sums is what communication costs, and a
fit of it gives the latency and the bandwidth that a scaling study predicts with:
    A(P) = 2 ⌈log2 P⌉ α + 2 (P − 1)/P · V/β     (Thakur, Rabenseifner & Gropp 2005, Int. J. High Perf. Comput. Appl.)
Ranks that share a core make it longer than it would be on cores of their own: an upper limit then.
"""
import json
import os
import time

import numpy as np
from scipy.optimize import nnls

from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.comm import node_count, world
from vitrea.engine.errors import JobError

NUMBER = 8   # bytes of a float64


def measure(sizes, n, comm, progress):
    """Records of Allreduces of `sizes` bytes, `n` of each: a list on rank 0, None elsewhere. Collective.

    The seconds of one are those of the slowest rank, from a barrier on. Raises JobError on a single rank, and if a sum
    is wrong.
    """
    if comm.size == 1:
        raise JobError("bench network: one rank was found; expected at least two, which have something to send; start "
                       "it with the launcher of a job, e.g. mpiexec -n 8 vitrea bench network")
    found = []
    for size in sizes:
        if comm.rank == 0:
            progress.step(f"Allreduce of {size:,} bytes on {comm.size} ranks", n)
        found.append(_record(size, _seconds(size, n, comm), comm))
    if comm.rank != 0:
        return None
    columns = ([record[name] for record in found] for name in ("bytes", "median"))
    latency, bandwidth = fitted(*columns, comm.size)
    return [record | {"latency": latency, "bandwidth": bandwidth} for record in found]


def _seconds(size, n, comm):
    """float64[n]: seconds of Allreduces of `size` bytes after one that is not counted."""
    give = np.full(max(1, size // NUMBER), comm.rank + 1.0)
    take, seconds = np.empty_like(give), np.empty(n + 1)
    for i in range(n + 1):
        comm.Barrier()
        begin = time.perf_counter()
        comm.Allreduce(give, take)
        seconds[i] = time.perf_counter() - begin
    every = comm.allgather(seconds[1:])
    if not np.all(take == comm.size * (comm.size + 1) / 2):
        raise JobError(f"bench network: the sum over {comm.size} ranks was {take[0]:g}; expected "
                       f"{comm.size * (comm.size + 1) / 2:g}; the MPI library does not add up: do not use it")
    return np.max(every, axis=0)


def _record(size, seconds, comm):
    nodes = node_count(comm)
    return {"benchmark": "network", "ranks": comm.size, "nodes": nodes,
            "shared_cores": comm.size > nodes * (os.cpu_count() or 1), "bytes": max(1, size // NUMBER) * NUMBER,
            "n": len(seconds), "min": float(seconds.min()), "median": float(np.median(seconds)),
            "max": float(seconds.max()), **surroundings()}


def fitted(sizes, seconds, ranks):
    """(latency [s], bandwidth [bytes/s]) whose Allreduces take `seconds`, each size weighing the same; the bandwidth is
    infinite if larger messages take no longer."""
    sizes, seconds = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    terms = np.stack([np.full(len(sizes), 2.0 * np.ceil(np.log2(ranks))), 2.0 * (ranks - 1) / ranks * sizes], axis=1)
    latency, per_byte = nnls(terms / seconds[:, None], np.ones(len(sizes)))[0]
    return float(latency), float(1.0 / per_byte) if per_byte > 0 else float("inf")


def told(records):
    """A table of the records, and the lines for a study's `network:`."""
    first = records[0]
    shared = ", more than cores: an upper limit" if first["shared_cores"] else ""
    plural = "s" if first["nodes"] > 1 else ""
    lines = [f"Allreduce on {first['ranks']} ranks of {first['nodes']} node{plural}{shared}; {first['n']} of each size",
             "", "| bytes | least [ms] | median [ms] | most [ms] |", "|---|---|---|---|"]
    lines += [f"| {record['bytes']:,} | {1e3 * record['min']:.3f} | {1e3 * record['median']:.3f} "
              f"| {1e3 * record['max']:.3f} |" for record in records]
    lines += ["", f"load {first['load'][0]:.1f}; a busy machine makes these times longer"]
    return "\n".join([*lines, "", "for a study:", "network:", f"  latency: {first['latency']:.1e}",
                      f"  bandwidth: {first['bandwidth']:.1e}"])


def command(arguments):
    """`vitrea bench network`: rank 0 keeps and prints the records."""
    records = measure(arguments.bytes, arguments.n, world(), arguments.progress)
    for record in records or []:
        keep(arguments.records, record)
        if arguments.json:
            arguments.progress.result(json.dumps(record))
    if records and not arguments.json:
        arguments.progress.result(told(records))
    return 0
