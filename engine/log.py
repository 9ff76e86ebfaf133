"""The log of a run: plain timed lines in run.out and on the screen, one JSON record a line in record.jsonl.

Lines are for people, records for programs (`vitrea watch`, plots). Both only ever grow, so a run can be followed while
it goes on and a resumed run continues the clock of the one before. Nothing is animated here: under mpiexec `isatty` is
wrong with some MPI libraries, and bars fill log files with escape codes.

Records, each with `kind`, `time` (ISO 8601, UTC) and `elapsed` [s] besides:
    start       job, output, input, version, host, process (rank 0's number there), mpi, ranks, nodes, threads,
                particles, n_classes, box_size [px], pixel_size [Å], voltage [kV], memory_per_rank, memory_at_most,
                scratch_per_rank [bytes], options
    progress    iteration, of, stage, fraction 0..1 of the iteration, phase; of the picker's jobs: iteration and of
                count the pieces of a stage ("train": steps, "scan" and "extract": micrographs) that are done, eta [s]
    iteration   iteration, of, stage ("minibatch" | "full"), log_likelihood, resolution [Å], pmax, changed (fraction),
                seconds, e_step and of it coarse, score, posterior, accumulate, m_step, reduce, checkpoint [s], seen
                (particles of this iteration), rings (used in it), class_sizes [particles], eta [s at most], memory
                (peak of rank 0, bytes), sigma_offset [px], poses, busy (mean time that ranks worked in the E step, of
                that until the slowest was done), moves (the largest: class before, class after, particles), mobility
                (class-switch rate of particles that had a class), temperature (of the posterior), noise (variance that
                mini-batches leave in the averaged sums, of that of one particle; 0 in full passes)
    iteration   of cluster: iteration, of, stage ("cool" | "settle"), temperature, log_likelihood and held_out (of a
                particle), class_sizes, outliers [particles learnt from], mobility (null in the first after a resume),
                seconds, e_step, m_step, reduce, eta, memory
    probe       iteration (mini-batches so far), ari of two continuations, frozen (agreements in a row), needed (for
                the end), particles (compared), mobility
    reseed      iteration, map {class that was replaced: class it was split from} (numbers as in the STAR file)
    checkpoint  iteration
    resumed     total (iterations of both stages), iteration, of, stage
    stopped     total, iteration, of, stage (none before the first iteration), reason; of a pipeline in_stage, reason
    stage       of a pipeline: stage, number, state ("skip" | "go on" | "begin" | "done"), why, folder, job
    scanned     micrographs, busy (share of the time that each rank was at work); so extracted
    round       of a job that follows a folder: number, and what `done` has
    done        classes, empty, largest, particles, poses_per_core_second, files; of the picker's jobs: threshold,
                picks, micrographs, skipped, particles, f1, rounds, best, f, as the job has them
    failed      iteration, phase, rank, ranks, host, message
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from vitrea.engine.errors import JobError

LINES_NAME = "run.out"
RECORDS_NAME = "record.jsonl"

Record = Mapping[str, object]


class RunLog:
    """The log of a run folder, kept by rank 0; a folder that holds a log is continued, its clock too.

    Raises JobError when the folder cannot be written to (full disk, no permission), at any call.
    """

    def __init__(self, folder: Path, *, echo: bool) -> None:
        self.folder = Path(folder)
        self._echo = echo
        earlier = read_records(self.folder / RECORDS_NAME)
        self._begin = time.monotonic() - (float(earlier[-1]["elapsed"]) if earlier else 0.0)
        _drop_torn_line(self.folder / RECORDS_NAME)
        self._lines = _open_for_lines(self.folder / LINES_NAME)
        self._records = _open_for_lines(self.folder / RECORDS_NAME)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, the times before a resume included, the pause between not."""
        return time.monotonic() - self._begin

    def line(self, text: str) -> None:
        """Append `H:MM:SS  text` to run.out and show it."""
        timed = f"{format_clock(self.elapsed)}  {text}"
        _append(self._lines, timed)
        if self._echo:
            self._show(timed)

    def record(self, kind: str, **fields: object) -> None:
        """Append one JSON record; numpy values are taken, numbers that are not finite become null."""
        stamp = {
            "kind": kind,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "elapsed": round(self.elapsed, 3),
        }
        _append(self._records, json.dumps(stamp | _jsonable(fields) | stamp, ensure_ascii=False, allow_nan=False))

    def tell(self, kind: str, **fields: object) -> None:
        """Record, and write the lines that belong to this kind of record."""
        self.record(kind, **fields)
        for text in format_record({"kind": kind, **_jsonable(fields)}):
            self.line(text)

    def close(self) -> None:
        self._lines.close()
        self._records.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, text: str) -> None:
        # `vitrea run job.yaml | head` closes the pipe; the run goes on and run.out has every line.
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self._echo = False


