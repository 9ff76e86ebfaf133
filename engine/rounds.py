"""classify2d of particles that arrive while it goes on: the classes are refined with what is new, not made again.

The first round is an ordinary run on what there is. Every later one goes through its new particles in mini-batches,
each particle once: its sums are added to those of all particles before, and the M step follows, with every particle
seen so far as support. This is incremental EM (Neal & Hinton 1998, in Learning in Graphical Models, 355–368) whose
sums are not revisited; online EM (Cappé & Moulines 2009) with the step 1/t. When no more is to come, full passes over
everything bring all poses and sums up to the last model.

A round begins from the checkpoint of the one before, also if that was written a moment ago by the same process: so a
run that was killed between any two steps ends in the same bits.
"""
import signal
import time
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine import classes, classify2d, half_sets, results
from vitrea.engine.agreement import agree
from vitrea.engine.arrivals import ROUND, round_ends
from vitrea.engine.checkpoint import NAME as CHECKPOINT_NAME
from vitrea.engine.checkpoint import PARTICLE, fingerprint, read_checkpoint, require, stack_marks
from vitrea.engine.comm import STOP_SIGNALS, StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.expectation import Poses
from vitrea.engine.levels import make_search
from vitrea.engine.model import Settings, Totals, maximise
from vitrea.engine.storage import pieces

SIGNALS = (*STOP_SIGNALS, signal.SIGINT)   # Ctrl-C ends what would otherwise wait for ever


def run(options, *, last, comm):
    """Take in the newest round of the list options.input (engine/arrivals.py): "done" or "stopped". Collective.

    What is unfinished goes on; what is finished is written again. last: full passes over all particles follow.
    """
    with (threadpool_limits(1), StopRequest(comm=comm, signals=SIGNALS) as stop,
          classify2d.open_log(options, comm) as log):
        begun = classify2d.prepare(options, stop, log, comm)
        if begun is None:
            return classify2d.stopped(log, stop, {})
        begun.keeps_sums = True
        ends = _ends(begun)
        state = _carried_on(begun, ends)
        state = state and _taken_in(begun, state, ends)
        if state is not None and last and state.stage == "minibatch":
            state = replace(state, stage="full", in_stage=0, quiet=0, least_changed=1.0, batches_for_all=1,
                            running=None)
            state = classify2d.iterate_to_end(begun, state)
        if state is None:
            return classify2d.stopped(log, stop, begun.reached)
        classify2d.tell_changed_stacks(begun)
        begun.log = log if last else _RoundLog(log, len(ends))
        results.write(begun, state)
        if last and options.half_sets and half_sets.write(begun, state.model) is None:
            return classify2d.stopped(log, stop, begun.reached)
        return "done"


class _RoundLog:
    """A log in which the end of a round is not that of the run."""

    def __init__(self, log, number):
        self._log, self._number = log, number

    def tell(self, kind, **fields):
        kind = "round" if kind == "done" else kind
        self._log.tell(kind, number=self._number, **fields)


def _ends(run):
    """int64[R]: particles after each round, the same on all ranks. Collective."""
    ends, mistake = None, None
    if run.comm.rank == 0:
        try:
            ends = round_ends(run.table.columns[ROUND].astype(np.int64))
        except (KeyError, ValueError) as error:
            mistake = (f"{run.options.input}: cannot be read as the list of what has arrived ({error}); expected the "
                       "file that vitrea wrote; start a new run with another output")
    agree(mistake, run.comm)
    return run.comm.bcast(ends, root=0)


def _carried_on(run, ends):
    """The first round finished, or the State of the last checkpoint, widened to all particles; None if asked to
    stop. Collective."""
    there = run.comm.bcast((run.options.output / CHECKPOINT_NAME).exists(), root=0)
    if not there:
        run.further = {"round": len(ends), "ctf_terms": run.geometry.ctf_terms}
        return classify2d.iterate_to_end(run, classify2d.start(run))
    state, number = _restored(run, ends)
    run.further = {"round": number, "ctf_terms": run.geometry.ctf_terms}
    if number == len(ends) and (state.stage == "full" or number == 1):
        state = classify2d.iterate_to_end(run, state)
    elif number < len(ends):
        run.further["round"] = len(ends)
        state = replace(state, stage="minibatch", in_stage=0)
    return state


