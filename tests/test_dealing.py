"""Dealing: every number once, to whichever rank asks first, and nothing is left behind."""
import time
from types import SimpleNamespace

import pytest

from vitrea.engine.errors import JobError
from vitrea.picker import progress
from vitrea.picker.dealing import Dealer, deal_out


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


class Silent:
    def tell(self, *_):
        pass


@pytest.mark.mpi
def test_work_is_done_once_and_a_mistake_on_one_rank_is_raised_on_all(comm, tmp_path):
    folder = comm.bcast(tmp_path, root=0)
    stop, done = SimpleNamespace(asked=lambda: False), []

    def one(number):
        done.append(number)
        time.sleep(0.01)

    busy = deal_out([5, 3, 8, 1], [4, 3, 2, 1], one, folder, progress=Silent(), stop=stop, comm=comm)
    assert sorted(number for part in comm.allgather(done) for number in part) == [1, 3, 5, 8]
    assert len(busy) == comm.size
    assert busy == comm.allgather(busy[comm.rank])
    assert 0 <= min(busy) <= max(busy) <= 1

    def mistaken(number):
        if number == 3:
            raise JobError("m3.box:1: found nothing")
        done.append(number)

    done.clear()
    with pytest.raises(JobError, match=r"m3\.box:1: found nothing"):
        deal_out([5, 3, 8, 1], [4, 3, 2, 1], mistaken, folder, progress=Silent(), stop=stop, comm=comm)
    if comm.size == 1:
        assert done == [5], "what comes after the mistake is not begun"
    comm.Barrier()
    assert not list(folder.iterdir())


def test_progress_tells_the_time_left_from_the_pace_of_this_run(monkeypatch):
    now, records, lines = [100.0], [], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = SimpleNamespace(record=lambda kind, **fields: records.append((kind, fields)), line=lines.append)
    told = progress.Progress(log, "scan", 1000, words="scanned", earlier=600)
    told.tell(0)
    for step, share in ((1, 0.1), (2, 0.2), (3, 0.25)):   # shares are of this run's work, not of pieces
        now[0] = 100.0 + 20.0 * step
        told.tell(40 * step, share, "loss 0.5")
    assert [kind for kind, _ in records] == ["progress"] * 3
    assert records[0][1] == {"stage": "scan", "iteration": 640, "of": 1000, "fraction": 1.0, "eta": pytest.approx(180)}
    assert records[-1][1]["eta"] == pytest.approx(180)
    assert lines[1] == "scanned  680/1000    20 %   loss 0.5   0:02:40 left"
    now[0] += 0.1
    told.tell(121, 0.2502)
    assert len(records) == len(lines) == 3, "not more often than somebody can look"
