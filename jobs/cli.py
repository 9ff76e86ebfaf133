"""The command `vitrea`: what is typed, and how every ending is told.

Exit codes: 0 done (also: stopped by a signal with a checkpoint), 1 failed, 2 the user's mistake, 130 interrupted. A
mistake is one line on stderr. Modules with numpy below them are imported inside the commands that need them, so that
`vitrea --help` answers at once, also on a cluster's file system.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vitrea.engine.errors import JobError

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal in Latin-1 shows ? for Å or −; it must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except JobError as mistake:
        _complain(mistake)
        return MISTAKE
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # `vitrea new classify2d | head`: leave as other filters do, and keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def version() -> str:
    import importlib.metadata

    return importlib.metadata.version("vitrea")


def _new(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.jobfile import JOBS, template

    print(_load(BENCH_EXAMPLE)() if arguments.type == BENCH else template(JOBS[arguments.type]), end="")
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.run import check

    return check(arguments.job, arguments.set, arguments.ranks)


def _run(arguments: argparse.Namespace) -> int:
    _one_blas_thread()
    from vitrea.jobs.run import run

    return run(arguments.job, arguments.set)


def _resume(arguments: argparse.Namespace) -> int:
    _one_blas_thread()
    from vitrea.jobs.run import resume

    return resume(arguments.folder, arguments.set)


def _threshold(arguments: argparse.Namespace) -> int:
    _one_blas_thread()
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


def _simulate_particles(arguments: argparse.Namespace) -> int:
    _one_blas_thread()
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "out", "threads")}
    simulation = ParticleSimulation(**given)
    _require_no_simulation(arguments.out, _SIMULATED, "particles")
    simulate_particles(simulation, arguments.out, threads=arguments.threads or len(os.sched_getaffinity(0)))
    print(f"{simulation.n:,} particles of {simulation.views} views   box {simulation.box_size} px   "
          f"{simulation.pixel_size:.4g} Å/px   SNR {simulation.snr:.4g}")
    for pattern, words in _SIMULATED.items():
        found = list(arguments.out.glob(pattern))
        print(f"  {found[0] if len(found) == 1 else arguments.out / pattern!s:<40} {words}")
    return DONE


def _simulate_micrographs(arguments: argparse.Namespace) -> int:
    _one_blas_thread()
    from vitrea.picker.simulate import MicrographSimulation, simulate_micrographs

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "out", "threads")}
    simulation = MicrographSimulation(**given)
    _require_no_simulation(arguments.out, _SIMULATED_MICROGRAPHS, "micrographs")
    counts = simulate_micrographs(simulation, arguments.out, threads=arguments.threads or 1)
    width, height = simulation.size
    print(f"{simulation.n:,} micrographs of {width} × {height} px   {simulation.pixel_size:.4g} Å/px   "
          f"{counts.sum():,} particles of {simulation.diameter:g} Å   SNR {simulation.snr:.4g}")
    for name, words in _SIMULATED_MICROGRAPHS.items():
        print(f"  {arguments.out / name!s:<40} {words}")
    return DONE


def _require_no_simulation(folder: Path, patterns: dict[str, str], what: str) -> None:
    """What somebody may be working with is never replaced in passing."""
    held = [path.name for pattern in patterns for path in folder.glob(pattern)]
    if held:
        raise JobError(f"{folder}: this folder already holds simulated {what} ({held[0]}); expected a new or empty "
                       "one; choose another --out, or remove the folder first")


_SIMULATED = {
    "particles.star": "the particles, for a job's input",
    "particles*.mrcs": "their images",
    "truth.star": "view, angle and shift of each, for vitrea compare",
    "views.mrcs": "the noise-free views",
}
_SIMULATED_MICROGRAPHS = {
    "micrographs.star": "the micrographs with their CTF, for a job's input",
    "coordinates": "centres of clean particles: labels, and the truth for vitrea compare",
    "ignore": "discs where picking is neither right nor wrong: cut, overlapping, aggregated",
}


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


# Benchmarks are imported by nobody: the command line knows where they are, and loads them when they are asked for.
BENCH, BENCH_WORDS, BENCH_EXAMPLE = "bench", "vitrea.benchmarks.command:fill", "vitrea.benchmarks.study:example"


def _load(place: str) -> Callable[..., object]:
    """The function at `module:function`."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def _watch(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.watch import watch

    return watch(arguments.folder, once=arguments.once)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vitrea",
        description="Class averages of single-particle cryo-EM images, over MPI.",
        epilog=_EXAMPLES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS,
                        help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_job_commands(commands)
    _add_threshold(commands)
    _add_simulate(commands)
    _add_views(commands)
    _add_bench(commands)
    return parser


_EXAMPLES = """\
a first run:
  vitrea new classify2d > job.yaml      then edit input, n_classes, particle_diameter
  vitrea check job.yaml
  mpiexec -n 8 vitrea run job.yaml
  vitrea watch runs/first               from any other terminal

exit codes: 0 done, 1 failed, 2 a mistake in the job or the command, told in one line"""

