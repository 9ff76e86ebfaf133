"""Tests with a real Slurm: `make test-cluster`. Elsewhere they are skipped, visibly."""
import os

import pytest

from tests.cluster import sandbox


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The folder of a running Slurm of two nodes with two cores each."""
    if not os.environ.get("VITREA_TEST_CLUSTER"):
        pytest.skip("a Slurm is started by 'make test-cluster' only")
    if why := sandbox.missing():
        pytest.skip(why)
    with sandbox.slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder
