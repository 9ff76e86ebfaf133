"""Running a pipeline: its stages one after the other, on the ranks of one allocation.

Finished stages are left alone unless their keys or inputs have changed (jobs/ledger.py); one that was stopped goes on.
What a stage has made is never overwritten: if it has to be run anew, its folder is moved to `earlier/`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.comm import StopRequest, first_ranks, wait_for_all
from vitrea.engine.errors import JobError
from vitrea.engine.log import RECORDS_NAME, NullLog, RunLog, read_records
from vitrea.engine.options import options_of
from vitrea.jobs import run as jobs_run
from vitrea.jobs.jobfile import JOB_NAME, PIPELINE, resolved_notes, started_in
from vitrea.jobs.launcher import end_together, on_rank_0
from vitrea.jobs.ledger import LEDGER_NAME, Inputs, inputs_of, read_ledger, write_ledger
from vitrea.jobs.pipeline import Pipeline, Stage, read_pipeline, references, write_pipeline
from vitrea.jobs.processes import require_idle

EARLIER = "earlier"
SKIP, GO_ON, BEGIN = "skip", "go on", "begin"


def run(path: Path, overrides: Sequence[str], only: str | None, *, comm) -> int:
    """Run the stages of a pipeline file that are not done, or `only` this one; collective. The exit code."""
    pipeline = on_rank_0(lambda: _begun(read_pipeline(path, overrides), only, comm.size), comm=comm)
    return _together(pipeline, only, comm)


def resume(folder: Path, overrides: Sequence[str], only: str | None, *, comm) -> int:
    """Go on with the pipeline of a folder; collective. The exit code."""
    def read() -> Pipeline:
        began = started_in(folder / JOB_NAME)
        if began and began != Path.cwd() and began.exists():
            raise JobError(f"{folder}: this pipeline was started in another folder, and its paths are seen from there; "
                           f"expected the same; 'cd {began}' first")
        return read_pipeline(folder / JOB_NAME, overrides)

    pipeline = on_rank_0(lambda: _begun(read(), only, comm.size), comm=comm)
    return _together(pipeline, only, comm)


def _together(pipeline: Pipeline, only: str | None, comm) -> int:
    return end_together(lambda: _stages(pipeline, only, comm),
                        lambda message, mistake: _failed(pipeline, message, comm), comm=comm)


def check(path: Path, overrides: Sequence[str], ranks: int) -> list[str]:
    """Lines for `vitrea check`: every stage, whether it is done, and what those will need whose input is there."""
    pipeline = read_pipeline(path, overrides)
    _require_own(pipeline.output)
    known, lines = read_ledger(pipeline.output), [f"{path}   {PIPELINE}   {_count(pipeline)}   into {pipeline.output}"]
    ready = set()   # stages whose products are there, and stay
    for number, stage in enumerate(pipeline.stages, 1):
        lines += ["", f"stage {number} of {len(pipeline.stages)}   {stage.name}"]
        absent = [name for name in _taken_from(stage) if name not in ready]
        if absent:
            lines.append(f"{stage.job.type.name}   into {stage.folder}   after {', '.join(absent)}")
            continue
        decision = _considered(pipeline, stage, known.get(stage.name), _inputs_now(stage))
        if decision.what == SKIP:
            ready.add(stage.name)
            lines.append(f"{stage.job.type.name}   into {stage.folder}   done before")
            continue
        if decision.why:
            lines.append(f"{'is done anew' if decision.what == BEGIN else 'goes on'}   {decision.why}")
        lines += jobs_run.check_job(path, stage.job, min(ranks, stage.ranks or ranks), held=True)
    return [*lines, ""]


@dataclass(frozen=True)
class _Decision:
    """What to do about a stage, why, and where the folder of its earlier run was moved, if it was."""

    what: str
    why: str = ""
    moved: Path | None = None


def _begun(pipeline: Pipeline, only: str | None, ranks: int) -> Pipeline:
    """The pipeline, its folder made and its file written."""
    folder = pipeline.output
    names = [stage.name for stage in pipeline.stages]
    if only is not None and only not in names:
        raise JobError(f"--stage {only}: no stage is called so; expected one of {', '.join(names)}; choose another")
    _require_own(folder)
    require_idle(folder)
    jobs_run.make_folder(folder)
    write_pipeline(folder / JOB_NAME, pipeline, resolved_notes(jobs_run.version(), platform.node(), ranks, Path.cwd(),
                                                               "The stages, with --set over them."))
    jobs_run.clear_torn_files(folder)
    return pipeline


def _require_own(folder: Path) -> None:
    """The folder of a pipeline may hold that pipeline, and nothing else that a run makes."""
    if not (folder / LEDGER_NAME).exists():
        jobs_run.require_free(folder)


def _stages(pipeline: Pipeline, only: str | None, comm) -> int:
    with (StopRequest(comm=comm) as stop, _open_log(pipeline, comm) as log,
          jobs_run.watching(pipeline.output, comm)):
        log.record("start", job=PIPELINE, output=str(pipeline.output), host=platform.node(), ranks=comm.size,
                   process=os.getpid(), stages=[stage.name for stage in pipeline.stages])
        log.line(f"pipeline   {pipeline.output}   {_count(pipeline)}")
        for number, stage in enumerate(pipeline.stages, 1):
            if only is not None and stage.name != only:
                continue
            decision = on_rank_0(lambda stage=stage: _decide(pipeline, stage), comm=comm)
            _tell(log, pipeline, number, stage, decision)
            ended = "done" if decision.what == SKIP else _run_stage(stage, decision.what == GO_ON, comm)
            if ended == "stopped" or stop.agreed():
                log.tell("stopped", in_stage=stage.name, reason=stop.reason or "asked to stop")
                _say(comm, [f"stopped before the end; go on with 'vitrea resume {pipeline.output}'"])
                return 0
            if decision.what != SKIP:
                on_rank_0(lambda stage=stage: _settle(pipeline, stage), comm=comm)
                log.record("stage", stage=stage.name, number=number, state="done")
        log.tell("done", stages=1 if only else len(pipeline.stages))
        _say(comm, [f"  {stage.folder!s:<40} {stage.job.type.summary}" for stage in pipeline.stages])
        return 0


def _decide(pipeline: Pipeline, stage: Stage) -> _Decision:
    """What to do about a stage, noted in the ledger before it is done."""
    known = read_ledger(pipeline.output)
    waits = [name for name in _taken_from(stage) if not known.get(name, (None, False))[1]]
    if waits:
        raise JobError(f"stage {stage.name}: it takes what stage {waits[0]} makes, which is not done; expected that to "
                       f"be run before; leave --stage out, or run --stage {waits[0]} first")
    now = _inputs_now(stage)
    decision = _considered(pipeline, stage, known.get(stage.name), now)
    if decision.what == SKIP:
        return decision
    if decision.what == BEGIN and _is_held(stage):
        decision = _Decision(BEGIN, decision.why, _put_aside(stage))
    write_ledger(pipeline.output, known | {stage.name: (now, False)})
    return decision


def _inputs_now(stage: Stage) -> Inputs:
    """Keys and files of a stage; JobError, of the stage, if what its input lists is not there any more."""
    try:
        return inputs_of(stage.job)
    except JobError as mistake:
        raise JobError(f"stage {stage.name}: {mistake}") from mistake


def _is_held(stage: Stage) -> bool:
    return stage.folder.is_dir() and any(stage.folder.iterdir())


def _considered(pipeline: Pipeline, stage: Stage, known: tuple | None, now: Inputs) -> _Decision:
    """What to do about a stage, and why it is done anew where there is a run in its folder."""
    decision = _decision(pipeline, stage, known, now)
    if decision.what == BEGIN and _is_held(stage):
        return _Decision(BEGIN, decision.why or "nothing is known of the run in its folder")
    return decision


def _decision(pipeline: Pipeline, stage: Stage, known: tuple | None, now: object) -> _Decision:
    if known is None or not (stage.folder / JOB_NAME).exists():
        return _Decision(BEGIN)
    before, done = known
    keys, files = now.changed_keys(before), now.changed_files(before)
    resumable = {name for name, option in options_of(stage.job.type.options).items() if option.resumable}
    if files or not resumable.issuperset(keys):
        return _Decision(BEGIN, now.changes(before))
    if keys or not done:
        return _Decision(GO_ON, now.changes(before))
    gone = [path for path in pipeline.wanted(stage.name) if not path.exists()]
    return _Decision(BEGIN, f"{gone[0]} is gone") if gone else _Decision(SKIP)


def _put_aside(stage: Stage) -> Path:
    """Move the folder of a stage to earlier/NAME-1, or the next that is free; where it is now."""
    place = stage.folder.parent / EARLIER
    try:
        place.mkdir(exist_ok=True)
        number = next(i for i in range(1, 10**6) if not (place / f"{stage.name}-{i}").exists())
        return stage.folder.rename(place / f"{stage.name}-{number}")
    except OSError as error:
        raise JobError(f"{stage.folder}: the earlier run of this stage cannot be moved to {place} ({error.strerror}); "
                       "expected a writable folder; move or remove it") from error


def _settle(pipeline: Pipeline, stage: Stage) -> None:
    """Note that a stage is done; JobError if its inputs have changed while it ran."""
    known = read_ledger(pipeline.output)
    before, _ = known[stage.name]
    now = _inputs_now(stage)
    if now.changed_files(before):
        raise JobError(f"stage {stage.name}: {now.changes(before)} while it ran; expected input that stays as it is; "
                       f"'vitrea resume {pipeline.output}' runs the stage anew")
    write_ledger(pipeline.output, known | {stage.name: (before, True)})


def _run_stage(stage: Stage, go_on: bool, comm) -> str:
    """Run a stage on its ranks while the others wait: "done" or "stopped". A JobError of it is raised on all ranks."""
    part = first_ranks(min(stage.ranks or comm.size, comm.size), comm=comm)
    outcome = None
    if part is not None:
        try:
            outcome = (_run_here(stage, go_on, part), None)
        except JobError as mistake:
            outcome = (None, f"stage {stage.name}: {mistake}")
        part.Free()
    wait_for_all(comm=comm)
    ended, mistake = comm.bcast(outcome, root=0)
    if mistake:
        raise JobError(mistake)
    return ended


def _run_here(stage: Stage, go_on: bool, comm) -> str:
    from_checkpoint, made = on_rank_0(lambda: _prepared(stage, go_on, comm.size), comm=comm)
    ended: list[str] = []

    def work() -> int:
        ended.append(stage.job.type.load_runner()(stage.job.options, resume=from_checkpoint, comm=comm))
        if comm.rank == 0 and ended[0] == "done":
            _say(comm, jobs_run.reported(stage.folder))
        return 0

    def told(message: str, mistake: bool) -> None:
        jobs_run.told_of(stage.folder, made, message, mistake and not go_on, comm)

    end_together(work, told, comm=comm)
    return ended[0]


def _prepared(stage: Stage, go_on: bool, ranks: int) -> tuple[bool, list[Path]]:
    """(whether there is a checkpoint to go on from, folders that were made)."""
    made = jobs_run.make_folder(stage.folder)
    jobs_run.write_resolved(stage.job, ranks)
    jobs_run.clear_torn_files(stage.folder)
    jobs_run.mend_checkpoints(stage.folder)
    return go_on and (stage.folder / jobs_run.CHECKPOINT_NAME).exists(), made


def _open_log(pipeline: Pipeline, comm) -> RunLog | NullLog:
    return RunLog(pipeline.output, echo=True) if comm.rank == 0 else NullLog()


def _tell(log: RunLog, pipeline: Pipeline, number: int, stage: Stage, decision: _Decision) -> None:
    words = {SKIP: "done before", GO_ON: "goes on", BEGIN: "begins"}[decision.what]
    log.record("stage", stage=stage.name, number=number, state=decision.what, why=decision.why,
               folder=str(stage.folder), job=stage.job.type.name)
    log.line(f"stage {number} of {len(pipeline.stages)}   {stage.name}   {words}"
             + (f"   {decision.why}" if decision.why else ""))
    if decision.moved:
        log.line(f"its earlier run is kept in {decision.moved}; remove it if nothing refers to it")


def _failed(pipeline: Pipeline, message: str, comm) -> None:
    """The last line of the pipeline's log. Any rank may be the one that failed."""
    with suppress(OSError, JobError):
        records = read_records(pipeline.output / RECORDS_NAME)
        if records and records[-1]["kind"] == "failed":
            return
        with RunLog(pipeline.output, echo=False) as log:
            log.tell("failed", rank=comm.rank, ranks=comm.size, host=platform.node(), message=message)


def _taken_from(stage: Stage) -> list[str]:
    """The stages that a stage takes something from."""
    return list(dict.fromkeys(source for entry in stage.entries.values() for source, _ in references(entry.text)))


def _count(pipeline: Pipeline) -> str:
    return f"{len(pipeline.stages)} stage{'s' if len(pipeline.stages) > 1 else ''}"


def _say(comm, lines: Sequence[str]) -> None:
    if comm.rank == 0:
        with suppress(BrokenPipeError):
            for line in lines:
                print(line, flush=True)
