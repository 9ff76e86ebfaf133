"""Running a job: its folder, its endings, and what a look beforehand shows."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.log import LINES_NAME, RECORDS_NAME, RunLog, format_bytes, read_records
from vitrea.engine.options import options_of
from vitrea.jobs.jobfile import (
    JOB_NAME,
    PIPELINE,
    Job,
    kind_of_file,
    read_job,
    resolved_notes,
    started_in,
    write_job,
)
from vitrea.jobs.launcher import end_together, on_rank_0
from vitrea.jobs.processes import require_idle

CHECKPOINT_NAME = "checkpoint.h5"
NO_MISTAKE = "no mistake found; nothing was run or written"
NOT_SEEN = "not seen    values of the {}, for only headers are read: {}"
FEW_MEMBERS = 5      # particles a class: with fewer, class averages are of noise
SMALL_IN_BOX = 0.3    # of a box: particles are boxed more tightly
SKIPPED_NAME, ARRIVED_NAME = "skipped.star", "arrived.star"
RUN_FILES = (JOB_NAME, LINES_NAME, RECORDS_NAME, CHECKPOINT_NAME, "run_data.star", "run_classes.mrcs")
RESULTS = {
    "report.html": "what was found, curves, timing, job and log on one page, for any browser",
    "classes.png": "the class averages, largest first",
    "latent_map.png": "the class averages at their places on the latent grid",
    "class_tree.star": "which class was split into which, and what it was worth",
    "run_data.star": "class, angle and shift of every particle",
    "run_classes.mrcs": "the class averages as a stack",
    "relion_optimiser.star": "for RELION's subset selection",
    "run_model.star": "size, resolution and spectra of each class",
    "model.npz": "the trained picker, for job: pick",
    "autopick.star": "micrographs and the coordinate files of their picks",
    "rounds.csv": "what each round of training came to on micrographs held back",
    "training.png": "its loss, precision against recall, and how far scores are probabilities",
    "summary.csv": "picks, candidates and problems by micrograph, and which to look at first",
    "picks.png": "histogram of the scores, and picks by micrograph",
    "pictures": "micrographs to look at first, with their picks",
    "particles.star": "the particles, for job: classify2d",
    "result.png": "what was measured, beside what was expected",
    "result.json": "the numbers",
}


def run(path: Path, overrides: Sequence[str], stage: str | None = None) -> int:
    """`vitrea run`: make the run folder, run, tell where the results are; collective under mpiexec."""
    from vitrea.engine.comm import Start, world

    with Start():
        comm = world()
        if on_rank_0(lambda: kind_of_file(path), comm=comm) == PIPELINE:
            from vitrea.jobs import stages

            return stages.run(path, overrides, stage, comm=comm)
        _require_no_stage(stage)
        job, made = on_rank_0(lambda: _begin(path, overrides, comm.size), comm=comm)
        return end_together(
            lambda: _carry_out(job, False, comm),
            lambda message, mistake: told_of(job.options.output, made, message, mistake, comm),
            comm=comm,
        )


def resume(folder: Path, overrides: Sequence[str], stage: str | None = None) -> int:
    """`vitrea resume`: go on from the last checkpoint, or from the start if there is none yet."""
    from vitrea.engine.comm import Start, world

    with Start():
        comm = world()
        if on_rank_0(lambda: _kind_of_folder(folder), comm=comm) == PIPELINE:
            from vitrea.jobs import stages

            return stages.resume(folder, overrides, stage, comm=comm)
        _require_no_stage(stage)
        job = on_rank_0(lambda: _begin_again(folder, overrides, comm.size), comm=comm)
        if job is None:
            return 0
        from_checkpoint = on_rank_0(lambda: (folder / CHECKPOINT_NAME).exists(), comm=comm)
        return end_together(
            lambda: _carry_out(job, from_checkpoint, comm),
            lambda message, mistake: _log_failure(folder, message, comm),
            comm=comm,
        )


def _require_no_stage(stage: str | None) -> None:
    if stage is not None:
        raise JobError(f"--stage {stage}: this is a single job; expected a pipeline; leave --stage out")


def check(path: Path, overrides: Sequence[str], ranks: int) -> int:
    """`vitrea check`: everything that can be wrong before the first image is read, and what the run will need."""
    if kind_of_file(path) == PIPELINE:
        from vitrea.jobs import stages

        lines = stages.check(path, overrides, ranks)
    else:
        lines = check_job(path, read_job(path, overrides), ranks)
    print("\n".join([*lines, NO_MISTAKE]))
    return 0


def check_job(path: Path, job: Job, ranks: int, *, held: bool = False) -> list[str]:
    """What a job will need, and what a look at headers cannot tell; JobError for what is wrong with it.

    held: whether its folder may hold an earlier run, as that of a stage may, which goes on with it or puts it aside."""
    from vitrea.engine.particles import read_particles
    from vitrea.picker.options import MicrographOptions

    if getattr(job.options, "follow", None) is not None:
        from vitrea.jobs import follow

        require_free(job.options.output)
        return [f"{path}   {job.type.name}   into {job.options.output}", *follow.check(job)]
    if job.type.checker:
        found = job.type.load_checker()(job.options)
        require_free(job.options.output, held=held)
        unseen = [NOT_SEEN.format("micrographs", "contrast, ice, values that are not finite")] if isinstance(
            job.options, MicrographOptions) else []
        return [f"{path}   {job.type.name}   into {job.options.output}", *found, *unseen]
    table = read_particles(job.options.input)
    planned = job.type.load_planner()(job.options, table, ranks)
    require_free(job.options.output, held=held)
    unseen = NOT_SEEN.format("images", "contrast, normalisation, values that are not finite")
    return [*_check_lines(path, job, table, planned, ranks), unseen, *_doubts(job.options, planned)]


def _begin(path: Path, overrides: Sequence[str], ranks: int) -> tuple[Job, list[Path]]:
    """The job, and the folders that were made for it, the innermost first."""
    job = read_job(path, overrides)
    folder = job.options.output
    require_free(folder)
    made = make_folder(folder)
    try:
        write_resolved(job, ranks)
    except JobError:
        _take_back(folder, made)
        raise
    return job, made


def make_folder(folder: Path) -> list[Path]:
    """Make a run folder; the folders that were made for it, the innermost first. JobError if that is refused."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(
            f"{folder}: the run folder cannot be made: {error.strerror}; expected a place with write permission and "
            "free space; choose another output"
        ) from error
    return made


