"""`vitrea submit`, `status`, `cancel`, and `requeue`, with which batch scripts end: runs in a scheduler's hands.

Everything is in the run folder: submit/job.yaml, the job as it was submitted; submit/NAME.sh, the script; and
submit/jobs.jsonl, a line for each job number. A script starts the run, or goes on with it if it was begun, passes on
the signal that comes before the end of the wall time, and leaves the rest to `vitrea requeue`.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.log import RECORDS_NAME, read_records
from vitrea.engine.options import format_value, options_of
from vitrea.jobs.allocation import ONLY_IN_PROFILES, Allocation, lines_of, read_allocation
from vitrea.jobs.jobfile import CLUSTER, JOB_NAME, PIPELINE, Job, kind_of_file, read_job, resolved_notes, write_job
from vitrea.jobs.pipeline import Pipeline, Stage, read_pipeline, write_pipeline
from vitrea.jobs.run import check_job, held_files, make_folder, version
from vitrea.jobs.schedulers import SCHEDULERS, TEMPLATES, Request, filled, job_name, quoted, script

SUBMIT, JOBS_NAME = "submit", "jobs.jsonl"
PATIENCE = 60.0     # seconds for an answer of the scheduler
PASSED_ON = ("SIGUSR1",)   # the end of the wall time: the run goes back into the queue


@dataclass(frozen=True)
class Batch:
    """One batch job: what it is called, the run folder that it works in, its script, what it asks for."""

    name: str
    output: Path
    allocation: Allocation
    text: str


def submit(path: Path, overrides: Sequence[str], asked: Sequence[str], *, separate: bool, dry: bool) -> int:
    """`vitrea submit`: write the scripts of a job file, or of a run folder to go on with, and hand them in.

    asked: `key=value` over the cluster section; separate: a pipeline's stages as jobs of their own, each after the one
    before; dry: print the scripts, and nothing else.
    """
    path = Path(path)
    again = path.is_dir()
    path = path / SUBMIT / JOB_NAME if again else path
    if kind_of_file(path) == PIPELINE:
        work: Pipeline | Job = read_pipeline(path, overrides)
        batches = _stage_batches(path, work, asked) if separate else [_pipeline_batch(path, work, asked)]
    elif separate:
        raise JobError(f"--separate: {path} is a single job; expected a pipeline; leave --separate out")
    else:
        allocation = read_allocation(path, asked)
        work = with_threads(read_job(path, overrides), allocation, path)
        if not again:
            check_job(path, work, allocation.ranks)
        batches = [_batch(job_name(work.options.output.name), work.options.output, allocation)]
    if dry:
        print("\n".join(batch.text for batch in batches), end="")
        return 0
    output = batches[0].output
    _require_not_at_work(output)
    made = make_folder(output / SUBMIT)
    try:
        _write_submitted(batches[0], work)
        _hand_in(batches)
    except JobError:
        _take_back(output, made)
        raise
    return 0


def _take_back(output: Path, made: Sequence[Path]) -> None:
    """Leave nothing of a submission that no scheduler took, in folders that were made for it."""
    if output / SUBMIT not in made or _jobs(output):
        return
    with suppress(OSError):
        shutil.rmtree(output / SUBMIT)
        for folder in made[1:]:
            folder.rmdir()


def with_threads(job: Job, allocation: Allocation, path: Path) -> Job:
    """The job with the threads of the allocation; JobError if it asks for others."""
    table = options_of(job.type.options)
    if "threads" not in table:
        return job
    if job.options.threads not in (table["threads"].default, allocation.threads):
        raise JobError(f"{path}: threads is {job.options.threads} in the job, and {allocation.threads} in its cluster "
                       "section; expected one number; leave it out of the job")
    return replace(job, options=replace(job.options, threads=allocation.threads))


def launcher_words(allocation: Allocation) -> list[str]:
    """What starts the ranks; JobError if it and the MPI library found here cannot work together: N copies of one rank
    would each do all the work. Where modules are loaded first, the library is not known here."""
    from vitrea.engine.comm import library_vendor

    vendor = "" if allocation.modules else library_vendor()
    words = allocation.launcher_words(vendor)
    protocol = next((word.partition("=")[2] for word in words if word.startswith("--mpi=")), "")
    spoken = {"MPICH": "pmi2", "Intel MPI": "pmi2", "Open MPI": "pmix"}.get(vendor, protocol)
    if protocol and not protocol.startswith(spoken):
        raise JobError(f"launcher: '{shlex.join(words)}' was found, but {vendor} is what mpi4py loads here; expected "
                       f"--mpi={spoken}, or mpiexec; change launcher in the cluster section")
    return words


def _pipeline_batch(path: Path, pipeline: Pipeline, asked: Sequence[str]) -> Batch:
    return _batch(job_name(pipeline.output.name), pipeline.output, read_allocation(path, asked))


def _stage_batches(path: Path, pipeline: Pipeline, asked: Sequence[str]) -> list[Batch]:
    return [_batch(job_name(stage.name), pipeline.output, read_allocation(path, asked, number), stage=stage)
            for number, stage in enumerate(pipeline.stages)]


def _batch(name: str, output: Path, allocation: Allocation, stage: Stage | None = None) -> Batch:
    dialect = SCHEDULERS[allocation.scheduler]
    values = {
        "threads": allocation.threads, "patience": f"{allocation.patience:.15g}",
        "output": quoted(output), "resolved": quoted(output / JOB_NAME),
        "job": quoted(output / SUBMIT / JOB_NAME), "launcher": quoted(*launcher_words(allocation)),
        "vitrea": quoted(sys.executable, "-m", "vitrea.jobs"), "number": f'"${dialect.job_variable}"',
        "words": f" --stage {quoted(stage.name)}" if stage else "",
        "timer": "", "endtimer": "",
    }
    if dialect.timer:
        values["timer"] = f"( trap - TERM; sleep {allocation.seconds - allocation.leave}; kill -USR1 $$ ) & timer=$!"
        values["endtimer"] = 'kill "$timer" 2>/dev/null'
    request = Request(name, allocation.ranks, allocation.threads, allocation.seconds, allocation.nodes,
                      allocation.queue, allocation.account, allocation.memory, allocation.leave,
                      directives=lines_of(allocation.directives))
    setup = [f"module load {quoted(*allocation.modules)}"] if allocation.modules else []
    text = script(allocation.scheduler, request, filled(TEMPLATES / "attend.sh", values), folder=Path.cwd(),
                  setup="\n".join([*setup, allocation.setup or ""]), template=allocation.template)
    return Batch(name, output, allocation, text)


def _write_submitted(batch: Batch, work: Pipeline | Job) -> None:
    """The job as it was submitted, its cluster section with it."""
    path = batch.output / SUBMIT / JOB_NAME
    notes = resolved_notes(version(), platform.node(), batch.allocation.ranks, Path.cwd(), "As it was submitted.")
    if isinstance(work, Pipeline):
        write_pipeline(path, work, notes)
    else:
        write_job(path, work, notes)
    section = [f"{CLUSTER}:"]
    for name, option in options_of(Allocation).items():
        value = getattr(batch.allocation, name)
        if name not in ONLY_IN_PROFILES and value != option.default:
            section.append(f"  {name}: {json.dumps(value) if isinstance(value, str) else format_value(value)}")
    text = path.read_text(encoding="utf-8")
    with written_beside(path) as beside:
        beside.write_text(text + "\n".join(section) + "\n", encoding="utf-8")


def _hand_in(batches: Sequence[Batch]) -> None:
    after, output = None, batches[0].output
    for batch in batches:
        place = output / SUBMIT / f"{batch.name}.sh"
        with written_beside(place) as beside:
            beside.write_text(batch.text, encoding="utf-8")
        dialect = SCHEDULERS[batch.allocation.scheduler]
        said = _asked(dialect.submit(place.name, after), place.parent)
        number = dialect.submitted(said)
        _note(output, number=number, after=after, scheduler=dialect.name, script=place.name,
              requeues=batch.allocation.requeues)
        print(f"submitted   {number}   {place}" + (f"   after {after}" if after else ""))
        after = number
    print(f"follow it with 'vitrea status {quoted(output)}' or 'vitrea watch {quoted(output)}'")


def _require_not_at_work(output: Path) -> None:
    for known in _jobs(output):
        state = _state(known)
        if state and not state.startswith(ENDED):
            raise JobError(f"{output}: job {known['number']} is {state}; expected a run that nobody works on; wait for "
                           f"it, or 'vitrea cancel {quoted(output)}' first")


ENDED = ("completed", "finished", "cancelled", "failed", "timeout", "node_fail", "out_of_memory", "deadline",
         "boot_fail")


# ---- afterwards

def status(folders: Sequence[Path]) -> int:
    """`vitrea status`: what the schedulers say of the jobs of run folders, and what the runs say of themselves."""
    for folder in folders:
        known = _known(folder)
        for each in known:
            print(f"{folder}   {each['script']}   job {each['number']}   {_state(each) or _unknown(each)}")
        print(f"{folder}   run: {_last_words(folder)}")
    return 0


def cancel(folders: Sequence[Path]) -> int:
    """`vitrea cancel`: take the jobs of run folders from the schedulers; a run that is at work writes a checkpoint."""
    for folder in folders:
        known = _known(folder)
        _note(folder, cancelled=True)
        for each in reversed(known):
            state = _state(each)
            if state and not state.startswith(ENDED):
                _asked(SCHEDULERS[each["scheduler"]].cancel(each["number"]), folder)
                print(f"cancelled   {each['number']}   {folder}")
    return 0


def requeue(folder: Path, number: str, code: int) -> int:
    """`vitrea requeue`: the end of a batch script. The exit code of the job.

    A run that is done is left alone. One that left because its time was over goes back into the queue, as often as its
    cluster section allows; one that was cancelled or failed does not.
    """
    folder = Path(folder)
    lines = _lines(folder)
    mine = next((line for line in reversed(lines) if line.get("number") == number), None)
    ending = (read_records(folder / RECORDS_NAME) or [{}])[-1]
    if ending.get("kind") != "stopped":
        return code
    if mine is None or any(line.get("cancelled") for line in lines[lines.index(mine):]):
        print(f"{folder}: stopped, and not submitted again", flush=True)
        return code
    dialect = SCHEDULERS[mine["scheduler"]]
    if ending.get("reason") not in PASSED_ON and not _preempted(dialect, number):
        print(f"{folder}: stopped by {ending.get('reason')}, and not submitted again", flush=True)
        return code
    left = mine["requeues"]
    if left < 1:
        raise JobError(f"{folder}: the run is not done, and has gone back into the queue as often as it may; expected "
                       f"more requeues in its cluster section; 'vitrea resume {quoted(folder)}' goes on with it")
    _again(folder, dialect, mine, left - 1)
    return 0


def _again(folder: Path, dialect: object, mine: dict, left: int) -> None:
    """Hand the script in again, and let the job that waits for this one wait for the new one."""
    same = dialect.again(mine["number"], mine["script"])[0] == "scontrol"
    if same:   # the job ends as soon as it is asked: what is known of it is noted before
        _note(folder, **mine | {"requeues": left})
        print(f"{folder}: goes back into the queue; {left} times are left", flush=True)
    said = _asked(dialect.again(mine["number"], mine["script"]), folder / SUBMIT)
    if same:
        return
    number = dialect.submitted(said)
    _note(folder, **mine | {"requeues": left, "number": number})
    print(f"{folder}: submitted again as {number}; {left} times are left", flush=True)
    for waiting in (line for line in _jobs(folder) if line.get("after") == mine["number"]):
        words = dialect.move_dependent(waiting["number"], number)
        if words:
            _asked(words, folder / SUBMIT)
            _note(folder, **waiting | {"after": number})


def _preempted(dialect: object, number: str) -> bool:
    """Whether the scheduler takes the nodes for somebody else; a job that its user has cancelled is not asked for."""
    words = dialect.preemption(number)
    try:
        return bool(words) and "PreemptTime=None" not in (said := _asked(words, Path.cwd())) and "PreemptTime=" in said
    except JobError:
        return False


def _state(known: dict) -> str:
    dialect = SCHEDULERS[known["scheduler"]]
    try:
        return dialect.state_words(_asked(dialect.state(known["number"]), Path.cwd()))
    except JobError:
        return ""   # a job that is long over is no longer known


def _unknown(known: dict) -> str:
    program = SCHEDULERS[known["scheduler"]].state(known["number"])[0]
    return "no longer known" if shutil.which(program) else f"not asked, for there is no {program} here"


def _asked(words: Sequence[str], folder: Path) -> str:
    """What a program of the scheduler says, run in `folder`; JobError with its words if it refuses or is not there."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError as error:
        raise JobError(f"{words[0]}: there is no such program here; expected the scheduler's commands on PATH; submit "
                       "from a login node of the cluster") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"{words[0]}: gave no answer ({error}); expected one within {PATIENCE:.0f} s; try again"
                       ) from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise JobError(f"{shlex.join(words)}: refused: {told[-1]}; expected the scheduler to take it; correct the "
                       "cluster section")
    return done.stdout


