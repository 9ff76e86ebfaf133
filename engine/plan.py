"""What a job will need before it starts: poses, memory, disk, and where its particles are kept.

How much memory the search takes depends on how far the resolution marches, which nobody knows before. Two figures are
told: one for 70 % of the rings, where most runs end, and one for all of them with every class in play, which is what
limits are held against. Particles, which are most of a large job, are kept on all rings from the start. The very first
run after an installation compiles the kernels, which takes 0.1 GB more.
"""
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.comm import ranks_on_this_node
from vitrea.engine.errors import JobError
from vitrea.engine.expectation import LINES, SCORE_BUDGET
from vitrea.engine.geometry import make_geometry
from vitrea.engine.levels import coarse_ring_limit, level_shape
from vitrea.engine.scoring import PRODUCT_SIZE, TILE_SCORES
from vitrea.engine.shards import BATCH, LARGEST_BLOCK
from vitrea.engine.storage import PIECE, record_type

PROGRAM_BYTES = 255e6      # the interpreter, numba and the libraries, as measured
RINGS_PLANNED = 0.7        # of all rings
MACHINE_SHARE = 0.8        # of a machine's memory that the ranks on it may plan for
CONTROL_GROUPS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
BLOCKS_AHEAD = 3           # in scratch: blocks in memory besides the one that each thread works on
SHIFTS_MET = 0.5           # of the sums by class and shift
CLASSES_ACTIVE = 0.5       # of all classes
BYTES_A_PARTICLE = 220     # poses (twice) and where it is kept, on the rank that works on a particle
BYTES_A_ROW = 680          # of all particles: CTF parameters, on rank 0 also the words of the STAR file and the results
BYTES_PASSING = 8          # of all particles, held for a moment although the rest is in scratch: dealing, first classes
BYTES_IN_A_PIECE = 450     # of the particles of a piece of the table, while it is gone through
STAR_BYTES_A_ROW = 500


@dataclass(frozen=True)
class RunPlan:
    """Sizes of a run; memory in bytes at its peak, of the rank with most particles: as most runs go, and at most."""

    particles: int
    particles_per_rank: int
    storage: str                  # "memory" or "scratch"
    memory_per_rank_bytes: int
    memory_at_most_bytes: int
    scratch_per_rank_bytes: int   # of the scratch file; 0 for storage in memory
    poses_coarse: int
    poses_fine: int
    disk_bytes: int
    box_size: int
    pixel_size: float
    rings: int

    work_name = "poses"

    @property
    def work(self):
        """What each particle is compared with, for people."""
        return f"{self.poses_coarse:,} coarse, {self.poses_fine:,} fine, of each particle"


