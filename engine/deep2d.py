"""`deep2d`: align into few classes, then split them for as long as it pays.

Two stages in one job: `classify2d` in the folder `align` below the output, with a checkpoint of its own, and the fine
search (engine/fine.py) over its classes, whose result is the output. Particles are read again in between, since the
second stage needs them at their poses.
"""
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine import averages, classify2d, cluster_results
from vitrea.engine.checkpoint import NAME as CHECKPOINT_NAME
from vitrea.engine.checkpoint import read_checkpoint, write_checkpoint
from vitrea.engine.cluster import Run, identity, open_log, scratch_folder, tell_start
from vitrea.engine.cluster_plan import alignment, plan_deep2d
from vitrea.engine.comm import StopRequest, gather_rows
from vitrea.engine.errors import JobError
from vitrea.engine.fine import PARTS, Forest, Stopped, look_at, members_of
from vitrea.engine.load import read_table
from vitrea.engine.outputs import write_data_star, write_model_star
from vitrea.engine.pictures import draw_gallery
from vitrea.engine.posed import make_posed_geometry, read_posed
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import write_star

ALIGN = "align"
FILES = ("run_data.star", "run_classes.mrcs", "run_model.star", "class_tree.star", "classes.png")


def run(options, *, resume, comm):
    """Run or continue `job: deep2d` in the folder options.output: "done" or "stopped". Collective.

    Writes the files of docs/formats.md. Raises JobError for a user's mistake (on all ranks).
    """
    with open_log(options, comm) as log:
        planned = tell_start("deep2d", options, read_table(options, comm=comm), plan_deep2d, log, comm)
        aligned = options.output / ALIGN
        if not comm.bcast((aligned / "run_data.star").exists()):
            log.line(f"stage 1 of 2: classify2d in {aligned}")
            if _align(options, aligned, comm) == "stopped":
                log.tell("stopped", reason="asked to, while aligning")
                return "stopped"
        log.line("stage 2 of 2: the fine search")
        scratch = scratch_folder(options, planned)
        return _search(replace(options, input=aligned / "run_data.star"), scratch, resume, log, comm)


def _align(options, folder, comm):
    if comm.rank == 0:
        folder.mkdir(exist_ok=True)
    comm.Barrier()
    begun = comm.bcast((folder / CHECKPOINT_NAME).exists())
    try:
        return classify2d.run(alignment(options, folder), resume=begun, comm=comm)
    except JobError:
        if comm.rank == 0 and not begun:   # nothing is left of a job that could not begin
            with suppress(OSError):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        raise


def _search(options, scratch, resume, log, comm):
    with threadpool_limits(1), StopRequest(comm=comm) as stop:
        table = read_table(options, comm=comm)
        geometry = make_posed_geometry(table, options)
        shard = read_posed(table, options, geometry, stop, log, comm=comm, scratch=scratch)
        if shard is None:
            log.tell("stopped", reason=stop.reason)
            return "stopped"
        begun = Run(options, table, geometry, shard, None, log, stop, comm)
        forest = _restore(begun) if resume else _planted(begun)
        try:
            while (k := forest.next()) is not None:
                _look_at(begun, forest, k)
                _save(begun, forest)
        except Stopped:
            log.tell("stopped", reason=stop.reason)
            return "stopped"
        _write(begun, forest)
        return "done"


def _planted(run):
    """The classes of the first stage."""
    column = run.comm.bcast(run.table.columns.get("rlnClassNumber"))
    numbers = np.asarray(column).astype(np.int64) - 1
    return Forest.planted(numbers[run.shard.kept], int(numbers.max()) + 1, comm=run.comm)


def _look_at(run, forest, k):
    """Split class k if that pays. Collective."""
    comm, count, least = run.comm, int(forest.count[k]), run.options.least_particles
    if count < 2 * least:
        forest.judged(k, np.nan, np.nan)
        return
    mine = np.flatnonzero(forest.label == k)
    members = members_of(run.shard.embedded, mine, run.options.seed, comm=comm)

    def asked():
        run.stop.asked()
        return run.stop.agreed()

    part, probability, gain, error = look_at(members, run.options.seed, asked, comm=comm)
    forest.judged(k, gain, error)
    words = f"class {k + 1} of {count:,} particles"
    if part is None:
        why = f"held out {gain:+.3f} ± {error:.3f}" if np.isfinite(error) else "no component above the noise"
        run.log.line(f"{words} stays   {why}")
        return
    sizes = comm.allreduce(np.bincount(part, minlength=PARTS))
    if sizes.min() < least:
        run.log.line(f"{words} stays   a part of {sizes.min():,} is too small   held out {gain:+.3f} ± {error:.3f}")
        return
    forest.split(k, mine, part, probability, comm=comm)
    run.log.line(f"{words} into {sizes[0]:,} and {sizes[1]:,}   held out {gain:+.3f} ± {error:.3f}")
    run.log.record("progress", iteration=int((~forest.waiting).sum()), of=len(forest.parent), stage="fine",
                   fraction=1.0, phase=f"class {k + 1}")


