"""Dealing: every number once, to whichever rank asks first, and nothing is left behind."""
import time

import pytest

from vitrea.picker.dealing import Dealer


@pytest.mark.mpi
def test_every_number_is_dealt_once_and_a_slow_rank_gets_few(comm, tmp_path):
    folder = comm.bcast(tmp_path, root=0)
    comm.Barrier()
    if comm.rank == 0:
        (folder / ".dealt-before").mkdir()
        (folder / ".dealt-before" / "0").touch()
    comm.Barrier()
    for n in (0, 1, 40):
        with Dealer(n, folder, comm=comm) as dealer:
            mine = []
            for number in dealer:
                mine.append(number)
                time.sleep(0.05 if comm.rank == 0 and comm.size > 1 else 0.001)
        everyone = comm.allgather(mine)
        assert sorted(number for part in everyone for number in part) == list(range(n))
        if n == 40 and comm.size > 1:
            # Rank 0 sleeps in what stands for work, outside MPI, and does not hold the others up.
            assert len(everyone[0]) < 20 / comm.size
    comm.Barrier()
    assert not list(folder.iterdir())
