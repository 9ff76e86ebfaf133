"""`job: bench`: a measurement of `vitrea bench` as a job, for pipelines.

Rank 0 measures; the others sleep, so that it has the machine for itself. Only measurements that need no ranks of their
own are here: within one MPI program no other can be started.
"""

from __future__ import annotations

import os
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.options import Options, key
from vitrea.jobs.cli_bench import BENCH_WORDS
from vitrea.jobs.commandline import Formatter, Parser, load

RECORDS = "bench.jsonl"
GIVEN = ("--records", "--json")   # the job's own
MEASURED = {
    "kernels": "every kernel of classify2d, beside the limits of the machine",
    "estep": "everything between a particle's coefficients and its weights",
    "polar": "pixels to angular harmonics",
    "scan": "the picker: a micrograph file to coordinates",
    "picker": "the picker on real micrographs, against centres set by hand",
    "manifold": "E step and solve of the M step of manifold learning",
    "langevin": "trajectory steps of the two-valley model",
}


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """The keys of `job: bench`."""

    output: Path = key("the run folder that is made", example=Path("runs/bench"), section="measurement")
    measure: str = key("what is measured", example="kernels", choices=MEASURED, section="measurement")
    words: str | None = key("further words, as 'vitrea bench NAME --help' tells them", None, null_means="none",
                            example="--classes 50 --n 3", section="measurement")


def run(options: BenchOptions, *, resume: bool, comm) -> str:
    """Write bench.jsonl into options.output: "done", or "stopped". Collective. A resumed run measures again."""
    from vitrea.engine.comm import wait_for_all

    outcome = None
    if comm.rank == 0:
        try:
            outcome = (_measured(options), None)
        except JobError as error:
            outcome = (None, str(error))
    wait_for_all(comm=comm)
    ended, mistake = comm.bcast(outcome, root=0)
    if mistake:
        raise JobError(mistake)
    return ended


def check(options: BenchOptions) -> list[str]:
    """Lines for `vitrea check`; JobError for words that the measurement does not take."""
    _arguments(options)
    return [f"measures    {options.measure}: {MEASURED[options.measure]}"]


def _measured(options: BenchOptions) -> str:
    from vitrea.engine.log import RunLog

    arguments = _arguments(options)
    with RunLog(options.output, echo=True) as log:
        log.record("start", job="bench", output=str(options.output), host=platform.node(), process=os.getpid(),
                   options=options.as_dict())
        log.line(f"bench   {options.output}   {options.measure}")
        try:
            code = arguments.command(arguments)
        except (SystemExit, KeyboardInterrupt):
            log.tell("stopped", stage="bench", reason="a signal")
            return "stopped"
        if code:
            raise JobError(f"{options.output}: the measurement failed, as told above; expected its check of the answer "
                           "to pass; repeat it by 'vitrea bench'")
        log.record("done")
        log.line(f"done   {options.output / RECORDS}")
    return "done"


def _arguments(options: BenchOptions) -> object:
    """The parsed words; JobError with the parser's own sentence if it does not take them."""
    parser = _Parser(prog="words", formatter_class=Formatter)
    try:
        words = shlex.split(options.words or "")
    except ValueError as error:
        raise JobError(f"words: '{options.words}' was found ({error}); expected words as on a command line; close the "
                       "quotes") from error
    if mine := [word for word in words if word.partition("=")[0] in (*GIVEN, "-h", "--help")]:
        raise JobError(f"words: {mine[0]} was found; expected neither of {', '.join(GIVEN)}, for records go into "
                       f"{RECORDS} of the run folder; leave it out")
    words = [options.measure, *words, "--records", str(options.output / RECORDS)]
    return parser.parse_args(load(BENCH_WORDS)(parser, words))


class _Parser(Parser):
    """Raises what Parser prints."""

    def error(self, message: str) -> None:
        raise JobError(f"words: {message}; expected what 'vitrea bench NAME --help' tells; correct them")
