"""What every benchmark here shares: running a program under the clock, describing the machine, and writing the results.

CPU time comes from the kernel's accounting of the finished process (user + system, children included) and is little
disturbed by other users of the machine; wall time is written beside it, with the load. Peak memory is the kernel's
high-water mark of the program itself (VmHWM), read while it runs: wait4's ru_maxrss also counts the pages of whoever
started it.
"""
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitrea.benchmarks.progress import SILENCE
from vitrea.engine.errors import JobError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("vitrea", "numpy", "scipy", "numba", "pyfftw", "finufft", "mpi4py")
MEMORY_SECONDS = 0.1          # time between looks at the high-water mark
GRACE_SECONDS = 5.0           # that a program has to end itself, and its ranks, before it is killed
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Measured:
    """One finished program: CPU time (user + system) and wall time [s], peak memory [bytes], exit code and output.

    marked: CPU and wall time [s] at which the file that was waited for appeared, or None.
    """

    cpu_seconds: float
    wall_seconds: float
    memory: int
    exit_code: int
    output: str
    marked: tuple[float, float] | None = None


def run_measured(command, folder, look=lambda: None, mark=None):
    """Run `command` (a list) in `folder`, BLAS on one thread: Measured. The exit code is the caller's to judge.

    look() is called some times a second while it runs; mark: a file in `folder` whose appearance is noted. Whatever
    ends the benchmark ends the program and all that it started: it is the leader of a process group.
    """
    begin = time.perf_counter()
    with _log_file(folder) as output:
        program = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **ONE_THREAD}, process_group=0)
        with _Watch(program.pid, look, Path(folder) / mark if mark else None) as watch, _ended_with_us(program):
            _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        output.seek(0)
        text = output.read()
    return Measured(usage.ru_utime + usage.ru_stime, wall, watch.peak, program.returncode, text,
                    watch.marked)


@contextmanager
def _log_file(folder):
    log = Path(folder) / f".measured-{os.getpid()}.out"
    try:
        with log.open("w+", errors="replace") as output:
            yield output
    finally:
        log.unlink(missing_ok=True)


@contextmanager
def ended_by_signals():
    """SIGTERM and SIGHUP end what lies inside as Ctrl-C does: programs are ended and temporary folders removed."""
    def leave(number, frame):
        signal.signal(number, signal.SIG_IGN)      # the second one would interrupt the clearing up
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]     # not under nohup
    try:
        for number in heard:
            signal.signal(number, leave)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def _ended_with_us(program):
    """A benchmark that is interrupted leaves nothing running. SIGTERM first: mpiexec and srun then end their ranks."""
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            program.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        raise


class _Watch:
    """Follows a process in a thread while the `with` lasts, and calls look().

    peak: its high-water mark [bytes]; marked: its CPU time and the time since its start [s] when the file `mark` was
    first there, or None.
    """

    def __init__(self, pid, look, mark):
        self._place, self._look, self._mark = Path(f"/proc/{pid}"), look, mark
        self._begin, self._ended, self.peak, self.marked = time.perf_counter(), threading.Event(), 0, None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._ended.set()
        self._thread.join()

    def _follow(self):
        while not self._ended.wait(MEMORY_SECONDS):
            self._look()
            try:
                lines = (self._place / "status").read_text().splitlines()
                if self._mark and not self.marked and self._mark.exists():
                    self.marked = self._cpu_seconds(), time.perf_counter() - self._begin
            except OSError:
                return
            self.peak = max([self.peak] + [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")])

    def _cpu_seconds(self):
        words = (self._place / "stat").read_text().rpartition(")")[2].split()     # the name may hold blanks
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")       # utime and stime: proc(5)


def vitrea(*arguments, folder, look=lambda: None):
    """Run the `vitrea` of this interpreter: Measured.

    Ends the benchmark if it fails: with JobError and the program's own sentence if the mistake is the user's, else with
    all it said.
    """
    measured = run_measured([sys.executable, "-m", "vitrea.jobs", *arguments], folder, look)
    command = " ".join(map(str, arguments))
    if measured.exit_code == 2:
        raise JobError(f"vitrea {command}: {last_words(measured.output).removeprefix('vitrea: ')}")
    if measured.exit_code:
        sys.exit(f"vitrea {command} ended with exit code {measured.exit_code}:\n{measured.output}")
    return measured


def last_words(output):
    """The last line that a program printed."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "nothing was said").strip()


def simulate(folder, *, n, views, snr, seed, box=64, pixel_size=4.0, progress=SILENCE):
    """Simulated particles with known truth in `folder`, ±3 px shifts, CTF 1.0–2.5 µm (the simulator's defaults)."""
    folder = Path(folder)
    progress.step(f"simulating {n:,} particles of {box} px")
    vitrea("simulate", "particles", "--out", folder.name, "--n", n, "--views", views, "--box", box, "--pixel-size",
           pixel_size, "--snr", snr, "--seed", seed, folder=folder.parent, look=progress.tick)


def classify(folder, keys, name="run", progress=SILENCE):
    """Run `job: classify2d` in `folder`, `keys` its job file without job and output: (Measured, records of the run)."""
    folder = Path(folder)
    lines = [f"{key}: {value}" for key, value in {"job": "classify2d", "output": name, **keys}.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    measured = vitrea("run", f"{name}.yaml", folder=folder, look=progress.tick)
    return measured, read_lines(folder / name / "record.jsonl")


def compared(folder, truth, result):
    """The scores of `vitrea compare` as a dict."""
    return json.loads(vitrea("compare", truth, result, "--json", folder=folder).output)


def made_folder(path, key):
    """`path` in full, made unless it is there. JobError, naming the `key` it was given by, if it cannot be used."""
    path = Path(path).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise JobError(f"{key}: {path} cannot be used ({error.strerror or error}); expected a folder that can be made "
                       "and written; choose another") from error


def iterations_of(records):
    """The records of iterations among those of a run, mini-batches included."""
    return [record for record in records if record["kind"] == "iteration"]


def iterations_done(folder):
    """count() of a Progress: the iterations that the log of the run in `folder` tells of by now."""
    path = Path(folder) / "record.jsonl"

    def count():
        return path.read_text().count('"kind": "iteration"') if path.exists() else 0

    return count


def environment():
    """Date, commit, versions, CPU and load: what a measurement needs beside it to be believed later."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(), "versions": found,
            "python": platform.python_version(), "cpu": _cpu_model(), "cores": os.cpu_count(),
            "load": [round(value, 2) for value in os.getloadavg()]}


def _commit():
    """The short hash of HEAD, with a + if tracked files differ from it; or "unknown" outside our repository."""
    try:
        # a wheel may lie in an environment inside somebody else's repository
        ours, *found = [subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
                        for arguments in (("ls-files", "--error-unmatch", __file__), ("rev-parse", "--short", "HEAD"),
                                          ("status", "--porcelain", "-uno"))]
    except OSError:            # no git
        return "unknown"
    if ours.returncode or any(each.returncode for each in found):
        return "unknown"
    return found[0].stdout.strip() + ("+" if found[1].stdout.strip() else "")


def _cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_lines(path):
    """The records of a JSON-lines file; [] if there is none."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(path, record):
    """Add one JSON line at once, so that an interrupted benchmark keeps what it has measured."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def table(header, rows):
    """A Markdown table, its columns as wide as their content."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
