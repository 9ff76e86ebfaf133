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
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("vitrea", "numpy", "scipy", "numba", "pyfftw", "finufft", "mpi4py")
MEMORY_SECONDS = 0.1          # time between looks at the high-water mark
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Measured:
    """One finished program: CPU time (user + system) and wall time [s], peak memory [bytes], exit code and output."""

    cpu_seconds: float
    wall_seconds: float
    memory: int
    exit_code: int
    output: str


def run_measured(command, folder):
    """Run `command` (a list) in `folder`, BLAS on one thread: Measured. The exit code is the caller's to judge."""
    log = Path(folder) / f".measured-{os.getpid()}.out"
    begin = time.perf_counter()
    with log.open("w+", errors="replace") as output:
        program = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **ONE_THREAD})
        with _MemoryWatch(program.pid) as watch, _killed_with_us(program):
            _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        output.seek(0)
        text = output.read()
    log.unlink()
    return Measured(usage.ru_utime + usage.ru_stime, wall, watch.peak, program.returncode, text)


@contextmanager
def _killed_with_us(program):
    """A benchmark that is interrupted, also by SIGTERM, leaves nothing running."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except BaseException:
        program.kill()
        program.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _MemoryWatch:
    """Follows a process's high-water mark in a thread, as long as the `with` lasts; `peak` [bytes]."""

    def __init__(self, pid):
        self._status, self._ended, self.peak = Path(f"/proc/{pid}/status"), threading.Event(), 0
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._ended.set()
        self._thread.join()

    def _follow(self):
        while not self._ended.wait(MEMORY_SECONDS):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            self.peak = max([self.peak] + [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")])


def vitrea(*arguments, folder):
    """Run the `vitrea` of this interpreter: Measured; ends the benchmark with its output if it fails."""
    measured = run_measured([sys.executable, "-m", "vitrea.jobs", *arguments], folder)
    if measured.exit_code:
        command = " ".join(map(str, arguments))
        sys.exit(f"vitrea {command} ended with exit code {measured.exit_code}:\n{measured.output}")
    return measured


def simulate(folder, *, n, views, snr, seed, box=64, pixel_size=4.0):
    """Simulated particles with known truth in `folder`, ±3 px shifts, CTF 1.0–2.5 µm (the simulator's defaults)."""
    folder = Path(folder)
    vitrea("simulate", "particles", "--out", folder.name, "--n", n, "--views", views, "--box", box, "--pixel-size",
           pixel_size, "--snr", snr, "--seed", seed, folder=folder.parent)


def classify(folder, keys, name="run"):
    """Run `job: classify2d` in `folder`, `keys` its job file without job and output: (Measured, records of the run)."""
    folder = Path(folder)
    lines = [f"{key}: {value}" for key, value in {"job": "classify2d", "output": name, **keys}.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    measured = vitrea("run", f"{name}.yaml", folder=folder)
    return measured, read_lines(folder / name / "record.jsonl")


def compared(folder, truth, result):
    """The scores of `vitrea compare` as a dict."""
    return json.loads(vitrea("compare", truth, result, "--json", folder=folder).output)


def iterations_of(records):
    """The records of iterations among those of a run, mini-batches included."""
    return [record for record in records if record["kind"] == "iteration"]


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
