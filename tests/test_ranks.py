"""The test run itself under mpiexec: a failure of any rank is seen, counted once, and fails the run."""

import shutil
from pathlib import Path

TESTS = """\
import pytest

@pytest.mark.mpi
def test_good(comm):
    assert comm.allreduce(1) == comm.size

@pytest.mark.mpi
def test_bad(comm):
    assert comm.rank != 1, "rank one is bad"

@pytest.mark.mpi
def test_after_the_bad_one(comm):
    assert comm.allreduce(1) == comm.size
"""


def test_a_failure_of_rank_1_fails_the_run_and_is_told_by_rank_0(launch, tmp_path):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_three.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = launch(2, "-m", "pytest", "-q", "--only-mpi", "-p", "no:cacheprovider")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "test_bad (rank 1 of 2)" in ended.stdout
    assert ended.stdout.count("rank one is bad") >= 1
    assert "1 failed, 3 passed" in ended.stdout
    assert ended.stdout.count("passed") == 1
