"""The watchdog: who is late is named after the patience, and nobody is who only works, or sleeps with all others."""
import os
import signal
import subprocess
import sys
import time

import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.watchdog import FOLDER, Watchdog, patience

HOSTS = ["node01", "node02", "node03"]


class Ranks:
    """Three watchdogs of one run, and what they say."""

    def __init__(self, folder, seconds=0.4):
        self.said, self.clocks = [], [0.0, 0.0, 0.0]
        self.dogs = [Watchdog(folder, rank, HOSTS, seconds,
                              lambda *words, rank=rank: self.said.append((rank, *words)),
                              clock=lambda rank=rank: self.clocks[rank]) for rank in range(3)]

    def enter(self, rank, name, number):
        self.dogs[rank].enter(name, number, lambda: range(3))

    def wait(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.said:
            time.sleep(0.02)


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrea.engine.watchdog.SPEAKER_SECONDS", 0.5)
    found = Ranks(tmp_path)
    yield found
    for dog in found.dogs:
        dog.close()
    assert not (tmp_path / FOLDER).exists()


def test_the_rank_that_has_not_come_is_named_with_its_host(ranks):
    ranks.enter(0, "Allreduce", 7)
    ranks.enter(2, "Allreduce", 7)
    ranks.wait(5)
    speaker, message, rank, host = ranks.said[0]
    assert (speaker, rank, host) == (0, 1, "node02")
    assert message.startswith("rank 1 on node02 has not come, while others wait in Allreduce for more than 0.4 s; ")


def test_a_rank_in_another_collective_is_named(ranks):
    ranks.enter(0, "Allreduce", 7)
    ranks.enter(1, "Allreduce", 7)
    ranks.enter(2, "Bcast", 6)
    ranks.wait(5)
    assert ranks.said[0][1].startswith("rank 2 on node03 is in Bcast, while others wait in Allreduce")


def test_messages_that_do_not_arrive_are_the_network_s(ranks):
    for rank in range(3):
        ranks.enter(rank, "Allreduce", 7)
    ranks.wait(5)
    assert ranks.said[0][1].startswith("all 3 ranks wait in Allreduce")
    assert ranks.said[0][2] is None


def test_who_works_or_comes_in_time_is_not_late(ranks):
    """Longer than the patience in all, but never in one collective; one rank works throughout."""
    for number in range(10):
        ranks.enter(0, "Allreduce", number)
        ranks.wait(0.1)
        ranks.dogs[0].leave()
    assert ranks.said == []


def work(ranks, rank, seconds):
    """The rank's processor time grows for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not ranks.said:
        ranks.clocks[rank] += 0.02
        time.sleep(0.02)


def test_who_works_alone_for_longer_than_the_patience_is_waited_for_until_it_no_longer_works(ranks):
    ranks.enter(0, "bcast", 7)
    ranks.enter(2, "bcast", 7)
    work(ranks, 1, 2.0)
    assert ranks.said == [], "five times the patience"
    ranks.wait(5)
    assert ranks.said[0][1].startswith("rank 1 on node02 has not come, while others wait in bcast")


def test_two_are_late_and_one_of_them_works(ranks):
    ranks.enter(0, "bcast", 7)
    work(ranks, 1, 5)
    assert ranks.said[0][1].startswith("rank 1 on node02, and 1 more has not come")


def test_work_without_an_end_is_not_waited_for(ranks, monkeypatch):
    monkeypatch.setattr("vitrea.engine.watchdog.LONGEST_WORK", 3.0)
    ranks.enter(0, "bcast", 7)
    ranks.enter(2, "bcast", 7)
    work(ranks, 1, 10)
    assert ranks.said[0][1].startswith("rank 1 on node02 has not come")


def test_a_run_that_is_suspended_as_a_whole_is_not_late(tmp_path):
    """One process is stopped for several times its patience while it waits."""
    code = ("import sys, time\nfrom vitrea.engine.watchdog import Watchdog\n"
            f"dog = Watchdog({str(tmp_path)!r}, 0, ['a', 'b'], 1.5, lambda *words: print(*words, flush=True))\n"
            "dog.enter('Barrier', 1, lambda: range(2)); print('in', flush=True); sys.stdin.readline()\n"
            "dog.leave(); dog.close(); print('out', flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert process.communicate("\n")[0] == "out\n"


def test_a_rank_that_waits_in_vain_for_the_others_to_begin_ends():
    """MPI itself waits, so the process that hangs here is ended from a thread."""
    code = ("import time\nfrom vitrea.engine.comm import Start\nwith Start():\n    {}\nprint('over')\ntime.sleep(1.5)\n"
            "print('end')\n")
    environment = os.environ | {"VITREA_PATIENCE": "1", "PMI_SIZE": "2"}
    for waits, code_wanted, words in (("time.sleep(30)", 1, ""), ("Start.over(); time.sleep(1.5)", 0, "over\nend\n"),
                                      ("pass", 0, "over\nend\n")):
        done = subprocess.run([sys.executable, "-c", code.format(waits)], env=environment, capture_output=True,
                              text=True, timeout=30)
        assert (done.returncode, done.stdout) == (code_wanted, words)
    alone = subprocess.run([sys.executable, "-c", code.format("time.sleep(1.5)")], env=environment | {"PMI_SIZE": "1"},
                           capture_output=True, timeout=30)
    assert alone.returncode == 0


STOPPED = """\
import os, signal
from vitrea.engine.comm import Start, world
if os.environ["PMI_RANK"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
with Start():
    world()
"""


def test_a_rank_that_is_stopped_before_mpi_begins_does_not_hold_the_others(launch, tmp_path):
    """MPI's start does not give the interpreter back: no thread of Python could end it."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    ended = launch(2, "stopped.py", seconds=60, VITREA_PATIENCE="2")
    assert ended.returncode
    assert "Timeout (0:00:03)!" in ended.stderr or "not all ranks have begun after 2 s" in ended.stderr


@pytest.mark.parametrize(("text", "seconds"), [("", 1800), ("0", 0), ("12.5", 12.5)])
def test_patience_is_seconds(text, seconds):
    assert patience({"VITREA_PATIENCE": text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_other_patience_is_refused(text):
    with pytest.raises(JobError, match=f"VITREA_PATIENCE: '{text}' was found; expected seconds"):
        patience({"VITREA_PATIENCE": text})


@pytest.mark.mpi
def test_communicators_made_from_a_watched_one_are_watched_too(comm, tmp_path):
    from vitrea.engine.comm import first_ranks, watchdog

    folder = comm.bcast(str(tmp_path), root=0)
    with watchdog(folder, None, comm=comm):
        before = comm.entered
        assert comm.allreduce(1) == comm.size
        duplicate, part = comm.Dup(), first_ranks(1, comm=comm)
        if comm.size > 1:
            assert comm.entered == before + 1
            duplicate.Barrier()
            assert duplicate.entered == 1
        if part is not None:
            assert list(part.members()) == [0]
            part.Free()
        duplicate.Free()
    os.fspath(folder)
