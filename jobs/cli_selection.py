"""Commands for looking at a finished run: `vitrea report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, command


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `vitrea`."""
    report = command(commands, "report", _report, "write report.html of a run again: classes, curves, timing, job, log",
                     "vitrea report runs/first\n  vitrea report picks/first --labels labels --radius 20")
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    report.add_argument("--labels", type=Path, metavar="DIR", help="picks: labelled centres, for precision and recall")
    report.add_argument("--radius", type=float, metavar="PX", help="picks: distance from a label up to which one is "
                        "right [px]")
    report.add_argument("--ignore", type=Path, metavar="DIR", help="picks: .csv files with x, y, radius [px], discs in "
                        "which nothing counts")


def _report(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.report import write_report

    path = write_report(arguments.folder, _comparison(arguments))
    print(f"  {path!s:<40} {path.stat().st_size / 1e6:.1f} MB")
    return DONE


def _comparison(arguments: argparse.Namespace) -> object:
    if arguments.labels is None:
        for name in ("radius", "ignore"):
            if getattr(arguments, name) is not None:
                raise JobError(f"--{name}: no --labels were given; expected the folder of labelled centres; add it, or "
                               f"leave --{name} out")
        return None
    if arguments.radius is None:
        raise JobError("--labels: no --radius was given; expected the distance [px] up to which a pick is right; a "
                       "quarter of the particle's diameter is usual")
    from vitrea.picker.compare import compare_picks

    return compare_picks(arguments.labels, arguments.folder, arguments.radius, arguments.ignore)
