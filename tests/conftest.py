"""What every test may ask for, and how the ranks of an MPI test run report: rank 0 speaks for all.

`pytest` runs the tests without the marker `mpi`; `pytest --with-mpi` runs these too, on one rank; and
`mpiexec -n 4 pytest --only-mpi` runs them alone on four.
"""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("VITREA_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real particle stacks and maps; tests that need it are skipped, visibly, where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} is not there; set VITREA_DATA to the folder")
    return DATA


@pytest.fixture
def comm():
    """A communicator of all ranks that belongs to this test: a failure of one rank cannot spoil the next test."""
    from vitrea.engine.comm import world

    fresh = world().Dup()
    yield fresh
    fresh.Free()


@pytest.fixture
def launch(tmp_path):
    """`launch(n, *arguments)`: run this Python under `mpiexec -n n` (n = 0: without mpiexec) in tmp_path or `folder`.

    Returns the CompletedProcess with texts. The environment is free of an outer launcher's variables, so that it also
    works from a test run that is itself under mpiexec. Skipped, visibly, where there is no mpiexec.
    """

    def run(n, *arguments, seconds=120, folder=tmp_path, **variables):
        return subprocess.run(mpi_command(n, *arguments), cwd=folder, env=launch_environment() | variables, text=True,
                              capture_output=True, timeout=seconds)

    return run


@pytest.fixture
def run_job(tmp_path, monkeypatch):
    """`run_job(job, **keys)`: run a job in this process on one rank; its run folder, one for each call."""
    from tests.running import write_job
    from vitrea.jobs import cli

    monkeypatch.chdir(tmp_path)
    count = iter(range(100))

    def run(job, **keys):
        folder = tmp_path / f"run{next(count)}"
        assert cli.main(["run", str(write_job(tmp_path / "job.yaml", job, output=folder, **keys))]) == 0
        return folder

    return run


@pytest.fixture
def begin(tmp_path):
    """As `launch`, without waiting for the end: a Popen whose output is a text; killed when the test ends."""
    begun = []

    def start(n, *arguments, folder=tmp_path):
        begun.append(subprocess.Popen(mpi_command(n, *arguments), cwd=folder, env=launch_environment(), text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def mpi_command(n, *arguments):
    """The words that run this Python with `arguments` on n ranks, or alone for n = 0."""
    command = [sys.executable, *map(str, arguments)]
    if n == 0:
        return command
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec beside python or on PATH; pip install mpich, or load the site's MPI")
    return [mpiexec, "-n", str(n), *command]


def launch_environment():
    """This process's environment without the variables of a launcher that started it."""
    outer = ("PMI", "PMIX", "OMPI", "HYDRA", "HYDI", "MPI_", "MPIR", "PRTE", "SLURM")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return environment | {name: value for name, value in os.environ.items() if name in MPI_PERMISSIONS}


@pytest.fixture(scope="session")
def stacks(tmp_path_factory):
    """A folder with small simulated stacks: `plain/` (240 particles, 3 views, box 32), mixed.star, mixed-truth.star.

    The mixed particles are of one specimen in two optics groups, boxes 36 px of 5 Å and 45 px of 4 Å, with astigmatism.
    """
    folder = tmp_path_factory.mktemp("stacks")
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles

    plain = ParticleSimulation(n=240, views=3, box_size=32, pixel_size=6.0, snr=0.3, seed=1)
    simulate_particles(plain, folder / "plain")
    for name, n, box_size, pixel_size in (("coarse", 200, 36, 5.0), ("fine", 120, 45, 4.0)):
        simulate_particles(ParticleSimulation(n=n, views=3, box_size=box_size, pixel_size=pixel_size, snr=0.3, seed=2,
                                              astigmatism=2000.0), folder / name)
    for name in ("particles", "truth"):
        merge_groups([folder / "coarse" / f"{name}.star", folder / "fine" / f"{name}.star"],
                     folder / ("mixed.star" if name == "particles" else "mixed-truth.star"))
    return folder


def merge_groups(paths, merged):
    """One STAR file of the particles of several, each file an optics group of its own, the rows interleaved."""
    import numpy as np

    from vitrea.engine.star import read_star, write_star

    blocks = [read_star(path) for path in paths]
    for number, block in enumerate(blocks, 1):
        block["optics"]["rlnOpticsGroup"][:] = str(number)
        block["particles"]["rlnOpticsGroup"][:] = str(number)
    joined = {part: {label: np.concatenate([block[part][label] for block in blocks]) for label in blocks[0][part]}
              for part in ("optics", "particles")}
    order = np.argsort(np.concatenate([np.arange(len(b["particles"]["rlnImageName"])) for b in blocks]), kind="stable")
    joined["particles"] = {label: column[order] for label, column in joined["particles"].items()}
    write_star(merged, joined)


# What lets Open MPI run as root and with more ranks than cores; the Makefile sets them.
MPI_PERMISSIONS = (
    "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "PRTE_MCA_rmaps_default_mapping_policy",
    "OMPI_MCA_rmaps_base_oversubscribe",
)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not (config.getoption("with_mpi", False) or config.getoption("only_mpi", False)):
        return
    from vitrea.engine.comm import world

    if world().size > 1:
        config.pluginmanager.register(OneVoice(world().Dup(), config), "one-voice")


class OneVoice:
    """Ranks other than 0 are silent; rank 0 counts and shows their failures, and one failing rank fails the run."""

    def __init__(self, comm, config):
        self.comm = comm
        self.config = config
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")
        self.failures = []
        if comm.rank > 0:
            self.terminal._tw._file = io.StringIO()

    def pytest_runtest_logreport(self, report):
        if report.failed and self.comm.rank > 0:
            report.nodeid += f" (rank {self.comm.rank} of {self.comm.size})"
            self.failures.append(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        session.exitstatus = max(self.comm.allgather(int(exitstatus)))
        for rank, failures in enumerate(self.comm.allgather(self.failures)):
            for plain in failures if self.comm.rank == 0 else ():
                report = self.config.hook.pytest_report_from_serializable(config=self.config, data=plain)
                report.sections.insert(0, ("rank", str(rank)))
                kind = "failed" if report.when == "call" else "error"
                self.terminal.stats.setdefault(kind, []).append(report)
