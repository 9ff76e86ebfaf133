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
    """`launch(n, *arguments)`: run this Python under `mpiexec -n n` (n = 0: without mpiexec) in tmp_path.

    Returns the CompletedProcess with texts. The environment is free of an outer launcher's variables, so that it also
    works from a test run that is itself under mpiexec. Skipped, visibly, where there is no mpiexec.
    """
    outer = ("PMI", "PMIX", "OMPI", "HYDRA", "HYDI", "MPI_", "MPIR", "PRTE", "SLURM")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    environment |= {name: value for name, value in os.environ.items() if name in MPI_PERMISSIONS}

    def run(n, *arguments, seconds=120):
        command = [sys.executable, *map(str, arguments)]
        if n > 0:
            beside = Path(sys.executable).parent / "mpiexec"
            mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
            if mpiexec is None:
                pytest.skip("no mpiexec beside python or on PATH; pip install mpich, or load the site's MPI")
            command = [mpiexec, "-n", str(n), *command]
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=seconds)

    return run


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
