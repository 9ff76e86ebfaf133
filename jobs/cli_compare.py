"""The command compare: a result beside the truth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, command


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `compare`."""
    compare = command(commands, "compare", _compare, "compare classes and poses, or picks, with the truth",
                      "vitrea compare sim/truth.star runs/first/run_data.star\n"
                      "  vitrea compare labels picks/first --radius 20")
    add = compare.add_argument
    add("truth", type=Path, metavar="TRUTH", help="truth.star of vitrea simulate particles; or labelled centres, a "
        "file or a folder of .star, .box, .csv or .tsv files")
    add("result", type=Path, metavar="RESULT", help="run_data.star, or a data STAR of RELION's; or picks, a file or "
        "folder of the same kinds, or the folder of a pick job")
    add("--radius", type=float, metavar="PX", help="picks: distance from a label up to which one is right [px]")
    add("--ignore", type=Path, metavar="DIR", help="picks: .csv files with x, y, radius [px], discs in which nothing "
        "counts")
    add("--curve", type=Path, metavar="FILE.png", help="picks: draw precision against recall")
    add("--json", action="store_true", help="print JSON, for programs")


def _compare(arguments: argparse.Namespace) -> int:
    from vitrea.picker.compare import are_picks

    if arguments.radius is not None or are_picks(arguments.truth):
        return _compare_picks(arguments)
    for name in ("ignore", "curve"):
        if getattr(arguments, name) is not None:
            raise JobError(f"--{name}: {arguments.truth} holds classified particles; expected --{name} with "
                           "coordinates of picks only; leave it out, or give --radius to compare coordinates")
    from vitrea.engine.compare import compare, format_comparison

    comparison = compare(arguments.truth, arguments.result)
    print(json.dumps(comparison.as_dict(), indent=2) if arguments.json else format_comparison(comparison))
    return DONE


def _compare_picks(arguments: argparse.Namespace) -> int:
    from vitrea.picker.compare import compare_picks, format_picks

    if arguments.radius is None:
        raise JobError("--radius is missing; expected the distance [px] up to which a pick is right; a quarter of the "
                       "particle's diameter is usual")
    comparison = compare_picks(arguments.truth, arguments.result, arguments.radius, arguments.ignore)
    if arguments.curve is not None:
        from vitrea.picker.pictures import draw_comparison

        draw_comparison(arguments.curve, comparison)
    print(json.dumps(comparison.as_dict(), indent=2) if arguments.json else format_picks(comparison))
    return DONE
