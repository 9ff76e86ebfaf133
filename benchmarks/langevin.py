"""`vitrea bench langevin`: trajectory steps a core makes in a second, beside what their random numbers alone take.

A step takes two Gaussian numbers. The limit is the time of making these and nothing else, with the same generator, in
the same run; NumPy's fastest generator, which is not counted and could not be dealt out to ranks, stands beside it.
Under mpiexec, every rank makes the whole ensemble and then its share: the CPU time of the whole, over the ranks' number
times the longest share's, is the efficiency.
"""
import json
import time

import numpy as np
from numba import njit

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.benchmarks.timing import clock
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.two_valleys import Landscape
from vitrea.engine.two_valleys_ensemble import Cell, Ensemble, Setting
from vitrea.kernels import langevin

TRAJECTORIES, STEPS, SHARED_STEPS = 2000, 250, 10_000
RATE, STRENGTH = 0.0599, 0.0774   # a cell of the authors' grid in which trajectories hop
GRID_STEPS = 100 * 2000 * 20_000   # of the authors' grid at their 2000 trajectories
KEY = np.array([1, 0, 0, 0], dtype=np.uint64)
CLOSE = 1e-9


@njit(cache=True, error_model="numpy")
def draw(out, streams, steps, key):
    """The Gaussian numbers of a call of `advance`, added up in out float64[2, n]: the limit."""
    k0, k1, cell = key[0], key[1], key[2]
    for begin in range(0, len(streams), langevin.BLOCK):
        end = begin + langevin.BLOCK
        first, second, block = out[0, begin:end], out[1, begin:end], streams[begin:end]
        for step in range(steps):
            counter = key[3] + np.uint64(step)
            for i in range(len(block)):
                one, other = first[i], second[i]
                a, b = langevin._normals(counter, langevin.DRIFTING_NOISE, block[i], cell, k0, k1)
                first[i], second[i] = one + a, other + b


def measure(n, progress, comm):
    """The record; raises JobError if an answer is wrong, before any clock starts. Collective."""
    progress.step("langevin: compiled and checked against the NumPy twins")
    error = _check()
    runs = _runs()
    timings = {}
    for name, (run, steps) in runs.items():
        progress.step(f"langevin: {name}", n)
        timings[name] = {"n": n, "ns": [1e9 * each / steps for each in clock(run, n, between=progress.done).cpu]}
    nanoseconds = {name: float(np.median(timing["ns"])) for name, timing in timings.items()}
    least = {name: float(np.min(timing["ns"])) for name, timing in timings.items()}
    record = {"benchmark": "langevin", "name": "advance", "check": error, "n": n, "ns_per_step": nanoseconds,
              "least_ns_per_step": least, "steps_per_core_second": 1e9 / nanoseconds["diagonal"],
              "fraction_of_limit": nanoseconds["noise"] / nanoseconds["diagonal"],
              "grid_cpu_seconds": 1e-9 * GRID_STEPS * nanoseconds["diagonal"], "ranks": comm.size}
    if comm.size > 1:
        progress.step(f"langevin: {comm.size} ranks")
        record |= _efficiency(n, comm)
    return record | surroundings()


def _state():
    state = np.zeros((4, TRAJECTORIES))
    state[langevin.X], state[langevin.Y] = np.where(np.arange(TRAJECTORIES) % 2, -0.01, 0.01), 5.0
    return state, np.arange(TRAJECTORIES, dtype=np.uint64), np.ones(STEPS), Landscape().model(RATE, STRENGTH, 1)


def _check():
    """Largest difference of the compiled kernels from their twins, over some tens of steps."""
    off = 0.0
    for choice in ((0.0, 0.0), (1.0, 1.0)):
        (found, streams, scales, model), (expected, *_) = _state(), _state()
        if choice == (0.0, 0.0):
            langevin.advance(found, streams, scales[:40], model, KEY)
        else:
            langevin.advance_general(found, streams, scales[:40], model, KEY, np.array(choice))
        langevin.reference_advance(expected, streams, scales[:40], model, KEY, choice)
        off = max(off, float(np.abs(found - expected).max()))
    if not off < CLOSE:
        raise JobError(f"bench langevin: the compiled steps are {off:.1e} away from their twin; expected less than "
                       f"{CLOSE:g}; do not use this build")
    return off


