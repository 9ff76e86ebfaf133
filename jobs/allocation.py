"""What a job asks of a cluster: the `cluster:` section of its file, over the site's profile.

A profile is a YAML file of the same keys in the user's configuration folder, `~/.config/vitrea/NAME.yaml`; `site` is
read if no other is named. Only a profile may hold lines of shell and templates: job files are passed on, and what is in
them must not run on the machine of whoever submits one.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vitrea.engine.errors import JobError
from vitrea.engine.options import Options, key
from vitrea.jobs import jobfile
from vitrea.jobs.jobfile import CLUSTER, Entry, JobType, entries_of
from vitrea.jobs.schedulers import HARMLESS, SCHEDULERS, seconds_of

DEFAULT_PROFILE = "site"
ONLY_IN_PROFILES = ("setup", "template")
SCHEDULER_CHOICES = {"slurm": "Slurm: sbatch", "pbs": "PBS Pro and OpenPBS: qsub", "torque": "Torque: qsub"}
MACHINE = {"section": "machine"}


@dataclass(frozen=True, kw_only=True)
class Allocation(Options):
    """The keys of the `cluster:` section."""

    scheduler: str = key("the batch system", choices=SCHEDULER_CHOICES, example="slurm", **MACHINE)
    queue: str | None = key("partition (Slurm) or queue (PBS)", None, null_means="the scheduler's default",
                            example="cpu", **MACHINE)
    account: str | None = key("account or project that is charged", None, null_means="the user's default",
                              example="cryoem", **MACHINE)
    nodes: int = key("nodes", 1, minimum=1, **MACHINE)
    ranks_per_node: int = key("MPI ranks on each node", 1, minimum=1, example=32, **MACHINE)
    threads: int = key("cores of a rank; becomes the job's threads", 1, minimum=1, **MACHINE)
    memory: float | None = key("memory of a node", None, unit="GB", above=0, null_means="the scheduler's default",
                               example=64.0, **MACHINE)
    time: str = key("wall time of one submission: H:MM:SS, D-HH:MM:SS or minutes", "4:00:00", **MACHINE)
    leave: int = key("seconds before the end at which the run writes a checkpoint and leaves", 120, minimum=10,
                     **MACHINE)
    requeues: int = key("times that a run whose time was over goes back into the queue", 20, minimum=0, **MACHINE)
    patience: float = key("a rank that does not come to the others for so long ends the run; 0: they wait for ever",
                          1800.0, unit="s", minimum=0, **MACHINE)
    modules: tuple[str, ...] | None = key("modules to load", None, null_means="none", example=("mpich/5.0",), **MACHINE)
    launcher: str | None = key("what starts the ranks, its options with it; {ranks} and {threads} are replaced", None,
                               null_means="srun under Slurm, mpiexec under PBS, pinned to cores",
                               example="srun --mpi=pmi2", **MACHINE)
    directives: str | None = key("more lines for the scheduler, without #SBATCH or #PBS", None, null_means="none",
                                 **MACHINE)
    setup: str | None = key("in a profile only: lines of shell before the run", None, null_means="none", **MACHINE)
    template: Path | None = key("in a profile only: a script in place of the built-in one", None,
                                null_means="the built-in one", **MACHINE)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def seconds(self) -> int:
        return seconds_of(self.time)

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        try:
            if self.seconds <= self.leave:
                yield ("leave", "time"), (f"leave is {self.leave} s, and time {self.time}; expected a run that has "
                                          "time before it leaves; make leave shorter or time longer")
        except ValueError:
            yield ("time",), (f"time is '{self.time}'; expected H:MM:SS, D-HH:MM:SS or minutes; write for example "
                              "4:00:00")
        for name in ("queue", "account"):
            value = getattr(self, name)
            if value is not None and not HARMLESS.fullmatch(value):
                yield (name,), (f"{name} is '{value}'; expected letters, digits and . _ : @ + = , / - only; a "
                                "directive of a batch script takes no others")
        yield from self._launcher_conflicts()

    def _launcher_conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        known = SCHEDULERS[self.scheduler].launchers
        try:
            program = Path(self.launcher_words("")[0]).name
        except ValueError:
            program = self.launcher
        if program not in known:
            yield ("launcher",), (f"launcher begins with '{program}'; expected one of {', '.join(known)} under "
                                  f"{self.scheduler}; give the program that starts MPI ranks, and its options")

    def launcher_words(self, vendor: str) -> list[str]:
        """The words that start the ranks, each as one; vendor: of the MPI library, which the default depends on."""
        text = self.launcher
        if text is None and self.scheduler == "slurm":
            text = f"srun --cpus-per-task={{threads}} --cpu-bind=cores{_PROTOCOLS.get(vendor, '')}"
        elif text is None:
            text = "mpiexec -n {ranks}" + _PINNED.get(vendor, "")
        return [word.replace("{ranks}", str(self.ranks)).replace("{threads}", str(self.threads))
                for word in shlex.split(text)]


_PROTOCOLS = {"MPICH": " --mpi=pmi2", "Intel MPI": " --mpi=pmi2", "Open MPI": " --mpi=pmix"}
_PINNED = {"MPICH": " -bind-to core:{threads}", "Open MPI": " --map-by slot:PE={threads} --bind-to core"}
ALLOCATION = JobType(CLUSTER, "what is asked of a batch system", Allocation, "")
PROFILE = "profile"


def configuration_folder() -> Path:
    """Where a user's profiles are: $XDG_CONFIG_HOME/vitrea, or ~/.config/vitrea."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vitrea"


