"""Runs that are ended from outside and go on: signals, kills at any moment, and a rank that dies.

What the launcher does with a signal to itself, by experiment with MPICH 5.0 (hydra): SIGTERM and SIGUSR1 go on to every
rank, so `kill PID-of-mpiexec` and a scheduler's warning both reach the program; SIGINT too. A signal to one rank stays
with it, and that rank tells the others. SIGKILL of mpiexec ends all ranks;
SIGKILL of a rank makes mpiexec end the others within a second, with exit code 9.
"""

import os
import platform
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.running import RESUME, RUN, iterations, same_files, wait_until
from vitrea.engine.log import read_records

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to find the ranks in"),
    # on a loaded machine a signal may come before its handler is there, or after the end
    pytest.mark.flaky(reruns=1),
]

JOB = """\
job: classify2d
input: {stacks}/mixed.star
output: run
n_classes: 6
particle_diameter: 140
algorithm: minibatch
minibatch_size: 100
minibatch_iterations: 5
max_iterations: 5
"""
RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")
# Slows a job down, so that a signal certainly meets it in the phase that is named.
SLOW = """\
import sys, time
from vitrea.engine import em, shards
from vitrea.jobs import cli
owner, name = {"reading": (shards.Loader, "load"), "iterating": (em.Pass, "_block")}[sys.argv[1]]
fast = getattr(owner, name)

def slow(*arguments):
    time.sleep(0.15)
    return fast(*arguments)

setattr(owner, name, slow)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def undisturbed(stacks, tmp_path_factory):
    """The run folder of the job when nothing happens to it."""
    from vitrea.jobs import cli

    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("job.yaml").write_text(JOB.format(stacks=stacks))
        assert cli.main(["run", "job.yaml", "--set", "checkpoint_minutes=0"]) == 0
    return folder / "run"


@pytest.fixture
def job(stacks, tmp_path):
    """The job in tmp_path; its run folder."""
    (tmp_path / "job.yaml").write_text(JOB.format(stacks=stacks))
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path / "run"


def rank_processes(folder):
    """{rank: process id} of the program's processes that work in `folder`; rank 0 for one without a launcher."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.joinpath("cwd").resolve() != folder or not place.joinpath("exe").samefile(sys.executable):
                continue
            environment = place.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(each[9:]) for each in environment if each.startswith(b"PMI_RANK=")), 0)
        found[rank] = int(place.name)
    return found


# ---- kill −9

