"""`cluster`: manifold learning of aligned particles, to many class averages on a latent grid.

The run reads from the top: bring the particles to their poses, start the manifold, iterate while it is cooled, write.
The state between two iterations is all that a checkpoint has to hold.
"""
import hashlib
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine import annealing, averages, cluster_results, latent, starts
from vitrea.engine.checkpoint import NAME as CHECKPOINT_NAME
from vitrea.engine.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from vitrea.engine.classify2d import peak_memory
from vitrea.engine.cluster_plan import plan_cluster
from vitrea.engine.comm import StopRequest, library_name, node_count
from vitrea.engine.errors import JobError
from vitrea.engine.load import read_table
from vitrea.engine.log import NullLog, RunLog
from vitrea.engine.manifold import Settings
from vitrea.engine.merging import begin_merged
from vitrea.engine.plan import machine_room
from vitrea.engine.posed import PosedGeometry, PosedShard, make_posed_geometry, read_posed
from vitrea.engine.trials import MERGED, WIDE, Trials, can_merge, most_classes, n_starts
from vitrea.engine.window import PoseWindow, make_window

COMPONENTS = 8   # principal components looked at; a start uses as many as its grid has axes
BATCH_OF_A_CLASS, SMALLEST_BATCH = 16, 16384   # particles of a mini-batch; a few of them are averaged
BATCHES_PAY = 3                                # in so many particles


@dataclass
class Run:
    """What does not change during a run; window: poses looked at about the given ones; memory: its peak on rank 0 so
    far [bytes]; analysis: principal components and noise precision, once they are known."""

    options: object
    table: object
    geometry: PosedGeometry
    shard: PosedShard
    window: PoseWindow | None
    log: object
    stop: StopRequest
    comm: object
    memory: int = 0
    analysis: tuple | None = None


def run(options, *, resume, comm):
    """Run or continue `job: cluster` in the folder options.output: "done" or "stopped". Collective.

    Writes the files of docs/formats.md. Raises JobError for a user's mistake (on all ranks).
    """
    with threadpool_limits(1), StopRequest(comm=comm) as stop, open_log(options, comm) as log:
        begun = _prepare(options, stop, log, comm)
        if begun is None:
            log.tell("stopped", reason=stop.reason)
            return "stopped"
        trials, state = _tried(begun, *(_restore(begun) if resume else (Trials(), None)))
        if not finished(options, trials, state):
            log.tell("stopped", **_reached(options, trials, state), reason=stop.reason)
            return "stopped"
        manifold = state.manifold
        del trials, state   # a dozen times as large
        cluster_results.write(begun, manifold)
        return "done"


def _prepare(options, stop, log, comm):
    table = read_table(options, comm=comm)
    planned = tell_start("cluster", options, table, plan_cluster, log, comm)
    geometry = make_posed_geometry(table, options)
    shard = read_posed(table, options, geometry, stop, log, comm=comm, scratch=scratch_folder(options, planned))
    if shard is None:
        return None
    window = make_window(geometry.plane, options.psi_error, options.offset_error)
    return Run(options, table, geometry, shard, window, log, stop, comm)


def open_log(options, comm):
    """The run's log on rank 0, one that keeps nothing elsewhere."""
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def tell_start(job, options, table, planner, log, comm):
    """Tell what is run, on which particles, by how many ranks, and what it will take: the plan. Collective."""
    planned, nodes = planner(options, table, comm.size, machine_room(comm)), node_count(comm)
    log.tell("start", job=job, output=str(options.output), input=str(options.input), host=platform.node(),
             process=os.getpid(), version=importlib.metadata.version("vitrea"), mpi=library_name(), ranks=comm.size,
             nodes=nodes, threads=options.threads, particles=len(table), n_classes=options.n_classes,
             box_size=planned.box_size, pixel_size=planned.pixel_size, voltage=table.optics[0].voltage,
             memory_per_rank=planned.memory_per_rank_bytes, scratch_per_rank=planned.scratch_per_rank_bytes,
             options=options.as_dict())
    log.line(f"{planned.components:,} components of each particle, to {planned.resolution:.1f} Å")
    folder = scratch_folder(options, planned)
    if folder:
        log.line(f"particles in scratch: {planned.scratch_per_rank_bytes / 1e9:.3g} GB a rank in unnamed files in "
                 f"{folder}")
    return planned


def scratch_folder(options, planned):
    """The folder of the scratch files, None if the particles are kept in memory."""
    return options.scratch or options.output if planned.storage == "scratch" else None


def make_lattice(options):
    """The latent grid of a job."""
    shape = options.latent_shape()
    if options.latent == "none":
        return latent.free(options.n_classes)
    given = {"basis_fraction": options.basis_fraction, "width": options.basis_width}
    if len(shape) == 1:
        return latent.chain(options.n_classes, periodic=options.latent == "closed_chain", **given)
    return latent.grid(shape, **given)


