"""`classify2d`: regularised maximum-likelihood alignment and classification of particles in the plane.

The run reads from the top: load the particles, start the classes, iterate, write. Every decision is taken from sums
that are the same on all ranks, and the state between two iterations is all that a checkpoint has to hold.
"""
import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine import classes, half_sets, results
from vitrea.engine.anneal import CONFIRMED, FROZEN_ARI, switch_rate
from vitrea.engine.checkpoint import NAME as CHECKPOINT_NAME
from vitrea.engine.checkpoint import fingerprint, read_checkpoint, require_same_stacks, stack_marks, write_checkpoint
from vitrea.engine.comm import StopRequest, library_name, node_count
from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.em import PROGRESS_SECONDS, Pass
from vitrea.engine.errors import JobError
from vitrea.engine.geometry import make_geometry
from vitrea.engine.levels import make_search
from vitrea.engine.load import agree, read_shard, read_table
from vitrea.engine.log import NullLog, RunLog
from vitrea.engine.minibatches import COOLED, PROBE_SHARE, SHAKEN, Schedule, schedule_of
from vitrea.engine.model import Model, Settings, Totals, maximise
from vitrea.engine.plan import machine_room, plan
from vitrea.engine.shards import LARGEST_BLOCK
from vitrea.engine.stacks import mark_of
from vitrea.engine.storage import Memory, Scratch
from vitrea.engine.warmup import compile_kernels
from vitrea.kernels.mask import harmonic_disc

RING_MARGIN = 4               # rings beyond the resolution reached that the next iteration uses
POOLED_ITERATIONS = 5         # τ² is averaged over classes and the class prior kept uniform while classes form
QUIET_ITERATIONS = 3          # iterations without news after which a run has converged
STILL_FALLING = 0.95          # a smaller fraction of class changes than this times the least so far is news
LEAST_ITERATIONS = 6           # full passes, unless mini-batches went before
LEAST_AFTER_BATCHES = 1
QUIET_SHARE = 1.0 / 3.0       # of an epoch of mini-batches without news, after which they have converged
FEW_RINGS = 2                 # that a full pass after mini-batches may gain without being worth another
WORTH_A_PASS = 1.0            # nats a particle: a full pass after mini-batches that brings less brings no news
CENTRING_PASSES = 6
STEADY_CHANGE = 0.15          # a larger fraction of class changes is never called converged, however steady
MOVES_TOLD = 30               # changes of class that an iteration's record tells
BATCHES_WORTH_IT = 8          # `auto` uses mini-batches from this many of them on
BATCH_A_CLASS, LEAST_BATCH = 50, 2000
LEAST_SHARE = 1.0 / 2.0       # of a block that a mini-batch takes: a block costs its sums, however few its particles


@dataclass(frozen=True)
class State:
    """Everything an iteration depends on, besides the particles' own entries in Pass.

    iteration counts both stages; in_stage the iterations of the present one; quiet those without news: no re-seeding,
    no gain in resolution, and class changes below the limit or no longer falling (classes that share a view swap
    particles for ever); after mini-batches no gain in log_likelihood [nats a particle]. running, effective: averaged
    sums of online EM and how many particles they are worth. mobility: class-switch rate of the last iteration
    (engine/anneal.py). Of a measured schedule: frozen: probes in a row whose children ended alike; probed_at: the
    mini-batches there had been at the last one, probed: particles that E steps of probes have seen.
    """

    model: Model
    stage: str
    iteration: int = 0
    in_stage: int = 0
    quiet: int = 0
    least_changed: float = 1.0
    log_likelihood: float = -np.inf
    batches_for_all: int = 1
    marching: bool = True
    running: Totals | None = None
    effective: float = 0.0
    mobility: float = np.nan
    frozen: int = 0
    probed_at: int = 0
    probed: float = 0.0


@dataclass
class Run:
    """What does not change during a run; for the log, what is reached, and the iteration last saved, and when. marks:
    STACK[n] of engine/checkpoint.py, on rank 0. keeps_sums: whether the last State keeps the sums of the last pass, to
    which further particles can be added (engine/rounds.py); further: attributes that every checkpoint has besides;
    schedule: of mini-batches and temperatures."""

    options: object
    table: object
    geometry: object
    passes: Pass
    operators: list
    log: object
    stop: StopRequest
    marks: np.ndarray | None
    comm: object
    schedule: Schedule
    reached: dict = field(default_factory=dict)
    saved: int = 0
    saved_at: float = 0.0
    keeps_sums: bool = False
    further: dict = field(default_factory=dict)