def test_kill_9_at_any_moment_then_resume_on_other_ranks_ends_as_if_nothing_had_happened(
    begin, launch, job, tmp_path, undisturbed
):
    """Killed three times, after a different number of iterations and a random part of one, each time on other ranks."""
    moment = random.Random(2)
    often = ("--set", "checkpoint_minutes=0")
    command = ("slow.py", "iterating", *RUN[2:], *often)
    for ranks in moment.sample([0, 2, 4], 3):
        before = iterations(job)
        process = begin(ranks, *command)
        wait_until(lambda before=before: iterations(job) > before + moment.randrange(2), process)
        time.sleep(moment.uniform(0, 0.4))
        for identifier in [process.pid, *rank_processes(tmp_path).values()]:
            os.kill(identifier, signal.SIGKILL)
        process.wait(10)
        command = ("slow.py", "iterating", *RESUME[2:], *often)
    assert not (job / "run_data.star").exists()
    ended = launch(moment.choice([0, 2]), *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(job, undisturbed, RESULT_FILES)


def test_killed_before_the_first_checkpoint_it_begins_again(begin, launch, job, tmp_path, undisturbed):
    process = begin(2, "slow.py", "reading", *RUN[2:])
    wait_until(lambda: (job / "record.jsonl").exists(), process)
    process.kill()
    process.wait(10)
    wait_until_gone(tmp_path)
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(job, undisturbed, RESULT_FILES)


def test_killed_while_the_results_are_written_it_writes_them(launch, job, tmp_path, undisturbed):
    """The last checkpoint is there, one of the results is, and the log has no end."""
    job.mkdir()
    for name in ("job.yaml", "checkpoint.h5", "run_classes.mrcs"):
        shutil.copy(undisturbed / name, job)
    records = (undisturbed / "record.jsonl").read_text().splitlines(keepends=True)
    text = "".join(records[:-1]).replace(f'"process": {os.getpid()}', '"process": null')   # it is this one, and lives
    assert '"process": null' in text
    (job / "record.jsonl").write_text(text)
    (job / ".run_data.star.tmp-1234").write_text("half")
    ended = launch(2, *RESUME)
    assert ended.returncode == 0, ended.stderr
    assert "resumed after it 1 of 5" in ended.stdout
    same_files(job, undisturbed, RESULT_FILES)
    assert not list(job.glob(".*.tmp-*")), "what was half-written is cleared away"


@pytest.mark.parametrize("harm", ["cut", "flipped", "removed"])
def test_a_damaged_checkpoint_costs_an_iteration_only(launch, job, undisturbed, harm):
    job.mkdir()
    for name in ("job.yaml", "checkpoint.h5", "checkpoint-earlier.h5"):
        shutil.copy(undisturbed / name, job)
    newest, content = job / "checkpoint.h5", bytearray((undisturbed / "checkpoint.h5").read_bytes())
    if harm == "removed":
        newest.unlink()
    else:
        content[len(content) // 2] ^= 1
        newest.write_bytes(content if harm == "flipped" else content[:len(content) // 2])
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    assert "checkpoint.h5 is damaged or gone; the run goes on from the checkpoint before" in ended.stdout
    assert (job / "checkpoint-damaged.h5").exists() == (harm != "removed")
    same_files(job, undisturbed, RESULT_FILES)


def wait_until_gone(folder):
    """The ranks end by themselves once their launcher is killed."""
    until = time.monotonic() + 10
    while rank_processes(folder):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_job_at_once(begin, job, tmp_path, rank):
    process = begin(2, "slow.py", "iterating", *RUN[2:])
    wait_until(lambda: iterations(job) >= 1, process)
    os.kill(rank_processes(tmp_path)[rank], signal.SIGKILL)
    assert process.wait(10) != 0
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_ends_the_job_after_the_patience_and_is_named(
    begin, launch, job, tmp_path, undisturbed, monkeypatch, rank
):
    """Stopped, as one whose file system hangs would be: it neither comes nor dies."""
    monkeypatch.setenv("VITREA_PATIENCE", "4")
    process = begin(2, "slow.py", "iterating", *RUN[2:])
    wait_until(lambda: iterations(job) >= 1, process)
    os.kill(rank_processes(tmp_path)[rank], signal.SIGSTOP)
    begun = time.monotonic()
    told, _ = process.communicate(timeout=60)
    assert process.returncode != 0, told
    assert time.monotonic() - begun < 30
    assert f"vitrea: rank {rank} on {platform.node()} has not come, while others wait in" in told
    failed = read_records(job / "record.jsonl")[-1]
    assert (failed["kind"], failed["rank"], failed["host"]) == ("failed", rank, platform.node())
    wait_until_gone(tmp_path)
    monkeypatch.delenv("VITREA_PATIENCE")
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(job, undisturbed, RESULT_FILES)


# ---- signals

@pytest.mark.parametrize(("number", "receiver"), [
    (signal.SIGTERM, "launcher"), (signal.SIGUSR1, "launcher"), (signal.SIGTERM, 1)])
def test_a_signal_leaves_with_a_checkpoint_a_word_and_exit_code_0(
    begin, launch, job, tmp_path, undisturbed, number, receiver
):
    process = begin(2, "slow.py", "iterating", *RUN[2:])
    wait_until(lambda: iterations(job) >= 2, process)
    os.kill(process.pid if receiver == "launcher" else rank_processes(tmp_path)[receiver], number)
    begun = time.monotonic()
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert time.monotonic() - begun < 5
    assert f"{number.name}" in told
    assert "go on with 'vitrea resume run'" in told
    stopped = read_records(job / "record.jsonl")[-1]
    assert (stopped["kind"], stopped["reason"]) == ("stopped", number.name)
    assert re.search(rf"stopped after mb \d of 5   {number.name}\n$", (job / "run.out").read_text())
    assert (job / "checkpoint.h5").exists()
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"resumed after mb \d of 5", ended.stdout)
    same_files(job, undisturbed, RESULT_FILES)


def test_a_run_that_a_process_works_on_is_not_begun_a_second_time(begin, launch, job, undisturbed):
    process = begin(0, "slow.py", "iterating", *RUN[2:])
    wait_until(lambda: iterations(job) >= 1, process)
    refused = launch(0, *RESUME)
    assert refused.returncode == 2
    assert f"run: process {process.pid} of this machine works on this run" in refused.stderr
    process.kill()
    process.wait()
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(job, undisturbed, RESULT_FILES)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_signal_while_particles_are_read(begin, launch, job, undisturbed, ranks):
    process = begin(ranks, "slow.py", "reading", *RUN[2:])
    wait_until(lambda: (job / "record.jsonl").exists() and read_records(job / "record.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "stopped before the first iteration   SIGTERM" in told
    assert "go on with 'vitrea resume run'" in told
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(job, undisturbed, RESULT_FILES)


def test_an_interrupt_is_one_word_and_exit_code_130(begin, job):
    process = begin(2, "slow.py", "iterating", *RUN[2:])
    wait_until(lambda: iterations(job) >= 1, process)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert told.count("vitrea: interrupted") == 1
    assert "Traceback" not in told