class NullLog:
    """The log of every rank but 0: takes everything, keeps nothing."""

    elapsed = 0.0

    def line(self, text: str) -> None:
        pass

    def record(self, kind: str, **fields: object) -> None:
        pass

    def tell(self, kind: str, **fields: object) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> NullLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_records(path: Path) -> list[dict[str, object]]:
    """All whole records of a record.jsonl, oldest first; none if there is no file. A line being written is left out,
    and so is one that a disk has damaged: what is told of a run matters less than that it can go on."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}; check the permissions of the run folder") from error
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [record for line in whole if (record := _record_of(line)) is not None]


def _record_of(line: str) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def format_record(record: Record) -> list[str]:
    """The lines of run.out, without their times, that tell a record; none for a record without words (progress)."""
    words = _WORDS.get(str(record["kind"]))
    return words(record) if words else []


def format_start(record: Record) -> list[str]:
    """What is run, on which particles, by how many ranks: three lines."""
    get = record.get
    head = [get("job"), get("output"), f"vitrea {get('version')}", get("mpi")]
    particles = [get("input"), _count(get("particles"), "particle"), f"box {get('box_size')} px"]
    particles += [f"{get('pixel_size'):.4g} Å/px"] + ([f"{get('voltage'):.4g} kV"] if get("voltage") else [])
    ranks, nodes, threads = get("ranks", 1), get("nodes", 1), get("threads", 1)
    machine = [f"{_count(ranks, 'rank')} on {_count(nodes, 'node')}, {_count(threads, 'thread')} each"]
    machine += [_share(get("particles"), ranks), f"{format_bytes(get('memory_per_rank'))} a rank"]
    return [_COLUMN.join(str(word) for word in words if word) for words in (head, particles, machine)]


def format_iteration(record: Record) -> str:
    """One line with columns that never move; a value that was not measured shows as a dash.

    `it   1/25   logL −1.2345e+08   res  24.5 Å   pmax 0.07   changed 100.0 %   28.6 s   E   24.9  M   2.1  reduce  1.6`
    """
    mark = "mb" if record.get("stage") == "minibatch" else "it"
    columns = [
        f"{mark} {record['iteration']:>3}/{record.get('of') or '–':<3}",
        f"logL {_fixed(record, 'log_likelihood', '.4e', 11)}",
        f"res {_fixed(record, 'resolution', '.1f', 5)} Å",
        f"pmax {_fixed(record, 'pmax', '.2f', 4)}",
        f"changed {_fixed(record, 'changed', '.1f', 5, 100)} %",
        f"{_fixed(record, 'seconds', '.1f', 6)} s",
        f"E {_fixed(record, 'e_step', '.1f', 6)}  M {_fixed(record, 'm_step', '.1f', 5)}"
        f"  reduce {_fixed(record, 'reduce', '.1f', 4)}",
    ]
    return _COLUMN.join(columns)


def format_cluster_iteration(record: Record) -> str:
    """One line of manifold learning; log-likelihoods are those of a particle, learnt from and held out.

    `it   1/100   cooling   T   14.20   logL    −1532.411   held out    −1540.112   classes  30.0    0.5 s   E    0.3 …`
    """
    columns = [
        f"it {record['iteration']:>3}/{record.get('of') or '–':<3}",
        f"{record.get('stage', ''):<7}",
        f"T {_fixed(record, 'temperature', '.2f', 7)}",
        f"logL {_fixed(record, 'log_likelihood', '.3f', 11)}",
        f"held out {_fixed(record, 'held_out', '.3f', 11)}",
        f"{_fixed(record, 'seconds', '.1f', 6)} s",
        f"E {_fixed(record, 'e_step', '.1f', 6)}  M {_fixed(record, 'm_step', '.1f', 5)}"
        f"  reduce {_fixed(record, 'reduce', '.1f', 4)}",
    ]
    return _COLUMN.join(columns)


def format_reseed(record: Record) -> str:
    """`re-seeded   class 7 from 12   class 9 from 3`: the classes that were empty and those they were split from."""
    changes = sorted((int(new), int(old)) for new, old in _pairs(record.get("map")))
    return _COLUMN.join(["re-seeded", *(f"class {new} from {old}" for new, old in changes)])


def format_probe(record: Record) -> str:
    """`probe after mb 24   ARI 0.971 of two continuations   frozen: 1 of 2`"""
    frozen = f"frozen: {record['frozen']} of {record.get('needed')}" if record.get("frozen") else "not frozen"
    return _COLUMN.join([f"probe after mb {record['iteration']}",
                         f"ARI {_fixed(record, 'ari', '.3f', 6)} of two continuations", frozen])


def format_done(record: Record) -> str:
    """`done   50 classes, 3 empty, largest 11,204 (7.6 %)   2.3e7 poses/core-s`; without classes, what the job has."""
    if record.get("classes") is None:   # not of particles
        parts = [_count(record["stages"], "stage")] if record.get("stages") else []
        parts += [form.format(record[name]) for name, form in _WITHOUT_CLASSES.items() if record.get(name) is not None]
        return _COLUMN.join(["done", *parts])
    largest, particles = record.get("largest"), record.get("particles")
    words = f"{_count(record.get('classes'), 'class', 'classes')}, {record.get('empty', 0)} empty"
    if largest is not None and particles:
        words += f", largest {largest:,} ({100 * largest / particles:.1f} %)"
    speed = record.get("poses_per_core_second")
    return _COLUMN.join(["done", words] + ([f"{_short_power(speed)} poses/core-s"] if speed else []))


def format_round(record: Record) -> str:
    """`round 3 is done   12,000 particles   50 classes, 3 empty`: what has arrived so far is classified."""
    parts = [f"round {record.get('number')} is done"]
    if record.get("classes") is not None:
        parts += [_count(record.get("particles"), "particle"),
                  f"{_count(record['classes'], 'class', 'classes')}, {record.get('empty', 0)} empty"]
    return _COLUMN.join(parts)


def format_stopped(record: Record) -> str:
    """`stopped after it 12 of 30   SIGTERM`, of a pipeline `stopped in stage pick   SIGTERM`"""
    if record.get("in_stage"):
        return f"stopped in stage {record['in_stage']}{_COLUMN}{record.get('reason')}"
    return f"stopped {_place(record)}{_COLUMN}{record.get('reason')}"


def format_failed(record: Record) -> str:
    """`failed at it 7, E step   rank 17 of 64 on node02: particles.mrcs section 812 is not finite`"""
    place = "failed" if record.get("iteration") is None else f"failed at it {record['iteration']}"
    place += f", {record['phase']}" if record.get("phase") else ""
    if record.get("rank") is None:
        return f"{place}{_COLUMN}{record.get('message')}"
    rank = f"rank {record['rank']} of {record.get('ranks', '?')} on {record.get('host', '?')}"
    return f"{place}{_COLUMN}{rank}: {record.get('message')}"


def format_clock(seconds: float) -> str:
    """`H:MM:SS`; hours grow as needed."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def format_bytes(count: float | None) -> str:
    """`0.15 GB`, `12.0 GB`, `340 MB` (decimal); a dash if not known."""
    if count is None:
        return "–"
    if count < 0.1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.2f} GB" if count < 10e9 else f"{count / 1e9:,.1f} GB"