def _runs():
    """{name: (run, steps of a run)}"""
    state, streams, scales, model = _state()
    general, frozen, sums = state.copy(), np.zeros((7, TRAJECTORIES)), np.zeros((2, TRAJECTORIES))
    choice = np.array([1.0, 0.0])
    at_rest = Landscape().frozen_model(3.0, 1e-3, (1.0, 1, 0.0))
    generator, drawn = np.random.Generator(np.random.SFC64(1)), np.empty((2, TRAJECTORIES))
    steps = TRAJECTORIES * STEPS

    def numpy_draws():
        for _ in range(STEPS):
            generator.standard_normal(out=drawn)

    return {
        "diagonal": (lambda: langevin.advance(state, streams, scales, model, KEY), steps),
        "noise": (lambda: draw(sums, streams, STEPS, KEY), steps),
        "numpy_noise": (numpy_draws, steps),
        "general": (lambda: langevin.advance_general(general, streams, scales, model, KEY, choice), steps),
        "frozen": (lambda: langevin.advance_frozen(frozen, streams, STEPS, at_rest, KEY), steps),
    }


def _efficiency(n, comm):
    """Medians of n: CPU time of a whole ensemble on every rank at once, of the longest share, and their ratio over the
    ranks; seconds of the sum over ranks."""
    whole, shares, gathering = [], [], []
    for _ in range(n):
        seconds, _ = _simulated(_Alone(), comm)
        whole.append(np.mean(comm.allgather(seconds)))
        seconds, ensemble = _simulated(comm, comm)
        shares.append(max(comm.allgather(seconds)))
        comm.Barrier()
        begin = time.perf_counter()
        ensemble.gathered()
        gathering.append(max(comm.allgather(time.perf_counter() - begin)))
    return {"seconds_whole": float(np.median(whole)), "seconds_share": float(np.median(shares)),
            "seconds_gathering": float(np.median(gathering)),
            "efficiency": float(np.median(whole) / (comm.size * np.median(shares)))}


def _simulated(share, comm):
    """(CPU seconds, Ensemble) of the part of a cell that `share` deals to this rank."""
    comm.Barrier()
    begin = time.process_time()
    ensemble = Ensemble([Cell(RATE, STRENGTH, SHARED_STEPS)], Setting(Landscape(), TRAJECTORIES, 5.0, 1, 1), comm=share)
    for number, first, last in ensemble.rounds():
        ensemble.advance(number, first, last)
    return time.process_time() - begin, ensemble


class _Alone:
    """A communicator of one rank, as far as an ensemble that is not gathered looks."""

    rank, size = 0, 1


def told(record):
    """A record for people, a few lines."""
    ns, least = record["ns_per_step"], record["least_ns_per_step"]
    lines = [
        f"check      {record['check']:.1e} away from the NumPy twins",
        f"diagonal   {ns['diagonal']:.1f} ns a step (least {least['diagonal']:.1f}, n {record['n']})   "
        f"{record['steps_per_core_second']:.3g} steps / core·s   the authors' grid: {record['grid_cpu_seconds']:.0f} s",
        f"limit      {ns['noise']:.1f} ns for its two random numbers alone, {100 * record['fraction_of_limit']:.0f} % "
        f"of it reached; NumPy's, by SFC64, take {ns['numpy_noise']:.1f} ns",
        f"others     {ns['general']:.1f} ns with the whole Hessian or by the anti-Itô rule, {ns['frozen']:.1f} ns at a "
        "frozen y",
    ]
    if "efficiency" in record:
        lines.append(f"ranks      {record['ranks']}: {record['seconds_whole']:.2f} s of CPU for the whole, "
                     f"{record['seconds_share']:.2f} for the longest share, {100 * record['efficiency']:.1f} % "
                     f"efficient; {1e3 * record['seconds_gathering']:.1f} ms for the sum over ranks")
    return "\n".join([*lines, f"{record['cpu']}, load {record['load'][0]:.1f}   commit {record['commit']}"])


def command(arguments):
    """`vitrea bench langevin`, on any number of ranks."""
    comm = world()
    record = measure(arguments.n, SILENCE if comm.rank else arguments.progress, comm)
    if comm.rank == 0:
        keep(arguments.records, record)
        arguments.progress.result(json.dumps(record) if arguments.json else told(record))
    return 0
