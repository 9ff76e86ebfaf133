"""The command threshold: what is done with picks after the scan."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, command, one_blas_thread


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `threshold`."""
    threshold = command(commands, "threshold", _threshold,
                        "give a finished pick run another threshold, without a scan",
                        "vitrea threshold picks/first --labels labels --radius 45")
    threshold.add_argument("folder", type=Path, metavar="RUN_DIR", help="the folder of a job pick that is done")
    how = threshold.add_mutually_exclusive_group(required=True)
    how.add_argument("--value", type=float, metavar="T", help="the least score of a pick, 0 to 1")
    how.add_argument("--expected", type=float, metavar="N", help="picks a micrograph in the mean")
    how.add_argument("--labels", type=Path, metavar="DIR",
                     help="the largest F on labelled micrographs: a .star, .box, .csv or .tsv file for each")
    threshold.add_argument("--radius", type=float, metavar="A", help="with --labels: distance of a pick from a label "
                           "up to which it is right [Å]")
    threshold.add_argument("--ignore", type=Path, metavar="DIR", help="with --labels: .csv files with x, y, radius "
                           "[px], discs in which no pick counts")
    threshold.add_argument("--beta", type=float, default=2.0, metavar="B",
                           help="with --labels: weight of recall over precision in F (default 2)")
    threshold.add_argument("--y-axis", choices=("down", "up"), default="down",
                           help="with --labels: y counts from the first row stored (down, default) or the last (up)")


def _threshold(arguments: argparse.Namespace) -> int:
    one_blas_thread()
    from vitrea.jobs.run import read_run
    from vitrea.picker.rethreshold import Labels, by_number, by_value, change_threshold, format_change

    if arguments.labels is not None and arguments.radius is None:
        raise JobError("--labels: no --radius was given; expected the distance in Å up to which a pick is right; a "
                       "quarter of the particle's diameter is usual")
    choose, labels = None, None
    if arguments.labels is not None:
        labels = Labels(arguments.labels, arguments.radius, arguments.ignore, arguments.beta, arguments.y_axis)
    else:
        choose = by_value(arguments.value) if arguments.value is not None else by_number(arguments.expected)
    print(format_change(change_threshold(read_run(arguments.folder, "pick"), choose, labels)))
    return DONE