def read_allocation(path: Path, overrides: Iterable[str] = (), stage: int | None = None) -> Allocation:
    """The allocation that a job file asks for, with `key=value` overrides over it, over the profile.

    stage: number of the stage of a pipeline (from 0), whose own cluster section stands over that of the pipeline.
    JobError, with the line, for a key that is unknown or has a wrong value, and where there is neither section nor
    profile.
    """
    path = Path(path)
    sections = [_section(path, jobfile.compose(path))]
    if stage is not None:
        sections.append(_section(path, _stage_node(path, stage)))
    entries = {name: entry for section in sections for name, entry in section.items()}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise JobError(f"--cluster {text}: no '=' was found; expected key=value; write for example --cluster "
                           "nodes=4")
        entries[name.strip()] = Entry(value, f"--cluster {text}")
    for name in ONLY_IN_PROFILES:
        if name in entries:
            raise JobError(f"{entries[name].where}: {name} is shell, and job files are passed on; expected it in a "
                           f"profile only; move it to {configuration_folder() / (DEFAULT_PROFILE + '.yaml')}")
    profile = _profile(entries.pop(PROFILE, None))
    if not entries and not profile:
        raise JobError(f"{path}: there is no {CLUSTER} section; expected one, or a profile of the site in "
                       f"{configuration_folder() / (DEFAULT_PROFILE + '.yaml')}; add for example '{CLUSTER}:' and "
                       "below it '  scheduler: slurm'")
    return jobfile.resolve(f"{path} ({CLUSTER})", ALLOCATION, profile | entries).options


def lines_of(text: str | None) -> list[str]:
    return [line for line in (text or "").splitlines() if line.strip()]


def _section(path: Path, node: yaml.Node) -> Mapping[str, Entry]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    below = next((value for key, value in pairs if key.value == CLUSTER), None)
    if below is None:
        return {}
    if not isinstance(below, yaml.MappingNode):
        raise JobError(f"{path}:{below.start_mark.line + 1}: {CLUSTER} is no group of keys; expected lines such as "
                       "'  scheduler: slurm' below it; see docs/cluster.md")
    return entries_of(path, below)


def _stage_node(path: Path, number: int) -> yaml.Node:
    root = jobfile.compose(path)
    stages = next(value for key, value in root.value if key.value == "stages")
    return stages.value[number]


def _profile(named: Entry | None) -> Mapping[str, Entry]:
    name = named.text if named else DEFAULT_PROFILE
    if name != Path(name).name or name.startswith("."):
        raise JobError(f"{named.where}: {PROFILE} is '{name}'; expected the name of a file in "
                       f"{configuration_folder()}, without .yaml; write for example 'profile: {DEFAULT_PROFILE}'")
    path = configuration_folder() / f"{name}.yaml"
    if not path.exists():
        if named:
            raise JobError(f"{named.where}: {PROFILE} {name} is not there; expected {path}; make it, or choose another")
        return {}
    return entries_of(path, jobfile.compose(path))