def _restored(run, ends):
    """(State of the last checkpoint, the round it is of); the particles' entries are in run.passes. Collective."""
    path, space = run.options.output / CHECKPOINT_NAME, run.passes.shard.space
    arrays, kept = read_checkpoint(path, {"n_classes": run.options.n_classes}, space)
    if "round" not in kept or len(arrays["particles"]) not in ends:
        raise JobError(f"{path}: was written by a run that took in other particles; expected one that followed a "
                       "folder; start a new run with another output")
    seen = len(arrays["particles"])
    before = replace(run, table=_first(run.table, seen))
    before.marks = _marks(before)
    require(path, kept, {"fingerprint": fingerprint(before.table, run.options, space)})
    classify2d.check_stacks(before, arrays["stacks"])
    results.scatter_particles(run, _longer(arrays["particles"], len(run.table), space))
    earlier = replace(run.geometry, ctf_terms=int(kept["ctf_terms"]))
    state = classify2d.state_of(arrays, kept, earlier)
    if int(kept["round"]) == len(ends):
        run.log.tell("resumed", total=state.iteration, iteration=state.in_stage, stage=state.stage)
    return _widened(state, len(run.table.optics), run.geometry.ctf_terms), int(kept["round"])


def _first(table, n):
    """The table of the first n particles, as it was when there were no others; its columns of text are left out."""
    groups, stacks = int(table.optics_index[:n].max()) + 1, int(table.stack_index[:n].max()) + 1
    arrays = {name: array[:n] for name, array in vars(table).items() if isinstance(array, np.ndarray)}
    return replace(table, columns={}, optics=table.optics[:groups], stacks=table.stacks[:stacks],
                   stack_names=table.stack_names[:stacks], headers=table.headers[:stacks], **arrays)


def _marks(run):
    """What tells the stacks of the particles before from others, on rank 0. Collective."""
    marks, mistake = None, None
    if run.comm.rank == 0:
        try:
            marks = stack_marks(run.table)
        except JobError as error:
            mistake = str(error)
    agree(mistake, run.comm)
    return marks


def _longer(particles, n, space):
    """PARTICLE[n]: the particles that are known, then those that no pass has seen."""
    if len(particles) == n:
        return particles
    longer, none = space.zeros(n, PARTICLE), Poses.empty(1)
    longer[:len(particles)] = particles
    for part in pieces(n - len(particles)):
        some = longer[len(particles):][part]
        for name in results.POSE_FIELDS:
            some[name] = getattr(none, name)[0]
        some["scale"] = 1.0
        space.release()
    return longer


def _widened(state, n_groups, n_terms):
    """The State with room for optics groups that are new, whose noise is the mean of the others', and for as many
    harmonics of the CTF as the most astigmatic particle needs now."""
    sigma2, running = state.model.sigma2, state.running
    more = n_groups - len(sigma2)
    model = replace(state.model, sigma2=np.concatenate([sigma2, np.repeat(sigma2.mean(0, keepdims=True), more, 0)]))
    if running is not None:
        ctf2 = running.ctf2[:, :n_terms]
        ctf2 = np.pad(ctf2, ((0, 0), (0, n_terms - ctf2.shape[1]), (0, 0)))
        by_group = {name: np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1)))
                    for name, array in (("residual", running.residual), ("power", running.power),
                                        ("count", running.count))}
        running = replace(running, ctf2=ctf2, **by_group)
    return replace(state, model=model, running=running)


# ---- new particles