_SET_HELP = "change one key of the job file for this run, e.g. --set n_classes=100; may be given again"


def _add_job_commands(commands: argparse._SubParsersAction) -> None:
    new = _command(commands, "new", _new, "print a commented job file with units and defaults",
                   "vitrea new classify2d > job.yaml")
    new.fill = _new_words

    check = _command(commands, "check", _check, "look a job over without running it: particles, memory, disk, poses",
                     "vitrea check job.yaml --ranks 8")
    check.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    check.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=_SET_HELP)
    check.add_argument("--ranks", type=_positive, default=1, metavar="N", help="MPI ranks to plan for (default 1)")

    run = _command(commands, "run", _run, "run a job, alone or under mpiexec",
                   "mpiexec -n 8 vitrea run job.yaml --set output=runs/second")
    run.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    run.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=_SET_HELP)

    resume = _command(commands, "resume", _resume, "go on with a run that was stopped, on any number of ranks",
                      "mpiexec -n 4 vitrea resume runs/first --set threads=2")
    resume.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    resume.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="change a key marked for it in docs/job-keys.md, e.g. --set threads=2")


def _add_threshold(commands: argparse._SubParsersAction) -> None:
    threshold = _command(commands, "threshold", _threshold,
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


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    simulate = commands.add_parser("simulate", help="make particles or micrographs with known truth",
                                   formatter_class=_Formatter)
    kinds = simulate.add_subparsers(title="what", metavar="WHAT", required=True)
    particles = _command(kinds, "particles", _simulate_particles,
                         "a stack of particles and its truth: particles.star, particles.mrcs, truth.star, views.mrcs",
                         "vitrea simulate particles --out sim --n 2000 --views 10 --box 64 --pixel-size 4 --snr 0.1 "
                         "--seed 1")
    _add_wanted(particles.add_argument_group("what is wanted"))
    _add_specimen(particles.add_argument_group("specimen (without either: a built-in asymmetric one)"))
    _add_optics(particles.add_argument_group("microscope"))
    micrographs = _command(kinds, "micrographs", _simulate_micrographs,
                           "micrographs and their truth: micrographs.star, coordinates/, ignore/",
                           "vitrea simulate micrographs --out sim --n 10 --size 2048 2048 --pixel-size 2 "
                           "--diameter 180 --particles 120 --snr 0.05 --seed 1")
    _add_wanted_micrographs(micrographs.add_argument_group("what is wanted"))
    _add_specimen(micrographs.add_argument_group("specimen (without either: a built-in asymmetric one)"))
    _add_accidents(micrographs.add_argument_group("what else is met"))
    _add_microscope(micrographs.add_argument_group("microscope"))


def _add_wanted_micrographs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS}
    add("--out", type=Path, required=True, metavar="DIR", help="folder that the files are written to")
    add("--n", type=int, required=True, metavar="N", help="number of micrographs")
    add("--size", nargs=2, type=int, **keep, metavar=("W", "H"), help="width and height [px] (default 2048 2048)")
    add("--pixel-size", type=float, required=True, metavar="A", help="pixel size [Å/px]")
    add("--diameter", type=float, required=True, metavar="A", help="diameter of the particle [Å]")
    add("--particles", type=float, required=True, metavar="P", help="particles on a micrograph, in the mean")
    add("--snr", type=float, required=True, metavar="S",
        help="var(CTF-filtered signal over a box of diameter / 0.65) / var(shot noise)")
    add("--seed", type=int, **keep, metavar="K", help="start of every random draw (default 0)")
    add("--views", type=int, **keep, metavar="V", help="views of the specimen (default 50)")
    add("--threads", type=_positive, metavar="T", help="threads; the images do not depend on it (default 1)")


def _add_accidents(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS, "type": float}
    add("--overlapping", **keep, metavar="F", help="fraction of particles that another overlaps (default 0.1)")
    add("--aggregates", **keep, metavar="N", help="heaps of 4 to 13 particles on a micrograph (default 1)")
    add("--contamination", **keep, metavar="N", help="crystals of ice on a micrograph (default 2)")
    add("--carbon", **keep, metavar="F", help="fraction of micrographs with an edge of carbon (default 0.25)")
    add("--ice-gradient", **keep, metavar="F", help="change of the dose over a micrograph (default 0.2)")


def _add_wanted(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS}
    add("--out", type=Path, required=True, metavar="DIR", help="folder that the files are written to")
    add("--n", type=int, required=True, metavar="N", help="number of particles")
    add("--views", type=int, required=True, metavar="V", help="number of views, equally populated")
    add("--box", dest="box_size", type=int, required=True, metavar="L", help="box [px]")
    add("--pixel-size", type=float, required=True, metavar="A", help="pixel size [Å/px]")
    add("--snr", type=float, required=True, metavar="S",
        help="var(CTF-filtered signal over the whole box) / var(noise)")
    add("--seed", type=int, **keep, metavar="K", help="start of every random draw (default 0)")
    add("--max-shift", type=float, **keep, metavar="PX", help="largest shift in x and in y [px] (default 3)")
    add("--stack-size", type=int, **keep, metavar="N", help="particles in a stack (default: all in one)")
    add("--threads", type=_positive, metavar="T", help="threads; the images do not depend on it (default: the cores)")
    add("--motion", type=float, **keep, metavar="DEG",
        help="instead of turning the specimen about: its arm turns by DEG in all over the views, seen from one side")
    add("--junk", type=float, **keep, metavar="FRACTION",
        help="fraction of pure noise, off-centre particles and close neighbours, 0 to 1 (default 0)")


