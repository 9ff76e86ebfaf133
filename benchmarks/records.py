"""Benchmark records: one JSON line a measurement, with all that is needed to believe it later."""
import json
import tempfile
from pathlib import Path

from vitrea.benchmarks.measure import append_line, environment, read_lines
from vitrea.engine.errors import JobError

DEFAULT = "bench.jsonl"


def surroundings():
    """Date, commit, versions, CPU, cores, load and MPI library of this measurement."""
    return {**environment(), "mpi": mpi_library()}


def mpi_library():
    """`MPICH 5.0.2`, or "none": the kernels need no MPI."""
    from vitrea.engine.comm import library_name

    try:
        return library_name()
    except (ImportError, RuntimeError):
        return "none"


def keep(path, record):
    """Append a record to a JSON-lines file; JobError if it cannot be written."""
    try:
        append_line(path, record)
    except OSError as error:
        raise JobError(f"{path}: the record cannot be written: {error.strerror}; expected a place with write "
                       "permission and free space; choose another --records FILE") from error


def of_seeds(parser, argv, measure):
    """The records of measure(folder, arguments, seed) for every one of --seeds, each in a folder of its own that goes
    with it; kept in --records and printed as they come."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="stacks (default 0 1 2)")
    parser.add_argument("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (%(default)s)")
    given = parser.parse_args(argv)
    records = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as place:
            records.append(measure(Path(place), given, seed))
        keep(given.records, records[-1])
        print(json.dumps(records[-1]), flush=True)
    return records


def read_all(path):
    """All records of a file; JobError if there is none or a line is not JSON."""
    try:
        found = read_lines(path)
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: not a file of benchmark records ({error}); expected JSON lines as "
                       "'vitrea bench … --records FILE' writes them") from error
    if not found:
        raise JobError(f"{path}: no benchmark records were found; expected JSON lines as 'vitrea bench … --records "
                       "FILE' writes them")
    return found
