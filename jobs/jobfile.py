"""Job files: YAML to options, options to YAML, and a sentence with the line for every mistake.

YAML gives the structure and the line numbers only. What a value means is decided by the key (`Option.parse`), so a job
file and `--set key=value` are read alike and YAML 1.1's guesses (`no` is false, `1e-3` is a text) do no harm.
"""

from __future__ import annotations

import difflib
import importlib
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from vitrea.engine.dynamics_options import DynamicsOptions
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import (
    SECTIONS,
    Classify2dOptions,
    ClusterOptions,
    Deep2dOptions,
    JobOptions,
    Option,
    OptionError,
    format_value,
    options_of,
)
from vitrea.jobs.bench_job import BenchOptions
from vitrea.jobs.select_job import SelectOptions
from vitrea.jobs.simulation import SimulateMicrographsOptions, SimulateParticlesOptions
from vitrea.picker.options import ExtractOptions, PickOptions, PickTrainOptions, RecurseOptions

JOB_NAME = "job.yaml"
PIPELINE, CLUSTER = "pipeline", "cluster"   # the job of jobs/pipeline.py; the group of keys of jobs/schedulers.py


@dataclass(frozen=True)
class JobType:
    """A kind of job: its keys, the function that runs it, and the one that tells beforehand what a run will need.

    All are `module:function`, imported when they are wanted. runner: `function(options, *, resume, comm) -> "done" |
    "stopped"`; planner, of a job on particles: `function(options, table, n_ranks) -> plan` (engine/plan.py); checker,
    `function(options) -> lines`, looks a job over where it is no job on particles. products: what a later stage of a
    pipeline may take, its name and its place in the run folder.
    """

    name: str
    summary: str
    options: type[JobOptions]
    runner: str
    planner: str = ""
    checker: str = ""
    products: Mapping[str, str] = field(default_factory=dict)

    def load_runner(self) -> Callable[..., str]:
        return _load(self.runner)

    def load_planner(self) -> Callable[..., object]:
        return _load(self.planner)

    def load_checker(self) -> Callable[[JobOptions], list[str]]:
        return _load(self.checker)


def _load(place: str) -> Callable[..., object]:
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


PICKER_MODEL = {"model": "model.npz"}
CLASSIFIED = {"particles": "run_data.star", "classes": "run_classes.mrcs", "model": "run_model.star"}

JOBS = {
    job_type.name: job_type
    for job_type in (
        JobType(
            "classify2d",
            "particle images to two-dimensional class averages",
            Classify2dOptions,
            "vitrea.engine.classify2d:run",
            "vitrea.engine.plan:plan",
            products=CLASSIFIED,
        ),
        JobType(
            "cluster",
            "aligned particles to many class averages, by manifold learning",
            ClusterOptions,
            "vitrea.engine.cluster:run",
            "vitrea.engine.cluster_plan:plan_cluster",
            products=CLASSIFIED,
        ),
        JobType(
            "deep2d",
            "particle images to few classes, and these split for as long as it pays",
            Deep2dOptions,
            "vitrea.engine.deep2d:run",
            "vitrea.engine.cluster_plan:plan_deep2d",
            products=CLASSIFIED,
        ),
        JobType(
            "pick-train",
            "labelled micrographs to a picker's model",
            PickTrainOptions,
            "vitrea.picker.pick_train:run",
            checker="vitrea.picker.pick_train:check",
            products=PICKER_MODEL,
        ),
        JobType(
            "pick",
            "micrographs to coordinates, by a model",
            PickOptions,
            "vitrea.picker.pick_job:run",
            checker="vitrea.picker.pick_job:check",
            products={"coordinates": "coordinates", "index": "autopick.star"},
        ),
        JobType(
            "recurse",
            "labelled and other micrographs to a picker's model that has also learned from its own picks",
            RecurseOptions,
            "vitrea.picker.recurse:run",
            checker="vitrea.picker.recurse:check",
            products=PICKER_MODEL,
        ),
        JobType(
            "extract",
            "coordinates and micrographs to a stack of particles",
            ExtractOptions,
            "vitrea.picker.extract:run",
            checker="vitrea.picker.extract:check",
            products={"particles": "particles.star"},
        ),
        JobType(
            "select",
            "a finished run to the particles of the classes that fulfil rules",
            SelectOptions,
            "vitrea.jobs.select_job:run",
            checker="vitrea.jobs.select_job:check",
            products={"particles": "selected.star", "rejected": "rejected.star"},
        ),
        JobType(
            "simulate-particles",
            "a specimen to particle images, and their truth",
            SimulateParticlesOptions,
            "vitrea.jobs.simulation:run_particles",
            checker="vitrea.jobs.simulation:check",
            products={"particles": "particles.star", "truth": "truth.star"},
        ),
        JobType(
            "simulate-micrographs",
            "a specimen to micrographs, and their truth",
            SimulateMicrographsOptions,
            "vitrea.jobs.simulation:run_micrographs",
            checker="vitrea.jobs.simulation:check",
            products={"micrographs": "micrographs.star", "coordinates": "coordinates", "ignore": "ignore"},
        ),
        JobType(
            "dynamics",
            "an experiment on the physics of stochastic gradient descent",
            DynamicsOptions,
            "vitrea.engine.dynamics:run",
            checker="vitrea.engine.dynamics:check",
            products={"result": "result.json"},
        ),
        JobType(
            "bench",
            "a measurement of this machine, one of 'vitrea bench'",
            BenchOptions,
            "vitrea.jobs.bench_job:run",
            checker="vitrea.jobs.bench_job:check",
            products={"records": "bench.jsonl"},
        ),
    )
}