def write_resolved(job: Job, ranks: int) -> None:
    """Write job.yaml, every key with its value, into the run folder."""
    write_job(job.options.output / JOB_NAME, job, resolved_notes(version(), platform.node(), ranks, Path.cwd()))


def held_files(folder: Path) -> list[str]:
    """Names of the files of a run that a folder holds."""
    return [name for name in RUN_FILES if (folder / name).exists()]


def require_free(folder: Path, *, held: bool = False) -> None:
    """JobError unless a new run can be made in this folder; held: whether it may hold an earlier one."""
    if folder.exists() and not folder.is_dir():
        raise JobError(f"{folder}: the output is a file; expected a folder; choose another output")
    found = held_files(folder)
    if found and not held:
        raise JobError(
            f"{folder}: this folder already holds a run ({found[0]}); expected a new or empty one; "
            f"go on with 'vitrea resume {folder}', or choose another output"
        )


def _kind_of_folder(folder: Path) -> str | None:
    path = folder / JOB_NAME
    if not path.exists():
        found = "holds no job.yaml" if folder.is_dir() else "is not a folder"
        raise JobError(f"{folder}: {found}; expected the folder of a run; start one with 'vitrea run JOB.yaml'")
    return kind_of_file(path)


def _begin_again(folder: Path, overrides: Sequence[str], ranks: int) -> Job | None:
    path = folder / JOB_NAME
    require_idle(folder)
    records = read_records(folder / RECORDS_NAME)
    following = getattr(read_job(path).options, "follow", None)   # the folder may have more by now
    if records and records[-1]["kind"] == "done" and not overrides and following is None:
        print(f"{folder}: this run is done; nothing is left to resume")
        return None
    _require_resumable(path, overrides)
    job = read_job(path, overrides)
    # The folder may have been moved since it was made; it is where it is.
    job = replace(job, options=replace(job.options, output=folder))
    _require_input(path, job)
    clear_torn_files(folder)
    mend_checkpoints(folder)
    if overrides:
        write_resolved(job, ranks)
    return job