def run(options, *, resume, comm):
    """Run or continue `job: classify2d` in the folder options.output: "done" or "stopped". Collective.

    Writes the files of docs/formats.md. Raises JobError for a user's mistake (on all ranks).
    """
    with threadpool_limits(1), StopRequest(comm=comm) as stop, open_log(options, comm) as log:
        begun = prepare(options, stop, log, comm)
        if begun is None:
            return stopped(log, stop, {})
        state = _restore(begun) if resume else start(begun)
        ended = iterate_to_end(begun, state)
        if ended is None:
            return stopped(log, stop, begun.reached)
        log.line(_why_ended(ended))
        tell_changed_stacks(begun)
        results.write(begun, ended)
        if options.half_sets and half_sets.write(begun, ended.model) is None:
            return stopped(log, stop, begun.reached)
        return "done"


def reopen(options, stop, comm):
    """(Run, its last State) of a finished run, without a word in its log; None if it was asked to stop. Collective.

    Raises JobError, on all ranks, if the run is not finished.
    """
    begun = prepare(options, stop, NullLog(), comm)
    if begun is None:
        return None
    state = _restore(begun)
    if not finished(options, state):
        raise JobError(f"{options.output}: the run is not finished ({state.in_stage} of {_planned(options, state)} "
                       f"iterations); expected one that is; finish it with 'vitrea resume {options.output}'")
    return begun, state


def tell_changed_stacks(run):
    """A line in the log if a stack was written to, replaced or removed since it was read: the results are of before."""
    changed = [] if run.marks is None else [
        header.path for header, mark in zip(run.table.headers, run.marks)
        if (now := mark_of(header.path)) is None or now[1:] != (mark["size"], mark["modified"])]
    if changed:
        more = f", and {len(changed) - 1} more stacks" if len(changed) > 1 else ""
        run.log.line(f"doubtful   {changed[0]}{more} changed or gone since the run began; its results are of the "
                     "images as they were read")


def _why_ended(state):
    """For the log: whether the run converged, and by what sign, or used up its iterations."""
    if settled(state):
        if _after_batches(state):
            return f"converged: a pass without re-seeding or finer rings, under {WORTH_A_PASS:g} nat a particle gained"
        return f"converged: {QUIET_ITERATIONS} passes without re-seeding or finer rings, class changes small or steady"
    return f"max_iterations reached, not converged: {state.least_changed:.1%} of the particles still change class"


def open_log(options, comm):
    """The log of the run folder on rank 0, of nothing elsewhere."""
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def stopped(log, stop, reached):
    """Tell that the run leaves, and where it is: "stopped"."""
    log.tell("stopped", **reached, reason=stop.reason)
    return "stopped"


def prepare(options, stop, log, comm):
    """A Run with its particles read, or None if it was asked to stop meanwhile. Collective."""
    scratch = Scratch(options.scratch or options.output)
    space = scratch if options.storage == "scratch" else Memory()
    table = read_table(options, comm=comm, space=space)
    planned = plan(options, table, comm.size, machine_room(comm))
    geometry = make_geometry(table, options)
    _announce(options, table, planned, log, comm)
    compile_kernels(log, comm=comm)
    marks = stack_marks_of(table, comm)
    space = scratch if planned.storage == "scratch" else Memory()
    shard, peak = read_shard(table, options, geometry, stop, log, comm=comm, space=space)
    if shard is None:
        return None
    operators = harmonic_disc(geometry.grid, geometry.particle_radius, geometry.mask_edge)
    passes = Pass(shard, geometry, options, peak, len(table), comm=comm)
    schedule = schedule_of(options, batch_size(options, len(table)), len(table))
    if options.schedule == "measured" and not schedule.every:
        log.line("no probes: " + ("two of them would take more than a share of "
                                  f"{PROBE_SHARE:.0%} of the E steps; the clock ends the mini-batches"
                                  if schedule.batch else "there are no mini-batches of so few particles"))
    return Run(options, table, geometry, passes, operators, log, stop, marks, comm, schedule)


