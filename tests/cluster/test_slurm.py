"""A real Slurm: what is submitted is run, leaves before its time is over, comes back, and ends in the same bits."""
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests.running import same_files
from vitrea.engine.log import read_records
from vitrea.jobs.cli import main

RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")
JOB = """\
job: classify2d
input: sim/particles.star
output: {output}
n_classes: 3
particle_diameter: 150
psi_step: 12
max_resolution: 24
offset_range: 2
max_iterations: 8
convergence_change: 0
checkpoint_minutes: 0
cluster:
  scheduler: slurm
  nodes: 2
  time: 2
  leave: 10
"""
SLOW = """\
import sys, time
from vitrea.engine import classify2d
from vitrea.jobs.cli import main

iterate = classify2d.iterate
seconds = 0 if "resume" in sys.argv else {seconds}
classify2d.iterate = lambda run, state: (time.sleep(seconds), iterate(run, state))[1]
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def undisturbed(cluster, stacks, tmp_path_factory):
    """The run folder of the job, run here at once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(stacks / "plain", "sim")
        folder.joinpath("job.yaml").write_text(JOB.format(output="run"))
        assert main(["run", "job.yaml"]) == 0
    return folder / "run"


@pytest.fixture
def work(cluster, stacks, tmp_path, monkeypatch):
    """A working directory with a stack and job.yaml."""
    monkeypatch.chdir(made(tmp_path, stacks))
    yield tmp_path
    tell(tmp_path)
    for number in (path.stem.rpartition("-")[2] for path in (tmp_path / "run" / "submit").glob("*.out")):
        subprocess.run(["scancel", number])


def made(folder, stacks):
    shutil.copytree(stacks / "plain", folder / "sim")
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    return folder


def tell(folder):
    for path in (folder / "run" / "submit").glob("*.out"):
        print(f"--- {path.name}\n{path.read_text()}")


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """slowly(seconds): runs that are submitted from now on wait so long in every iteration, until they are resumed."""
    return lambda seconds: slow_down(tmp_path, seconds, monkeypatch)


def slow_down(folder, seconds, patch):
    (folder / "slow.py").write_text(SLOW.format(seconds=seconds))
    python = folder / "slow python"   # a name that a shell would take for two words
    words = shlex.join([sys.executable, str(folder / "slow.py")])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    patch.setattr(sys, "executable", str(python))


@pytest.fixture(scope="module")
def timed(cluster, stacks, tmp_path_factory):
    """(working directory, job number) of a run that is too slow for its wall time; other tests go on meanwhile."""
    folder = made(tmp_path_factory.mktemp("timed"), stacks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        slow_down(folder, 6, patch)   # 8 iterations, in a minute less 50 s, or half a minute less
        assert main(["submit", "job.yaml", "--cluster", "time=1", "leave=50"]) == 0
    numbers = [record["number"] for record in read_records(folder / "run" / "submit" / "jobs.jsonl")]
    yield folder, numbers[0]
    tell(folder)


def submitted(capsys, *words):
    """Submit; the numbers of the jobs."""
    capsys.readouterr()
    assert main(["submit", *words]) == 0
    return re.findall(r"^submitted +(\d+)", capsys.readouterr().out, re.MULTILINE)


def state(number):
    said = subprocess.run(["squeue", "--noheader", f"--jobs={number}", "--states=all", "--format=%T"],
                          capture_output=True, text=True).stdout
    return said.strip()


def wait_for(condition, seconds=120):
    """Until condition(), which takes seconds here, and a minute on a busy machine."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def kinds(folder):
    return [record["kind"] for record in read_records(folder / "record.jsonl")]


def test_a_job_is_run_on_two_nodes_to_the_bits_of_one_rank(timed, work, undisturbed, capsys):
    number, = submitted(capsys, "job.yaml")
    assert main(["submit", "job.yaml"]) == 2
    assert f"job {number} is" in capsys.readouterr().err
    wait_for(lambda: state(number) == "COMPLETED")
    assert main(["status", "run"]) == 0
    told = capsys.readouterr().out
    assert f"job {number}   completed" in told
    assert "run: done   3 classes" in told
    assert "2 ranks" in (work / "run" / "run.out").read_text()
    same_files(work / "run", undisturbed, RESULT_FILES)


def test_a_cancelled_run_writes_a_checkpoint_and_stays_away(work, undisturbed, slowly, capsys):
    slowly(1.0)
    number, = submitted(capsys, "job.yaml")
    wait_for(lambda: "iteration" in kinds(work / "run"))
    assert main(["cancel", "run"]) == 0
    wait_for(lambda: kinds(work / "run")[-1] == "stopped")
    wait_for(lambda: state(number) == "CANCELLED")
    assert main(["resume", "run"]) == 0
    same_files(work / "run", undisturbed, RESULT_FILES)


def test_stages_of_a_pipeline_as_jobs_of_their_own(work, undisturbed, capsys):
    stage = "".join(f"    {line}\n" for line in JOB.splitlines()[3:11])
    text = ("job: pipeline\noutput: run\ncluster:\n  scheduler: slurm\n  time: 2\n  leave: 10\nstages:\n"
            "  - name: first\n    job: classify2d\n    input: sim/particles.star\n"
            f"{stage}    cluster:\n      nodes: 2\n"
            f"  - name: second\n    job: classify2d\n    input: ${{first.particles}}\n{stage}")
    (work / "job.yaml").write_text(text)
    numbers = submitted(capsys, "job.yaml", "--separate")
    assert len(numbers) == 2
    wait_for(lambda: state(numbers[1]) == "COMPLETED")
    assert "2 ranks" in (work / "run" / "first" / "run.out").read_text()
    assert "1 rank " in (work / "run" / "second" / "run.out").read_text()
    assert "done" in kinds(work / "run" / "second")
    same_files(work / "run" / "first", undisturbed, RESULT_FILES)


def test_before_its_time_is_over_it_leaves_and_comes_back_until_it_is_done(timed, undisturbed):
    folder, number = timed
    wait_for(lambda: "stopped" in kinds(folder / "run"))
    wait_for(lambda: kinds(folder / "run")[-1] == "done")
    wait_for(lambda: state(number) not in ("PENDING", "RUNNING", "COMPLETING"))
    records = read_records(folder / "run" / "record.jsonl")
    assert {record["reason"] for record in records if record["kind"] == "stopped"} == {"SIGUSR1"}
    assert "resumed" in kinds(folder / "run")
    assert "goes back into the queue; 19 times are left" in "".join(
        path.read_text() for path in (folder / "run" / "submit").glob("*.out"))
    same_files(folder / "run", undisturbed, RESULT_FILES)


def test_a_run_that_must_make_room_comes_back(work, undisturbed, slowly, capsys):
    slowly(1.5)
    number, = submitted(capsys, "job.yaml")
    wait_for(lambda: "iteration" in kinds(work / "run"))
    subprocess.run(["sbatch", "--partition=urgent", "--nodes=2", "--ntasks-per-node=2", "--time=1",
                    "--output=/dev/null", "--wrap", "sleep 1"], check=True, capture_output=True)
    wait_for(lambda: "stopped" in kinds(work / "run"))
    wait_for(lambda: state(number) == "COMPLETED")
    same_files(work / "run", undisturbed, RESULT_FILES)