def _taken_in(run, state, ends):
    """The State after the mini-batches of the newest round; None if asked to stop, which is saved. Collective."""
    if state.stage != "minibatch" or len(ends) == 1:
        return state
    first = int(ends[-2])
    size = run.options.minibatch_size or max(classify2d.LEAST_BATCH,
                                             classify2d.BATCH_A_CLASS * run.options.n_classes)
    batches = -(-(len(run.table) - first) // size)
    run.saved, run.saved_at = state.iteration, time.perf_counter()
    while state.in_stage < batches:
        begin = time.perf_counter()
        run.reached = {"total": state.iteration, "iteration": state.in_stage, "of": batches, "stage": "minibatch"}
        after = _batch(run, state, _chooser(run, state, first, batches))
        if after is None:
            run.stop.agreed()
            classify2d.save(run, state)
            return None
        before, (state, totals) = state, after
        if totals.save or state.in_stage == batches:
            classify2d.save(run, state)
        _report(run, before, state, totals, batches, time.perf_counter() - begin)
    return state


def _chooser(run, state, first, batches):
    """The particles of a block that a mini-batch sees: every one from row `first` on is in one of the batches, drawn by
    (seed, round, block)."""
    shard, number = run.passes.shard, run.further["round"]

    def choose(i):
        local = shard.of_block(i)
        new = local[shard.rows[local] >= first]
        key = np.random.SeedSequence([run.options.seed, 5, number, shard.blocks[i].number])
        drawn = np.random.Generator(np.random.Philox(key)).permutation(new)
        return np.sort(np.array_split(drawn, batches)[state.in_stage])

    return choose


def _batch(run, state, choose):
    """One mini-batch: (State, its Totals), or None if asked to stop. Collective."""
    model = state.model
    search = make_search(model, run.geometry, run.options, refined=False)
    grid = search.fine.level.grid
    totals = run.passes.run(model, search, choose, lambda _: run.stop.asked(), lambda: _overdue(run))
    if totals is None:
        return None
    state = replace(state, iteration=state.iteration + 1, in_stage=state.in_stage + 1)
    if not totals.particles:   # all of them were set aside
        return state, totals
    run.passes.normalise_scale(totals)
    sums = _added(run, state, totals, grid)
    before = model.rings
    model = maximise(model, sums, grid, run.geometry, Settings(run.options.tau2_fudge, run.operators))
    model, changes = classes.reseed(run, model, sums.class_weight, totals.assigned, classes.LATE_SUPPORT,
                                    state.iteration)
    if changes:
        sums = sums.split(changes, run.geometry.grid.crop(model.references, grid), grid)
        run.log.tell("reseed", iteration=state.iteration, map={new + 1: old + 1 for new, old in changes.items()})
    rings = min(classes.resolved(model) + classify2d.RING_MARGIN, before + classify2d.RING_MARGIN,
                run.geometry.grid.n_rings)
    model = replace(model, rings=rings, rings_before=before)
    return replace(state, model=model, running=sums, effective=sums.particles,
                   log_likelihood=totals.log_likelihood / totals.particles), totals


def _added(run, state, totals, grid):
    """The sums of all particles seen so far and of a mini-batch, on the grid of the latter."""
    earlier = run.geometry.grid.with_rings(state.model.rings_before)
    running = state.running.regrid(earlier, grid)
    return Totals(*(a + b for a, b in zip(running.arrays(), totals.arrays())))


def _overdue(run):
    waited = time.perf_counter() - run.saved_at
    return run.comm.rank == 0 and waited >= 60.0 * run.options.checkpoint_minutes


def _report(run, before, state, totals, batches, seconds):
    particles = max(totals.particles, 1.0)
    run.log.tell("iteration", iteration=state.in_stage, of=batches, stage="minibatch", round=run.further["round"],
                 log_likelihood=len(run.table) / particles * totals.log_likelihood,
                 resolution=run.geometry.resolution_of(classes.resolved(state.model)), pmax=totals.pmax / particles,
                 changed=totals.changed / particles, seconds=seconds, class_sizes=totals.assigned.astype(int).tolist(),
                 seen=int(totals.particles), rings=before.model.rings, eta=seconds * (batches - state.in_stage),
                 memory=classify2d.peak_memory(), sigma_offset=state.model.sigma_offset, busy=run.passes.busy,
                 **run.passes.seconds)