@dataclass(frozen=True)
class Job:
    """A job that can be run: every key has a value of its type and range."""

    type: JobType
    options: JobOptions


@dataclass(frozen=True)
class Entry:
    """A text given for a key, and where: `job.yaml:4` or `--set`; is_list, if YAML's own list is what was given."""

    text: str
    where: str
    is_list: bool = False


def read_job(path: Path, overrides: Iterable[str] = ()) -> Job:
    """The job of a YAML file, with `key=value` overrides (of `--set`) over it.

    Raises JobError, with the line, for a file that cannot be read or is not YAML, for an unknown job or key, a key
    given twice, a missing key, and a value of a wrong type or range.
    """
    entries = entries_of(path, compose(Path(path)), apart=(CLUSTER,))
    job_type = job_type_of(path, entries.pop("job", None))
    for text in overrides:
        name, entry = override(text, job_type)
        entries[name] = entry
    return resolve(path, job_type, entries)


def kind_of_file(path: Path) -> str | None:
    """The kind of job that a file says it is, known or not; JobError if it cannot be read or is not YAML."""
    root = compose(Path(path))
    pairs = root.value if isinstance(root, yaml.MappingNode) else ()
    return next((str(value.value) for key, value in pairs if key.value == "job"), None)


def resolve(where: object, job_type: JobType, entries: Mapping[str, Entry]) -> Job:
    """The job of the entries of a file or a stage, which begins at `where`; JobError as read_job."""
    for name, entry in entries.items():
        _require_known(name, entry.where, options_of(job_type.options), job_type)
    return Job(job_type, _options(where, job_type, entries))


def template(job_type: JobType) -> str:
    """A commented job file with every key, its unit and its default: what `vitrea new` prints."""
    lines = [
        f"# {job_type.name}: {job_type.summary}.",
        f"#   vitrea check {JOB_NAME}               is everything there, and how much memory will it take?",
        f"#   mpiexec -n 8 vitrea run {JOB_NAME}    run it on eight ranks; without mpiexec, on one",
        f"# {_needed(job_type)} needed; every other key stands at its default.",
        "",
        f"job: {job_type.name}",
    ]
    table = options_of(job_type.options).values()
    for section, heading in SECTIONS.items():
        members = [option for option in table if option.section == section]
        if members:
            lines += ["", f"# {heading}"]
            lines += [line for option in members for line in _template_lines(option)]
    return "\n".join(lines) + "\n"


def _needed(job_type: JobType) -> str:
    names = [name for name, option in options_of(job_type.options).items() if option.required]
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def write_job(path: Path, job: Job, notes: Iterable[str]) -> None:
    """Write the resolved job, every key with its value, under notes as comments; whole or not at all."""
    lines = [f"# {note}" for note in notes] + [f"job: {job.type.name}"]
    lines += [f"{name}: {format_value(getattr(job.options, name))}" for name in options_of(job.type.options)]
    with written_beside(path) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")


RESOLVED = "Every key, as resolved from the job file, --set and the defaults."


