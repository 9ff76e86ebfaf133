"""The view of a run: what its records say, in a frame, while it goes on and after it ended."""

import io
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from vitrea.engine.errors import JobError
from vitrea.engine.log import RunLog
from vitrea.jobs.processes import require_idle
from vitrea.jobs.watch import RunState, frame, read_state, watch

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
START = {"job": "classify2d", "particles": 20000, "n_classes": 4, "box_size": 128, "pixel_size": 1.34, "ranks": 4}


def record(kind, ago=0.0, elapsed=100.0, **fields):
    return {"kind": kind, "time": (NOW - timedelta(seconds=ago)).isoformat(), "elapsed": elapsed, **fields}


def iteration(number, stage="full", **fields):
    known = {"of": 30, "log_likelihood": -1.5e6, "resolution": 12.3, "pmax": 0.34, "changed": 0.051, "seconds": 20.0,
             "class_sizes": [12000, 0, 7000, 1000], "eta": 300.0}
    return record("iteration", iteration=number, stage=stage, **known | fields)


def state_of(*records):
    state = RunState()
    for each in records:
        state.add(each)
    return state


def drawn(state, now=NOW, folder="runs/a", height=40):
    console = Console(file=io.StringIO(), width=100, height=height, no_color=True, highlight=False)
    console.print(frame(folder, state, console, now))
    return console.file.getvalue()


def test_a_running_job_shows_its_state():
    text = drawn(state_of(record("start", **START), iteration(1), iteration(6)))
    for words in (
        "runs/a   classify2d   20,000 particles   4 classes   box 128 px, 1.34 Å/px",
        "full pass 6/30", "20 %", "0:01:40 gone", "0:05:00 left",
        "log-likelihood −1.5000e+06", "resolution 12.3 Å", "pmax 0.34", "changed 5.1 %",
        "particles in each of 4 classes, 1 empty",
    ):
        assert words in text
    assert "silent" not in text


def test_classes_stand_in_the_order_of_their_size_with_their_number_in_the_star_file():
    lines = [line for line in drawn(state_of(iteration(1))).splitlines() if " %" in line and "█" in line]
    cells = [cell.split() for line in lines for cell in line.split("%")[:-1]]
    by_size = sorted(cells, key=lambda cell: -int(cell[-2].replace(",", "")))
    assert [(cell[0], cell[-2], cell[-1]) for cell in by_size][:3] == [
        ("1", "12,000", "60.0"), ("3", "7,000", "35.0"), ("4", "1,000", "5.0"),
    ]
    assert len(by_size[0][1]) == 12  # the largest class has the whole bar


def test_small_terminals_hide_the_smallest_classes_and_say_so():
    state = state_of(iteration(1, class_sizes=list(range(200, 0, -1))))
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, no_color=True)
    console.print(frame("runs/a", state, console, NOW))
    text = console.file.getvalue()
    assert len(text.splitlines()) <= 24
    assert "and 188 smaller classes" in text


def test_time_left_runs_down_between_records():
    state = state_of(iteration(6))
    assert state.seconds_left(NOW + timedelta(seconds=40)) == pytest.approx(260.0)
    assert state.seconds_left(NOW + timedelta(hours=1)) == 0.0
    assert "time left not known yet" in drawn(state_of(iteration(6, eta=None)))


def test_progress_moves_the_bar_within_an_iteration():
    assert state_of(iteration(6)).fraction() == pytest.approx(6 / 30)
    assert state_of(iteration(6), record("progress", iteration=7, fraction=0.5)).fraction() == pytest.approx(6.5 / 30)
    assert state_of(iteration(6), record("done")).fraction() == 1.0
    assert state_of().fraction() == 0.0


