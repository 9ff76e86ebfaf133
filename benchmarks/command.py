"""The words of `vitrea bench`: names, options, and what each calls. Only the standard library, until it runs."""
from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

SUMMARY = {
    "estep": "everything between a particle's coefficients and its weights",
    "polar": "pixels to angular harmonics, as particles are read",
    "product": "the matrix products over rings",
    "angles": "the transforms over angles",
    "posterior": "scores to weights",
    "accumulate": "weighted images into the sums of the M step",
    "marginal": "the coarse pass",
}
MANIFOLD_TABLES = {   # and the signal-to-noise ratios of each
    "hinge": ("ten positions of a hinge beside four other methods, at low signal", [0.02, 0.01]),
    "unrelated": ("unrelated and rotated views beside maximum likelihood", [0.1, 0.03, 0.01, 0.005]),
    "junk": ("what is set aside, where there is junk and where there is none", [0.05]),
    "order": ("the latent coordinate of a continuous motion", [0.1, 0.05, 0.02]),
    "sizes": ("the number of classes that held-out particles choose", [0.05, 0.02]),
}
DEFAULT_RECORDS = Path("bench.jsonl")
YAML = (".yaml", ".yml")
EPILOG = """\
examples:
  vitrea bench estep --classes 200 --rotations 240 --shifts 21 --rings 39 --json
  vitrea bench kernels --plot roofline.png
  vitrea bench scan --network deepem-klh --side 2048 --pixel-size 2.2 --diameter 400 --orientations 1
  vitrea bench picker --set klh --json
  vitrea bench run --particles 2000 --classes 20 --ranks 2
  vitrea new bench > scaling.yaml; vitrea bench scaling.yaml
  vitrea bench peers --particles 1000 --classes 10
  vitrea bench startup
  mpiexec -n 8 vitrea bench network
  vitrea bench hinge --snr 0.02 0.01 --seeds 0 1 2 --json
  vitrea bench junk --snr 0.05
  vitrea bench manifold
  vitrea bench streaming --sizes 20000 80000
  vitrea bench compare before.jsonl after.jsonl

Kernels are checked against their NumPy twins before the clock starts. Every measurement is one line in bench.jsonl,
with commit, versions, CPU, MPI and load: docs/benchmarks.md."""


def fill(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Give `vitrea bench` its sub-commands; returns the words, with `scaling` put before a YAML file."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(title="what", metavar="NAME", required=True)
    for name, summary in SUMMARY.items():
        one = _add(commands, parser, name, f"kernel: {summary}", _kernels)
        _add_sizes(one)
        one.set_defaults(names=[name])
        if name == "estep":
            one.add_argument("--adaptive", action="store_true",
                             help="the coarse and the fine level, as the engine goes, on simulated particles")
    every = _add(commands, parser, "kernels", "all kernels, one after the other", _kernels)
    _add_sizes(every)
    every.set_defaults(names=list(SUMMARY))
    _add_scan(_add(commands, parser, "scan", "the picker: a micrograph file to coordinates", _scan))
    _add_picker(_add(commands, parser, "picker", "the picker on real micrographs, against centres set by hand",
                     _picker))
    _add_run(_add(commands, parser, "run", "a whole run of classify2d on a simulated stack", _run))
    _add_startup(_add(commands, parser, "startup", "fresh processes: to the help, to the first iteration", _startup))
    _add_network(_add(commands, parser, "network", "Allreduces between the ranks it is started on", _network))
    _add_scaling(_add(commands, parser, "scaling", "a scaling study: vitrea bench STUDY.yaml", _scaling))
    _add_peers(_add(commands, parser, "peers", "RELION beside us, on the same stack", _peers))
    for name, (summary, snrs) in MANIFOLD_TABLES.items():
        _add_table(_add(commands, parser, name, f"manifold learning: {summary}", _table), name, snrs)
    _add_manifold(_add(commands, parser, "manifold", "manifold learning: E step, and solve of the M step", _manifold))
    _add_streaming(_add(commands, parser, "streaming", "particles in scratch: memory, disk and time", _streaming))
    _add_dynamics(_add(commands, parser, "dynamics", "the two-valley model of SGD: tests T1 to T12", _dynamics))
    _add_langevin(_add(commands, parser, "langevin", "trajectory steps of the two-valley model", _langevin))
    _add_compare(_add(commands, parser, "compare", "what changed between two files of records", _compare))
    return ["scaling", *words] if words and words[0].endswith(YAML) else words


def _add(commands, parent, name, words, function):
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".",
                                 formatter_class=parent.formatter_class)
    parser.set_defaults(command=functools.partial(_until_signalled, function))
    return parser