RECORD = np.dtype([("row", "i8"), ("label", "i4"), ("probability", "f4")])


def _save(run, forest):
    """Write the checkpoint after a class. Collective."""
    known = np.zeros(len(forest.label), dtype=RECORD)
    known["row"], known["label"], known["probability"] = run.shard.kept, forest.label, forest.probability
    known = gather_rows(known, comm=run.comm)
    if run.comm.rank == 0:
        arrays = {name: getattr(forest, name) for name in Forest.BY_CLASS}
        write_checkpoint(run.options.output / CHECKPOINT_NAME, arrays | {"particles": known}, identity(run))


def _restore(run):
    """The Forest of the last checkpoint. Collective."""
    arrays, _ = read_checkpoint(run.options.output / CHECKPOINT_NAME, identity(run))
    known = arrays["particles"]
    place = np.full(len(run.table), -1)
    place[known["row"]] = np.arange(len(known))
    mine = known[place[run.shard.kept]]
    forest = Forest(mine["label"].copy(), mine["probability"].copy(),
                    **{name: arrays[name] for name in Forest.BY_CLASS})
    run.log.line(f"resumed with {int(forest.waiting.sum())} classes to look at")
    return forest


def _write(run, forest):
    """Write the results: classes are the leaves, in the order of the tree. Collective; rank 0 writes."""
    comm, shard, leaves = run.comm, run.shard, _in_order(forest)
    number = np.full(len(forest.parent), -1)
    number[leaves] = np.arange(len(leaves))
    known = np.zeros(len(forest.label), dtype=averages.assignment_type(1))
    known["row"], known["class_number"] = shard.kept, number[forest.label]
    known["probability"] = forest.probability
    beta = np.ones(len(shard.embedded.layout.count))
    sums = averages.given(shard.embedded, known["class_number"], shard.kept, len(leaves), comm=comm)
    known = averages.gathered(known, comm=comm)
    if comm.rank != 0:
        return
    found = averages.averaged(sums, beta, shard.embedded.layout)
    folder, geometry, count = run.options.output, run.geometry, forest.count[leaves]
    images = cluster_results.class_images(geometry, shard.level, found.average)
    shells = averages.resolved_shells(found.ssnr)
    resolution = np.array([geometry.resolution_of(int(shell)) for shell in shells])
    write_stack(folder / "run_classes.mrcs", images, geometry.pixel_size)
    top = _top(forest)[leaves] + 1
    write_data_star(folder / "run_data.star", run.table, known["row"],
                    cluster_results.particle_results(run.table, known),
                    {"vitreaParentClass": top[known["class_number"]]})
    model = SimpleNamespace(n_nodes=len(leaves), beta=beta, class_prior=count / count.sum(), outlier_prior=np.zeros(2))
    write_model_star(folder / "run_model.star", cluster_results.model_results(run, model, found, known, resolution))
    _write_tree(folder / "class_tree.star", forest, number)
    shown = np.where(np.isfinite(resolution), resolution, geometry.box_size * geometry.pixel_size)
    draw_gallery(folder / "classes.png", images, count, shown, str(folder))
    run.log.tell("done", classes=len(leaves), empty=0, largest=int(count.max()), particles=int(count.sum()),
                 memory=classify2d.peak_memory(), files=list(FILES))


def _top(forest):
    """int64[T]: the class of the start above each class of the tree."""
    top = np.arange(len(forest.parent))
    for k, parent in enumerate(forest.parent):
        if parent >= 0:
            top[k] = top[parent]
    return top


def _in_order(forest):
    """The leaves, those of one parent together: a walk through the tree, depth first."""
    below = {k: np.flatnonzero(forest.parent == k).tolist() for k in range(-1, len(forest.parent))}
    walk, order, leaves = below[-1][::-1], [], set(forest.leaves.tolist())
    while walk:
        k = walk.pop()
        order += [k] if k in leaves else []
        walk += below[k][::-1]
    return np.array(order, dtype=np.int64)


def _write_tree(path, forest, number):
    """Write the class tree: every class that was looked at, its parent, and what a split of it was worth."""
    write_star(path, {"class_tree": {
        "vitreaTreeClass": np.arange(1, len(forest.parent) + 1), "vitreaTreeParent": forest.parent + 1,
        "vitreaTreeLevel": forest.level, "rlnClassNumber": number + 1, "vitreaParticles": forest.count,
        "vitreaHeldOutGain": np.nan_to_num(forest.gain), "vitreaHeldOutError": np.nan_to_num(forest.error,
                                                                                            posinf=0.0)}})