def resolved_notes(version: str, host: str, ranks: int, folder: Path, words: str = RESOLVED) -> list[str]:
    """What a resolved job.yaml says of its origin: version, host, ranks, date (UTC), working directory; and words."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    origin = f"vitrea {version} on {host}, {ranks} rank{'s' if ranks > 1 else ''}, {date}"
    # A folder whose name has an end of line in it would end the comment.
    return [origin, *([f"{_STARTED_IN}{folder}"] if str(folder).isprintable() else []), words]


def started_in(path: Path) -> Path | None:
    """The working directory that a resolved job.yaml was started in, if it says so."""
    for line in _read_text(Path(path)).splitlines():
        if line.startswith(f"# {_STARTED_IN}"):
            return Path(line.removeprefix(f"# {_STARTED_IN}"))
    return None


def keys_document() -> str:
    """docs/job-keys.md: a table of all keys for every kind of job."""
    parts = ["# Job keys\n", _KEYS_PREFACE]
    for job_type in JOBS.values():
        parts.append(f"## {job_type.name}: {job_type.summary}\n")
        for section, heading in SECTIONS.items():
            members = [option for option in options_of(job_type.options).values() if option.section == section]
            if members:
                parts.append(f"### {heading}\n\n{_TABLE_HEAD}\n" + "\n".join(map(_table_row, members)) + "\n")
    return "\n".join(parts)


_STARTED_IN = "started in "
_KEYS_PREFACE = """\
Made by `make docs` from the table in engine/options.py. `vitrea new TYPE` prints the same as a commented job file.

A job file is YAML: one `key: value` a line, `job: TYPE` among them. Paths are relative to the working directory, as in
RELION. Any key can be changed for one run: `vitrea run job.yaml --set n_classes=100`. `null` is no value. Keys marked ↻
may be changed when a run is resumed: `vitrea resume RUN_DIR --set threads=2`.
"""
_TABLE_HEAD = "| key | default | takes | meaning |\n|---|---|---|---|"


def entries_of(path: Path, node: yaml.Node, apart: Iterable[str] = ()) -> dict[str, Entry]:
    """The `key: value` lines of a node of a file, without the keys `apart`, which are the caller's to read."""
    if not isinstance(node, yaml.MappingNode):
        raise JobError(
            f"{path}:{node.start_mark.line + 1}: no 'key: value' lines were found; "
            "expected lines such as 'job: classify2d'; 'vitrea new classify2d' prints a job file to start from"
        )
    entries: dict[str, Entry] = {}
    for key, value in node.value:
        where, name = f"{path}:{key.start_mark.line + 1}", str(key.value)
        if name in entries:
            raise JobError(f"{where}: key '{name}' is given again, after {entries[name].where}; keep one of the lines")
        entries[name] = Entry("", where) if name in apart else _entry(name, value, where)
    return {name: entry for name, entry in entries.items() if name not in apart}


def _entry(name: str, value: yaml.Node, where: str) -> Entry:
    is_list = isinstance(value, yaml.SequenceNode)
    parts = value.value if is_list else [value]
    if not all(isinstance(part, yaml.ScalarNode) for part in parts):
        kind = "a list of lists or keys" if is_list else "a group of keys"
        raise JobError(f"{where}: {name} is {kind}; expected one value; write '{name}: value' on one line")
    return Entry(", ".join(part.value for part in parts), where, is_list)


def compose(path: Path) -> yaml.Node:
    """The nodes of a YAML file, with their lines; JobError if it cannot be read, is not YAML or is empty."""
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # An open quote is noticed at the end of the file; the line that opens it is the one to mend.
        mark = error.context_mark if "quoted" in (error.context or "") else error.problem_mark
        line = mark.line if mark else 0
        raise JobError(f"{path}:{line + 1}: {_yaml_sentence(text, line, error)}") from error
    except yaml.reader.ReaderError as error:
        raise JobError(
            f"{path}: character number {error.position + 1} is not text; expected a YAML file in UTF-8; "
            "is this the job file?"
        ) from error
    if root is None:
        raise JobError(f"{path}: the file is empty; expected a job; 'vitrea new classify2d > {path}' makes one")
    return root


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError(
            f"{path}: there is no such file; expected a job file; 'vitrea new classify2d > {path}' makes one"
        ) from error
    except OSError as error:
        raise JobError(
            f"{path}: cannot be read: {error.strerror}; expected a job file; check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path}: byte number {error.start + 1} is not text; expected a YAML file in UTF-8; is this the job file?"
        ) from error


def _yaml_sentence(text: str, line: int, error: yaml.MarkedYAMLError) -> str:
    lines = text.splitlines()
    shown = lines[line].strip() if line < len(lines) else ""
    if "\t" in (lines[line] if line < len(lines) else ""):
        return "a tab was found; YAML takes spaces only; replace the tab by spaces"
    found = f"'{shown}' is not YAML" if shown else "the file ends too early for YAML"
    return f"{found} ({error.problem}); expected 'key: value'; put quotes around a value that holds ': ' or ' #'"


