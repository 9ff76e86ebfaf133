"""Particles and micrographs that arrive while a job runs: what is taken in and when, the same bits however often and
wherever the run is killed, and classes that are as good as those of particles that were there from the start."""
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from tests.running import same_files
from vitrea.engine import results
from vitrea.engine.arrivals import read_arrived
from vitrea.engine.log import read_records
from vitrea.engine.particles import read_particles
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.star import read_star, write_star
from vitrea.jobs import follow, run
from vitrea.jobs.cli import main
from vitrea.jobs.jobfile import read_job
from vitrea.picker.micrographs import list_micrographs
from vitrea.picker.options import PickOptions

RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")
JOB = """\
job: classify2d
input: arriving
output: run
n_classes: 3
particle_diameter: 150
psi_step: 20
max_resolution: 24
offset_range: 2
max_iterations: 5
minibatch_size: 30
checkpoint_minutes: 0
follow: arriving
"""
QUICK = """\
import sys, time
from vitrea.engine import results, rounds
from vitrea.jobs import follow, run
from vitrea.jobs.cli import main

follow.LOOK_SECONDS = follow.NAP = 0.02
results.draw_gallery = results.draw_convergence = run.reported = lambda *_: []   # pictures take most of the time
batch = rounds._batch
rounds._batch = lambda *words: (time.sleep(0.3), batch(*words))[1]
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """A folder with three stacks of 90 particles of the same three views, p0 to p2."""
    place = tmp_path_factory.mktemp("delivered")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        simulate_particles(ParticleSimulation(n=270, views=3, box_size=32, pixel_size=6.0, snr=0.3), Path("all"))
    blocks = read_star(place / "all" / "particles.star")
    for number in range(3):
        mine = {"optics": blocks["optics"], "particles": {label: column[90 * number:90 * (number + 1)]
                                                          for label, column in blocks["particles"].items()}}
        write_star(place / f"p{number}.star", mine)
    return place


@pytest.fixture
def work(delivered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(follow, "NAP", 0.02)
    for module, name in ((results, "draw_gallery"), (results, "draw_convergence"), (run, "reported")):
        monkeypatch.setattr(module, name, lambda *_: [])   # pictures take most of the time
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "quick.py").write_text(QUICK)
    (tmp_path / "arriving").mkdir()
    (tmp_path / "all").symlink_to(delivered / "all")
    return tmp_path


def deliver(delivered, number, name=None):
    """As a program that writes beside and renames."""
    beside = Path("arriving") / f".p{number}"
    shutil.copy(delivered / f"p{number}.star", beside)
    beside.rename(Path("arriving") / (name or f"p{number}.star"))


def rounds_done(folder=Path("run")):
    return [record["number"] for record in read_records(folder / "record.jsonl") if record["kind"] == "round"]


def delivering(delivered, first=0):
    """A thread that delivers the next stack when a round is done, and STOP with the last."""
    def work():
        for number in range(first, 3):
            while number and number not in rounds_done():
                time.sleep(0.02)
            deliver(delivered, number)
        (Path("arriving") / "STOP").touch()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def followed(delivered, tmp_path_factory):
    """The folder in which a run has followed three deliveries, undisturbed on one rank."""
    place = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(follow, "LOOK_SECONDS", 0.02)
        patch.setattr(follow, "NAP", 0.02)
        Path("job.yaml").write_text(JOB.replace("follow: arriving\n", ""))
        Path("arriving").mkdir()
        Path("all").symlink_to(delivered / "all")
        thread = delivering(delivered)
        assert main(["run", "job.yaml", "--follow", "arriving"]) == 0
        thread.join()
    return place


def test_rounds_go_on_with_the_classes_and_see_new_particles_once_then_all(followed):
    records = read_records(followed / "run" / "record.jsonl")
    assert rounds_done(followed / "run") == [1, 2]
    assert records[-1]["kind"] == "done"
    passes = [(record["stage"], record["seen"]) for record in records if record["kind"] == "iteration"]
    batches = [seen for stage, seen in passes if stage == "minibatch"]
    assert len(batches) == 6
    assert sum(batches) == 180, "each of the particles of rounds 2 and 3 in one mini-batch"
    assert [seen for _, seen in passes[-1:]] == [270], "the last pass sees all"
    assert [seen for stage, seen in passes[:5]] == [90] * 5, "nothing starts over after the first round"
    assert len(read_particles(followed / "run" / "run_data.star")) == 270
    assert (followed / "run" / "report.html").exists()


def test_the_classes_are_as_pure_as_those_of_particles_that_were_there_from_the_start(followed, work):
    assert main(["run", "job.yaml", "--set", "input=all/particles.star", "follow=null", "output=whole"]) == 0
    truth = read_star(Path("all/truth.star"))["particles"]["rlnClassNumber"].astype(int)
    pure = []
    for folder in (followed / "run", Path("whole")):
        found = read_star(folder / "run_data.star")["particles"]["rlnClassNumber"].astype(int)
        table = np.zeros((3, 3))
        np.add.at(table, (found - 1, truth - 1), 1)
        pure.append(table.max(axis=1).sum() / len(truth))
    assert pure[0] > pure[1] - 0.03
    assert pure[0] > 0.8


@pytest.mark.parametrize("ranks", [2])
def test_killed_in_a_round_it_ends_in_the_same_bits_on_any_ranks(followed, delivered, work, begin, launch, ranks):
    thread = delivering(delivered)
    process = begin(ranks, "quick.py", "run", "job.yaml")
    until = time.monotonic() + 60
    while not any(record.get("round") == 2 for record in read_records(Path("run/record.jsonl"))):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert rounds_done() == [1]
    ended = launch(0, "quick.py", "resume", "run")
    thread.join()
    assert ended.returncode == 0, ended.stderr
    same_files(Path("run"), followed / "run", RESULT_FILES)


def test_ctrl_c_leaves_a_checkpoint_and_a_damaged_one_is_made_good_in_its_own_round(followed, delivered, work):
    """Round 2 is listed when the checkpoint of the end of round 1 is lost: what is left is of the middle of round 1."""
    def interrupted():
        while 1 not in rounds_done():
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    deliver(delivered, 0)
    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    assert main(["run", "job.yaml"]) == 0
    thread.join()
    stopped = read_records(Path("run/record.jsonl"))[-1]
    assert (stopped["kind"], stopped["reason"]) == ("stopped", "SIGINT")
    deliver(delivered, 1)
    watch = follow.Watch(read_job("run/job.yaml").options, "particles")
    assert [watch.look() for _ in range(3)] == ["wait", "wait", "round"]
    path = Path("run/checkpoint.h5")
    path.write_bytes(path.read_bytes()[:1000])
    thread = delivering(delivered, first=2)
    assert main(["resume", "run"]) == 0
    thread.join()
    assert "goes on from the checkpoint before" in Path("run/run.out").read_text()
    same_files(Path("run"), followed / "run", RESULT_FILES)
    assert not list(Path("run").glob(".arrived*"))


# ---- what is taken in

def looking(**keys):
    options = replace(read_job("job.yaml").options, **keys)
    Path("run").mkdir(exist_ok=True)
    return follow.Watch(options, "particles")


def test_a_file_is_taken_when_it_and_its_stacks_rest_and_are_whole(delivered, work):
    watch = looking()
    stack, star = Path("all/particles.mrcs").read_bytes(), Path(delivered / "p0.star").read_text()
    Path("arriving/p0.star").write_text(star.replace("all/particles.mrcs", "arriving/s.mrcs")[:900])
    assert watch.look() == "wait", "seen for the first time"
    Path("arriving/p0.star").write_text(star.replace("all/particles.mrcs", "arriving/s.mrcs"))
    assert [watch.look(), watch.look()] == ["wait", "wait"], "its stack is not there"
    assert "left out for now   arriving/p0.star row 1: the image file" in Path("run/run.out").read_text()
    Path("arriving/s.mrcs").write_bytes(stack[:len(stack) // 2])
    assert watch.look() == "wait", "its stack is cut short"
    Path("arriving/s.mrcs").write_bytes(stack)
    assert [watch.look(), watch.look()] == ["wait", "round"], "once more, for it may still grow"
    arrived = read_arrived("run", "particles")
    assert (len(arrived), arrived.rounds, [each.name for each in arrived.arrivals]) == (90, 1, ["arriving/p0.star"])


def test_the_first_round_waits_for_particles_later_ones_for_a_share_and_the_end_for_nothing(delivered, work):
    watch = looking(n_classes=8)
    for number, found in ((1, ["wait", "wait", "wait"]), (0, ["wait", "round"])):
        deliver(delivered, number)
        assert [watch.look() for _ in found] == found
    names = [each.name for each in read_arrived("run", "particles").arrivals]
    assert names == ["arriving/p1.star", "arriving/p0.star"], "in the order in which they came"
    assert looking(n_classes=8, follow_minutes=1e-9).look() == "end", "nothing new"
    deliver(delivered, 2)
    Path("arriving/STOP").touch()
    assert [watch.look(), watch.look()] == ["wait", "end"], "what is there is taken in before the end"
    assert len(read_arrived("run", "particles")) == 270


def test_a_file_that_grew_adds_what_is_new_and_others_are_left_out(delivered, work):
    watch = looking()
    deliver(delivered, 0)
    assert [watch.look() for _ in range(3)] == ["wait", "wait", "round"]
    grown = read_star(Path("all/particles.star"))
    write_star("arriving/p0.star", {"optics": grown["optics"], "particles": {
        label: column[:120] for label, column in grown["particles"].items()}})
    other = {label: column for label, column in grown["particles"].items() if not label.startswith("rlnDefocus")}
    write_star("arriving/other.star", {"optics": grown["optics"], "particles": other})
    Path("arriving/text.star").write_text("no table")
    assert [watch.look(), watch.look()] == ["wait", "round"]
    arrived = read_arrived("run", "particles")
    assert arrived.items["vitreaRound"].tolist() == ["1"] * 90 + ["2"] * 30
    assert arrived.items["rlnImageName"].tolist() == grown["particles"]["rlnImageName"][:120].tolist()
    told = Path("run/run.out").read_text()
    assert "arriving/other.star: found particles without _rlnDefocusU; expected them with, as the" in told
    assert "arriving/text.star:1: found 'no table' before any data_ block" in told


def test_optics_groups_are_merged_by_what_they_are(delivered, work):
    watch = looking()
    deliver(delivered, 0)
    blocks = read_star(delivered / "p1.star")
    blocks["optics"]["rlnVoltage"][:] = "200.000000"
    write_star("arriving/p1.star", blocks)
    write_star("arriving/p2.star", read_star(delivered / "p2.star"))
    Path("arriving/STOP").touch()
    assert [watch.look() for _ in range(3)] == ["wait", "round", "end"]
    table = read_particles("run/arrived.star")
    order = [arrival.name[9:11] for arrival in read_arrived("run", "particles").arrivals]
    assert sorted(order) == ["p0", "p1", "p2"]
    assert sorted(group.voltage for group in table.optics) == [200.0, 300.0]
    voltages = [table.optics[group].voltage for group in table.optics_index]
    assert voltages == [200.0 if name == "p1" else 300.0 for name in order for _ in range(90)]
    assert main(["run", "job.yaml", "--set", "output=again"]) == 0, "a round with a new group, and its noise"


def test_what_cannot_be_followed_is_a_sentence(work, capsys):
    for change, words in (("follow=nowhere", "follow: nowhere is not a folder; expected the one that the"),
                          ("input=all", "input: all, and follow: arriving; expected the followed folder as input"),
                          ("follow_minutes=0", "follow_minutes is 0")):
        assert main(["check", "job.yaml", "--set", change]) == 2
        assert words in capsys.readouterr().err
    assert main(["run", "job.yaml", "--set", "follow_minutes=0.00001"]) == 2
    assert "arriving: nothing came that could be taken in; expected STAR files" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main(["check", "job.yaml"]) == 0
    assert "follows     arriving, where 0 STAR files" in capsys.readouterr().out


def test_a_job_on_micrographs_is_run_on_all_that_have_come(work):
    """The job itself is its own tests' matter: it skips what it has done, by micrograph."""
    seen = []

    def runner(options, *, resume, comm):
        seen.append((list_micrographs(options.input).names, resume, options.follow))
        if len(seen) == 1:
            Path("arriving/a.mrc").write_bytes(b"later")
        else:
            Path("arriving/STOP").touch()
        return "done"

    for name in ("b.mrc", "b.png", ".c.mrc"):
        (Path("arriving") / name).write_bytes(b"some")
    Path("run").mkdir()
    options = PickOptions(input=Path("arriving"), output=Path("run"), model=Path("m"), follow=Path("arriving"))
    job = SimpleNamespace(options=options, type=SimpleNamespace(name="pick", load_runner=lambda: runner))
    assert follow.follow(job, lambda folder: None, comm=MPI.COMM_SELF) == "done"
    names = ("arriving/b.mrc", "arriving/a.mrc")
    assert seen == [(names[:1], True, None), (names, True, None), (names, True, None)]
