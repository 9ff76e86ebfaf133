"""What a cluster job will need before it starts: components, memory, disk."""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.options import Classify2dOptions, options_of
from vitrea.engine.plan import (
    BYTES_A_PARTICLE,
    BYTES_A_ROW,
    PROGRAM_BYTES,
    STAR_BYTES_A_ROW,
    choose_storage,
    plan,
)
from vitrea.engine.posed import make_posed_geometry, require_poses
from vitrea.engine.shards import make_blocks
from vitrea.engine.trials import widest
from vitrea.engine.window import window_size

POSED_COPIES = 6    # of the class averages at every pose of a window
MODEL_COPIES = 14   # of the class averages: nodes, the best so far, sums, their running mean, the message between ranks
RESULT_COPIES = 13  # the same at the end: half-sets of a rank and of all, averages
IMAGE_COPIES = 2    # of the pictures of the classes: as images and as they are drawn


@dataclass(frozen=True)
class ClusterPlan:
    """Sizes of a cluster job; memory in bytes at its peak, of the rank with most particles."""

    particles: int
    particles_per_rank: int
    memory_per_rank_bytes: int
    components: int
    resolution: float      # [Å], finest
    disk_bytes: int
    box_size: int
    pixel_size: float
    storage: str                  # "memory" or "scratch"
    scratch_per_rank_bytes: int   # of the scratch file; 0 for storage in memory

    work_name = "components"

    @property
    def memory_at_most_bytes(self):
        """The same: what a run takes does not depend on its course."""
        return self.memory_per_rank_bytes

    @property
    def work(self):
        """What a particle is, for people."""
        return f"{self.components:,} of each particle, to {self.resolution:.1f} Å"


def plan_cluster(options, table, n_ranks, room=np.inf):
    """ClusterPlan of a cluster job on `n_ranks` that may take `room` bytes each; JobError if it cannot work."""
    require_poses(table)
    if options.n_classes is not None:
        _require_particles(options, table)
    return _planned(replace(options, n_classes=widest(options, len(table))), table, n_ranks, room)


def plan_deep2d(options, table, n_ranks, room=np.inf):
    """ClusterPlan of a deep2d job: the memory is that of the stage that takes more; JobError if it cannot work."""
    _require_particles(options, table)
    planned = _planned(options, table, n_ranks, room)
    aligning = plan(alignment(options, options.output), table, n_ranks, room)
    return replace(planned, memory_per_rank_bytes=max(planned.memory_per_rank_bytes, aligning.memory_per_rank_bytes))


def alignment(options, folder):
    """The Classify2dOptions of the first stage of a deep2d job, to run in `folder`."""
    names = (options_of(Classify2dOptions).keys() & options_of(type(options)).keys()) - {"output", "max_resolution"}
    return Classify2dOptions(output=folder, max_resolution=options.align_resolution,
                             **{name: getattr(options, name) for name in names})


def _require_particles(options, table):
    if options.n_classes > len(table):
        raise JobError(
            f"n_classes: {options.n_classes} classes, but {table.path} holds {len(table)} particles; expected no more "
            "classes than particles; lower n_classes, a hundred particles a class is usual")


def _planned(options, table, n_ranks, room):
    geometry = make_posed_geometry(table, options)
    share = -(-len(table) // n_ranks)
    if n_ranks > 1:   # ranks are dealt whole blocks
        share = min(share + _largest_block(table), len(table))
    needed = {place: int(_memory(options, geometry, table, share, place)) for place in ("memory", "scratch")}
    storage = choose_storage(options, needed, room)
    model = options.n_classes * geometry.plane.n_components * 8
    disk = options.n_classes * geometry.box_size**2 * 4 + len(table) * (STAR_BYTES_A_ROW + 100) + 2 * model
    scratch = 4 * share * geometry.plane.n_components if storage == "scratch" else 0
    return ClusterPlan(len(table), -(-len(table) // n_ranks), needed[storage], geometry.plane.n_components,
                       geometry.resolution_of(geometry.plane.radius), int(disk), geometry.box_size,
                       geometry.pixel_size, storage, scratch)


def _largest_block(table):
    return max(len(block.rows) for block in make_blocks(table.optics_index))


def _memory(options, geometry, table, share, storage):
    """Bytes of rank 0 at its peak: particles, class averages and their sums in some copies, work on a block."""
    plane, n_classes = geometry.plane, options.n_classes
    size, averages = plane.n_components, n_classes * (plane.n_components + plane.n_groups) * 8
    particle = 4 * plane.n_groups + 8 * plane.radius + BYTES_A_PARTICLE + (4 * size if storage == "memory" else 0)
    poses = window_size(getattr(options, "psi_error", 0.0), getattr(options, "offset_error", 0.0))
    compared = n_classes * poses   # class averages, at every pose of a window
    model = (MODEL_COPIES + POSED_COPIES * (poses > 1) * poses) * averages
    block = options.threads * _largest_block(table) * (compared * 8 + size * 24) + compared * size * 4
    results = RESULT_COPIES * averages + IMAGE_COPIES * n_classes * geometry.box_size**2 * 4
    return PROGRAM_BYTES + share * particle + len(table) * BYTES_A_ROW + max(model + block, results)