def read_run(folder: Path, kind: str) -> object:
    """The options of the run in a folder, which is where it is found; JobError if it is no run of this kind."""
    path = folder / JOB_NAME
    if not path.exists():
        found = "holds no job.yaml" if folder.is_dir() else "is not a folder"
        raise JobError(f"{folder}: {found}; expected the folder of a {kind} job; check the path")
    if kind_of_file(path) == PIPELINE:
        raise JobError(f"{folder}: found a pipeline; expected one of job {kind}; give the folder of a stage of it")
    job = read_job(path)
    if job.type.name != kind:
        raise JobError(f"{folder}: found a run of job {job.type.name}; expected one of job {kind}; check the path")
    return replace(job.options, output=folder)


def clear_torn_files(folder: Path) -> None:
    """Remove what engine/files.py was writing when the run was killed."""
    for path in folder.glob(".*.tmp-*"):
        with suppress(OSError):
            path.unlink()


def mend_checkpoints(folder: Path) -> None:
    """Put the checkpoint before in the place of a damaged one, and say so."""
    from vitrea.engine.checkpoint import mend

    for path in mend(folder):
        with RunLog(folder, echo=True) as log:
            log.line(f"{path.relative_to(folder)} is damaged or gone; the run goes on from the checkpoint before")


def _require_resumable(path: Path, overrides: Sequence[str]) -> None:
    table = options_of(type(read_job(path).options))
    allowed = [name for name, option in table.items() if option.resumable]
    for text in overrides:
        name = text.partition("=")[0].strip()
        if name in table and name not in allowed:
            known = f"expected one of {', '.join(allowed)}" if allowed else "no key of this kind of job may change"
            raise JobError(
                f"--set {text}: {name} cannot change within a run; {known}; start a new run with another output"
            )


def _require_input(path: Path, job: Job) -> None:
    began = started_in(path)
    source = getattr(job.options, "input", None)
    if source and not source.exists() and began and (began / source).exists():
        raise JobError(
            f"{path}: {source} is not there seen from {Path.cwd()}; the run was started in another folder; "
            f"'cd {began}' first"
        )


def _carry_out(job: Job, from_checkpoint: bool, comm) -> int:
    with watching(job.options.output, comm):
        ended = _ended(job, from_checkpoint, comm)
    if comm.rank == 0:
        report = reported(job.options.output) if ended == "done" else []
        with suppress(BrokenPipeError):   # `vitrea run … | head` has left; the run is done all the same
            for line in report + _ending_lines(job.options.output, ended):
                print(line, flush=True)
    return 0


def _ended(job: Job, from_checkpoint: bool, comm) -> str:
    if getattr(job.options, "follow", None) is None:
        return job.type.load_runner()(job.options, resume=from_checkpoint, comm=comm)
    from vitrea.jobs.follow import follow

    return follow(job, reported, comm=comm)


def reported(folder: Path) -> list[str]:
    """Write report.html, and what RELION needs to open the run; what went wrong, if something did: no page is worth a
    run of hours that counts as failed."""
    from vitrea.jobs.report import write_report

    try:
        write_report(folder)
    except Exception as error:
        return [f"report.html could not be written ({error}); 'vitrea report {folder}' tries again"]
    return []


def _ending_lines(folder: Path, ended: str) -> list[str]:
    if ended == "stopped":
        return [f"stopped before the end; go on with 'vitrea resume {folder}'"]
    return [f"  {folder / name!s:<40} {words}" for name, words in RESULTS.items() if (folder / name).exists()]


def told_of(folder: Path, made: list[Path], message: str, mistake: bool, comm) -> None:
    """What end_together tells of a run that began anew, its folders `made` for it: a mistake that ended it at once
    leaves nothing behind, for the corrected job to begin; all else is its log's last line."""
    if mistake and comm.rank == 0 and not (folder / CHECKPOINT_NAME).exists():
        _take_back(folder, made)
    else:
        _log_failure(folder, message, comm)


