"""`job: select`: `vitrea select` by rules as a job, for pipelines.

Rank 0 works; the others sleep.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.options import JobOptions, key

RULES = ("classes", "resolution", "particles", "score", "stability")
WANTED = {"section": "selection"}


@dataclass(frozen=True, kw_only=True)
class SelectOptions(JobOptions):
    """The keys of `job: select`."""

    input: Path = key("the folder of a finished run", example=Path("runs/first"), section="selection")
    output: Path = key("the run folder that is made", example=Path("runs/selected"), section="selection")
    classes: str | None = key("numbers of the classes that are kept, such as 1,4,7-9", None, null_means="all",
                              example="1,4,7-9", **WANTED)
    resolution: float | None = key("coarsest resolution of a class", None, unit="Å", above=0, null_means="any",
                                   example=12.0, **WANTED)
    particles: int | None = key("fewest particles of a class", None, minimum=1, null_means="any", example=100, **WANTED)
    score: float | None = key("least score of a class", None, minimum=0, maximum=1, null_means="any",
                              example=0.5, **WANTED)
    stability: float | None = key("least stability of a class between runs, or between halves", None,
                                  minimum=0, maximum=1, null_means="any", example=0.5, **WANTED)


def run(options: SelectOptions, *, resume: bool, comm) -> str:
    """Write selected.star and rejected.star into options.output: "done". Collective. A resumed run begins anew."""
    from vitrea.engine.comm import StopRequest, wait_for_all

    mistake = None
    with StopRequest(comm=comm):
        if comm.rank == 0:
            try:
                _select(options, resume)
            except JobError as error:
                mistake = str(error)
        wait_for_all(comm=comm)
    if mistake := comm.bcast(mistake, root=0):
        raise JobError(mistake)
    return "done"


def check(options: SelectOptions) -> list[str]:
    """Lines for `vitrea check`."""
    from vitrea.engine.finished import read_finished

    _require_rule(options)
    run = read_finished(options.input)
    rules = ", ".join(f"{name} {getattr(options, name)}" for name in RULES if getattr(options, name) is not None)
    return [f"classes     {run.n_classes} in {options.input}; rules: {rules}"]


def _require_rule(options: SelectOptions) -> None:
    if all(getattr(options, name) is None for name in RULES):
        raise JobError(f"{options.output}: job select has no rule; expected at least one of {', '.join(RULES)}, for "
                       "only rules select without a person; write for example 'particles: 100'")


def _select(options: SelectOptions, again: bool) -> None:
    from vitrea.engine.log import RunLog
    from vitrea.engine.subset import SELECTED
    from vitrea.jobs.select import Rules
    from vitrea.jobs.select_run import select

    _require_rule(options)
    with RunLog(options.output, echo=True) as log:
        log.record("start", job="select", output=str(options.output), input=str(options.input), host=platform.node(),
                   process=os.getpid(), options=options.as_dict())
        log.line(f"select   {options.output}   classes of {options.input}")
        if again:
            (options.output / SELECTED).unlink(missing_ok=True)
        select(options.input, Rules(**{name: getattr(options, name) for name in RULES}), out=options.output)
        log.record("done")
        log.line("done")
