"""From the job's input to each rank's shard: the table read once, the blocks dealt, the images checked and set
aside."""
import time
from dataclasses import replace

import numpy as np

from vitrea.engine.agreement import agree, on_each, on_rank_0
from vitrea.engine.comm import largest_over_ranks, sum_over_ranks
from vitrea.engine.em import PROGRESS_SECONDS
from vitrea.engine.errors import JobError
from vitrea.engine.outputs import write_skipped_star
from vitrea.engine.particles import read_particles
from vitrea.engine.shards import BACKGROUND_MEAN, BACKGROUND_SD, Loader, Shard, make_blocks, share_of
from vitrea.engine.staging import images_of
from vitrea.engine.storage import Memory, pieces
from vitrea.kernels.packed import LARGEST

BADLY_NORMALISED = 0.1   # share of particles outside RELION's limits that refuses the job
SKIPPED_NAME = "skipped.star"


def read_table(options, *, comm, space=None):
    """The ParticleTable on every rank, in `space`; only rank 0 reads the file and keeps its columns. Collective."""
    space = space or Memory()
    table = on_rank_0(lambda: read_particles(options.input, space=space), comm)
    bare, kinds = None, None
    if comm.rank == 0:
        arrays = {name: array for name, array in vars(table).items() if isinstance(array, np.ndarray)}
        bare = replace(table, columns={}, **dict.fromkeys(arrays))
        kinds = [(name, array.shape, array.dtype) for name, array in arrays.items()]
    bare, kinds = comm.bcast((bare, kinds), root=0)
    if comm.size == 1:
        return table
    mine = vars(table) if comm.rank == 0 else on_each(
        lambda: {name: space.zeros(shape, dtype) for name, shape, dtype in kinds}, comm)
    if comm.rank == 0:
        agree(None, comm)
    for name, shape, _ in kinds:
        for part in pieces(shape[0]):
            comm.Bcast(mine[name][part], root=0)
            space.release()
    return table if comm.rank == 0 else replace(bare, **mine)


def read_shard(table, options, geometry, stop, log, *, comm, space=None):
    """(Shard, largest |coefficient| by ring over all particles), or (None, None) if asked to stop. Collective.

    Images that cannot be used are set aside and listed; JobError if they are more than skip_limit, if the particles
    are not normalised although the job expects it, if a stack cannot be read, or if scratch has too little space.
    """
    mistake, last = None, time.perf_counter()

    def allocated():
        blocks = make_blocks(table.optics_index, space=space)
        return Shard.allocate(blocks[share_of(len(blocks), comm.rank, comm.size)], geometry, space)

    shard = on_each(allocated, comm)
    with images_of(table, shard.rows, options, stop, log, comm=comm) as reader:
        loader = Loader(table, options, geometry, reader)
        for i in range(len(shard.blocks)):
            if stop.asked() or mistake:
                break
            try:
                loader.load(shard, i)
            except JobError as error:
                mistake = str(error)
            if time.perf_counter() - last > PROGRESS_SECONDS:
                last = time.perf_counter()
                log.record(
                    "progress", iteration=0, of=0, stage="read", fraction=(i + 1) / len(shard.blocks), phase="reading"
                )
        mistake = mistake or reader.changed()
    agree(mistake, comm)
    if stop.agreed():
        return None, None
    set_aside(table, options, shard, log, comm)
    check_normalised(table, options, shard, comm)
    return shard, _peak(shard, geometry.grid, comm)


def set_aside(table, options, shard, log, comm):
    """List the images that cannot be used; refuse the stack if they are too many."""
    mine = {int(shard.rows[local]): why for local, why in shard.reasons.items()}
    bad = {row: why for part in comm.allgather(mine) for row, why in part.items()}
    if not bad:
        return
    rows = np.array(sorted(bad))
    row = rows[0]
    first = (
        f"{table.path} row {table.row_number[row]}: "
        f"{table.section[row] + 1}@{table.stack_names[table.stack_index[row]]} "
        f"{bad[int(row)]}"
    )
    if len(bad) > options.skip_limit * len(table):
        raise JobError(f"{first}, and {len(bad) - 1} more of {len(table)} images cannot be used; expected at most "
                       f"{options.skip_limit:.3g} of them (skip_limit); repair the stack or raise skip_limit")
    if comm.rank == 0:
        write_skipped_star(options.output / SKIPPED_NAME, table, rows, [bad[int(row)] for row in rows])
    log.line(
        f"set aside {len(bad)} of {len(table)} images, listed in {options.output / SKIPPED_NAME}; the first: {first}"
    )


def check_normalised(table, options, shard, comm):
    """RELION's rule, on the share of particles: background mean within ½ and deviation ½…2 of it being 0 and 1."""
    if options.normalise != "check":
        return
    n_wrong, example = 0, None
    for part in pieces(len(shard.rows)):
        mean, deviation = shard.background[part][shard.usable[part]].T
        low, high = BACKGROUND_SD
        wrong = (np.abs(mean) > BACKGROUND_MEAN) | (deviation < low) | (deviation > high)
        if wrong.any() and not n_wrong:
            example = float(mean[wrong][0]), float(deviation[wrong][0])
        n_wrong += int(wrong.sum())
    n_usable = len(shard.rows) - len(shard.reasons)
    n_wrong, n_usable = sum_over_ranks(np.array([n_wrong, n_usable], dtype=np.int64), comm=comm)
    if n_wrong <= BADLY_NORMALISED * n_usable:
        return
    examples = comm.allgather(example)
    mean, deviation = next(example for example in examples if example)
    raise JobError(
        f"{table.path}: {n_wrong} of {n_usable} particles are not normalised (a background of mean {mean:.3g} "
        f"and standard "
        f"deviation {deviation:.3g}); expected 0 and 1 outside the particle circle, as RELION's extraction does; set "
        "'normalise: always', or correct particle_diameter"
    )


def _peak(shard, grid, comm):
    """float64[R]: a bound of |coefficient| of all particles on each ring."""
    # |Re + i Im| is at most √2 times the larger of the two, which is what the unit says
    peak = 1.5 * LARGEST * shard.largest_unit.astype(np.float64)
    return largest_over_ranks(peak, comm=comm)
