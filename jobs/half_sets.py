"""`vitrea stability RUN_DIR`: two halves of the particles, learned apart from the final classes, are asked how sure
the classes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.finished import is_finished
from vitrea.jobs.launcher import end_together, on_rank_0
from vitrea.jobs.run import CHECKPOINT_NAME, read_run, reported

LEAST_TOLD = 0.01   # of a class: a smaller share that might go to another is not told


def stability_of_halves(folder: Path) -> int:
    """Judge a finished run of classify2d, write half_sets.star and the report, tell of the classes; collective under
    mpiexec."""
    from vitrea.engine.comm import Start, world

    with Start():
        comm = world()
        options = on_rank_0(lambda: _finished(folder), comm=comm)
        return end_together(lambda: _judge(options, comm), lambda message, mistake: None, comm=comm)


def _finished(folder):
    options = read_run(folder, "classify2d")
    if not (is_finished(folder) and (folder / CHECKPOINT_NAME).exists()):
        raise JobError(f"{folder}: the run is not finished, or its {CHECKPOINT_NAME} is gone; expected a finished run "
                       f"with its checkpoint; finish it with 'vitrea resume {folder}', or run it again")
    return options


def _judge(options, comm):
    from threadpoolctl import threadpool_limits

    from vitrea.engine import half_sets
    from vitrea.engine.classify2d import open_log, reopen
    from vitrea.engine.comm import StopRequest

    with threadpool_limits(1), StopRequest(comm=comm) as stop, open_log(options, comm) as log:
        begun = reopen(options, stop, comm)
        if begun is not None:
            run, state = begun
            run.log = log
            begun = half_sets.write(run, state.model)
    if comm.rank == 0:
        _tell(options.output, begun)
    return 0


def _tell(folder, found):
    from vitrea.engine.stability import HALVES_STAR_NAME

    if found is None:
        print("stopped before the end; nothing was written")
        return
    print(f"{len(found.row):,} particles   stability {found.stability.mean():.3f}, by chance {found.chance:.3f}   "
          f"mean probability of a particle's class {found.calibrated.mean():.3f} (before calibration "
          f"{found.probability.mean():.3f})")
    sizes = np.bincount(found.class_number, minlength=len(found.classes))
    for k in np.argsort(-sizes, kind="stable"):
        if sizes[k]:
            told = found.share[k] > LEAST_TOLD
            shared = f"   {found.share[k]:.0%} to class {found.shared[k] + 1}" if told else ""
            print(f"class {k + 1:<5}{sizes[k]:>10,} particles   {found.classes[k]:.3f}{shared}")
    print(f"  {folder / HALVES_STAR_NAME!s:<40} of every class and particle")
    for line in reported(folder):
        print(line)