def _take_back(folder: Path, made: list[Path]) -> None:
    """Leave nothing of a run that a mistake ended before its first checkpoint: the corrected job may use the folder."""
    with suppress(OSError):
        for name in (JOB_NAME, LINES_NAME, RECORDS_NAME, SKIPPED_NAME, ARRIVED_NAME):
            (folder / name).unlink(missing_ok=True)
        for each in made:
            each.rmdir()


def watching(folder: Path, comm) -> AbstractContextManager[None]:
    """A context in which a rank that does not come ends the run, with a word on stderr and in the log of `folder`."""
    from vitrea.engine.comm import watchdog

    def told(message: str, rank: int | None, host: str | None) -> None:
        print(f"vitrea: {message}", file=sys.stderr, flush=True)
        _log_failure(folder, message, comm, rank, host)

    return watchdog(folder, told, comm=comm)


def _log_failure(folder: Path, message: str, comm, rank: int | None = None, host: str | None = None) -> None:
    """The last line of the log, unless the run wrote it. Any rank may be the one that failed."""
    with suppress(OSError, JobError):
        records = read_records(folder / RECORDS_NAME)
        if records and records[-1]["kind"] == "failed":
            return
        at = next((record for record in reversed(records) if "iteration" in record), {})
        with RunLog(folder, echo=False) as log:
            log.tell(
                "failed", iteration=at.get("iteration"), phase=at.get("phase"),
                rank=comm.rank if rank is None else rank, ranks=comm.size, host=host or platform.node(),
                message=message,
            )


def _check_lines(path: Path, job: Job, table: object, planned: object, ranks: int) -> list[str]:
    groups = len(table.optics)
    voltages = sorted({group.voltage for group in table.optics if group.voltage})
    optics = "1 optics group" if groups == 1 else f"{groups} optics groups"
    optics += "   " + ", ".join(f"{voltage:.4g}" for voltage in voltages) + " kV" if voltages else ""
    a_rank = f"{format_bytes(planned.memory_per_rank_bytes)} a rank"
    whole = f"{format_bytes(planned.memory_per_rank_bytes * ranks)} on {ranks} ranks" if ranks > 1 else "on 1 rank"
    return [
        f"{path}   {job.type.name}   {job.options.n_classes or 'auto'} classes   into {job.options.output}",
        f"particles   {planned.particles:,} in {job.options.input}   {planned.particles_per_rank:,} a rank",
        f"images      box {planned.box_size} px   {planned.pixel_size:.4g} Å/px   {optics}",
        f"{planned.work_name:<12}{planned.work}",
        f"memory      {a_rank}, {whole}; at most {format_bytes(planned.memory_at_most_bytes)} a rank",
        f"disk        {format_bytes(planned.disk_bytes)}{_scratch_words(job.options, planned, ranks)}",
    ]


def _doubts(options: object, planned: object) -> list[str]:
    """What a job may mean, but is more often a slip: each in one line."""
    doubts = []
    members = planned.particles / (options.n_classes or 1)
    share = options.particle_diameter / (planned.box_size * planned.pixel_size)
    if members < FEW_MEMBERS:
        doubts.append(f"n_classes: {options.n_classes} for {planned.particles:,} particles are {members:.1f} particles "
                      "a class; a hundred is usual")
    if share < SMALL_IN_BOX:
        doubts.append(f"particle_diameter: {options.particle_diameter:g} Å is {100 * share:.0f} % of the box; 50 to "
                      "85 % is usual; is it in Å?")
    return [f"doubtful    {words}" for words in doubts]


def _scratch_words(options: object, planned: object, ranks: int) -> str:
    """Where the particles are kept, if it is not in memory."""
    if planned.storage == "memory":
        return ""
    a_rank = planned.scratch_per_rank_bytes
    return (f"; while it runs {format_bytes(a_rank)} a rank, {format_bytes(a_rank * ranks)} in all, in "
            f"{options.scratch or options.output}")


def version() -> str:
    return importlib.metadata.version("vitrea")
