"""Batch scripts for Slurm, PBS Pro and OpenPBS, and Torque: the one place where they are written.

What is asked of a scheduler is a `Request`; a dialect says it in the scheduler's words, and the templates in
jobs/templates (or a site's own) are the script around it. Nothing reaches a shell unquoted: values of directives are of
harmless characters only, paths are never part of a directive, and every other word is quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from vitrea.engine.errors import JobError

TEMPLATES = Path(__file__).with_name("templates")
LONGEST_NAME = 15    # characters of a job's name, of older PBS
HARMLESS = re.compile(r"[A-Za-z0-9_.:@+=,/-]+")   # of a queue, an account, a project


@dataclass(frozen=True)
class Request:
    """What a batch job is given: `ranks` on `nodes` (None: wherever there is room), `threads` cores each; seconds of
    wall time; memory of a node [GB]; `leave` seconds before the end it is told to leave (0: it is not); array of task
    numbers; extra directives as the scheduler writes them."""

    name: str
    ranks: int
    threads: int
    seconds: int
    nodes: int | None = None
    queue: str | None = None
    account: str | None = None
    memory: float | None = None
    leave: int = 0
    exclusive: bool = False
    array: str | None = None
    directives: Sequence[str] = ()

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // (self.nodes or 1)


class Slurm:
    """sbatch, squeue, scancel."""

    name, prefix, array_variable, job_variable = "slurm", "#SBATCH", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"
    launchers = ("srun", "mpiexec", "mpirun")
    arrays_are_ranges = False
    timer = False   # Slurm itself sends the signal

    def directives(self, request: Request) -> list[str]:
        lines = [f"--job-name={request.name}", f"--cpus-per-task={request.threads}",
                 f"--time={clock(request.seconds, days=True)}",
                 f"--output={request.name}-{'%A-%a' if request.array else '%j'}.out", "--open-mode=append"]
        lines += [f"--nodes={request.nodes}", f"--ntasks-per-node={request.ranks_per_node}"] if request.nodes else \
            [f"--ntasks={request.ranks}"]
        lines += [f"--partition={request.queue}"] if request.queue else []
        lines += [f"--account={request.account}"] if request.account else []
        lines += [f"--mem={round(1000 * request.memory)}M"] if request.memory else []
        lines += [f"--signal=B:USR1@{request.leave}", "--requeue"] if request.leave else []
        lines += ["--exclusive"] if request.exclusive else []
        lines += [f"--array={request.array}"] if request.array else []
        return lines

    def submit(self, script: str, after: str | None = None) -> list[str]:
        return ["sbatch", "--parsable", *([f"--dependency=afterok:{after}"] if after else []), script]

    def submitted(self, said: str) -> str:
        return said.strip().splitlines()[-1].split(";")[0]

    def cancel(self, number: str) -> list[str]:
        return ["scancel", number]

    def again(self, number: str, script: str) -> list[str]:
        """The job itself goes back into the queue, and keeps its number."""
        return ["scontrol", "requeue", number]

    def move_dependent(self, number: str, after: str) -> list[str] | None:
        return None

    def state(self, number: str) -> list[str]:
        return ["squeue", "--noheader", f"--jobs={number}", "--states=all", "--format=%T %r"]

    def preemption(self, number: str) -> list[str] | None:
        """What tells whether a job must leave its nodes to another: PreemptTime=None, or a time."""
        return ["scontrol", "show", "job", number]

    def state_words(self, said: str) -> str:
        """`pending (Resources)`; "" if the scheduler does not know the job any more."""
        state, _, reason = (said.strip().splitlines() or [""])[0].partition(" ")
        return state.lower() + (f" ({reason})" if reason not in ("", "None") else "")


class Pbs:
    """qsub, qstat, qdel of PBS Pro and OpenPBS."""

    name, prefix, array_variable, job_variable = "pbs", "#PBS", "PBS_ARRAY_INDEX", "PBS_JOBID"
    launchers = ("mpiexec", "mpirun", "aprun")
    arrays_are_ranges = True
    timer = True

    def directives(self, request: Request) -> list[str]:
        lines = [f"-N {request.name}", f"-l {self._chunks(request)}", f"-l walltime={clock(request.seconds)}", "-j oe"]
        place = "scatter" if request.nodes else "free"
        lines += [f"-l place={place}{':exclhost' if request.exclusive else ''}"]
        lines += ["-r y"] if request.leave else []
        lines += [f"-q {request.queue}"] if request.queue else []
        lines += [f"-A {request.account}"] if request.account else []
        lines += [f"-J {request.array}"] if request.array else []
        return lines

    def _chunks(self, request: Request) -> str:
        count, ranks = (request.nodes, request.ranks_per_node) if request.nodes else (request.ranks, 1)
        words = f"select={count}:ncpus={ranks * request.threads}:mpiprocs={ranks}:ompthreads={request.threads}"
        return words + (f":mem={round(1000 * request.memory)}mb" if request.memory else "")

    def submit(self, script: str, after: str | None = None) -> list[str]:
        return ["qsub", *(["-W", f"depend=afterok:{after}"] if after else []), script]

    def submitted(self, said: str) -> str:
        return said.strip().splitlines()[-1]

    def cancel(self, number: str) -> list[str]:
        return ["qdel", number]

    def again(self, number: str, script: str) -> list[str]:
        """A new job, of the same script."""
        return self.submit(script)

    def move_dependent(self, number: str, after: str) -> list[str] | None:
        """What lets a job that waits for the one before wait for the new one."""
        return ["qalter", "-W", f"depend=afterok:{after}", number]

    def state(self, number: str) -> list[str]:
        return ["qstat", "-x", "-f", number]

    def preemption(self, number: str) -> list[str] | None:
        """PBS puts a job that it preempts back into the queue by itself, if it may be run again (-r y)."""
        return None

    def state_words(self, said: str) -> str:
        """`running`; "" if the scheduler does not know the job any more."""
        fields = dict(re.findall(r"^\s*(job_state|comment|Exit_status) = (.*)$", said, re.MULTILINE))
        return PBS_STATES.get(fields.get("job_state", "").strip(), fields.get("job_state", "").strip())


class Torque(Pbs):
    """qsub, qstat, qdel of Torque."""

    name, array_variable = "torque", "PBS_ARRAYID"
    arrays_are_ranges = False

    def directives(self, request: Request) -> list[str]:
        kept = [line for line in super().directives(request) if not line.startswith(("-l select", "-l place", "-J"))]
        nodes, per_node = (request.nodes, request.ranks_per_node) if request.nodes else (request.ranks, 1)
        kept.insert(1, f"-l nodes={nodes}:ppn={per_node * request.threads}")
        kept += [f"-l mem={round(1000 * request.memory * nodes)}mb"] if request.memory else []
        kept += ["-n"] if request.exclusive else []
        return kept + ([f"-t {request.array}"] if request.array else [])

    def state(self, number: str) -> list[str]:
        return ["qstat", "-f", number]


PBS_STATES = {"Q": "pending", "H": "held", "W": "waiting", "R": "running", "E": "ending", "S": "suspended",
              "F": "finished", "C": "finished", "M": "moved", "B": "running", "X": "finished", "T": "moving"}
SCHEDULERS = {dialect.name: dialect for dialect in (Slurm(), Pbs(), Torque())}


class BatchTemplate(Template):
    """`@name` stands for a value, `@@` for @: $ belongs to the shell."""

    delimiter = "@"


def script(scheduler: str, request: Request, commands: str, *, folder: Path, setup: str = "",
           template: Path | None = None) -> str:
    """A batch script: directives, the lines of `setup` (the site's own shell), and `commands` in `folder`.

    template: a site's own in place of jobs/templates/batch.sh. JobError if it cannot be read or lacks a part, or if a
    value has characters that a directive does not take.
    """
    dialect = SCHEDULERS[scheduler]
    require_harmless({"queue": request.queue, "account": request.account, "name": request.name})
    lines = [*dialect.directives(request), *request.directives]
    values = {"directives": "\n".join(f"{dialect.prefix} {line}" for line in lines), "setup": setup.rstrip("\n"),
              "folder": quoted(folder), "commands": commands.rstrip("\n")}
    text = filled(template or TEMPLATES / "batch.sh", values, required=("directives", "folder", "commands"))
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def filled(path: Path, values: Mapping[str, object], required: Iterable[str] = ()) -> str:
    """A template with `@name` replaced by values; JobError if it cannot be read, or asks for another name."""
    try:
        template = BatchTemplate(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read as a template ({error}); expected a text file with @directives, "
                       "@folder and @commands; correct template in the site's profile") from error
    missing = [name for name in required if not re.search(rf"@\{{?{name}\b", template.template)]
    if missing:
        raise JobError(f"{path}: @{missing[0]} is not in the template; expected @directives, @folder and @commands; "
                       "add it")
    try:
        return template.substitute(values)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"@{name}" for name in values)
        raise JobError(f"{path}: {error} is not a part of batch scripts; expected {known}; write @@ for @ itself"
                       ) from error


def require_harmless(values: Mapping[str, str | None]) -> None:
    """JobError for a value that a directive would not take as one word."""
    for name, value in values.items():
        if value is not None and not HARMLESS.fullmatch(value):
            raise JobError(f"{name}: '{value}' was found; expected letters, digits and . _ : @ + = , / - only; "
                           "a directive of a batch script takes no others")


def quoted(*words: object) -> str:
    """Words as a shell takes them, each for itself."""
    return shlex.join(str(word) for word in words)


def clock(seconds: int, days: bool = False) -> str:
    """`30:00:00`, or for Slurm `1-06:00:00`."""
    hours, rest = divmod(int(seconds), 3600)
    tail = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours // 24}-{hours % 24:02d}:{tail}" if days and hours >= 24 else f"{hours:02d}:{tail}"


def seconds_of(text: str) -> int:
    """Seconds of `H:MM:SS`, `MM:SS`, `D-HH:MM:SS` or a number of minutes; ValueError otherwise."""
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise ValueError(text)
    numbers = [int(part) for part in parts]
    if any(number > 59 for number in numbers[1:]):
        raise ValueError(text)
    if len(numbers) == 1:
        numbers = [numbers[0], 0, 0] if dash else [0, numbers[0], 0]
    elif len(numbers) == 2:
        numbers = [*numbers, 0] if dash else [0, *numbers]
    return ((int(days) if dash else 0) * 24 + numbers[0]) * 3600 + numbers[1] * 60 + numbers[2]


def job_name(stem: str) -> str:
    """A name that every scheduler takes: a letter first, harmless characters, at most 15 (older PBS)."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "job"
    named = f"vitrea-{plain}"
    if len(named) > LONGEST_NAME and plain[0].isalpha():
        named = plain
    return named[:LONGEST_NAME].rstrip("-")