def sized(options, n_classes):
    """The options of a trial with so many classes."""
    return replace(options, n_classes=n_classes)


def _tried(run, trials, state):
    """Go through the trials, if there are more than one, and finish the best: (Trials, the last State, or that of a
    stop)."""
    options = run.options
    while (trial := trials.next(*_asked(run))) is not None:
        state = state or _begun(run, trials, *trial)
        if state is not None:
            state = _iterate(run, state, trials, only_cool=True)
            if state.stage == "cool" and not finished(options, trials, state):
                return trials, state
        size = (state or trials.best).manifold.n_nodes
        trials = trials.after(size, trial[1], state)
        run.log.line(f"{size} classes, {_told(trial[1])}: " + (
            f"held out {trials.judged[-1]:.3f}" if state else "no two of them are one"))
        state = None
    if state is None and trials.best is not None:
        state = replace(trials.best, iteration=trials.iterations)
    return trials, _iterate(run, state or start(run, options.n_classes, 0), trials)


def _asked(run):
    """What Trials.next is asked: number of classes, of starts, least and most classes, whether they can be merged."""
    options, n = run.options, run.shard.embedded.n_total
    return options.n_classes, n_starts(options, n), least_classes(options), most_classes(n), can_merge(options)


def least_classes(options):
    """The smallest number of classes that is tried."""
    return 5 if options.latent == "closed_chain" else 3


def _begun(run, trials, n_classes, number):
    """The first State of a trial; None if it would merge classes no two of which are one. Collective."""
    if number != MERGED:
        return replace(start(run, n_classes, number), iteration=trials.iterations)
    settings = Settings(window=run.window, threads=run.options.threads)
    state = begin_merged(run.shard.embedded, trials.wide or trials.best, n_classes, least_classes(run.options),
                         lambda n: make_lattice(sized(run.options, n)), settings, comm=run.comm)
    return None if state is None else replace(state, iteration=trials.iterations)


def _told(number):
    """The start of a trial, for people."""
    return {MERGED: "merged", WIDE: "to be merged"}.get(number, f"start {number + 1}")


def start(run, n_classes, number):
    """The first State: just below the temperature where classes appear, or, from given classes, at the last one.

    number: 0 for the start that the job names; others are random, each with its own draw.
    """
    options, embedded = sized(run.options, n_classes), run.shard.embedded
    lattice, layout = make_lattice(options), embedded.layout
    components, beta = _analysed(run)
    critical = float(components.eigenvalues[0])
    if options.start == "classes":
        references = given_classes(run, lattice.n_nodes)
        return annealing.begin_settled(starts.from_references(lattice, layout, references, beta),
                                       options.temperature)
    if options.start == "random" or number:
        manifold = starts.at_random(lattice, layout, components, beta, options.seed + abs(number))
    else:
        manifold = starts.from_components(lattice, layout, components, beta)
    return annealing.begin(manifold, critical, options.temperature)


def _analysed(run):
    """(Components, β) of the particles, found once. Collective."""
    if run.analysis is None:
        run.analysis = starts.analyse(run.shard.embedded, COMPONENTS, comm=run.comm, seed=run.options.seed)
        components, _ = run.analysis
        run.log.line(f"classes appear at T {components.eigenvalues[0]:.2f}; {components.significant()} of the first "
                     f"{len(components.eigenvalues)} principal components stand above the noise")
    return run.analysis


