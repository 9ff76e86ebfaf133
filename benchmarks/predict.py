"""How long an iteration of classify2d takes on many ranks: a model of measured rates and counted messages.

    T(P) = E(P) + M + R + A(P) + G(P)
    E(P) = t_particle · largest share of particles of a rank      (blocks are dealt whole: more ranks than blocks idle)
    M    = templates and M step, the same on every rank           (measured)
    R    = r + N · s_row: checkpoint and log, on rank 0             (measured; s_row: a checkpoint of many rows)
    A(P) = 2 ⌈log2 P⌉ (1 + a) α + 2 (P − 1)/P · V/β                 (Allreduce of V bytes, and a further small ones:
                                                                     Thakur, Rabenseifner & Gropp 2005)
    G(P) = ⌈log2 P⌉ α + N · row/β                                  (particles' entries to rank 0, for the checkpoint)

t_particle, M and R come from the run on one rank; V and row are computed from the model's arrays and checked against
the bytes that a counting communicator saw; α and β are given. Not in the model: the file system, other jobs on the
network, memory bandwidth shared by the cores of a node, and the arithmetic of the reduction.
"""
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.checkpoint import PARTICLE, write_checkpoint
from vitrea.engine.em import LARGEST_FLOW
from vitrea.engine.model import Totals
from vitrea.engine.shards import make_blocks, share_of

CHECKPOINT_ROWS = 200_000


@dataclass(frozen=True)
class Rates:
    """Of one rank: t_particle [s a particle and iteration], m_step and rest [s an iteration], row [s a particle in the
    checkpoint]; sums: bytes of the Allreduce; small: further Allreduces an iteration."""

    t_particle: float
    m_step: float
    rest: float
    row: float
    sums: int
    small: float


def rates(records, sums, small, row):
    """Rates from the records of one-rank runs (`worth`) of one number of classes, the largest stack deciding."""
    largest = max(record["particles"] for record in records)
    runs = [record for record in records if record["particles"] == largest]

    def median(value):
        return float(np.median([value(run) for run in runs]))

    return Rates(median(lambda run: run["e_step"] / run["iterations"] / run["particles"]),
                 median(lambda run: run["m_step"] / run["iterations"]),
                 max(median(lambda run: _rest(run) / run["iterations"]) - row * largest, 0.0), row, sums, small)


def row_seconds(folder, rows=CHECKPOINT_ROWS):
    """Seconds that a particle adds to a checkpoint: one of `rows` particles is sorted and written in `folder`."""
    particles = np.zeros(rows, dtype=PARTICLE)
    particles["row"] = np.random.default_rng(0).permutation(rows)
    times = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".checkpoint-rate-") as place:
        for _ in range(3):
            begin = time.perf_counter()
            write_checkpoint(Path(place) / "checkpoint.h5", {"particles": particles[np.argsort(particles["row"])]}, {})
            times.append(time.perf_counter() - begin)
    return float(np.median(times)) / rows


def _rest(run):
    return run["iterating_seconds"] - run["e_step"] - run["m_step"] - run["reduce"]


def predicted(rates, network, n_particles, ranks):
    """Seconds of one iteration by part: dict of e_step, m_step, rest, allreduce, gather."""
    steps = int(np.ceil(np.log2(ranks))) if ranks > 1 else 0
    moved = 2.0 * (ranks - 1) / ranks * rates.sums / network.bandwidth
    return {
        "e_step": rates.t_particle * largest_share(n_particles, ranks), "m_step": rates.m_step,
        "rest": rates.rest + rates.row * n_particles,
        "allreduce": 2.0 * steps * (1.0 + rates.small) * network.latency + moved,
        "gather": (steps * network.latency + gather_bytes(n_particles) / network.bandwidth) if ranks > 1 else 0.0,
    }


def communication(parts):
    """Share of an iteration that goes into messages."""
    return (parts["allreduce"] + parts["gather"]) / sum(parts.values())


def largest_share(n_particles, ranks):
    """Particles of the rank that has most, blocks being dealt whole."""
    blocks = make_blocks(np.zeros(n_particles, dtype=np.int32))
    sizes = np.array([len(block.rows) for block in blocks])
    return int(max(sizes[share_of(len(sizes), rank, ranks)].sum() for rank in range(ranks)))


def gather_bytes(n_particles):
    """Bytes that all ranks together send to rank 0 after an iteration."""
    return n_particles * PARTICLE.itemsize


def sum_bytes(n_classes, geometry, rings, n_groups=1):
    """Bytes of the one vector that an iteration on `rings` rings sums over ranks."""
    grid = geometry.grid
    sums = Totals.zeros(n_classes, n_groups, geometry.ctf_terms, grid.with_rings(rings), grid.n_rings).pack()
    told = 1 + (n_classes**2 if n_classes <= LARGEST_FLOW else 0)   # seconds of a rank, and moves between classes
    return sums.nbytes + told * sums.itemsize
