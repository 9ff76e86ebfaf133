"""What a job will need before it starts: poses, memory, disk.

How much memory the search takes depends on how far the resolution marches, which nobody knows before. It is planned
for 70 % of the rings: peaks measured on runs that ended at 60 to 70 % lay within a fifth below it, and one made to use
all rings with poor references a quarter above. Particles, which are most of a large job, are kept on all rings from the
start. The very first run after an installation compiles the kernels, which takes 0.1 GB more.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.expectation import LINES, SCORE_BUDGET
from vitrea.engine.geometry import make_geometry
from vitrea.engine.levels import coarse_ring_limit, level_shape
from vitrea.engine.scoring import PRODUCT_SIZE, TILE_SCORES
from vitrea.engine.shards import BATCH, make_blocks

PROGRAM_BYTES = 235e6      # the interpreter, numba and the libraries, as measured
RINGS_PLANNED = 0.7        # of all rings
SHIFTS_MET = 0.5           # of the sums by class and shift: memory is taken when a sum is first written
CLASSES_ACTIVE = 0.5       # of all classes, looked at on the fine level when most rings are in use
BYTES_A_PARTICLE = 400     # poses, CTF parameters and stack positions, on the rank that works on a particle
BYTES_A_ROW = 900          # the columns of the STAR file while the results are written, on rank 0
STAR_BYTES_A_ROW = 500


@dataclass(frozen=True)
class RunPlan:
    """Sizes of a run; memory in bytes at its peak, of the rank with most particles."""

    particles: int
    particles_per_rank: int
    memory_per_rank_bytes: int
    poses_coarse: int
    poses_fine: int
    disk_bytes: int
    box_size: int
    pixel_size: float
    rings: int


def plan(options, table, n_ranks):
    """RunPlan of a classify2d job on `n_ranks`; JobError if it cannot work."""
    _check_sizes(options, table)
    geometry = make_geometry(table, options)
    share = -(-len(table) // n_ranks)
    coarse = level_shape(
        geometry.grid.with_rings(coarse_ring_limit(geometry, options)), options, options.offset_step, 1
    )
    fine = level_shape(geometry.grid, options, options.offset_step / 2, 2)
    memory = int(_memory(options, geometry, table, share))
    if options.memory_limit and memory > options.memory_limit * 1e9:
        raise JobError(
            f"memory_limit: the run needs {memory / 1e9:.1f} GB a rank, more than the limit of "
            f"{options.memory_limit:g} GB; "
            "expected no more; use more ranks on more nodes, a coarser max_resolution, or fewer classes"
        )
    disk = options.n_classes * geometry.box_size**2 * 4 + len(table) * (STAR_BYTES_A_ROW + 100) + \
        options.n_classes * geometry.grid.size * 24
    return RunPlan(
        len(table),
        share,
        memory,
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


def _memory(options, geometry, table, share):
    """Bytes of rank 0 at its peak."""
    grid, n_classes = geometry.grid, options.n_classes
    particle = grid.size * 4 + grid.n_rings * (4 + 4 + 8 * geometry.ctf_terms) + BYTES_A_PARTICLE
    model = n_classes * grid.size * (8 * 3 + 16 * 6)
    operators = sum(float(n) ** 2 * 4 for n in np.diff(grid.offset))
    loading = BATCH * (geometry.box_size**2 * 40 + grid.n_rings * grid.n_angles * 40)
    used = grid.with_rings(int(np.ceil(RINGS_PLANNED * grid.n_rings)))
    shifts, angles = level_shape(used, options, options.offset_step / 2, 2)
    templates = n_classes * shifts * used.size * 8
    thread = _thread(used, n_classes, shifts, angles, max(len(block.rows) for block in make_blocks(table.optics_index)))
    return PROGRAM_BYTES + share * particle + len(table) * BYTES_A_ROW + templates + \
        options.threads * (SHIFTS_MET * templates + thread) + model + operators + loading


def _thread(grid, n_classes, shifts, angles, block):
    """Bytes of a thread's workspace besides its sums by class and shift, which are shaped like the templates."""
    scores = 4 * min(SCORE_BUDGET, int(CLASSES_ACTIVE * block * n_classes) * shifts * angles)
    ramps = 3 * shifts * grid.n_rings * grid.n_angles * 8
    products = 4 * (PRODUCT_SIZE + TILE_SCORES) + LINES * angles * 16
    return scores + ramps + products + 2 * block * grid.size * 8 + n_classes * grid.size * 8 + block * n_classes * 40
