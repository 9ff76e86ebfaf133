"""Pipelines: one job file whose stages are jobs, each of which takes what an earlier one has made.

A stage is a name and the keys of an ordinary job. It gets the folder `output/NAME`, and `${NAME.product}` in a later
stage stands for a product of it (JOBS in jobs/jobfile.py says which a kind of job has). Everything that can be wrong in
any stage is said before the first one begins. jobs/stages.py runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import Option, ParticleJobOptions, format_value
from vitrea.jobs import jobfile
from vitrea.jobs.jobfile import CLUSTER, PIPELINE, Entry, Job, JobType, entries_of, suggestion
from vitrea.jobs.select_job import SelectOptions
from vitrea.picker.options import MicrographOptions, PickOptions

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
REFERENCE = re.compile(r"\$\{([^{}]*)\}")
FOLDER = "folder"                             # the product that every stage has
RESERVED = ("earlier", "submit")              # folders of the pipeline itself
RANKS = Option("ranks", int, True, None, "ranks of this stage", minimum=1, null_means="all", example=4)


# What a key takes, by the places of products (JOBS in jobs/jobfile.py); a key that is not here takes anything.
PARTICLES = ("run_data.star", "particles.star", "truth.star", "selected.star", "rejected.star")
MICROGRAPHS = ("micrographs.star", "autopick.star")
TAKES = {
    (ParticleJobOptions, "input"): PARTICLES,
    (MicrographOptions, "input"): MICROGRAPHS,
    (MicrographOptions, "unlabelled"): MICROGRAPHS,
    (MicrographOptions, "coordinates"): ("coordinates",),
    (MicrographOptions, "ignore"): ("ignore",),
    (PickOptions, "model"): ("model.npz",),
    (SelectOptions, "input"): ("",),
}


@dataclass(frozen=True)
class Stage:
    """A job of a pipeline: its own folder, the ranks it is given (None: all), the products of others that it takes."""

    name: str
    job: Job
    ranks: int | None
    entries: Mapping[str, Entry]

    @property
    def folder(self) -> Path:
        return self.job.options.output


@dataclass(frozen=True)
class Pipeline:
    """The stages in their order, and the folder in which each has its own."""

    output: Path
    stages: tuple[Stage, ...]

    def wanted(self, name: str) -> list[Path]:
        """The products of a stage that other stages take."""
        made = next(stage for stage in self.stages if stage.name == name)
        taken = {product for stage in self.stages for entry in stage.entries.values()
                 for source, product in references(entry.text) if source == name}
        places = {FOLDER: "", **made.job.type.products}
        return [made.folder / places[product] for product in sorted(taken)]


def read_pipeline(path: Path, overrides: Iterable[str] = ()) -> Pipeline:
    """The pipeline of a YAML file, with `output=…` and `STAGE.key=value` of `--set` over it.

    Raises JobError, with the line, for whatever is wrong with a stage, and for a reference to what no earlier stage
    makes.
    """
    path = Path(path)
    root = jobfile.compose(path)
    top = entries_of(path, root, apart=("stages", CLUSTER))
    changes = _changes(overrides)
    output = _output(path, top, changes.pop("", {}))
    read = [_read_stage(path, node) for node in _stage_nodes(path, root)]
    _require_other_names(read)
    for each in read:
        each.entries.update(changes.pop(each.name, {}))
    for name, entries in changes.items():
        where = next(iter(entries.values())).where
        raise JobError(f"{where}: {_no_stage(name, [each.name for each in read])}")
    stages: list[Stage] = []
    for each in read:
        stages.append(_resolved(each, stages, output))
    return Pipeline(output, tuple(stages))


def write_pipeline(path: Path, pipeline: Pipeline, notes: Iterable[str]) -> None:
    """Write the pipeline as it was given, overrides included, under notes as comments; whole or not at all."""
    lines = [f"# {note}" for note in notes]
    lines += [f"job: {PIPELINE}", f"output: {format_value(pipeline.output)}", "stages:"]
    for stage in pipeline.stages:
        lines += [f"  - name: {stage.name}", f"    job: {stage.job.type.name}"]
        lines += [f"    ranks: {stage.ranks}"] if stage.ranks else []
        lines += [f"    {name}: {format_value(entry.text)}" for name, entry in stage.entries.items()]
    with written_beside(path) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def example() -> str:
    """A commented pipeline from labelled micrographs to classes: what `vitrea new pipeline` prints."""
    return (Path(__file__).with_name("templates") / "pipeline.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class _ReadStage:
    """A stage as it stands in the file: nothing in it is resolved."""

    name: str
    job_type: JobType
    ranks: int | None
    entries: dict[str, Entry]
    where: str


def _stage_nodes(path: Path, root: yaml.MappingNode) -> list[yaml.Node]:
    node = next((value for key, value in root.value if key.value == "stages"), None)
    if node is None:
        raise JobError(f"{path}: key 'stages' is missing; every pipeline needs it; 'vitrea new pipeline' prints one")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise JobError(f"{path}:{node.start_mark.line + 1}: stages is not a list of jobs; expected '- job: …' for each "
                       "stage, its keys below; 'vitrea new pipeline' prints one")
    return node.value


def _read_stage(path: Path, node: yaml.Node) -> _ReadStage:
    where = f"{path}:{node.start_mark.line + 1}"
    entries = entries_of(path, node, apart=(CLUSTER,))
    job_type = jobfile.job_type_of(where, entries.pop("job", None))
    given = entries.pop("name", Entry(job_type.name, where))
    if not NAME.fullmatch(given.text) or given.text in RESERVED:
        raise JobError(f"{given.where}: the stage's name is '{given.text}'; expected a letter, then letters, digits, - "
                       f"or _, and neither of {' and '.join(RESERVED)}; it becomes the name of a folder")
    if "output" in entries:
        raise JobError(f"{entries['output'].where}: stage {given.text} has an output; expected none, for the pipeline "
                       f"gives it the folder {given.text} in its own; remove the line")
    if "follow" in entries:
        raise JobError(f"{entries['follow'].where}: stage {given.text} follows a folder; expected stages whose input "
                       "is there when they begin; run it as a job of its own, and remove the line")
    ranks = jobfile.value_of(RANKS, entries.pop("ranks")) if "ranks" in entries else None
    return _ReadStage(given.text, job_type, ranks, entries, where)


def _require_other_names(stages: list[_ReadStage]) -> None:
    found: dict[str, str] = {}
    for stage in stages:
        if stage.name in found:
            raise JobError(f"{stage.where}: another stage is called '{stage.name}', at {found[stage.name]}; expected "
                           "names that differ; give this one a line such as 'name: second'")
        found[stage.name] = stage.where


def _changes(overrides: Iterable[str]) -> dict[str, dict[str, Entry]]:
    """{stage: {key: Entry}} of `--set`; the stage is "" for keys of the pipeline."""
    found: dict[str, dict[str, Entry]] = {}
    for text in overrides:
        place, equals, value = text.partition("=")
        stage, dot, name = place.strip().rpartition(".")
        if not equals or not name or (not dot and name != "output"):
            raise JobError(f"--set {text}: neither output nor a key of a stage was found; expected STAGE.key=value; "
                           "write for example --set classify.n_classes=100")
        found.setdefault(stage, {})[name] = Entry(value, f"--set {text}")
    return found


def _output(path: Path, entries: dict[str, Entry], changes: Mapping[str, Entry]) -> Path:
    entries = {name: entry for name, entry in (entries | changes).items() if name != "job"}
    for name, entry in entries.items():
        if name != "output":
            raise JobError(f"{entry.where}: unknown key '{name}'; a pipeline has job, output, stages and {CLUSTER}; "
                           "all other keys belong to a stage")
    if "output" not in entries:
        raise JobError(f"{path}: key output is missing; every pipeline needs it; add for example "
                       "'output: runs/first'")
    return jobfile.value_of(OUTPUT, entries["output"])


OUTPUT = Option("output", Path, False, None, "the folder of the pipeline", example=Path("runs/first"))


def _resolved(read: _ReadStage, earlier: list[Stage], output: Path) -> Stage:
    """The stage with its references resolved and its values checked."""
    places = {stage.name: {FOLDER: stage.folder} | {
        name: stage.folder / place for name, place in stage.job.type.products.items()} for stage in earlier}
    kinds = {stage.name: stage.job.type.products for stage in earlier}
    for name, entry in read.entries.items():
        _require_taken(read.job_type, name, entry, kinds)
    entries = {name: replace(entry, text=_substituted(entry, places)) for name, entry in read.entries.items()}
    entries["output"] = Entry(str(output / read.name), read.where)
    return Stage(read.name, jobfile.resolve(read.where, read.job_type, entries), read.ranks, read.entries)


def _require_taken(job_type: JobType, name: str, entry: Entry, made: Mapping[str, Mapping[str, str]]) -> None:
    """JobError for a product that a key cannot be made of: a model of classes is no stack of particles."""
    wanted = next((taken for (kind, key), taken in TAKES.items() if key == name and issubclass(job_type.options, kind)),
                  None)
    for stage, product in references(entry.text) if wanted else ():
        known = {FOLDER: "", **made.get(stage, {})}
        if known.get(product, wanted[0]) in wanted or entry.text != f"${{{stage}.{product}}}":
            continue
        fitting = [f"${{{stage}.{each}}}" for each, place in known.items() if place in wanted]
        remedy = f"write {fitting[0]}" if fitting else f"stage {stage} makes nothing that does; take another stage"
        found = known[product] or "a run folder"
        raise JobError(f"{entry.where}: ${{{stage}.{product}}} is {found}, which is no {name} of a {job_type.name} "
                       f"job; expected {_named(wanted)}; {remedy}")


def _named(places: tuple[str, ...]) -> str:
    return "the folder of a run" if places == ("",) else f"one like {' or '.join(places)}" if places[1:] else places[0]


def _substituted(entry: Entry, places: Mapping[str, Mapping[str, Path]]) -> str:
    """The text of an entry with the places of products in it; {stage: {product: place}} of the stages before."""
    def place(match: re.Match) -> str:
        stage, _, product = match[1].partition(".")
        if stage not in places:
            raise JobError(f"{entry.where}: {match[0]}: {_no_stage(stage, places, 'earlier ')}")
        if product not in places[stage]:
            known = ", ".join(f"${{{stage}.{name}}}" for name in places[stage])
            remedy = suggestion(product, places[stage]) or f"expected one of {known}"
            raise JobError(f"{entry.where}: {match[0]}: stage {stage} makes no '{product}'; {remedy}")
        return str(places[stage][product])

    found = REFERENCE.sub(place, entry.text)
    if "${" in REFERENCE.sub("", entry.text):
        raise JobError(f"{entry.where}: '{entry.text}' opens a reference that is not closed; expected "
                       "${STAGE.product}; close the brace")
    return found


def references(text: str) -> list[tuple[str, str]]:
    """(stage, product) of the references in a text."""
    return [tuple(found.partition(".")[::2]) for found in REFERENCE.findall(text)]


def _no_stage(name: str, known: Iterable[str], which: str = "") -> str:
    known = list(known)
    remedy = suggestion(name, known) or (f"expected one of {', '.join(known)}" if known else "there is none before it")
    return f"no {which}stage is called '{name}'; {remedy}"
