"""Commands of a cluster: submit, status, cancel, and requeue, which batch scripts call."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrea.jobs.commandline import command


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line its commands of a cluster."""
    submit = command(commands, "submit", _submit, "hand a job to Slurm or PBS, to be run until it is done",
                     "vitrea submit job.yaml --cluster nodes=2 time=8:00:00 --dry-run")
    submit.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file, with a cluster section")
    submit.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="change one key of the job, e.g. --set n_classes=100")
    submit.add_argument("--cluster", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="change one key of the cluster section, e.g. --cluster nodes=4")
    submit.add_argument("--separate", action="store_true",
                        help="each stage of a pipeline as a job of its own, after the one before")
    submit.add_argument("--dry-run", action="store_true", help="print the scripts; write and submit nothing")

    for name, function, words in (("status", _status, "what the scheduler says of submitted runs"),
                                  ("cancel", _cancel, "take submitted runs from the scheduler; they can be resumed")):
        parser = command(commands, name, function, words, f"vitrea {name} runs/first")
        parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR", help="run folders")

    again = command(commands, "requeue", _requeue, "put a run whose time was over back into the queue (for scripts)",
                    "vitrea requeue runs/first --job 1234 --code 0")
    again.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    again.add_argument("--job", required=True, metavar="NUMBER", help="number of the batch job that ends")
    again.add_argument("--code", type=int, required=True, metavar="CODE", help="exit code of the run")


def _submit(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.submit import submit

    return submit(arguments.job, arguments.set, arguments.cluster, separate=arguments.separate, dry=arguments.dry_run)


def _status(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.submit import status

    return status(arguments.folders)


def _cancel(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.submit import cancel

    return cancel(arguments.folders)


def _requeue(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.submit import requeue

    return requeue(arguments.folder, arguments.job, arguments.code)
