"""What a job will need before it starts: poses, memory, disk."""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.expectation import LINES, PRODUCT_LINES, SCORE_BUDGET
from vitrea.engine.geometry import make_geometry
from vitrea.engine.levels import coarse_ring_limit, level_shape
from vitrea.engine.shards import BATCH, make_blocks

PROGRAM_BYTES = 330e6      # the interpreter, numba and the libraries, as measured
BYTES_A_PARTICLE = 400     # poses, CTF parameters and file names, besides the coefficients
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
    memory = int(_memory(options, geometry, table, share, fine))
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


def _memory(options, geometry, table, share, fine):
    grid, n_classes = geometry.grid, options.n_classes
    rings = grid.n_rings
    particle = grid.size * 4 + geometry.ctf_terms * rings * 8 + rings * 4 + BYTES_A_PARTICLE
    templates = n_classes * fine[0] * grid.size * 8
    block = max(len(block.rows) for block in make_blocks(table.optics_index))
    scores = 4 * min(SCORE_BUDGET, block * n_classes * fine[0] * fine[1])
    ramps = 3 * fine[0] * rings * grid.n_angles * 8
    thread = templates + scores + 2 * block * grid.size * 8 + PRODUCT_LINES * grid.n_harmonics * 8 + \
        LINES * fine[1] * 16 + ramps + n_classes * grid.size * 8 + block * n_classes * 40
    model = n_classes * grid.size * (8 * 3 + 16 * 6)
    operators = sum(float(n) ** 2 * 4 for n in np.diff(grid.offset))
    loading = BATCH * (geometry.box_size**2 * 40 + rings * grid.n_angles * 40)
    return PROGRAM_BYTES + share * particle + templates + options.threads * thread + model + operators + loading