def job_type_of(path: Path, entry: Entry | None) -> JobType:
    """The kind of job that the entry `job` of a file or stage names."""
    known = ", ".join([*JOBS, PIPELINE])
    if entry is None:
        raise JobError(f"{path}: key 'job' is missing; expected one of {known}; add a line such as 'job: classify2d'")
    _require_one("job", entry)
    if entry.text == PIPELINE:
        raise JobError(f"{entry.where}: this is a pipeline; expected a single job, one of {', '.join(JOBS)}; give one "
                       "of its stages")
    if entry.text not in JOBS:
        remedy = suggestion(entry.text, [*JOBS, PIPELINE]) or f"expected one of {known}"
        raise JobError(f"{entry.where}: unknown job '{entry.text}'; {remedy}")
    return JOBS[entry.text]


def override(text: str, job_type: JobType) -> tuple[str, Entry]:
    """The key and the entry of a `key=value` of `--set`."""
    name, equals, value = text.partition("=")
    name, where = name.strip(), f"--set {text}"
    if not equals or not name:
        raise JobError(f"{where}: no '=' was found; expected key=value; write for example --set n_classes=100")
    if name == "job":
        raise JobError(f"{where}: the kind of job cannot be changed; 'vitrea new {value}' prints a file for another")
    _require_known(name, where, options_of(job_type.options), job_type)
    return name, Entry(value, where)


def _require_known(name: str, where: str, table: Mapping[str, Option], job_type: JobType) -> None:
    if name not in table:
        remedy = suggestion(name, table) or f"'vitrea new {job_type.name}' prints all keys"
        raise JobError(f"{where}: unknown key '{name}'; {remedy}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean NAME?`, if a known name is like this one; "" if none is."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _options(path: object, job_type: JobType, entries: Mapping[str, Entry]) -> JobOptions:
    table = options_of(job_type.options)
    missing = [option for name, option in table.items() if option.required and name not in entries]
    if missing:
        names = ", ".join(option.name for option in missing)
        lines = " and ".join(f"'{option.name}: {format_value(option.example)}'" for option in missing)
        what = f"key {names} is missing" if len(missing) == 1 else f"keys {names} are missing"
        pronoun = "it" if len(missing) == 1 else "them"
        raise JobError(f"{path}: {what}; every {job_type.name} job needs {pronoun}; add for example {lines}")
    values = {name: value_of(table[name], entry) for name, entry in entries.items()}
    options = job_type.options(**values)
    for names, sentence in options.conflicts():
        where = [entries[name].where for name in names if name in entries]
        raise JobError(f"{where[0]}: {sentence}")
    return options


def value_of(option: Option, entry: Entry) -> object:
    """The value of an entry; JobError, with its place, if the key does not take it."""
    if not option.several:
        _require_one(option.name, entry)
    try:
        value = option.parse(entry.text)
    except OptionError as error:
        raise JobError(f"{entry.where}: {error}; {_remedy(option, entry)}") from error
    return value.expanduser() if isinstance(value, Path) else value


def _require_one(name: str, entry: Entry) -> None:
    if entry.is_list:
        raise JobError(f"{entry.where}: {name} is a list; expected one value; write '{name}: value' on one line")


def _remedy(option: Option, entry: Entry) -> str:
    close = suggestion(entry.text, option.choices) if option.choices else ""
    if close:
        return close
    example = format_value(option.example if option.default is MISSING or option.default is None else option.default)
    if entry.where.startswith("--set"):
        if option.several:   # without brackets and blanks, which a shell takes for its own
            example = example.strip("[]").replace(" ", "")
        return f"write for example --set {option.name}={example}"
    return f"write for example '{option.name}: {example}'"


def _template_lines(option: Option) -> list[str]:
    value = option.example if option.required else option.default
    head = f"{option.name}: {format_value(value)}"
    words = (f"[{option.unit}] " if option.unit else "") + option.help
    if option.null_means:
        words += f"; null: {option.null_means}"
    indent = max(_MARGIN, len(head) + 2)
    comments = textwrap.wrap(words, width=120 - indent - 2)
    comments += [f"  {choice:<18} {meaning}" for choice, meaning in (option.choices or {}).items()]
    return [f"{head:<{indent}}# {comments[0]}"] + [f"{'':<{indent}}# {comment}" for comment in comments[1:]]


_MARGIN = 28


def _table_row(option: Option) -> str:
    default = "needed" if option.required else f"`{format_value(option.default)}`"
    mark = " ↻" if option.resumable else ""
    meaning = option.help
    if option.choices:
        takes = "<br>".join(f"`{choice}`: {words}" for choice, words in option.choices.items())
    else:
        takes = option.expected()
    return f"| `{option.name}`{mark} | {default} | {takes} | {meaning} |"
