"""What every command shares: a parser that tells mistakes in one line, help as wide as the terminal, exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def command(
    commands: argparse._SubParsersAction, name: str, function: object, words: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + ".", epilog=f"example:\n  {example}",
        formatter_class=Formatter,
    )
    parser.set_defaults(command=function)
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, as the rest of the program does.

    fill(parser, words) -> words, where it is set, adds what the parser takes when the parser is first used.
    """

    fill: Callable[[argparse.ArgumentParser, Sequence[str]], Sequence[str]] | None = None

    def parse_known_args(self, args=None, namespace=None):
        fill, self.fill = self.fill, None
        return super().parse_known_args(fill(self, args) if fill else args, namespace)

    def error(self, message: str) -> None:
        complain(f"{message}; see '{self.prog} --help'")
        raise SystemExit(MISTAKE)


LONGEST_COMMAND = len("    threshold")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal up to 100 columns, with room for the longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_help_width())
        self._action_max_length = LONGEST_COMMAND   # argparse forgets the indent of commands, and breaks the line


def _help_width() -> int:
    import shutil

    return min(100, shutil.get_terminal_size((100, 24)).columns)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected a whole number, at least 1")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected a number from 0 to 1")
    return value


def complain(words: object) -> None:
    """One line on stderr, from one rank: under mpiexec every rank meets the same mistake."""
    from vitrea.jobs.launcher import rank_from_environment

    if rank_from_environment() == 0:
        print(f"vitrea: {words}", file=sys.stderr, flush=True)


def one_blas_thread() -> None:
    """Small products on many threads are up to fifty times slower; ranks and `threads` do the parallel work."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        os.environ[name] = "1"


def load(place: str) -> Callable[..., object]:
    """The function at `module:function`."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)
