"""The log of a run: lines whose columns stay, records that survive a kill, a clock that goes on after a resume."""

import json

import numpy as np
import pytest

from vitrea.engine import log as run_log
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog, RunLog, format_clock, format_iteration, format_record, read_records

ITERATION = {
    "kind": "iteration", "iteration": 1, "of": 25, "stage": "full", "log_likelihood": -1.2345e8, "resolution": 24.5,
    "pmax": 0.07, "changed": 1.0, "seconds": 28.6, "e_step": 24.9, "m_step": 2.1, "reduce": 1.6,
}


def test_iteration_line_reads_as_the_house_writes_it():
    assert format_iteration(ITERATION) == (
        "it   1/25    logL −1.2345e+08   res  24.5 Å   pmax 0.07   changed 100.0 %     28.6 s"
        "   E   24.9  M   2.1  reduce  1.6"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"iteration": 250, "of": 300},
        {"log_likelihood": 3.2e-05, "resolution": 999.9, "changed": 0.0004},
        {"log_likelihood": None, "resolution": None, "pmax": None, "changed": None, "of": None},
        {"stage": "minibatch", "seconds": 8123.4, "e_step": 8000.0, "m_step": 100.0, "reduce": 23.4},
    ],
)
def test_columns_never_move(changes):
    line, other = format_iteration(ITERATION), format_iteration(ITERATION | changes)
    assert len(line) == len(other)
    for word in ("logL", "res ", "pmax", "changed", " s ", "  M ", "reduce"):
        assert line.index(word) == other.index(word)


def test_start_is_three_lines_with_units():
    start = {
        "kind": "start", "job": "classify2d", "output": "runs/betagal", "version": "0.1.0", "mpi": "MPICH 5.0.2",
        "input": "particles.star", "particles": 148213, "box_size": 128, "pixel_size": 1.34, "voltage": 300.0,
        "ranks": 64, "nodes": 2, "threads": 1, "memory_per_rank": 0.15e9,
    }
    assert format_record(start) == [
        "classify2d   runs/betagal   vitrea 0.1.0   MPICH 5.0.2",
        "particles.star   148,213 particles   box 128 px   1.34 Å/px   300 kV",
        "64 ranks on 2 nodes, 1 thread each   2,315–2,316 particles a rank   0.15 GB a rank",
    ]
    alone = format_record(start | {"ranks": 1, "nodes": 1, "particles": 500, "memory_per_rank": 12e6})
    assert alone[2] == "1 rank on 1 node, 1 thread each   500 particles a rank   12 MB a rank"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"kind": "done", "classes": 50, "empty": 3, "largest": 11204, "particles": 148213,
             "poses_per_core_second": 2.3e7},
            "done   50 classes, 3 empty, largest 11,204 (7.6 %)   2.3e7 poses/core-s",
        ),
        (
            {"kind": "failed", "iteration": 7, "phase": "E step", "rank": 17, "ranks": 64, "host": "node02",
             "message": "particles.mrcs section 812 is not finite"},
            "failed at it 7, E step   rank 17 of 64 on node02: particles.mrcs section 812 is not finite",
        ),
        ({"kind": "failed", "message": "no room"}, "failed   no room"),
        ({"kind": "reseed", "iteration": 4, "map": {"7": 12, "9": 3}}, "re-seeded   class 7 from 12   class 9 from 3"),
        ({"kind": "stopped", "iteration": 4, "reason": "SIGTERM"}, "stopped after it 4   SIGTERM"),
    ],
)
def test_every_ending_has_its_line(record, line):
    assert format_record(record) == [line]


def test_progress_is_recorded_without_words(tmp_path, capsys):
    with RunLog(tmp_path, echo=True) as log:
        log.tell("progress", iteration=3, fraction=0.25)
    assert capsys.readouterr().out == ""
    (record,) = read_records(tmp_path / "record.jsonl")
    assert (record["kind"], record["fraction"]) == ("progress", 0.25)