_COLUMN = "   "
_AT_WORK = {"train": "in training", "scan": "in the scan", "extract": "in the extraction",
            "wait": "while it waited for new files", "bench": "in the measurement"}
_WITHOUT_CLASSES = {"picks": "{:,} picks", "particles": "{:,} particles", "threshold": "threshold {:.3f}",
                    "f1": "F1 {:.3f}", "rounds": "{} rounds", "f": "F {:.3f}", "skipped": "{} skipped"}
_WORDS: dict[str, Callable[[Record], list[str]]] = {
    "start": format_start,
    "iteration": lambda record: [(format_cluster_iteration if "held_out" in record else format_iteration)(record)],
    "probe": lambda record: [format_probe(record)],
    "reseed": lambda record: [format_reseed(record)] if record.get("map") else [],
    "checkpoint": lambda record: [f"checkpoint after it {record.get('iteration')}"],
    "resumed": lambda record: [f"resumed {_place(record)}"],
    "stopped": lambda record: [format_stopped(record)],
    "done": lambda record: [format_done(record)],
    "round": lambda record: [format_round(record)],
    "wait": lambda record: [_COLUMN.join((f"waits for {record.get('wanted')} in {record.get('place')}",
                                          f"ends {record.get('end')}"))],
    "failed": lambda record: [format_failed(record)],
}


