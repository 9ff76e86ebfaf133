"""`job: dynamics`: its keys, its runs, and that one seed has one result."""
import json
from pathlib import Path

import numpy as np
import pytest

from tests.running import RESUME, RUN, iterations, same_files, wait_until, write_job
from vitrea.engine import comm as mpi
from vitrea.engine import two_valleys_ensemble
from vitrea.engine.dynamics_options import COMMON, EXPERIMENTS, DynamicsOptions
from vitrea.engine.options import options_of
from vitrea.engine.two_valleys import Landscape
from vitrea.engine.two_valleys_ensemble import Cell, Setting, simulate
from vitrea.jobs import cli

SMALL = {"experiment": "phase_diagram", "learning_rates": "[0.05, 0.1]", "noise_strengths": "[0.01, 0.1]",
         "trajectories": 30, "iterations": 300, "seed": 7}


def test_every_experiment_takes_keys_that_there_are():
    for experiment in EXPERIMENTS.values():
        assert set(experiment.keys) <= set(options_of(DynamicsOptions)) - set(COMMON)


def test_a_phase_diagram_has_a_cell_for_every_pair(run_job):
    folder = run_job("dynamics", **SMALL)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    pairs = [(cell["learning_rate"], cell["noise_strength"]) for cell in result["cells"]]
    assert pairs == [(0.05, 0.01), (0.05, 0.1), (0.1, 0.01), (0.1, 0.1)]
    assert (result["seed"], result["trajectories"], result["iterations"]) == (7, 30, 300)
    for cell in result["cells"]:
        assert cell["p_flat"] * 30 == pytest.approx(round(cell["p_flat"] * 30))
        assert 0 <= cell["normalised_freezing_time"] <= 300 * cell["learning_rate"]
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")
    assert result["verdict"][0] in (folder / "run.out").read_text(encoding="utf-8")


def test_a_run_too_short_to_freeze_says_so_and_one_that_freezes_does_not(run_job):
    """At η = σ = 0.1 hopping from y = 5 takes 12,000 steps to freeze; at η = 0.05, σ = 0.01 it never begins."""
    short, frozen = (json.loads((run_job("dynamics", experiment="phase_diagram", trajectories=30, iterations=300,
                                         learning_rates=f"[{rate}]", noise_strengths=f"[{strength}]")
                                 / "result.json").read_text(encoding="utf-8"))
                     for rate, strength in ((0.1, 0.1), (0.05, 0.01)))
    assert short["verdict"][-1].startswith("note     1 of 1 cells had not frozen: more than 10 % of their trajectories")
    assert "in the last 10 % of the 300 steps" in short["verdict"][-1]
    assert short["cells"][0]["crossed_late"] > 0.5
    assert frozen["cells"][0]["crossed_late"] == 0
    assert not any("had not frozen" in line for line in frozen["verdict"])


@pytest.mark.parametrize(
    ("experiment", "keys", "cells"),
    [
        ("freezing_scan", {"noise_strengths": "[0.01, 0.1]"}, 2),
        ("flat_probability", {"positions": "[1.1, 1.5, 900]"}, 6),
        ("quench", {"quench_times": "[2, 5]"}, 2),
        ("cooling", {"cooling_times": "[3]", "schedules": "[constant, restarts, exponential]"}, 3),
    ],
)
def test_every_experiment_has_numbers_a_picture_and_a_verdict(run_job, experiment, keys, cells):
    folder = run_job("dynamics", experiment=experiment, trajectories=40, iterations=4000, **keys)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert len(result["cells"]) == cells
    assert all(0 <= cell["p_flat"] <= 1 and 0 <= cell["theory_p_flat"] <= 1 for cell in result["cells"])
    assert all(line.startswith(("agrees", "differs", "note")) for line in result["verdict"])
    assert result["verdict"][0].startswith("agrees")
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_one_trajectory_is_enough_and_a_position_that_none_reaches_is_told(run_job, tmp_path, capsys):
    run_job("dynamics", experiment="freezing_scan", trajectories=1, iterations=100, noise_strengths="[0.01, 0.1]")
    write_job(tmp_path / "far.yaml", "dynamics", experiment="flat_probability", output="far", positions="[50]",
              trajectories=4, iterations=500)
    assert cli.main(["run", "far.yaml"]) == 2
    assert "positions: no trajectory came to y = 50; the furthest is at 1." in capsys.readouterr().err


class Interrupted:
    """A laboratory that is asked to stop after every round, and goes on from what it kept."""

    def __init__(self):
        self.comm, self.round, self.kept = mpi.alone(), 0, {}

    def plan(self, rounds):
        self.rounds = rounds

    def restored(self):
        return self.kept

    def end_round(self, gather, words):
        self.round, self.kept = self.round + 1, gather()
        return self.round == self.rounds


def test_an_ensemble_that_is_interrupted_after_every_round_ends_as_one_that_is_not(monkeypatch):
    cells = [Cell(0.1, 0.1, 250), Cell(0.05, 0.1, 130, np.linspace(1, 0.1, 130))]
    setting = Setting(Landscape(), 30, 1.0, 1, 2, marks=(1.1, 1.6))
    whole = Interrupted()
    monkeypatch.setattr(whole, "end_round", lambda gather, words: True)
    expected = simulate(cells, setting, whole)
    monkeypatch.setattr(two_valleys_ensemble, "ROUND_STEPS", 3000)
    laboratory, found, times = Interrupted(), None, 0
    while found is None:
        found, times = simulate(cells, setting, laboratory), times + 1
    assert times == laboratory.rounds == 5
    for name in ("state", "passed"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert set(np.unique(found["passed"])) == {-1, 0, 1}


def test_a_run_that_was_stopped_on_two_ranks_ends_on_one_with_the_bytes_of_an_undisturbed_run(run_job, begin, launch,
                                                                                             tmp_path):
    keys = SMALL | {"trajectories": 50, "iterations": 150_000, "noise_strengths": "[0.02, 0.04, 0.06, 0.08, 0.1]",
                    "checkpoint_minutes": 0}
    whole = run_job("dynamics", **keys)
    write_job(Path("job.yaml"), "dynamics", output="run", **keys)
    process = begin(2, *RUN)
    wait_until(lambda: iterations(tmp_path / "run"), process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert "stopped after it" in output
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = launch(1, *RESUME)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same_files(tmp_path / "run", whole, ["result.json"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("experiment: phases\n", "job.yaml:2: experiment is 'phases'; expected one of phase_diagram"),
        ("experiment: phase_diagram\nsharp_minimum: 2\n", "job.yaml:3: the sharp valley is not nearer to the ridge "
                                                          "than the flat one; expected sharp_minimum below "),
        ("experiment: phase_diagram\nquench_times: [3]\n", "job.yaml:3: phase_diagram does not take quench_times; "
                                                            "expected a key of this experiment, which are learning_"),
        ("experiment: phase_diagram\nlearning_rates: [0.1, 0]\n", "job.yaml:3: learning_rates is 0; expected a list of "
                                                                  "numbers, above 0, or null (as the paper has them)"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(f"job: dynamics\n{line}output: run\n", encoding="utf-8")
    assert cli.main(["check", "job.yaml"]) == 2
    assert sentence in capsys.readouterr().err
