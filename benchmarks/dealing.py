"""How busy dynamic dealing keeps the ranks of `job: pick` on micrographs of differing size, and what a rank needs.

    mpiexec -n 2 python -m vitrea.benchmarks.dealing --micrographs 24 --sides 1024 2048 4096

Micrographs of noise, of the sizes given in turn, are scanned by a network that was not trained, which takes as long.
A rank is busy from the moment it takes a micrograph until its candidates are on disk; shares are of the wall time of
the scan. Beside it stands what dealing in turn, rank after rank, would have come to, from the same CPU times; and the
largest resident size of each rank beside what `vitrea check` announces.
"""
import argparse
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np

from vitrea.benchmarks.records import DEFAULT, keep, surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.engine.log import format_bytes, read_records
from vitrea.picker import pick_job
from vitrea.picker.memory import picking
from vitrea.picker.micrographs import Preparation, list_micrographs
from vitrea.picker.modelfile import Model, read_model, write_model
from vitrea.picker.network import PRESETS, initial_parameters, initial_statistics
from vitrea.picker.options import PickOptions
from vitrea.picker.pick import Picker
from vitrea.picker.results import read_manifests

DIAMETER, PIXEL = 180.0, 1.0   # Å


def main(argv=None):
    """Scan, print what was found on rank 0, keep the record; the exit code. Collective."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.dealing", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--micrographs", type=int, default=24, metavar="N", help="number of micrographs (default %(default)s)")
    add("--sides", nargs="+", type=int, default=(1024, 2048, 4096), metavar="PX", help="their sides, in turn")
    add("--dtype", choices=("float16", "float32", "int8"), default="float16", help="of the files (default %(default)s)")
    add("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (default %(default)s)")
    add("--json", action="store_true", help="print the record, not words")
    given, comm = parser.parse_args(argv), world()
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as own:
        folder = Path(comm.bcast(own, root=0))
        try:
            record = measure(given, folder, comm)
        except JobError as mistake:
            print(f"vitrea: {mistake}", file=sys.stderr)
            return 2
        comm.Barrier()
    if comm.rank == 0:
        keep(given.records, record)
        print(json.dumps(record) if given.json else told(record))
    return 0


def measure(given, folder, comm):
    """The record of one scan. Collective."""
    if comm.rank == 0:
        _write(given, folder)
        (folder / "picks").mkdir()
    comm.Barrier()
    options = PickOptions(input=folder / "mics", output=folder / "picks", model=folder / "model.npz", pictures=0)
    listed = list_micrographs(options.input)
    load = os.getloadavg()[0]
    with contextlib.redirect_stdout(io.StringIO()):
        pick_job.run(options, resume=False, comm=comm)
    resident = comm.allgather(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    results, records = read_manifests(options.output), read_records(options.output / "record.jsonl")
    scanned = next(record for record in records if record["kind"] == "scanned")
    seconds = np.array([results[name]["seconds"] for name in listed.names])
    in_turn = [float(seconds[rank::comm.size].sum()) for rank in range(comm.size)]
    return {"bench": "dealing", "ranks": comm.size, "micrographs": given.micrographs, "sides": list(given.sides),
            "dtype": given.dtype, "busy": scanned["busy"], "cpu_seconds": float(seconds.sum()),
            "busy_in_turn": [share / max(in_turn) for share in in_turn], "resident_bytes": resident,
            "announced_bytes": picking(listed, read_model(options.model).picker), **surroundings(), "load_before": load}


def _write(given, folder):
    """Micrographs of noise and a model that was not trained."""
    random, network = np.random.default_rng(0), PRESETS["vitrea"]
    (folder / "mics").mkdir()
    for number in range(given.micrographs):
        side = given.sides[number % len(given.sides)]
        noise = random.normal(50, 10, size=(side, side)).astype(given.dtype)
        with mrcfile.new(folder / "mics" / f"m{number:04d}.mrc", data=noise) as file:
            file.voxel_size = PIXEL
    picker = Picker(network, initial_parameters(network, random), initial_statistics(network),
                    Preparation.of(network, DIAMETER), distance=0.7 * DIAMETER)
    write_model(folder / "model.npz", Model(picker, DIAMETER, 0.5, {}))


def told(record):
    """A record for people, a few lines."""
    def shares(values):
        return "   ".join(f"{100 * value:.1f} %" for value in values)

    return "\n".join([
        f"dealing    {record['micrographs']} micrographs of {', '.join(map(str, record['sides']))} px   "
        f"{record['ranks']} ranks   {record['cpu_seconds']:.1f} s of CPU   load {record['load_before']:.1f}",
        f"  busy     {shares(record['busy'])}",
        f"  in turn  {shares(record['busy_in_turn'])}   (what dealing rank after rank would have come to)",
        f"  memory   {'   '.join(map(format_bytes, record['resident_bytes']))}   announced "
        f"{format_bytes(record['announced_bytes'])} a rank"])


if __name__ == "__main__":
    sys.exit(main())