def _place(record: Record) -> str:
    """`after it 12 of 30`, what comes before the first iteration of a stage, or what a job of the picker was at."""
    if record.get("stage") in _AT_WORK:
        return _AT_WORK[record["stage"]]
    if record.get("iteration"):
        mark = "mb" if record.get("stage") == "minibatch" else "it"
        return f"after {mark} {record['iteration']}" + (f" of {record['of']}" if record.get("of") else "")
    return "after the mini-batches" if record.get("total") else "before the first iteration"


def _fixed(record: Record, name: str, form: str, width: int, factor: float = 1.0) -> str:
    value = record.get(name)
    text = "–" if value is None else f"{float(value) * factor:{form}}".replace("-", "−", 1)
    # The exponent's own sign stays a hyphen-minus so that the line can be parsed back; only a leading minus is typeset.
    return text.rjust(width)


def _count(number: object, one: str, many: str | None = None) -> str:
    if number is None:
        return f"– {many or one + 's'}"
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _share(particles: int | None, ranks: int) -> str:
    if particles is None:
        return ""
    low, high = particles // ranks, -(-particles // ranks)
    return f"{low:,} particles a rank" if low == high else f"{low:,}–{high:,} particles a rank"


def _short_power(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _pairs(mapping: object) -> Iterable[tuple[object, object]]:
    return mapping.items() if isinstance(mapping, Mapping) else ()


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_for_lines(path: Path) -> IO[bytes]:
    # Unbuffered: a line is with the system when it is written, and a full disk is met there and not at close.
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _append(file: IO[bytes], text: str) -> None:
    line = (text + "\n").encode()
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise _cannot_write(Path(file.name), error) from error


def _cannot_write(path: Path, error: OSError) -> JobError:
    return JobError(
        f"{path}: cannot be written: {error.strerror}; expected a run folder with free space and write permission; "
        f"make room, then 'vitrea resume {path.parent}', or run again with another output"
    )


def _drop_torn_line(path: Path) -> None:
    # A process killed while writing leaves a line without its end, which would swallow the next record.
    try:
        with path.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from error