def stack_marks_of(table, comm):
    """What tells the stacks from others, on rank 0; JobError on all ranks if one cannot be read. Collective."""
    marks, mistake = None, None
    if comm.rank == 0:
        try:
            marks = stack_marks(table)
        except JobError as error:
            mistake = str(error)
    agree(mistake, comm)
    return marks


def _announce(options, table, planned, log, comm):
    import importlib.metadata
    import platform

    nodes = node_count(comm)
    log.tell(
        "start",
        job="classify2d",
        output=str(options.output),
        input=str(options.input),
        host=platform.node(),
        process=os.getpid(),
        version=importlib.metadata.version("vitrea"),
        mpi=library_name(),
        ranks=comm.size,
        nodes=nodes,
        threads=options.threads,
        particles=len(table),
        n_classes=options.n_classes,
        box_size=planned.box_size,
        pixel_size=planned.pixel_size,
        voltage=table.optics[0].voltage,
        memory_per_rank=planned.memory_per_rank_bytes,
        memory_at_most=planned.memory_at_most_bytes,
        scratch_per_rank=planned.scratch_per_rank_bytes,
        options=options.as_dict(),
    )
    if planned.storage == "scratch":
        log.line(f"particles in scratch: {planned.scratch_per_rank_bytes / 1e9:.3g} GB a rank in unnamed files in "
                 f"{options.scratch or options.output}")


