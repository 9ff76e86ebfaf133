"""Commands for a finished run: `vitrea report`, `vitrea stability` and `vitrea select`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, command, share


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `vitrea`."""
    report = command(commands, "report", _report, "write report.html of a run again: results, curves, timing, job, log",
                     "vitrea report runs/first\n  vitrea report picks/first --labels labels --radius 20")
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    report.add_argument("--labels", type=Path, metavar="DIR", help="picks: labelled centres, for precision and recall")
    report.add_argument("--radius", type=float, metavar="PX", help="picks: distance from a label up to which one is "
                        "right [px]")
    report.add_argument("--ignore", type=Path, metavar="DIR", help="picks: .csv files with x, y, radius [px], discs in "
                        "which nothing counts")
    stability = command(commands, "stability", _stability, "how sure a run is of its classes: two halves of its "
                        "particles, learned apart, or a second run",
                        "mpiexec -n 4 vitrea stability runs/first\n  vitrea stability runs/first runs/other_seed")
    stability.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder, which half_sets.star or "
                           "stability.star is written into")
    stability.add_argument("other", type=Path, metavar="OTHER", nargs="?", help="the folder of a run of the same "
                           "particles, with another seed; left out: from the final classes of a classify2d run two "
                           "halves of the particles are learned apart, and both judge every particle (as long as "
                           "six iterations)")
    _add_select(commands)


def _add_select(commands: argparse._SubParsersAction) -> None:
    select = command(commands, "select", _select, "write the particles of chosen classes, by rules or by hand",
                     "vitrea select runs/first --min-resolution 12 --min-particles 100\n"
                     "  vitrea select runs/first --interactive")
    add = select.add_argument
    add("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    add("--classes", metavar="LIST", help="these classes: numbers and ranges like 1,4,7-9")
    add("--min-resolution", type=float, metavar="A", help="classes resolved to this or better [Å]")
    add("--min-particles", type=int, metavar="N", help="classes of at least so many particles")
    add("--score", type=share, metavar="S", help="classes of this score or better, 0 to 1: how likely a class is one "
        "of particles; the report tells why")
    add("--min-stability", type=share, metavar="S", help="classes of this stability or better, 0 to 1, as 'vitrea "
        "stability' found it between runs, or between halves of the particles")
    add("--interactive", action="store_true", help="look at the classes and decide, on a page in a browser on this "
        "machine; rules, or an earlier selection, are where it starts")
    add("--port", type=int, default=0, metavar="P", help="with --interactive: the port of the page, to reach it "
        "through ssh -L (default: a free one)")
    add("--out", type=Path, metavar="DIR", help="folder that the files are written to (default RUN_DIR/selection)")


def _select(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.select import Rules
    from vitrea.jobs.select_run import interactive, select

    rules = Rules(arguments.classes, arguments.min_resolution, arguments.min_particles, arguments.score,
                  arguments.min_stability)
    if not (rules or arguments.interactive):
        raise JobError("select: no rule was given; expected one of --classes, --min-resolution, --min-particles, "
                       "--score, --min-stability, or --interactive; say which classes go on")
    if arguments.interactive:
        return interactive(arguments.folder, rules, arguments.out, arguments.port)
    return select(arguments.folder, rules, arguments.out)


def _stability(arguments: argparse.Namespace) -> int:
    if arguments.other is None:
        from vitrea.jobs.half_sets import stability_of_halves

        return stability_of_halves(arguments.folder)
    from vitrea.engine.finished import read_finished
    from vitrea.engine.stability import STAR_NAME, stability_of, write_stability

    run, other = read_finished(arguments.folder), read_finished(arguments.other)
    found = stability_of(run, other)
    write_stability(run, other, found)
    print(f"{len(found.rows):,} particles in both   ARI {found.ari:.3f}   stability, by chance, partner")
    for k in (-run.sizes).argsort(kind="stable"):
        if found.partner[k] >= 0:
            print(f"class {k + 1:<5}{run.sizes[k]:>10,} particles   {found.classes[k]:.3f}   {found.chance[k]:.3f}   "
                  f"class {found.partner[k] + 1}")
    print(f"  {run.folder / STAR_NAME!s:<40} of every class and particle")
    return DONE


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