def _add_specimen(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    keep = {"default": argparse.SUPPRESS, "type": Path}
    one.add_argument("--map", dest="map_path", **keep, metavar="MAP.mrc", help="a density map")
    one.add_argument("--model", dest="model_path", **keep, metavar="FILE", help="atoms: .pdb or .cif, also .gz")


def _add_optics(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--no-ctf", dest="ctf", action="store_false", default=argparse.SUPPRESS, help="images without a CTF")
    add("--phase-shift", default=argparse.SUPPRESS, type=float, metavar="DEG",
        help="phase shift of a phase plate [degrees] (default 0)")
    _add_lens(group)


def _add_microscope(group: argparse._ArgumentGroup) -> None:
    _add_lens(group)
    group.add_argument("--dose", default=argparse.SUPPRESS, type=float, metavar="E",
                       help="electrons per Å² (default 30)")


def _add_lens(group: argparse._ArgumentGroup) -> None:
    keep = {"default": argparse.SUPPRESS, "type": float}
    add = group.add_argument
    add("--defocus", nargs=2, metavar=("MIN", "MAX"), **keep, help="underfocus [Å] (default 10000 25000)")
    add("--astigmatism", metavar="A", **keep, help="largest difference of the two defoci [Å] (default 500)")
    add("--voltage", metavar="KV", **keep, help="[kV] (default 300)")
    add("--cs", metavar="MM", **keep, help="spherical aberration [mm] (default 2.7)")
    add("--amplitude-contrast", metavar="Q", **keep, help="fraction (default 0.1)")


def _add_views(commands: argparse._SubParsersAction) -> None:
    compare = _command(commands, "compare", _compare, "compare classes and poses, or picks, with the truth",
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

    watch = _command(commands, "watch", _watch, "watch a run from any terminal: progress, time left, class sizes",
                     "vitrea watch runs/first")
    watch.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run folder")
    watch.add_argument("--once", action="store_true", help="show the state now and leave")


def _add_bench(commands: argparse._SubParsersAction) -> None:
    words = "measure kernels, runs, scaling and other programs on this machine"
    bench = commands.add_parser(BENCH, help=words, description=words[0].upper() + words[1:] + ".",
                                formatter_class=_Formatter)
    bench.fill = _bench_words


def _new_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Sequence[str]:
    parser.add_argument("type", metavar="TYPE", choices=[*_job_names(), BENCH],
                        help=f"kind of job: {', '.join(_job_names())}; or {BENCH}, a scaling study")
    return words


def _bench_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Sequence[str]:
    _one_blas_thread()
    return _load(BENCH_WORDS)(parser, list(words))


def _command(
    commands: argparse._SubParsersAction, name: str, function: object, words: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + ".", epilog=f"example:\n  {example}",
        formatter_class=_Formatter,
    )
    parser.set_defaults(command=function)
    return parser


class _Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, as the rest of the program does.

    fill(parser, words) -> words, where it is set, adds what the parser takes when the parser is first used.
    """

    fill: Callable[[argparse.ArgumentParser, Sequence[str]], Sequence[str]] | None = None

    def parse_known_args(self, args=None, namespace=None):
        fill, self.fill = self.fill, None
        return super().parse_known_args(fill(self, args) if fill else args, namespace)

    def error(self, message: str) -> None:
        _complain(f"{message}; see '{self.prog} --help'")
        raise SystemExit(MISTAKE)


class _Version(argparse.Action):
    """Prints the version; looked up only here, for importlib.metadata takes as long to import as all else."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"vitrea {version()}")
        parser.exit()


LONGEST_COMMAND = len("    threshold")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal up to 100 columns, with room for the longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_help_width())
        self._action_max_length = LONGEST_COMMAND   # argparse forgets the indent of commands, and breaks the line


def _help_width() -> int:
    import shutil

    return min(100, shutil.get_terminal_size((100, 24)).columns)


def _job_names() -> list[str]:
    from vitrea.jobs.jobfile import JOBS

    return list(JOBS)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected a whole number, at least 1")
    return int(text)


def _complain(words: object) -> None:
    """One line on stderr, from one rank: under mpiexec every rank meets the same mistake."""
    from vitrea.jobs.launcher import rank_from_environment

    if rank_from_environment() == 0:
        print(f"vitrea: {words}", file=sys.stderr, flush=True)


def _one_blas_thread() -> None:
    """Small products on many threads are up to fifty times slower; ranks and `threads` do the parallel work."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        os.environ[name] = "1"