def test_line_goes_to_file_and_screen_alike(tmp_path, capsys):
    with RunLog(tmp_path, echo=True) as log:
        log.line("logL −1 Å")
    assert capsys.readouterr().out == "0:00:00  logL −1 Å\n" == (tmp_path / "run.out").read_text(encoding="utf-8")
    with RunLog(tmp_path, echo=False) as log:
        log.line("quiet")
    assert capsys.readouterr().out == ""


def test_record_is_readable_while_the_log_is_open(tmp_path):
    with RunLog(tmp_path, echo=False) as log:
        log.record("iteration", iteration=1)
        assert read_records(tmp_path / "record.jsonl")[0]["iteration"] == 1


def test_numpy_values_and_infinities_become_plain_json(tmp_path):
    with RunLog(tmp_path, echo=False) as log:
        log.record("iteration", class_sizes=np.array([3, 4]), resolution=np.float32(2.5), eta=float("inf"), map={1: 2})
    line = (tmp_path / "record.jsonl").read_text(encoding="utf-8")
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["class_sizes"] == [3, 4]
    assert record["resolution"] == 2.5
    assert record["eta"] is None
    assert record["map"] == {"1": 2}


def test_clock_goes_on_after_a_resume(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    with RunLog(tmp_path, echo=False) as log:
        now[0] += 125
        log.record("checkpoint", iteration=5)
    now[0] += 9999  # the pause does not count
    with RunLog(tmp_path, echo=False) as log:
        now[0] += 10
        log.line("resumed")
    assert (tmp_path / "run.out").read_text(encoding="utf-8") == "0:02:15  resumed\n"


def test_clock_is_the_logs_own(tmp_path):
    with RunLog(tmp_path, echo=False) as log:
        log.record("progress", elapsed=1e6, iteration=1)
    assert read_records(tmp_path / "record.jsonl")[0]["elapsed"] < 10


def test_a_torn_record_is_dropped_and_the_next_one_stands_alone(tmp_path):
    with RunLog(tmp_path, echo=False) as log:
        log.record("iteration", iteration=1)
    with (tmp_path / "record.jsonl").open("a") as file:
        file.write('{"kind": "iteration", "iterat')
    assert len(read_records(tmp_path / "record.jsonl")) == 1
    with RunLog(tmp_path, echo=False) as log:
        log.record("iteration", iteration=2)
    assert [record["iteration"] for record in read_records(tmp_path / "record.jsonl")] == [1, 2]


def test_a_full_disk_is_told_in_a_sentence(tmp_path):
    (tmp_path / "run.out").symlink_to("/dev/full")
    with RunLog(tmp_path, echo=False) as log, pytest.raises(JobError) as told:
        log.line("one line too many")
    assert "run.out: cannot be written: No space left on device" in str(told.value)
    assert f"'vitrea resume {tmp_path}'" in str(told.value)


def test_a_closed_pipe_does_not_end_the_run(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with RunLog(tmp_path, echo=True) as log:
        log.line("one")
        log.line("two")
    assert len((tmp_path / "run.out").read_text(encoding="utf-8").splitlines()) == 2


def test_other_ranks_keep_nothing(tmp_path, capsys):
    with NullLog() as log:
        log.line("x")
        log.record("start")
        log.tell("iteration", iteration=1)
    assert capsys.readouterr().out == ""


def test_hours_grow():
    assert [format_clock(seconds) for seconds in (0, 59.9, 704, 3600 * 100)] == [
        "0:00:00", "0:00:59", "0:11:44", "100:00:00",
    ]


def test_a_record_that_a_disk_has_damaged_is_left_out(tmp_path):
    """Found by tests/robust/fuzz.py: a torn line between others ended `vitrea watch` with a traceback."""
    good = '{"kind": "stopped", "time": "2026-01-02T03:04:05+00:00", "elapsed": 1.0}'
    bad = ['{"kind": "it\x00}', "[1]", "{{}}", "{" * 9000 + "}" * 9000]
    (tmp_path / "record.jsonl").write_text("\n".join([good, *bad, good, ""]))
    assert [record["kind"] for record in read_records(tmp_path / "record.jsonl")] == ["stopped", "stopped"]
