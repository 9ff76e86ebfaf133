"""The wheel holds every room and every module, and works away from the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "engine", "picker", "jobs", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel made from a copy of the sources: building in the repository would leave build/ behind."""
    import shutil

    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", str(out), str(source)],
        capture_output=True, text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("vitrea-*.whl"))


def test_no_module_is_missing_from_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")):
        assert f"vitrea/{path.relative_to(REPOSITORY).as_posix()}" in inside, "is its package listed in setup.cfg?"


def test_the_wheel_holds_the_licence_and_no_tests(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("LICENSE") for name in inside)
    assert not [name for name in inside if name.split("/")[0] in (*ROOMS, "tests")]
    assert "vitrea/__init__.py" not in inside


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # -I leaves the current folder out; -S the site-packages, with the editable install in them, which are added last.
    code = (
        "import sys\n"
        f"sys.path[:0] = [{str(tmp_path / 'site')!r}]\n"
        f"sys.path.append({str(Path(pytest.__file__).parent.parent)!r})\n"
        "import vitrea.jobs.cli, vitrea.kernels, vitrea.picker\n"
        "print(vitrea.jobs.cli.__file__)\n"
        "sys.exit(vitrea.jobs.cli.main(['new', 'classify2d']) or vitrea.jobs.cli.main(['new', 'bench']))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path / "site" / "vitrea" / "jobs" / "cli.py"))
    assert "n_classes: 50" in ran.stdout
    assert "layouts: [[1, 1]" in ran.stdout


def test_the_wheel_holds_the_examples_and_the_scripts_for_schedulers(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for name in ("benchmarks/scaling.yaml", "jobs/templates/batch.sh", "jobs/templates/pipeline.yaml"):
        assert f"vitrea/{name}" in inside, "is it listed in setup.cfg?"


def test_the_wheel_holds_the_pages(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (REPOSITORY / "jobs" / "templates").iterdir():
        assert f"vitrea/jobs/templates/{path.name}" in inside, "is it listed in setup.cfg?"
