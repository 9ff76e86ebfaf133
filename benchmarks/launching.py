"""Observed runs of classify2d on any number of ranks, and what they are worth."""
import json
import os
import shutil
import sys
from pathlib import Path

from vitrea.benchmarks.measure import iterations_of, last_words, read_lines, run_measured
from vitrea.benchmarks.progress import SILENCE
from vitrea.engine.errors import JobError

# what an outer launcher left behind; a launcher started with them would take itself for a rank
OUTER = ("PMI", "PMIX", "OMPI", "HYDRA", "HYDI", "MPI_", "MPIR", "PRTE")
PERMISSIONS = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


def launcher_words(ranks, launcher=None):
    """The words before `python` that start it on `ranks` ranks; none for one rank without a launcher of the study.

    launcher: a text with {ranks}, e.g. "srun --mpi=pmi2 -n {ranks}"; by default the mpiexec beside this Python, or on
    PATH. JobError if there is none.
    """
    if launcher:
        return launcher.format(ranks=ranks).split()
    if ranks == 1:
        return []
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise JobError(f"ranks: {ranks} ranks, but no mpiexec is beside {sys.executable} or on PATH; expected one; "
                       "pip install \"vitrea[mpi]\", or load the site's MPI")
    return [found, "-n", str(ranks)]


def observe(folder, name, keys, ranks=1, launcher=None, progress=SILENCE):
    """Run classify2d with `keys` in `folder`/`name`: (Measured, what each rank saw, records of the run).

    JobError with the program's words if it fails.
    """
    folder = Path(folder).resolve()
    shutil.rmtree(folder / name, ignore_errors=True)
    lines = [f"{key}: {value}" for key, value in {"job": "classify2d", "output": name, **keys}.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    command = [*launcher_words(ranks, launcher), sys.executable, "-m", "vitrea.benchmarks.observed", f"{name}.yaml",
               f"{name}.json"]
    measured = _measured(command, folder, progress.tick)
    if measured.exit_code:
        raise JobError(f"{' '.join(command)}: ended with exit code {measured.exit_code}: "
                       f"{last_words(measured.output)}")
    return measured, json.loads((folder / f"{name}.json").read_text()), read_lines(folder / name / "record.jsonl")


def _measured(command, folder, look):
    """run_measured without what an outer launcher put into the environment."""
    before = dict(os.environ)
    try:
        for variable in [each for each in os.environ if each.startswith(OUTER)]:
            del os.environ[variable]
        os.environ.update({**PERMISSIONS, **{each: before[each] for each in PERMISSIONS if each in before}})
        return run_measured(command, folder, look)
    finally:
        os.environ.clear()
        os.environ.update(before)


def worth(measured, seen, records):
    """Speed and split of a run: a dict of times [s], poses and particles·iterations a core-second, traffic."""
    started = next(record for record in records if record["kind"] == "start")
    iterations = iterations_of(records)
    cores = started["ranks"] * started["threads"]
    wall = sum(record["seconds"] for record in iterations)
    poses, particles = sum(record["poses"] for record in iterations), started["particles"]
    done = sum(record["seen"] if "seen" in record else particles for record in iterations)
    phases = {phase: sum(rank["phases"][phase] for rank in seen) / len(seen) for phase in seen[0]["phases"]}
    cpu = sum(rank["cpu_iterating"] for rank in seen)
    return {
        "nodes": started["nodes"], "iterations": len(iterations), "wall_seconds": measured.wall_seconds,
        "cpu_seconds": measured.cpu_seconds, "memory": measured.memory if started["ranks"] == 1 else None,
        "iterating_seconds": wall, "cpu_iterating": cpu,
        "e_step": sum(record["e_step"] for record in iterations),
        "m_step": sum(record["m_step"] for record in iterations),
        "reduce": sum(record["reduce"] for record in iterations),
        "poses_per_core_second": poses / (wall * cores), "particle_iterations_per_core_second": done / (wall * cores),
        "cpu_ms_per_particle_iteration": 1e3 * cpu / done, "phases": phases,
        "clocks_missing": seen[0]["missing"], "resolution": iterations[-1]["resolution"],
        "log_likelihood": iterations[-1]["log_likelihood"],
    }
