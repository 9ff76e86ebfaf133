"""What a pipeline knows of its finished stages: the keys and the input files that each was run with.

A stage is run again if a key that matters or an input has changed. A file is the same if its size and its time are, or,
where it is small, its content: what is made anew and comes out alike costs no stage after it. Of a large file the
content is not read. Inputs are the files that keys name, the files of a folder, and the stacks and micrographs that a
STAR file lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.log import LINES_NAME, RECORDS_NAME
from vitrea.engine.options import ParticleJobOptions, options_of
from vitrea.engine.particles import read_particles
from vitrea.jobs.jobfile import JOB_NAME, Job
from vitrea.picker.micrographs import list_micrographs
from vitrea.picker.options import MicrographOptions

LEDGER_NAME = "stages.json"
FORMAT = 1
SMALL = 4 * 2**20      # bytes; of a larger file the content is not read
TOLD = 3               # changes that are told, at most
# of a run folder, what says when and how it was run, and not what came out
NO_INPUT = (JOB_NAME, LINES_NAME, RECORDS_NAME, "report.html", "checkpoint.h5", "checkpoint-earlier.h5")
GONE = (-1, 0, "")     # mark of a file that a STAR file lists and that is not there
MACHINE = "machine"    # the section of keys on which no result depends


@dataclass(frozen=True)
class Inputs:
    """keys: {name: value as text}, those at their default left out; files: {path: (size [bytes], time [ns], digest,
    which is "" of a large file)}."""

    keys: Mapping[str, str]
    files: Mapping[str, tuple[int, int, str]]

    def changed_keys(self, before: Inputs) -> list[str]:
        return [name for name in self.keys | before.keys if self.keys.get(name) != before.keys.get(name)]

    def changed_files(self, before: Inputs) -> list[str]:
        names = dict.fromkeys([*before.files, *self.files])
        return [name for name in names if not _same(before.files.get(name), self.files.get(name))]

    def changes(self, before: Inputs) -> str:
        """`n_classes was 20, is 50; labels/a.star has changed`: what differs, for the log; "" if nothing does."""
        words = [f"{name} was {before.keys.get(name, 'default')}, is {self.keys.get(name, 'default')}"
                 for name in self.changed_keys(before)]
        for name in self.changed_files(before):
            gone = self.files.get(name, GONE) == GONE
            what = "is gone" if gone else "is new" if name not in before.files else "has changed"
            words.append(f"{name} {what}")
        more = len(words) - TOLD
        return "; ".join(words[:TOLD]) + (f"; and {more} more" if more > 0 else "")


def inputs_of(job: Job) -> Inputs:
    """The keys of a job on which its results depend, and its input files as they are now.

    Raises JobError if the particles or micrographs that it names are not there.
    """
    table = options_of(job.type.options)
    matter = [name for name, option in table.items() if option.section != MACHINE and name != "output"]
    keys = {name: str(job.options.as_dict()[name]) for name in matter
            if getattr(job.options, name) != table[name].default}
    paths = set(_listed(job.options))
    for name in table:
        value = getattr(job.options, name)
        if name in keys and isinstance(value, Path):
            paths.update(_files(value))
    return Inputs(keys, {str(path): _mark(path) for path in sorted(paths)})


def read_ledger(folder: Path) -> dict[str, tuple[Inputs, bool]]:
    """{stage: (Inputs it was begun with, whether it is done)} of a pipeline's folder; empty if there is none yet."""
    path = Path(folder) / LEDGER_NAME
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["format"] != FORMAT:
            raise ValueError(f"format {known['format']}")
        return {name: (Inputs(each["keys"], {path: tuple(mark) for path, mark in each["files"].items()}), each["done"])
                for name, each in known["stages"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{path}: cannot be read as the list of a pipeline's stages ({error}); expected the file that "
                       "vitrea wrote; remove it, and all stages are run again") from error


def write_ledger(folder: Path, known: Mapping[str, tuple[Inputs, bool]]) -> None:
    """Write the list of stages, whole or not at all."""
    stages = {name: {"done": done, "keys": inputs.keys, "files": inputs.files}
              for name, (inputs, done) in known.items()}
    with written_beside(Path(folder) / LEDGER_NAME) as beside:
        beside.write_text(json.dumps({"format": FORMAT, "stages": stages}, indent=1), encoding="utf-8")


def _listed(options: object) -> Iterable[Path]:
    """The stacks or micrographs that the input of a job lists."""
    if isinstance(options, ParticleJobOptions):
        yield from (header.path for header in read_particles(options.input).headers)
    if isinstance(options, MicrographOptions):
        for name in ("input", "unlabelled"):
            yield from list_micrographs(getattr(options, name)).paths if hasattr(options, name) else ()


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return (each for each in path.rglob("*") if each.is_file() and each.name not in NO_INPUT)
    return [path] if path.exists() else []


def _mark(path: Path) -> tuple[int, int, str]:
    try:
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if status.st_size <= SMALL else ""
    except OSError:
        return GONE   # a micrograph that is listed and missing: the job says what it makes of it
    return (status.st_size, status.st_mtime_ns, digest)


def _same(before: tuple[int, int, str] | None, now: tuple[int, int, str] | None) -> bool:
    if before is None or now is None:
        return before is now
    return before[0] == now[0] and (before[1] == now[1] or before[2] == now[2] != "")