def _until_signalled(function, arguments):
    """Run a sub-command; a signal leaves no program running and no temporary folder."""
    from vitrea.benchmarks.measure import ended_by_signals
    from vitrea.benchmarks.progress import Progress

    arguments.progress = Progress()
    _check_files(arguments)
    try:
        with ended_by_signals():
            return function(arguments)
    finally:
        arguments.progress.clear()


def _check_files(arguments):
    """JobError, before anything is measured, for files that could not be written afterwards."""
    from vitrea.benchmarks.measure import made_folder
    from vitrea.engine.errors import JobError

    for name in ("records", "plot"):
        path = getattr(arguments, name, None)
        if path is not None:
            made_folder(path.parent, f"--{name}")
        if path is not None and path.is_dir():
            raise JobError(f"--{name}: {path} is a folder; expected a file; give its name too")
    if getattr(arguments, "plot", None) and arguments.plot.suffix != ".png":
        raise JobError(f"--plot: {arguments.plot} was found; expected a name that ends in .png; choose another")


def _add_sizes(parser):
    add = parser.add_argument
    for name, default, words in (("classes", 200, "classes"), ("rotations", 240, "in-plane angles"),
                                 ("shifts", 21, "shifts, as many as fill a disc"), ("rings", 39, "Fourier rings"),
                                 ("particles", 64, "particles a run")):
        add(f"--{name}", type=whole, default=default, metavar="N", help=f"{words} (default {default})")
    add("--box", type=whole, metavar="L", help="box [px] (default: the smallest that has the rings)")
    add("--support", type=float, metavar="PX", help="radius of the particle [px] (default 0.4 of the box)")
    add("--seed", type=int, default=0, metavar="S", help="start of every random draw (default 0)")
    add("--n", type=whole, default=5, metavar="N", help="runs under the clock, after a warm-up (default 5)")
    add("--plot", type=Path, metavar="FILE.png", help="draw the kernels under the machine's roofline")
    add("--quick", action="store_true", help="limits of the machine from small arrays: for tests only")
    _add_output(parser)


def _add_scan(parser):
    add = parser.add_argument
    add("--network", default="vitrea", metavar="PRESET", help="network (default vitrea; deepem-klh is the published)")
    add("--side", type=whole, default=4096, metavar="PX", help="side of the micrograph [px] (default 4096)")
    add("--pixel-size", type=float, default=1.0, metavar="A", help="of the micrograph [Å/px] (default 1)")
    add("--diameter", type=float, default=180.0, metavar="A", help="of the particle [Å] (default 180)")
    add("--orientations", type=whole, default=4, metavar="N", help="quarter turns averaged (default 4)")
    add("--seed", type=int, default=0, metavar="S", help="start of every random draw (default 0)")
    add("--n", type=whole, default=5, metavar="N", help="runs under the clock, after a warm-up (default 5)")
    add("--quick", action="store_true", help="limits of the machine from small arrays: for tests only")
    _add_output(parser)


