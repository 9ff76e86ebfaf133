"""The command `vitrea`: what is typed, and how every ending is told.

Exit codes: 0 done (also: stopped by a signal with a checkpoint), 1 failed, 2 the user's mistake, 130 interrupted. A
mistake is one line on stderr. Modules with numpy below them are imported inside the commands that need them, so that
`vitrea --help` answers at once, also on a cluster's file system. Each family of commands is a module cli_NAME.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from vitrea.engine.errors import JobError
from vitrea.jobs import (
    cli_bench,
    cli_cluster,
    cli_compare,
    cli_interop,
    cli_jobs,
    cli_picks,
    cli_selection,
    cli_simulate,
)
from vitrea.jobs.commandline import FAILED, INTERRUPTED, MISTAKE, Formatter, Parser, complain

SECOND_SECONDS = 0.1   # until a Ctrl-C that was swallowed is sent again


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal in Latin-1 shows ? for Å or −; it must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    try:
        return arguments.command(arguments)
    except JobError as mistake:
        complain(mistake)
        return MISTAKE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # `vitrea new classify2d | head`: leave as other filters do, and keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that came while C called Python, as llvmlite does when a kernel is compiled, is swallowed there: send it
    again. Anything else is told as ever."""
    if not issubclass(told.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(told)
        return
    main_thread = threading.main_thread().ident
    again = threading.Timer(SECOND_SECONDS, signal.pthread_kill, [main_thread, signal.SIGINT])
    again.daemon = True
    again.start()


def version() -> str:
    import importlib.metadata

    return importlib.metadata.version("vitrea")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vitrea",
        description="Class averages of single-particle cryo-EM images, over MPI.",
        epilog=_EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS,
                        help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for family in (cli_jobs, cli_cluster, cli_picks, cli_simulate, cli_compare, cli_selection, cli_interop, cli_bench):
        family.add(commands)
    return parser


_EXAMPLES = """\
a first run:
  vitrea new classify2d > job.yaml      then edit input, n_classes, particle_diameter
  vitrea check job.yaml
  mpiexec -n 8 vitrea run job.yaml
  vitrea watch runs/first               from any other terminal

exit codes: 0 done, 1 failed, 2 a mistake in the job or the command, told in one line"""


class _Version(argparse.Action):
    """Prints the version; looked up only here, for importlib.metadata takes as long to import as all else."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"vitrea {version()}")
        parser.exit()