def _note(folder: Path, **line: object) -> None:
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds")} | line
    try:
        with open(folder / SUBMIT / JOBS_NAME, "ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())
    except OSError as error:
        raise JobError(f"{folder / SUBMIT / JOBS_NAME}: cannot be written: {error.strerror}; expected a run "
                       "folder with free space and write permission; make room") from error


def _lines(folder: Path) -> list[dict]:
    return read_records(folder / SUBMIT / JOBS_NAME)


def _jobs(folder: Path) -> list[dict]:
    """The last line about each job number, in the order of submission."""
    found: dict[str, dict] = {}
    for line in _lines(folder):
        if "number" in line:
            found[line["number"]] = line
    return list(found.values())


def _known(folder: Path) -> list[dict]:
    if not folder.is_dir():
        raise JobError(f"{folder}: there is no such folder; expected the output of a submitted job")
    known = _jobs(folder)
    if not known:
        raise JobError(f"{folder}: nothing was submitted for this folder; expected the output of a submitted job; "
                       "'vitrea submit JOB.yaml' submits one")
    return known


def _last_words(folder: Path) -> str:
    from vitrea.engine.log import format_record

    records = read_records(folder / RECORDS_NAME)
    if not records:
        return "has not begun" if not held_files(folder) else "has begun, and recorded nothing yet"
    words = format_record(records[-1])
    return f"{words[-1] if words else records[-1]['kind']}   ({records[-1]['time']})"
