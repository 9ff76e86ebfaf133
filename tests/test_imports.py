"""The walls between the rooms: an import may only go down, and each outer library has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "engine", "picker", "jobs", "benchmarks")
MAY_IMPORT = {
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "picker": {"picker", "engine", "kernels"},
    "jobs": {"jobs", "picker", "engine", "kernels"},
    "benchmarks": {"benchmarks", "jobs", "picker", "engine", "kernels"},
}
# Outer library -> the files (or rooms) that may import it.
DOORS = {
    "mpi4py": ("engine/comm.py",),
    "pyfftw": ("kernels/fourier.py",),
    "yaml": ("jobs/", "benchmarks/study.py"),
    "rich": ("jobs/",),
    "argparse": ("jobs/", "benchmarks/"),
    "mrcfile": ("engine/", "picker/", "benchmarks/"),
    "gemmi": ("engine/",),
    "h5py": ("engine/", "picker/"),
    "logging": (),
    "pickle": (),
}
NOT_IN_KERNELS = {"os", "pathlib", "time", "logging", "sys", "json", "random", "subprocess"}
SOURCES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


def imported(path):
    """(line, module) for every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write vitrea.<room>"
            yield node.lineno, node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_down(path):
    place = path.relative_to(REPOSITORY)
    room = place.parts[0]
    for line, module in imported(path):
        top, _, rest = module.partition(".")
        assert top not in ROOMS, f"{place}:{line}: import {module}; write vitrea.{module}"
        if top == "vitrea":
            assert rest.split(".")[0] in MAY_IMPORT[room], f"{place}:{line}: {room}/ may not import {module}"
        if room == "kernels":
            assert top not in NOT_IN_KERNELS, f"{place}:{line}: kernels/ may not import {module}"
        if top in DOORS:
            assert str(place).startswith(DOORS[top] or ("nowhere",)), f"{place}:{line}: {module} has its door elsewhere"


def test_kernels_do_not_speak():
    for path in (REPOSITORY / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in ("print", "open"), f"{path.name}:{node.lineno}: {called} in kernels/"


def test_the_command_line_comes_without_the_numerical_libraries():
    code = "import sys, vitrea.jobs.cli as cli; cli._parser(); print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "numba", "scipy", "mpi4py", "rich", "matplotlib", "vitrea.benchmarks"} & set(loaded)
    assert not {"yaml", "importlib.metadata", "vitrea.engine.options"} & set(loaded), "they take longer than the help"


def test_the_words_of_bench_come_without_the_numerical_libraries():
    code = (
        "import sys, vitrea.jobs.cli as cli\n"
        "try:\n    cli.main(['bench', 'estep', '--help'])\n"
        "except SystemExit:\n    print(' '.join(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--rotations N" in said
    assert not {"numpy", "numba", "scipy", "mpi4py", "rich", "matplotlib"} & set(said.split())


def test_importing_a_room_starts_nothing():
    code = (
        "import threading, sys, vitrea.engine.options, vitrea.engine.log, vitrea.jobs.jobfile, vitrea.jobs.cli\n"
        "print(threading.active_count(), 'mpi4py.MPI' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "1 False\n"