def test_the_pickers_jobs_show_how_far_they_are_and_what_they_came_to():
    start = record("start", job="pick", micrographs=1200, ranks=2, host="node")
    scan = record("progress", stage="scan", iteration=300, of=1200, fraction=1.0, eta=90.0)
    text = drawn(state_of(start, scan))
    for words in ("runs/a   pick   1,200 micrographs   2 ranks on node", "micrograph 300/1200", "25 %", "0:01:30 left"):
        assert words in text
    unknown = record("progress", stage="train", iteration=1, of=500, fraction=1.0, eta=None)
    assert "step 1/500" in drawn(state_of(start, unknown))
    assert "time left not known yet" in drawn(state_of(start, unknown))
    text = drawn(state_of(start, scan, record("done", picks=34567, threshold=0.41, micrographs=1200, skipped=3)))
    assert "done   34,567 picks   threshold 0.410   3 skipped" in text
    assert "100 %" in text


def test_a_silent_run_is_said_to_be_silent_but_a_slow_one_is_not():
    state = state_of(iteration(6, seconds=2.0))
    assert state.silent_for(NOW + timedelta(seconds=59)) is None
    text = drawn(state, NOW + timedelta(seconds=312))
    assert "nothing was written for 0:05:12" in text
    assert "'vitrea resume runs/a'" in text
    assert state_of(iteration(6, seconds=600.0)).silent_for(NOW + timedelta(seconds=2900)) is None
    assert state_of(iteration(6), record("done")).silent_for(NOW + timedelta(days=1)) is None


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (record("done", classes=4, empty=1, largest=12000), "done   4 classes, 1 empty"),
        (record("failed", iteration=7, message="no room"), "failed at it 7   no room"),
        (record("stopped", iteration=7, reason="SIGTERM"), "stopped after it 7   SIGTERM"),
        (record("stopped", stage="scan", reason="SIGTERM"), "stopped in the scan   SIGTERM"),
    ],
)
def test_endings_are_told(ending, words):
    text = drawn(state_of(iteration(6), ending))
    assert words in text
    assert ("vitrea resume" in text) == (ending["kind"] != "done")
    assert " left" not in text