def _add_picker(parser):
    add = parser.add_argument
    add("--set", required=True, choices=("klh", "apoferritin", "betagal"), help="real images of VITREA_DATA")
    add("--network", default="vitrea", metavar="PRESET", help="network and its recipe (default vitrea)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="S", help="starts of the random draws (default 0)")
    add("--steps", type=whole, metavar="N", help="steps of training (default: the recipe's)")
    add("--folds", type=int, default=0, metavar="N", help="parts of the micrographs trained on; the threshold is "
        "chosen on each by a network trained on the others, N trainings more (default 0: by the network itself)")
    add("--inner", action="store_true", help="leave out one of those that the first split trains on, in turn: for "
        "choices, which must not see the micrographs tested")
    add("--splits", nargs="+", type=int, metavar="I", help="of micrographs that are tested in turn, only these, from 0")
    _add_output(parser)


def _add_output(parser):
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines, for programs")
    parser.add_argument("--records", type=Path, default=DEFAULT_RECORDS, metavar="FILE",
                        help="JSON lines that the records are added to (default %(default)s)")


def _add_stack(parser, particles, classes):
    add = parser.add_argument
    add("--particles", type=whole, default=particles, metavar="N", help=f"particles (default {particles:,})")
    add("--views", type=whole, default=10, metavar="V", help="views of the stack (default 10)")
    add("--box", type=whole, default=64, metavar="L", help="box [px] (default 64)")
    add("--pixel-size", type=float, default=4.0, metavar="A", help="[Å/px] (default 4)")
    add("--snr", type=float, default=0.1, metavar="S", help="signal variance over noise variance (default 0.1)")
    add("--seed", type=int, default=0, metavar="S", help="of stack and run (default 0)")
    add("--classes", type=whole, default=classes, metavar="K", help=f"classes (default {classes})")
    add("--keep", type=Path, metavar="DIR", help="keep stack and runs here (default: a temporary folder, removed)")


def _add_run(parser):
    _add_stack(parser, 2000, 20)
    add = parser.add_argument
    add("--iterations", type=whole, default=10, metavar="I", help="full passes (default 10)")
    add("--ranks", type=whole, default=1, metavar="R", help="MPI ranks (default 1)")
    add("--threads", type=whole, default=1, metavar="T", help="threads a rank (default 1)")
    add("--n", type=whole, default=1, metavar="N", help="runs under the clock (default 1)")
    add("--set", type=pair, action="append", default=[], metavar="KEY=VALUE",
        help="a key of the job, e.g. --set psi_step=12")
    _add_output(parser)


def _add_startup(parser):
    parser.add_argument("--n", type=whole, default=5, metavar="N", help="processes under the clock, each (default 5)")
    _add_output(parser)


def _add_network(parser):
    parser.epilog = "Start it with the launcher of a job: mpiexec -n 8 vitrea bench network"
    parser.add_argument("--bytes", type=whole, nargs="+", default=[8, 2**10, 2**14, 2**18, 2**20, 2**22, 2**24],
                        metavar="B", help="sizes of the message [bytes] (default 8 to 16 MiB)")
    parser.add_argument("--n", type=whole, default=20, metavar="N", help="Allreduces of each size (default 20)")
    _add_output(parser)


def _add_scaling(parser):
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY.yaml", help="what to run; vitrea new bench prints a commented one")
    add("--submit", choices=("slurm", "pbs", "torque"),
        help="write array scripts for a scheduler instead of running here")
    add("--case", type=int, metavar="I", help="run case I only (what the array scripts do)")
    add("--prepare", action="store_true", help="make the stacks only")
    add("--report", action="store_true", help="tables and plots of what has been measured so far; run nothing")
    add("--list", action="store_true", help="list the cases and leave")


def _add_peers(parser):
    _add_stack(parser, 1000, 10)
    add = parser.add_argument
    add("--relion", action="append", metavar="PATH[=FLAGS]",
        help="a relion_refine, its own flags after =, e.g. /opt/relion-5/bin/relion_refine='--cpu'; may be given again "
             "(default: the one on PATH)")
    add("--iterations", type=whole, default=15, metavar="I", help="iterations of all (default 15)")
    add("--psi-step", type=float, default=12.0, metavar="DEG", help="coarse angular step [degrees] (default 12)")
    add("--offset-range", type=float, default=5.0, metavar="PX", help="shifts searched [px] (default 5)")
    add("--offset-step", type=float, default=2.0, metavar="PX", help="coarse step of shifts [px] (default 2)")
    add("--diameter", type=float, metavar="A", help="particle diameter [Å] (default: 0.78 of the box)")
    add("--n", type=whole, default=1, metavar="N", help="runs of Vitrea beside one of each peer (default 1)")
    _add_output(parser)


def _add_table(parser, name, snrs):
    parser.set_defaults(table=name)
    add = parser.add_argument
    add("--snr", type=float, nargs="+", default=snrs, metavar="S",
        help=f"signal variance over noise variance (default {' '.join(map(str, snrs))})")
    add("--seeds", type=natural, nargs="+", default=[0, 1, 2], metavar="I",
        help="of specimen and noise (default 0 1 2)")
    _add_output(parser)


def _add_manifold(parser):
    add = parser.add_argument
    for name, default, words in (("classes", 1000, "nodes"), ("box", 180, "box of the solve [px]"),
                                 ("radius", 31, "Fourier rings of the E step"),
                                 ("particles", 2048, "particles of an E step")):
        add(f"--{name}", type=whole, default=default, metavar="N", help=f"{words} (default {default:,})")
    add("--n", type=whole, default=5, metavar="N", help="runs under the clock, after a warm-up (default 5)")
    add("--seed", type=natural, default=0, metavar="S", help="start of every random draw (default 0)")
    add("--quick", action="store_true", help="limits of the machine from small arrays: for tests only")
    _add_output(parser)


def _add_streaming(parser):
    add = parser.add_argument
    add("--sizes", type=whole, nargs="+", default=[20_000, 80_000], metavar="N",
        help="particles of each stack that is compared (default 20000 80000)")
    add("--keep", type=Path, metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    _add_output(parser)


def _add_dynamics(parser):
    parser.epilog = "About 4 minutes of CPU; mpiexec -n 2 vitrea bench dynamics halves them."
    parser.add_argument("--trajectories", type=whole, default=2000, metavar="N",
                        help="of a cell of the phase diagram; tolerances widen where there are fewer (default 2000)")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="start of every random draw (default 0)")
    _add_output(parser)


def _add_langevin(parser):
    parser.epilog = "Started with a launcher, it also measures the efficiency: mpiexec -n 2 vitrea bench langevin"
    parser.add_argument("--n", type=whole, default=5, metavar="N", help="runs under the clock, each (default 5)")
    _add_output(parser)


def _add_compare(parser):
    parser.add_argument("before", type=Path, metavar="A", help="JSON lines of vitrea bench")
    parser.add_argument("after", type=Path, metavar="B", help="JSON lines of vitrea bench")
    parser.add_argument("--other-cpu", action="store_true", help="compare records of other kinds of processor too")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def whole(text):
    """A whole number of at least 1, or argparse's complaint."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected a whole number, at least 1")
    return int(text)


def pair(text):
    """(key, value) of `key=value`, or argparse's complaint."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected KEY=VALUE, e.g. psi_step=12")
    return key, value


def natural(text):
    """A whole number of at least 0, or argparse's complaint."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' was found; expected a whole number, at least 0")
    return int(text)


def _kernels(arguments):
    from vitrea.benchmarks.records import keep
    from vitrea.benchmarks.roofline import draw_roofline
    from vitrea.benchmarks.specimens import Sizes
    from vitrea.benchmarks.suite import QUICK, Effort, measure, told

    sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
    effort = Effort(arguments.n, **(QUICK if arguments.quick else {}))
    records = []
    for name in arguments.names:
        adaptive = getattr(arguments, "adaptive", False)
        records.append(measure("adaptive" if adaptive else name, sizes, effort, arguments.progress))
        keep(arguments.records, records[-1])
        arguments.progress.result(json.dumps(records[-1]) if arguments.json else told(records[-1]))
    if arguments.plot:
        draw_roofline(arguments.plot, records)
    if not arguments.json:
        print(_where(arguments, records[-1]))
    return 0


def _scan(arguments):
    from vitrea.benchmarks.scan import ScanSizes, told
    from vitrea.benchmarks.suite import QUICK, Effort, measure

    sizes = ScanSizes(arguments.network, arguments.side, arguments.pixel_size, arguments.diameter,
                      arguments.orientations, arguments.seed)
    record = measure("scan", sizes, Effort(arguments.n, **(QUICK if arguments.quick else {})), arguments.progress)
    return _kept(arguments, record, told)


def _picker(arguments):
    from vitrea.benchmarks.picking import Choice, Training, measure, told

    how = Training(arguments.network, steps=arguments.steps, folds=arguments.folds)
    record = measure(arguments.set, how, arguments.seeds, Choice(arguments.inner, arguments.splits), arguments.progress)
    return _kept(arguments, record, told)


def _kept(arguments, record, told):
    """Keep and print one record; 0."""
    from vitrea.benchmarks.records import keep

    keep(arguments.records, record)
    arguments.progress.result(json.dumps(record) if arguments.json else told(record) + "\n" + _where(arguments, record))
    return 0


def _where(arguments, record):
    written = [str(arguments.records), *([str(arguments.plot)] if getattr(arguments, "plot", None) else [])]
    return (f"{record['cpu']}, {record['cores']} cores, load {record['load'][0]:.1f}   commit {record['commit']}   "
            f"written: {', '.join(written)}")


def _run(arguments):
    from vitrea.benchmarks.whole import measure, told

    return _kept(arguments, measure(arguments, arguments.progress), told)


def _startup(arguments):
    from vitrea.benchmarks.records import keep
    from vitrea.benchmarks.startup import measure, told

    for record in measure(arguments.n, arguments.progress):
        keep(arguments.records, record)
        arguments.progress.result(json.dumps(record) if arguments.json else told(record))
    return 0


def _network(arguments):
    from vitrea.benchmarks.network import command

    return command(arguments)


def _scaling(arguments):
    from vitrea.benchmarks.scaling import command

    return command(arguments)


def _peers(arguments):
    from vitrea.benchmarks.peers import command

    return command(arguments)


def _table(arguments):
    if arguments.table in ("hinge", "unrelated"):
        from vitrea.benchmarks.hinge import command
    else:
        from vitrea.benchmarks.judgements import command

    return command(arguments)


def _manifold(arguments):
    from vitrea.benchmarks.manifold import command

    return command(arguments)


def _streaming(arguments):
    from vitrea.benchmarks.streaming import command

    return command(arguments)


def _dynamics(arguments):
    from vitrea.benchmarks.dynamics import command

    return command(arguments)


def _langevin(arguments):
    from vitrea.benchmarks.langevin import command

    return command(arguments)


def _compare(arguments):
    from vitrea.benchmarks.changes import changes, told
    from vitrea.benchmarks.records import read_all

    found = changes(read_all(arguments.before), read_all(arguments.after), arguments.other_cpu)
    print(json.dumps(found) if arguments.json else told(found))
    return 0
