"""classify2d, run as it is, with clocks and a counting communicator around it: what `vitrea bench run` and scaling
studies start, alone or under mpiexec.

    mpiexec -n 4 python -m vitrea.benchmarks.observed JOB.yaml OUT.json
"""
import functools
import importlib
import json
import sys
import time
from pathlib import Path

from vitrea.benchmarks.clocks import E_STEP, RUN, Clocks
from vitrea.benchmarks.traffic import CountedComm
from vitrea.engine.files import written_beside

STAGES = (("vitrea.engine.classify2d", "iterate", "iteration"), ("vitrea.engine.results", "write", "results"))


def main(job_path, out_path):
    """Run the job and write what was seen to out_path: phases, traffic and CPU time of every rank."""
    from vitrea.engine.comm import world
    from vitrea.jobs.jobfile import read_job

    begin = time.perf_counter()
    plain = world()
    job = read_job(Path(job_path))
    if plain.rank == 0:
        job.options.output.mkdir(parents=True, exist_ok=True)
    plain.Barrier()
    runner = job.type.load_runner()
    with Clocks(RUN, E_STEP) as clocks:
        comm = CountedComm(plain, clocks)
        stages = _Stages(comm)
        try:
            runner(job.options, resume=False, comm=comm)
        finally:
            stages.close()
        seen = {"rank": plain.rank, "seconds": time.perf_counter() - begin, "iterating": stages.seconds,
                "cpu_iterating": stages.cpu, "phases": clocks.seconds, "missing": clocks.missing, "calls": comm.calls}
    everybody = plain.gather(seen, root=0)
    if plain.rank == 0:
        with written_beside(out_path) as beside:
            beside.write_text(json.dumps(everybody))


class _Stages:
    """Tells the communicator which iteration it is in, and sums the wall and CPU time of the iterations [s]."""

    def __init__(self, comm):
        self.seconds, self.cpu, self._comm, self._undo, self._number = 0.0, 0.0, comm, [], 0
        for module, name, stage in STAGES:
            owner = importlib.import_module(module)
            function = getattr(owner, name)
            self._undo.append((owner, name, function))
            setattr(owner, name, self._watched(function, stage))

    def close(self):
        for owner, name, function in reversed(self._undo):
            setattr(owner, name, function)

    def _watched(self, function, stage):
        @functools.wraps(function)
        def watched(*arguments, **keywords):
            if stage != "iteration":
                self._comm.enter(stage)
                return function(*arguments, **keywords)
            self._number += 1
            self._comm.enter(self._number)
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        return watched


if __name__ == "__main__":
    main(*sys.argv[1:3])