def start(run):
    """The first State: noise from the images' power, classes from a few particles each."""
    sigma2 = classes.first_noise(run)
    references, rings = classes.first_references(run)
    n_classes, n_rings = run.options.n_classes, run.geometry.grid.n_rings
    model = Model(references, sigma2, np.zeros((n_classes, n_rings)), np.zeros((n_classes, n_rings)),
                  np.full(n_classes, 1.0 / n_classes), classes.first_sigma_offset(run.options), rings)
    size = run.schedule.batch
    return State(model, "minibatch", batches_for_all=-(-len(run.table) // size)) if size else State(model, "full")


def batch_size(options, n_particles):
    """Particles of a mini-batch, or 0 where full passes are used from the start."""
    size = options.minibatch_size or max(LEAST_BATCH, BATCH_A_CLASS * options.n_classes)
    if options.algorithm == "full" or size >= n_particles:
        return 0
    return size if options.algorithm == "minibatch" or n_particles >= BATCHES_WORTH_IT * size else 0


def iterate_to_end(run, state):
    """Iterate to convergence: the last State, or None if the run was asked to stop. Either way it is saved."""
    run.reached, run.saved = _reached(run.options, state), state.iteration
    run.saved_at = time.perf_counter()
    while not finished(run.options, state):
        begin = time.perf_counter()
        probed = probe(run, state)
        after = iterate(run, probed) if probed is not None else None
        if after is None:
            save(run, state)
            return None
        state, report = after
        if run.keeps_sums and finished(run.options, state):
            state = replace(state, running=report["totals"], effective=report["totals"].particles)
        run.reached = _reached(run.options, state)
        saving = time.perf_counter()
        if report["totals"].save or finished(run.options, state):
            save(run, state)
        report["seconds"]["checkpoint"] = time.perf_counter() - saving
        _report(run, state, report, time.perf_counter() - begin)
    return state


def finished(options, state):
    """Whether a full-pass state has converged or used up its iterations."""
    if state.stage != "full":
        return False
    least = LEAST_AFTER_BATCHES if _after_batches(state) else LEAST_ITERATIONS
    return state.in_stage >= options.max_iterations or (settled(state) and state.in_stage >= least)


def settled(state):
    """Whether enough iterations brought no news. A mini-batch sees few particles, so it takes as many as cover a share
    of all; after mini-batches, which have settled, one full pass without news is enough."""
    return state.quiet >= _quiet_needed(state)


def _quiet_needed(state):
    if state.stage == "minibatch":
        return max(QUIET_ITERATIONS, int(QUIET_SHARE * state.batches_for_all))
    return 1 if _after_batches(state) else QUIET_ITERATIONS


def _after_batches(state):
    """Whether mini-batches went before the present full passes."""
    return state.stage == "full" and state.iteration > state.in_stage


def iterate(run, state):
    """One iteration of EM: (State, report), or None if the run was asked to stop. Collective."""
    model, before = state.model, state
    begin = time.perf_counter()
    temperature = run.schedule.temperature_of(state.stage, state.in_stage)
    search = make_search(model, run.geometry, run.options, temperature, refined=_may_be_last(run.options, state))
    grid = search.fine.level.grid
    preparing = time.perf_counter() - begin
    totals = run.passes.run(model, search, _chooser(run, state), _watcher(run, state), lambda: _overdue(run))
    if totals is None:
        run.stop.agreed()
        return None
    begin = time.perf_counter()
    run.passes.normalise_scale(totals)
    state, sums = _gathered(run, state, totals, grid)
    model = _maximised(run, state, sums, grid)
    state, changes = _advanced(run, replace(state, model=model), totals)
    seconds = dict(run.passes.seconds, m_step=preparing + time.perf_counter() - begin)
    return state, {"totals": totals, "reseeded": changes, "seconds": seconds, "rings": classes.resolved(model),
                   "poses": totals.particles * _poses_scored(search), "before": before, "temperature": temperature,
                   "moved": run.passes.moved}


def _maximised(run, state, sums, grid):
    """The Model after the M step."""
    settings = Settings(run.options.tau2_fudge, run.operators, pooled=state.iteration < POOLED_ITERATIONS)
    model = maximise(state.model, sums, grid, run.geometry, settings)
    if settings.pooled:
        model = replace(model, class_prior=np.full(model.n_classes, 1.0 / model.n_classes))
    return model


def probe(run, state):
    """The State after the probe that is due, if one is: it ends the mini-batches where it confirms that the classes
    are chosen. None if the run was asked to stop; the probe is then made again. Collective."""
    due = state.stage == "minibatch" and state.probed_at < state.in_stage
    if not due or not run.schedule.probe_is_due(state.in_stage, state.probed):
        return state
    found = [_child(run, state, number) for number in range(2)]
    if any(each is None for each in found):
        run.stop.agreed()
        return None
    first, other = (np.concatenate(run.comm.allgather(numbers)) for numbers, _ in found)
    ari = adjusted_rand_index(first, other)
    frozen = state.frozen + 1 if ari >= FROZEN_ARI else 0
    run.log.tell("probe", iteration=state.in_stage, ari=ari, frozen=frozen, needed=CONFIRMED,
                 particles=len(first), mobility=state.mobility)
    state = replace(state, frozen=frozen, probed_at=state.in_stage, probed=state.probed + sum(n for _, n in found))
    return _cooled(state) if frozen >= CONFIRMED else state


def _child(run, state, number):
    """(int32[m], n): classes of this rank's particles of the probe after a continuation with mini-batches of its own
    and EM over the probe alone; n particles were seen. None if the run was asked to stop. Collective."""
    seen, n_particles, stop = 0.0, run.schedule.particles, _watcher(run, state)
    for step in range(SHAKEN + COOLED):
        if step < SHAKEN:
            share = run.schedule.batch_of(state.in_stage) / n_particles, (state.iteration, number)
        else:
            share = run.schedule.probe / n_particles, None
        search = make_search(state.model, run.geometry, run.options, refined=False)
        found = run.passes.look(state.model, search, _of_blocks(run, *share), stop)
        if found is None:
            return None
        totals, numbers = found
        seen += totals.particles
        grid, sums = search.fine.level.grid, totals
        if step < SHAKEN:
            state, sums = _gathered(run, state, totals, grid)
        model = replace(_maximised(run, state, sums, grid), rings_before=state.model.rings)
        state = replace(state, model=model, iteration=state.iteration + 1, in_stage=state.in_stage + 1)
    return numbers, seen


def _cooled(state):
    """The State at the end of the mini-batches: full passes follow, without the noise of batches."""
    return replace(state, stage="full", in_stage=0, quiet=0, least_changed=1.0, batches_for_all=1, running=None)


def _poses_scored(search):
    """Poses that every particle is compared with: all of the first level."""
    first = search.coarse or search.fine
    return first.n_classes * first.level.n_shifts * first.level.n_angles


def _chooser(run, state):
    """Which particles of a block this iteration sees: all, or a share drawn by (seed, iteration, block)."""
    if state.stage == "full":
        return None
    return _of_blocks(run, run.schedule.batch_of(state.in_stage) / len(run.table), (state.iteration,))


def _of_blocks(run, fraction, draw):
    """Chooser of a fraction of the particles, drawn by (seed, iteration, block), or (seed, iteration, child, block) for
    a child; with draw None the same in each iteration: the probe.

    A small fraction of many particles is taken of every m-th block only; m iterations go through all blocks.
    """
    shard, seed = run.passes.shard, run.options.seed
    every = max(1, min(int(LEAST_SHARE / fraction), len(run.table) // LARGEST_BLOCK))
    fraction = min(1.0, fraction * every)
    iteration, *child = draw or (0, 2)
    key = np.random.SeedSequence([seed, 3, iteration // every, *child])
    turn = np.random.Generator(np.random.Philox(key)).permutation(every)[iteration % every]

    def choose(i):
        local = shard.of_block(i)
        if shard.blocks[i].number % every != turn:
            return local[:0]
        key = np.random.SeedSequence([seed, 1, iteration, *child, shard.blocks[i].number])
        count = min(len(local), int(np.ceil(fraction * len(local))))
        return np.sort(np.random.Generator(np.random.Philox(key)).permutation(local)[:count])

    return choose


def _watcher(run, state):
    """Called after each block: notes progress now and then, and whether to stop."""
    last = [time.perf_counter()]

    def on_block(fraction):
        if time.perf_counter() - last[0] > PROGRESS_SECONDS:
            last[0] = time.perf_counter()
            run.log.record("progress", iteration=state.in_stage + 1, of=_planned(run.options, state), stage=state.stage,
                           fraction=round(fraction, 4), phase="E step")
        return run.stop.asked()

    return on_block


def _gathered(run, state, totals, grid):
    """The sums the M step uses: those of this pass, or online EM's running average, worth `effective` particles."""
    if state.stage == "full":
        return replace(state, running=None, effective=0.0), totals
    fresh = totals.scaled(len(run.table) / totals.particles)
    rate = run.schedule.step_of(state.in_stage)
    if state.running is None:
        running, effective = fresh, totals.particles
    else:
        earlier = run.geometry.grid.with_rings(state.model.rings_before)
        running = state.running.regrid(earlier, grid).blend(fresh, rate)
        effective = 1.0 / ((1.0 - rate) ** 2 / state.effective + rate**2 / totals.particles)
    effective = min(effective, float(len(run.table)))
    # regularised as what it is: an average over `effective` particles, not over all of them
    return replace(state, running=running, effective=effective), running.scaled(effective / len(run.table))


def _advanced(run, state, totals):
    """Re-seed, centre, march: the State after an M step, and the re-seedings as {new class: old class}."""
    model, before = state.model, state.model.rings
    changes = {}
    if _may_reseed(run, state):
        support = classes.EARLY_SUPPORT if state.marching else classes.LATE_SUPPORT
        weights = (state.running or totals).class_weight
        model, changes = classes.reseed(run, model, weights, totals.assigned, support, state.iteration)
    if changes and state.running:
        grid = run.geometry.grid.with_rings(before)
        references = run.geometry.grid.crop(model.references, grid)
        state = replace(state, running=state.running.split(changes, references, grid))
    if run.options.center_classes and _centring(run.options, state):
        model = classes.centre(run, model)
    rings = min(classes.resolved(model) + RING_MARGIN, before + RING_MARGIN, run.geometry.grid.n_rings)
    model = replace(model, rings=rings, rings_before=before)
    marching = state.marching and rings > before
    changed = totals.changed / totals.particles
    least = 1.0 if changes else state.least_changed
    falling = changed < STILL_FALLING * least
    likelihood = totals.log_likelihood / totals.particles
    if state.stage == "minibatch":
        settling = False   # particles are met again only after an epoch: what changes then says little
    elif _after_batches(state):
        settling = state.in_stage > 0 and likelihood > state.log_likelihood + WORTH_A_PASS
    else:
        settling = changed > STEADY_CHANGE or (changed > run.options.convergence_change and falling)
    # a pass uses RING_MARGIN rings beyond those resolved: one more of them brings little that is new
    finer = rings > before + (FEW_RINGS if _after_batches(state) else 0)
    hot = run.schedule.temperature_of(state.stage, state.in_stage) > 1.0
    news = bool(changes) or finer or settling or hot
    state = replace(state, model=model, marching=marching, quiet=0 if news else state.quiet + 1,
                    least_changed=1.0 if changes else min(changed, least), log_likelihood=likelihood,
                    mobility=switch_rate(totals.changed - (totals.particles - totals.met), totals.met),
                    iteration=state.iteration + 1, in_stage=state.in_stage + 1)
    return (_cooled(state) if _batches_end(run, state) else state), changes


def _batches_end(run, state):
    """Whether the mini-batches are over: used up, or, where the schedule says so, without news for long enough."""
    if state.stage != "minibatch":
        return False
    return (run.schedule.settles and settled(state)) or run.schedule.used_up(state.in_stage, state.probed)


def _may_reseed(run, state):
    """Classes are re-seeded in the first two thirds of a stage, and never in the last iterations, which only settle,
    nor after mini-batches, which had their chance."""
    if _after_batches(state):
        return False
    length = _planned(run.options, state)
    lively = state.quiet == 0 or (state.stage == "minibatch" and run.schedule.renews)
    return lively and state.in_stage < (2 * length) // 3 and length > 3


def _centring(options, state):
    """Whether classes are centred now: after the first full passes, so that neighbours cannot pull them about for ever.

    Never after a pass that may be the last: the class averages that are written are those the poses refer to.
    """
    return state.stage == "full" and state.in_stage < CENTRING_PASSES and not _may_be_last(options, state)


def _may_be_last(options, state):
    """Whether the run may end with this pass, whose poses are then written."""
    return state.stage == "full" and (
        state.in_stage + 1 >= options.max_iterations or state.quiet + 1 >= _quiet_needed(state))


def _planned(options, state):
    """Iterations of the present stage, at most."""
    return options.minibatch_iterations if state.stage == "minibatch" else options.max_iterations


def _report(run, state, report, seconds):
    totals, log = report["totals"], run.log
    before, done = report["before"], report["before"].in_stage + 1
    planned = _planned(run.options, before)
    share = len(run.table) / totals.particles   # so that mini-batches and full passes read alike
    log.tell("iteration", iteration=done, of=planned, stage=before.stage, log_likelihood=share * totals.log_likelihood,
             resolution=run.geometry.resolution_of(report["rings"]), pmax=totals.pmax / totals.particles,
             changed=totals.changed / totals.particles, seconds=seconds,
             class_sizes=totals.assigned.astype(int).tolist(), seen=int(totals.particles), rings=before.model.rings,
             eta=_seconds_left(run.options, before, seconds, share), memory=peak_memory(),
             sigma_offset=state.model.sigma_offset, poses=report["poses"], busy=run.passes.busy,
             moves=_largest_moves(report["moved"]), mobility=state.mobility, temperature=report["temperature"],
             noise=run.schedule.noise_of(before.in_stage) if before.stage == "minibatch" else 0.0,
             **report["seconds"])
    if report["reseeded"]:
        log.tell("reseed", iteration=state.iteration, map={new + 1: old + 1 for new, old in report["reseeded"].items()})


def _largest_moves(moved):
    """[class before, class after (numbers as in the STAR file), particles] of the MOVES_TOLD most frequent changes."""
    if moved is None:
        return None
    moved = moved - np.diag(np.diag(moved))
    order = np.argsort(-moved, axis=None, kind="stable")[:MOVES_TOLD]
    pairs = zip(*np.unravel_index(order, moved.shape))
    return [[int(old) + 1, int(new) + 1, int(moved[old, new])] for old, new in pairs if moved[old, new]]


def _seconds_left(options, before, seconds, share):
    """[s] to the last iteration there may be, at the pace of this one; a full pass after mini-batches takes `share`
    times as long."""
    left = max(_planned(options, before) - before.in_stage - 1, 0)
    return seconds * (left if before.stage == "full" else left + share * options.max_iterations)


def _reached(options, state):
    """Where a run is, for the log: iterations done in all and in the present stage."""
    return {"total": state.iteration, "iteration": state.in_stage, "of": _planned(options, state), "stage": state.stage}


def peak_memory():
    """Largest memory this process has held so far [bytes].

    From the kernel's own account of this program: getrusage also counts what its parent held before the program began.
    """
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _overdue(run):
    """Whether rank 0, whose clock counts, wants a checkpoint."""
    waited = time.perf_counter() - run.saved_at
    return run.comm.rank == 0 and waited >= 60.0 * run.options.checkpoint_minutes


def save(run, state):
    """Write the checkpoint of a finished iteration, unless it is written. Collective."""
    if run.saved == state.iteration:
        return
    run.saved = state.iteration
    particles = results.gather_particles(run)
    if run.comm.rank != 0:
        return
    model, arrays = state.model, {"particles": particles, "stacks": run.marks}
    for name in ("references", "sigma2", "tau2", "ssnr", "class_prior"):
        arrays[name] = getattr(model, name)
    if state.running is not None:
        arrays["running"] = state.running.pack()
    attributes = {
        name: getattr(state, name)
        for name in (
            "stage",
            "iteration",
            "in_stage",
            "quiet",
            "least_changed",
            "log_likelihood",
            "batches_for_all",
            "marching",
            "effective",
            "mobility",
            "frozen",
            "probed_at",
            "probed",
        )
    }
    attributes |= {"sigma_offset": model.sigma_offset, "rings": model.rings, "rings_before": model.rings_before,
                   "fingerprint": fingerprint(run.table, run.options, run.passes.shard.space),
                   "n_classes": model.n_classes} | run.further
    write_checkpoint(run.options.output / CHECKPOINT_NAME, arrays, attributes, run.passes.shard.space)
    run.saved_at = time.perf_counter()


def _restore(run):
    """The State of the last checkpoint, and the particles' entries in run.passes. Collective."""
    space = run.passes.shard.space
    expected = {"fingerprint": fingerprint(run.table, run.options, space), "n_classes": run.options.n_classes}
    arrays, kept = read_checkpoint(run.options.output / CHECKPOINT_NAME, expected, space)
    check_stacks(run, arrays["stacks"])
    results.scatter_particles(run, arrays["particles"])
    state = state_of(arrays, kept, run.geometry)
    run.log.tell("resumed", **_reached(run.options, state))
    return state


def state_of(arrays, kept, geometry):
    """The State that the arrays and attributes of a checkpoint hold."""
    model = Model(*(arrays[name] for name in ("references", "sigma2", "tau2", "ssnr", "class_prior")),
                  float(kept["sigma_offset"]), int(kept["rings"]), int(kept["rings_before"]))
    running = None
    if "running" in arrays:
        grid = geometry.grid.with_rings(model.rings_before)
        empty = Totals.zeros(model.n_classes, len(model.sigma2), geometry.ctf_terms, grid, geometry.grid.n_rings)
        running = empty.unpack(arrays["running"])
    return State(
        model,
        str(kept["stage"]),
        int(kept["iteration"]),
        int(kept["in_stage"]),
        int(kept["quiet"]),
        float(kept["least_changed"]),
        float(kept["log_likelihood"]),
        int(kept["batches_for_all"]),
        bool(kept["marching"]),
        running,
        float(kept["effective"]),
        float(kept["mobility"]),
        int(kept["frozen"]),
        int(kept["probed_at"]),
        float(kept["probed"]),
    )


def check_stacks(run, before):
    """JobError, on all ranks, if a stack holds other images than when the run started; a line in the log if one was
    only written to. Collective."""
    touched, mistake = [], None
    if run.comm.rank == 0:
        try:
            touched = require_same_stacks(run.options.output / CHECKPOINT_NAME, run.table, before, run.marks)
        except JobError as error:
            mistake = str(error)
    agree(mistake, run.comm)
    for path in touched[:1]:
        others = f" and {len(touched) - 1} more stacks were" if len(touched) > 1 else " was"
        run.log.line(f"{path}{others} written to since the run started; size and the images compared are the same")