def plan(options, table, n_ranks, room=np.inf):
    """RunPlan of a classify2d job on `n_ranks` that may take `room` bytes each; JobError if it cannot work."""
    _check_sizes(options, table)
    geometry = make_geometry(table, options)
    share = -(-len(table) // n_ranks)
    if options.scratch and not options.scratch.is_dir():
        raise JobError(f"scratch: {options.scratch} is no folder here; expected one that every rank can write to; make "
                       "it, or choose another")
    storage = _storage(options, geometry, table, share, room)
    coarse = level_shape(
        geometry.grid.with_rings(coarse_ring_limit(geometry, options)), options, options.offset_step, 1
    )
    fine = level_shape(geometry.grid, options, options.offset_step / 2, 2)
    disk = options.n_classes * geometry.box_size**2 * 4 + len(table) * (STAR_BYTES_A_ROW + 100) + \
        options.n_classes * geometry.grid.size * 24
    return RunPlan(
        len(table),
        share,
        storage,
        int(_memory(options, geometry, table, share, storage, LIKELY)),
        int(_memory(options, geometry, table, share, storage, AT_MOST)),
        _scratch(options, geometry, table, share) if storage == "scratch" else 0,
        options.n_classes * coarse[0] * coarse[1],
        options.n_classes * fine[0] * fine[1],
        int(disk),
        geometry.box_size,
        geometry.pixel_size,
        geometry.grid.n_rings,
    )


def _check_sizes(options, table):
    if options.n_classes > len(table):
        raise JobError(
            f"n_classes: {options.n_classes} classes, but {table.path} holds {len(table)} particles; expected "
            f"no more classes "
            "than particles; lower n_classes, a hundred particles a class is usual"
        )


def machine_room(comm):
    """Bytes that each rank may plan for: its share of the machine, or of what a batch system grants. Collective."""
    return min(comm.allgather(int(MACHINE_SHARE * machine_memory() / ranks_on_this_node(comm))))


def machine_memory():
    """Bytes of memory of this machine, or of this program's control group where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers in CONTROL_GROUPS:
                root, name = CONTROL_GROUPS[controllers]
                found += _limits(Path(root), own, name)
    return min(found)


def _limits(root, group, name):
    """The limits set for a control group and for those it lies in; of a container the outer ones are not seen."""
    group = root / group.lstrip("/")
    files = [folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)]
    texts = [file.read_text().strip() for file in files if file.exists()]
    return [int(text) for text in texts if text.isdecimal()]


def _storage(options, geometry, table, share, room):
    needed = {storage: _memory(options, geometry, table, share, storage, AT_MOST) for storage in ("memory", "scratch")}
    return choose_storage(options, needed, room)


def choose_storage(options, needed, room):
    """Where the particles are kept, "memory" or "scratch", of which `needed` bytes each; JobError if the memory limit
    allows for neither place."""
    limit = options.memory_limit * 1e9 if options.memory_limit else np.inf
    if options.storage == "auto":
        chosen = "memory" if needed["memory"] <= min(limit, room) else "scratch"
    else:
        chosen = options.storage
    if needed[chosen] > limit:
        remedy = "keep the particles in scratch (storage: scratch), " if needed["scratch"] <= limit else ""
        raise JobError(
            f"memory_limit: the run needs up to {needed[chosen] / 1e9:.1f} GB a rank with its particles in {chosen}, "
            f"more than the limit of {options.memory_limit:g} GB; expected no more; {remedy}use more ranks on more "
            "nodes, a coarser max_resolution, or fewer classes"
        )
    return chosen


@dataclass(frozen=True)
class _Case:
    """What a run may meet: shares of the rings in use, of the sums by class and shift that are ever written (memory is
    taken then), and of the classes looked at on the fine level when most rings are in use."""

    rings: float
    shifts: float
    classes: float


LIKELY, AT_MOST = _Case(RINGS_PLANNED, SHIFTS_MET, CLASSES_ACTIVE), _Case(1.0, 1.0, 1.0)


def _memory(options, geometry, table, share, storage, case):
    """Bytes of rank 0 at its peak."""
    grid, n_classes = geometry.grid, options.n_classes
    block = min(LARGEST_BLOCK, len(table))
    kept = share if storage == "memory" else min(share, (options.threads + BLOCKS_AHEAD) * block)
    particles = kept * record_type(geometry).itemsize + len(table) * BYTES_PASSING
    particles += min(PIECE, len(table)) * BYTES_IN_A_PIECE
    if storage == "memory":
        particles += share * BYTES_A_PARTICLE
    if options.storage != "scratch":
        particles += len(table) * BYTES_A_ROW
    model = n_classes * grid.size * (8 * 3 + 16 * 6)
    operators = sum(float(n) ** 2 * 4 for n in np.diff(grid.offset))
    loading = BATCH * (geometry.box_size**2 * 40 + grid.n_rings * grid.n_angles * 40)
    used = grid.with_rings(int(np.ceil(case.rings * grid.n_rings)))
    shifts, angles = level_shape(used, options, options.offset_step / 2, 2)
    templates = n_classes * shifts * used.size * 8
    thread = case.shifts * templates + _thread(used, n_classes, shifts, angles, block, case.classes)
    return PROGRAM_BYTES + particles + templates + options.threads * thread + model + operators + loading


def _scratch(options, geometry, table, share):
    """Bytes of the scratch files of rank 0."""
    of_table = BYTES_A_ROW if options.storage == "scratch" else 0
    return share * (record_type(geometry).itemsize + BYTES_A_PARTICLE) + len(table) * of_table


def _thread(grid, n_classes, shifts, angles, block, active):
    """Bytes of a thread's workspace besides its sums by class and shift, which are shaped like the templates."""
    scores = 4 * min(SCORE_BUDGET, int(active * block * n_classes) * shifts * angles)
    ramps = 3 * shifts * grid.n_rings * grid.n_angles * 8
    products = 4 * (PRODUCT_SIZE + TILE_SCORES) + LINES * angles * 16
    return scores + ramps + products + 2 * block * grid.size * 8 + n_classes * grid.size * 8 + block * n_classes * 40
