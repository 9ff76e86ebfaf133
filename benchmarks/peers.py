"""`vitrea bench peers`: other programs on the same stack in the same run; what is not installed is left out."""
import json
import shutil
import sys
import tempfile
from types import SimpleNamespace

from vitrea.benchmarks.measure import made_folder, table
from vitrea.benchmarks.records import keep, mpi_library
from vitrea.benchmarks.relion import COLUMNS, row, run_relion, run_vitrea, score
from vitrea.benchmarks.whole import DIAMETER, make_stack, warm_up
from vitrea.engine.errors import JobError

PEER = "relion_refine"
RATIOS = {"cpu_seconds": "CPU, whole program", "cpu_iterating": "CPU, iterations",
          "wall_seconds": "wall, whole program", "wall_iterating": "wall, iterations"}


def command(arguments):
    """Run Vitrea and every peer, print them side by side, keep a record of each; 0."""
    arguments.diameter = arguments.diameter or DIAMETER * arguments.box * arguments.pixel_size
    peers = found_peers(arguments.relion)
    records = []
    with tempfile.TemporaryDirectory(prefix="vitrea-peers-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        stack = make_stack(folder, arguments, arguments.progress)
        warm_up(arguments.progress)
        for record in measured(arguments, folder, stack, peers):
            records.append(record)
            keep(arguments.records, record)
            if arguments.json:
                arguments.progress.result(json.dumps(record))
    if not arguments.json:
        commands = "".join(f"\nrun as: {record['command']}" for record in records if "command" in record)
        arguments.progress.result(f"{told(records, arguments)}{commands}\nwritten: {arguments.records}")
    return 0


def found_peers(wanted):
    """[(program, flags)] of texts PATH or PATH=FLAGS; without any, the relion_refine on PATH.

    A line on stderr for each that is not there; JobError if none of those that were asked for is.
    """
    words = [text.partition("=") for text in wanted or [PEER]]
    missing = [name for name, _, _ in words if shutil.which(name) is None]
    if wanted and len(missing) == len(wanted):
        raise JobError(f"--relion: no program was found at {', '.join(missing)}; expected a relion_refine that may be "
                       "executed; correct the path, or leave --relion out to take the one on PATH")
    for name in missing:
        print(f"{name} is not installed and is left out (Debian: apt-get install relion; or --relion PATH)",
              file=sys.stderr)
    return [(shutil.which(name), flags) for name, _, flags in words if name not in missing]


def measured(arguments, folder, stack, peers):
    """Records of Vitrea, of `arguments.n` runs, and of every peer that ran.

    The first run of Vitrea comes before the peers, the others are spread between and after them, so that a machine that
    changes its speed meets both.
    """
    common = SimpleNamespace(**{**vars(arguments), "relion_flags": ""})
    about = (common, folder, stack, common.classes, common.seed)
    ours, theirs = [run_vitrea(*about)], []
    for number, (program, flags) in enumerate(peers, 1):
        common.relion_flags = flags
        run = run_relion(common, program, *about[1:])
        if run:
            theirs.append({**_record(about, [run]), "path": program})
        while len(ours) < 1 + (arguments.n - 1) * number // len(peers):
            ours.append(run_vitrea(*about))
    ours += [run_vitrea(*about) for _ in range(arguments.n - len(ours))]
    yield _record(about, ours)
    yield from theirs


def _record(about, runs):
    record = score(*about, runs)
    return {**record, "benchmark": "peers", "name": record["program"], "unit": "particle·iteration",
            "mpi": mpi_library()}


def told(records, arguments):
    """The table, and what Vitrea gains or loses beside each peer."""
    ours = records[0]
    lines = [f"{arguments.particles:,} particles of {arguments.views} views, box {arguments.box} px, SNR "
             f"{arguments.snr:g}, K = {arguments.classes}, {arguments.iterations} iterations, one core each; medians "
             f"of n runs; load {ours['load'][0]:.1f}", "", table(COLUMNS, map(row, records)), ""]
    if records[1:]:
        lines += ["How many times less Vitrea takes (in its iterations RELION reads the particles anew, which "
                  "Vitrea does once, before them):", "",
                  table(("beside", *RATIOS.values(), "purity", "ARI", "mean FRC"),
                        [_beside(ours, theirs) for theirs in records[1:]])]
    return "\n".join(lines)


def _beside(ours, theirs):
    """Ratios of times, a particle and iteration each, and differences of accuracy."""
    same = ours["iterations"] / theirs["iterations"]
    ratios = [f"{same * theirs[name] / ours[name]:.1f}" for name in RATIOS]
    frc = (ours["frc"]["mean_frc"] or 0.0) - (theirs["frc"]["mean_frc"] or 0.0)
    name = f"{theirs['program']} {theirs['version']} {theirs['flags']}".rstrip()
    return (name, *ratios, f"{ours['purity'] - theirs['purity']:+.3f}", f"{ours['ari'] - theirs['ari']:+.3f}",
            f"{frc:+.3f}")
