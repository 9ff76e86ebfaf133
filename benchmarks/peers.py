"""`vitrea bench peers`: other programs on the same stack in the same run; what is not installed is left out."""
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

from vitrea.benchmarks.measure import table
from vitrea.benchmarks.records import keep, mpi_library
from vitrea.benchmarks.relion import COLUMNS, row, run_relion, run_vitrea, score
from vitrea.benchmarks.whole import DIAMETER, make_stack, warm_up

PEER = "relion_refine"


def command(arguments):
    """Run Vitrea and every peer, print them side by side, keep a record of each; 0."""
    arguments.diameter = arguments.diameter or DIAMETER * arguments.box * arguments.pixel_size
    peers = found_peers(arguments.relion or [PEER])
    records = []
    with tempfile.TemporaryDirectory(prefix="vitrea-peers-") as temporary:
        folder = Path(arguments.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stack = make_stack(folder, arguments)
        warm_up()
        for record in measured(arguments, folder, stack, peers):
            records.append(record)
            keep(arguments.records, record)
            print(json.dumps(record) if arguments.json else f"{record['program']} {record['version']} "
                  f"{record['flags']}: {record['wall_seconds']:.0f} s", flush=True)
    if not arguments.json:
        print("\n" + told(records, arguments) + f"\nwritten: {arguments.records}")
    return 0


def found_peers(wanted):
    """[(program, flags)] of PATH or PATH=FLAGS; a line for each that is not there."""
    peers = []
    for text in wanted:
        name, _, flags = text.partition("=")
        program = shutil.which(name)
        if program is None:
            print(f"{name} is not installed and is left out (Debian: apt-get install relion; or --relion PATH)")
        else:
            peers.append((program, flags))
    return peers


def measured(arguments, folder, stack, peers):
    """Records of Vitrea and of every peer that ran, one after the other."""
    common = SimpleNamespace(**{**vars(arguments), "relion_flags": ""})
    yield _record(common, folder, stack, run_vitrea(common, folder, stack, arguments.classes, arguments.seed))
    for program, flags in peers:
        common.relion_flags = flags
        run = run_relion(common, program, folder, stack, arguments.classes, arguments.seed)
        if run:
            yield {**_record(common, folder, stack, run), "path": program}


def _record(common, folder, stack, run):
    record = score(common, folder, stack, common.classes, common.seed, *run)
    return {**record, "benchmark": "peers", "name": record["program"], "unit": "particle·iteration", "n": 1,
            "samples": [record["ms_per_particle_iteration"]], "mpi": mpi_library()}


def told(records, arguments):
    """The table, and what Vitrea gains or loses beside each peer."""
    ours = records[0]
    lines = [f"{arguments.particles:,} particles of {arguments.views} views, box {arguments.box} px, SNR "
             f"{arguments.snr:g}, K = {arguments.classes}, {arguments.iterations} iterations, one core each; load "
             f"{ours['load'][0]:.1f}", "", table(COLUMNS, map(row, records)), ""]
    for theirs in records[1:]:
        ratio = theirs["ms_per_particle_iteration"] / ours["ms_per_particle_iteration"]
        frc = (ours["frc"]["mean_frc"] or 0.0) - (theirs["frc"]["mean_frc"] or 0.0)
        lines.append(f"beside {theirs['program']} {theirs['version']} {theirs['flags']}".rstrip()
                     + f": {ratio:.1f} × less CPU time; purity {ours['purity'] - theirs['purity']:+.3f}, ARI "
                     f"{ours['ari'] - theirs['ari']:+.3f}, mean FRC {frc:+.3f}")
    return "\n".join(lines)
