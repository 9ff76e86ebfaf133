"""The benchmarks of the two-valley model: rows that can fail, a speed that is measured, jobs that can be read."""
import json
from pathlib import Path

import numpy as np
import pytest

from vitrea.benchmarks import dynamics
from vitrea.engine import two_valleys_published as published
from vitrea.engine.two_valleys import Landscape, occupancy
from vitrea.engine.two_valleys_frozen import Measured
from vitrea.jobs import cli
from vitrea.jobs.jobfile import read_job

JOBS = sorted((Path(__file__).resolve().parent.parent / "docs" / "dynamics").glob("*.yaml"))


def phases(off=0.0):
    """A phase diagram that is the authors' but for `off` in P_flat and, relatively, in the freezing times."""
    cells = [{"learning_rate": rate, "noise_strength": strength, "p_flat": published.PHASE_P_FLAT[i, j] + off,
              "authors_p_flat": published.PHASE_P_FLAT[i, j], "theory_p_flat": published.PHASE_P_FLAT[i, j],
              "normalised_freezing_time": published.PHASE_FREEZING_TIME[i, j] * (1 + 10 * off), "never_crossed": 0.0,
              "authors_freezing_time": published.PHASE_FREEZING_TIME[i, j], "freezing_time_error": 0.01}
             for i, rate in enumerate(published.GRID) for j, strength in enumerate(published.GRID)]
    return {"trajectories": 2000, "cells": cells}


def test_rows_hold_for_the_authors_values_and_not_for_others():
    assert [row.test for row in dynamics.phase_rows(phases()) if row.holds] == ["T6", "T7", "T9"]
    assert [row.holds for row in dynamics.phase_rows(phases(0.013))] == [False, False, False]
    assert [row.holds for row in dynamics.phase_rows({**phases(0.013), "trajectories": 400})] == [True] * 3


def test_an_extrapolation_finds_the_value_of_a_straight_line():
    etas = np.array([0.01, 0.0025, 0.0004])
    value, error = dynamics.extrapolated(etas, [Measured(0.6 - 0.2 * eta**0.5, 0.001) for eta in etas])
    assert value == pytest.approx(0.6)
    assert 0.001 < error < 0.003


def test_an_interval_of_a_root_mean_square_holds_it():
    rms, (low, high) = dynamics.root_mean_square(np.random.default_rng(1).normal(0, 0.1, 100))
    assert 0.05 < low < rms < high < 0.15


def test_langevin_is_checked_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "langevin", "--n", "1"]) == 0
    record = json.loads(Path("bench.jsonl").read_text(encoding="utf-8"))
    assert record["check"] < 1e-9
    assert record["steps_per_core_second"] == pytest.approx(1e9 / record["ns_per_step"]["diagonal"])
    assert 0.1 < record["fraction_of_limit"] < 1.2
    assert "steps / core·s" in capsys.readouterr().out


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_jobs_of_the_document_can_be_read(path):
    job = read_job(path)
    assert job.type.name == "dynamics"
    assert job.options.output.parent == Path("runs")


def test_there_are_jobs_for_every_experiment_on_two_valleys():
    found = {read_job(path).options.experiment for path in JOBS}
    assert found >= {"phase_diagram", "freezing_scan", "flat_probability", "quench", "cooling"}


def test_the_jobs_null_is_the_one_of_isotropic_noise():
    options = next(read_job(path).options for path in JOBS if path.stem == "isotropic_null")
    deltas = 0.01 * np.array(options.noise_strengths)
    assert options.noise_power == 0
    np.testing.assert_allclose(occupancy(Landscape(), np.array(options.positions), deltas, 0), 0.5517, atol=1e-4)