def gone_process():
    """The number of a process that has ended and been waited for."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(("host", "process", "killed"), [
    (platform.node(), gone_process(), True), (platform.node(), os.getpid(), False),
    ("another-machine", gone_process(), False), (platform.node(), None, False)],
    ids=["gone", "alive", "elsewhere", "unknown"])
def test_a_killed_run_is_told_from_a_live_one_where_its_process_can_be_seen(tmp_path, capsys, host, process, killed):
    with RunLog(tmp_path, echo=False) as log:
        log.record("start", **START, host=host, process=process)
        log.record("iteration", iteration=1, of=30, stage="full", class_sizes=[5, 6], eta=100.0)
    assert watch(tmp_path, once=True) == (1 if killed else 0)
    text = capsys.readouterr().out
    assert ("not running any more: its process is gone" in text) == killed
    assert (f"go on with 'vitrea resume {tmp_path}'" in text) == killed
    assert (" left at most" in text) != killed


@pytest.mark.parametrize("kind", ["start", "wait"])
@pytest.mark.parametrize(("when", "host", "works"), [
    (datetime.now(UTC), platform.node(), True), (NOW.replace(year=2000), platform.node(), False),
    (datetime.now(UTC), "another-machine", False)], ids=["alive", "its number is another's now", "elsewhere"])
def test_who_works_on_a_run_is_known_by_number_and_age(tmp_path, kind, when, host, works):
    start = record(kind, **START, host=host, process=os.getppid()) | {"time": when.isoformat()}
    (tmp_path / "record.jsonl").write_text(json.dumps(start) + "\n")
    with pytest.raises(JobError, match="works on this run") if works else nullcontext():
        require_idle(tmp_path)


def test_a_live_view_leaves_a_killed_run_but_a_run_that_is_done_is_done(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    with RunLog(tmp_path, echo=False) as log:
        log.record("start", **START, host=platform.node(), process=gone_process())
        assert watch(tmp_path, once=False, console=console) == 1
        log.record("done", classes=2, empty=0)
        assert watch(tmp_path, once=False, console=console) == 0


def test_a_resumed_run_goes_back_to_its_checkpoint():
    state = state_of(
        iteration(40, stage="minibatch"), iteration(5), iteration(6), iteration(7), record("failed", message="x"),
        record("start", **START), iteration(6, resolution=9.0),
    )
    assert state.ending is None
    assert [each["iteration"] for each in state.iterations] == [40, 5, 6]
    assert "resolution 9.0 Å" in drawn(state)


def test_a_run_that_follows_a_folder_tells_its_rounds_and_that_it_waits():
    first = (iteration(1), iteration(2), record("round", number=1, particles=800, classes=4, empty=0))
    second = iteration(1, "minibatch", of=3)
    assert [each["rounds"] for each in state_of(*first, second).iterations] == [0, 0, 1], "a round is no resumed run"
    text = drawn(state_of(*first, second, record("round", number=2, particles=900, classes=4, empty=1)),
                 NOW + timedelta(hours=1))
    assert "waits for new files" in text
    beginning = drawn(state_of(record("wait", wanted="micrographs", place="arriving", end="with a file STOP there")))
    assert "waits for micrographs in arriving   ends with a file STOP there" in beginning
    assert "nothing recorded yet" not in beginning
    assert "round 2 is done   900 particles   4 classes, 1 empty" in text
    assert "left" not in text
    assert "silent" not in text
    text = drawn(state_of(*first, second))
    assert "mini-batch 1/3" in text
    assert "round 1 is done" in text
    assert "waits" not in text


def test_the_last_reseeding_is_shown():
    text = drawn(state_of(iteration(6), record("reseed", iteration=6, map={"2": 12})))
    assert "it 6: re-seeded   class 2 from 12" in text


def test_once_prints_one_frame_without_escape_codes(tmp_path, capsys):
    with RunLog(tmp_path, echo=False) as log:
        log.record("start", **START)
        log.record("iteration", iteration=1, of=30, stage="full", class_sizes=[5, 6])
    assert watch(tmp_path, once=True) == 0
    text = capsys.readouterr().out
    assert "full pass 1/30" in text
    assert "\x1b" not in text
    assert "resolution – Å" in text


def test_a_failed_run_gives_exit_code_1(tmp_path, capsys):
    with RunLog(tmp_path, echo=False) as log:
        log.record("failed", iteration=1, message="x")
    assert watch(tmp_path, once=True) == 1


def test_a_live_view_leaves_when_the_run_ends(tmp_path):
    with RunLog(tmp_path, echo=False) as log:
        log.record("iteration", iteration=1, of=2, stage="full")
        log.record("done", classes=2, empty=0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    assert watch(tmp_path, once=False, console=console) == 0
    assert "done   2 classes, 0 empty" in console.file.getvalue()


def test_a_run_that_has_not_written_yet_is_waited_for(tmp_path):
    (tmp_path / "job.yaml").write_text("job: classify2d\n")
    assert "nothing recorded yet" in drawn(read_state(tmp_path))


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(JobError, match=r"holds no run; expected the output folder of a run; is it spelt as in the job"):
        watch(tmp_path, once=True)
    with pytest.raises(JobError, match=r"no: is not a folder; expected"):
        watch(tmp_path / "no", once=True)


def test_a_pipeline_shows_its_stages_and_the_run_of_the_one_at_work(tmp_path):
    stage = {"folder": "elsewhere/second", "job": "classify2d"}
    records = [record("start", job="pipeline", stages=["first", "second", "third"], ranks=2),
               record("stage", stage="first", number=1, state="begin", folder="elsewhere/first"),
               record("stage", stage="first", number=1, state="done"),
               record("stage", stage="second", number=2, state="go on", why="max_iterations was 2, is 9", **stage)]
    (tmp_path / "second").mkdir()
    with RunLog(tmp_path / "second", echo=False) as log:
        log.record("start", **START)
        log.record("iteration", **{name: value for name, value in iteration(6).items() if name != "kind"})
    text = drawn(state_of(*records), folder=tmp_path)
    for words in (r"1 +first +done", r"2 +second +at work +max_iterations was 2, is 9", r"3 +third +waits",
                  r"second\s+classify2d\s+20,000", r"full pass\s+6/30"):
        assert re.search(words, text)
    text = drawn(state_of(*records, record("stopped", in_stage="second", reason="SIGUSR1")), folder=tmp_path)
    assert "stopped in stage second   SIGUSR1" in text
    assert "at work" not in text
    assert "go on with 'vitrea resume" in text