def given_classes(run, n_nodes):
    """float64[K, D]: averages of the classes that the particles came with, in a line, each on neighbouring nodes; of
    more classes than nodes, the largest. JobError if the particles came without. Collective."""
    column = run.table.columns.get("rlnClassNumber")
    numbers = run.comm.bcast(None if column is None else np.array(column).astype(np.float64).astype(np.int64))
    if numbers is None:
        raise JobError(f"start: {run.options.input} holds no _rlnClassNumber; expected the classes to start from; "
                       "give the run_data.star of 'job: classify2d', or write start: components")
    largest = np.argsort(-np.bincount(numbers[numbers > 0]), kind="stable")
    largest = largest[:min(n_nodes, len(np.unique(numbers[numbers > 0])))]
    place = np.full(numbers.max() + 1, -1)
    place[largest] = np.arange(len(largest))
    embedded = run.shard.embedded
    sums = averages.given(embedded, np.where(numbers > 0, place[numbers], -1)[run.shard.kept], run.shard.kept,
                          len(largest), comm=run.comm)
    found = averages.averaged(sums, np.ones(len(embedded.layout.count)), embedded.layout).average
    order = starts.put_in_order(found)
    return found[order[np.arange(n_nodes) * len(order) // n_nodes]]


def schedule(options, n_particles):
    """How the job is cooled; in mini-batches where they are a small part of the particles."""
    batch = options.minibatch_size or max(BATCH_OF_A_CLASS * options.n_classes, SMALLEST_BATCH)
    if not options.minibatch_size and n_particles < BATCHES_PAY * batch:
        batch = 0
    return annealing.Schedule(cooling=options.cooling, coldest=options.temperature, batch=batch, seed=options.seed,
                              step=options.minibatch_step)


def limit(options, trials):
    """The last iteration of this trial, or of the end; those of the trials before are counted too."""
    return trials.iterations + options.max_iterations


def finished(options, trials, state):
    """Whether the manifold has settled or used up its iterations."""
    return state.stage == "done" or state.iteration >= limit(options, trials)


def _iterate(run, state, trials, only_cool=False):
    """Iterate to the end (of cooling), or until the run is asked to stop: the last State."""
    settings = Settings(outliers=run.options.outliers, window=run.window, threads=run.options.threads)
    learner = annealing.Annealing(run.shard.embedded, state.manifold.lattice, settings,
                                  schedule(sized(run.options, state.manifold.n_nodes), len(run.table)),
                                  comm=run.comm)
    while not (finished(run.options, trials, state) or (only_cool and state.stage == "settle")):
        run.stop.asked()   # tells the other ranks
        if run.stop.agreed():
            return state
        begin = time.perf_counter(), time.process_time()
        state, report = learner.step(state)
        run.memory = max(run.memory, peak_memory())
        _save(run, state, trials)
        _report(run, trials, state, report, (time.perf_counter() - begin[0], time.process_time() - begin[1]))
    if not only_cool:
        run.log.line(f"settled at T {state.manifold.temperature:.2f}" if state.stage == "done" else
                     "max_iterations reached, not settled")
    return state


def _report(run, trials, state, report, spent):
    seconds, cpu_seconds = spent
    run.log.tell("iteration", iteration=state.iteration, of=limit(run.options, trials), stage=report.stage,
                 temperature=report.temperature, log_likelihood=report.log_likelihood, held_out=report.held_out,
                 class_sizes=np.rint(report.class_sizes).astype(int), outliers=report.outliers,
                 mobility=report.mobility,
                 seconds=seconds, cpu_seconds=cpu_seconds,
                 eta=(_most_left(run, trials, state) + _trials_left(run, trials, state)) * seconds, memory=run.memory,
                 **report.seconds)


def _most_left(run, trials, state):
    """Iterations that are left of this trial, at most."""
    plan, stage = schedule(sized(run.options, state.manifold.n_nodes), len(run.table)), state.stage
    if stage == "done":
        return 0
    left = plan.settle - (state.in_stage if stage == "settle" else 0)
    if stage == "cool":
        temperatures = np.ceil(np.log(state.manifold.temperature / plan.coldest) / -np.log(plan.cooling)) + 1
        left += int(temperatures) * plan.sweeps * (1 if state.ordered else 2) - state.in_stage + 1
    return min(left, limit(run.options, trials) - state.iteration)


def _trials_left(run, trials, state):
    """Iterations of the trials that come after this one, about: as long as those that have ended, or else as this."""
    n_classes, starting, *_, merging = _asked(run)
    if trials.next(*_asked(run)) is None:
        return 0
    ended, longest = len(trials.sizes), state.iteration - trials.iterations + _most_left(run, trials, state)
    return trials.left(n_classes, starting, merging) * (trials.iterations / ended if ended else longest)


def _reached(options, trials, state):
    """Where a run is, for the log."""
    return {"total": state.iteration, "iteration": state.iteration, "of": limit(options, trials), "stage": state.stage}


def identity(run):
    """What must not change between a run and its continuation."""
    digest = hashlib.sha256(np.ascontiguousarray(run.table.psi).tobytes()).hexdigest()
    return {"fingerprint": fingerprint(run.table, run.options), "psi": f"digest {digest[:8]}"}


def _save(run, state, trials):
    """Write the checkpoint of a finished iteration. Collective."""
    if run.comm.rank == 0:
        arrays = {name: np.char.encode(array) if array.dtype.kind == "U" else array
                  for name, array in (annealing.state_arrays(state) | trials.arrays()).items()}
        write_checkpoint(run.options.output / CHECKPOINT_NAME, arrays, identity(run))


def _restore(run):
    """(Trials, State) of the last checkpoint. Collective."""
    arrays, _ = read_checkpoint(run.options.output / CHECKPOINT_NAME, identity(run))
    state = annealing.state_from_arrays(arrays)
    trials = Trials.from_arrays(arrays)
    run.log.tell("resumed", **_reached(run.options, trials, state))
    return trials, state
