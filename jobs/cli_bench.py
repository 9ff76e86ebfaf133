"""The command bench. Benchmarks are imported by nobody: this knows where they are, and loads them when asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vitrea.jobs.commandline import Formatter, load, one_blas_thread

BENCH, BENCH_WORDS, BENCH_EXAMPLE = "bench", "vitrea.benchmarks.command:fill", "vitrea.benchmarks.study:example"


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `bench`, whose words are added when they are asked for."""
    words = "measure kernels, runs, scaling and other programs on this machine"
    bench = commands.add_parser(BENCH, help=words, description=words[0].upper() + words[1:] + ".",
                                formatter_class=Formatter)
    bench.fill = _bench_words


def _bench_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Sequence[str]:
    one_blas_thread()
    return load(BENCH_WORDS)(parser, list(words))
