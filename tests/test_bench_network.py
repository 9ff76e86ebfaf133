"""The Allreduce that an iteration waits for: measured, checked, and fitted by latency and bandwidth."""
import numpy as np
import pytest

from vitrea.benchmarks.network import fitted, measure, told
from vitrea.benchmarks.progress import SILENCE
from vitrea.engine.comm import alone, world
from vitrea.engine.errors import JobError


@pytest.mark.parametrize("ranks", [2, 7, 64])
def test_latency_and_bandwidth_are_found_again_from_times_they_made(ranks):
    sizes = np.array([8.0, 2.0**14, 2.0**20, 2.0**24])
    steps = np.ceil(np.log2(ranks))
    latency, bandwidth = fitted(sizes, 2 * steps * 3e-6 + 2 * (ranks - 1) / ranks * sizes / 5e9, ranks)
    assert latency == pytest.approx(3e-6)
    assert bandwidth == pytest.approx(5e9)


def test_messages_that_take_no_longer_when_larger_have_no_bandwidth():
    latency, bandwidth = fitted([8.0, 800.0], [1e-5, 1e-5], 2)
    assert latency == pytest.approx(5e-6)
    assert bandwidth > 1e15


def test_one_rank_has_nothing_to_send():
    with pytest.raises(JobError, match=r"one rank was found; expected at least two.*mpiexec -n 8"):
        measure([8], 1, alone(), SILENCE)


class Miscounting:
    """Three ranks whose sums are one too large."""

    size, rank = 3, 1

    def Barrier(self):
        pass

    def Allreduce(self, give, take):
        take[:] = 7.0

    def allgather(self, value):
        return [value] * 3


def test_a_wrong_sum_is_told():
    with pytest.raises(JobError, match="the sum over 3 ranks was 7; expected 6"):
        measure([8], 1, Miscounting(), SILENCE)


@pytest.mark.mpi(min_size=2)
def test_the_slowest_rank_counts_and_rank_0_tells():
    comm = world()
    records = measure([8, 80_000], 3, comm, SILENCE)
    if comm.rank:
        assert records is None
        return
    assert [record["bytes"] for record in records] == [8, 80_000]
    assert all(record["ranks"] == comm.size and record["n"] == 3 for record in records)
    assert all(0 < record["min"] <= record["median"] <= record["max"] for record in records)
    assert f"on {comm.size} ranks of 1 node" in told(records)
    assert "latency:" in told(records)
