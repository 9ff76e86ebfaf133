"""Commands on jobs: new, check, run, resume, watch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vitrea.jobs.cli_bench import BENCH, BENCH_EXAMPLE
from vitrea.jobs.commandline import DONE, command, load, one_blas_thread, positive

_SET_HELP = "change one key of the job file for this run, e.g. --set n_classes=100; may be given again"
_STAGE_HELP = "of a pipeline, run this stage only; those before it must be done"


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line its commands on jobs."""
    new = command(commands, "new", _new, "print a commented job file with units and defaults",
                  "vitrea new classify2d > job.yaml")
    new.fill = _new_words

    check = command(commands, "check", _check, "look a job over without running it: particles, memory, disk, poses",
                    "vitrea check job.yaml --ranks 8")
    check.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    check.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=_SET_HELP)
    check.add_argument("--ranks", type=positive, default=1, metavar="N", help="MPI ranks to plan for (default 1)")

    run = command(commands, "run", _run, "run a job, alone or under mpiexec",
                  "mpiexec -n 8 vitrea run job.yaml --set output=runs/second")
    run.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    run.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=_SET_HELP)
    run.add_argument("--stage", metavar="NAME", help=_STAGE_HELP)
    run.add_argument("--follow", metavar="DIR", help="take in what a microscope delivers into this folder while the "
                     "job runs, until a file STOP is in it (classify2d, pick)")
    run.add_argument("--follow-for", metavar="MINUTES", help="end when nothing new has come for so long")

    resume = command(commands, "resume", _resume, "go on with a run that was stopped, on any number of ranks",
                     "mpiexec -n 4 vitrea resume runs/first --set threads=2")
    resume.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    resume.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="change a key marked for it in docs/job-keys.md, e.g. --set threads=2")
    resume.add_argument("--stage", metavar="NAME", help=_STAGE_HELP)

    watch = command(commands, "watch", _watch, "watch a run from any terminal: progress, time left, class sizes",
                    "vitrea watch runs/first")
    watch.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    watch.add_argument("--once", action="store_true", help="show the state now and leave")


def _new(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.jobfile import JOBS, PIPELINE, template
    from vitrea.jobs.pipeline import example

    examples = {BENCH: lambda: load(BENCH_EXAMPLE)(), PIPELINE: example}
    print(examples[arguments.type]() if arguments.type in examples else template(JOBS[arguments.type]), end="")
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.run import check

    return check(arguments.job, arguments.set, arguments.ranks)


def _run(arguments: argparse.Namespace) -> int:
    one_blas_thread()
    from vitrea.jobs.run import run

    asked = [f"{key}={value}" for key, value in (("follow", arguments.follow), ("follow_minutes", arguments.follow_for))
             if value is not None]
    return run(arguments.job, [*arguments.set, *asked], arguments.stage)


def _resume(arguments: argparse.Namespace) -> int:
    one_blas_thread()
    from vitrea.jobs.run import resume

    return resume(arguments.folder, arguments.set, arguments.stage)


def _watch(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.watch import watch

    return watch(arguments.folder, once=arguments.once)


def _new_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Sequence[str]:
    from vitrea.jobs.jobfile import PIPELINE

    parser.add_argument("type", metavar="TYPE", choices=[*_job_names(), PIPELINE, BENCH],
                        help=f"kind of job: {', '.join(_job_names())}; {PIPELINE}, several of them; or {BENCH}, a "
                        "scaling study")
    return words


def _job_names() -> list[str]:
    from vitrea.jobs.jobfile import JOBS

    return [name for name in JOBS if name != BENCH]   # `vitrea new bench` prints a scaling study
