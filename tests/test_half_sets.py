"""Two halves of the particles, learned apart: what they say of classes that are certain, doubtful, or one."""
import json
import shutil

import numpy as np
import pytest

from tests.running import same_files, write_job
from vitrea.engine.half_sets import JUDGED, summarise
from vitrea.engine.probabilities import calibration_error, logistic_fit, logit, reliability, sigmoid
from vitrea.engine.star import read_star
from vitrea.jobs.cli import main

FILES = ("half_sets.star", "half_sets.json")


def judged_particles(n, random):
    """JUDGED[n] of two classes whose posterior is too sure: of those at p, only σ(½ logit p − ½) come again."""
    judged = np.zeros(n, JUDGED)
    judged["row"], judged["class_number"] = np.arange(n), random.integers(0, 2, n)
    judged["other"] = 1 - judged["class_number"]
    judged["probability"] = random.uniform(0.5, 0.999, n)
    judged["stability"] = random.uniform(size=n) < sigmoid(0.5 * logit(judged["probability"]) - 0.5)
    return judged


def test_calibration_finds_how_much_too_sure_the_posterior_is():
    found = summarise(judged_particles(20_000, np.random.default_rng(0)), 3)
    assert (found.slope, found.offset) == (pytest.approx(0.5, abs=0.05), pytest.approx(-0.5, abs=0.07))
    assert found.calibrated.mean() == pytest.approx(found.stability.mean(), abs=1e-3)
    assert np.isnan(found.classes[2])
    assert found.shared[2] == -1
    assert found.share[:2] == pytest.approx(1 - found.classes[:2])


def test_particles_that_were_set_aside_are_left_out():
    judged = judged_particles(100, np.random.default_rng(1))
    judged["class_number"][10] = -1
    found = summarise(judged, 2)
    assert sorted({*range(100)} - {*found.row}) == [10]


def test_calibration_error_is_the_mean_distance_from_the_diagonal():
    rows = reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.0, 0.2, 1.0, 0.0]), np.linspace(0, 1, 3))
    assert rows == [(0.1, 0.1, 2), (0.9, 0.5, 2)]
    assert calibration_error(rows) == pytest.approx(0.2)


def test_a_prior_keeps_the_slope_of_separable_targets_finite():
    slope, _ = logistic_fit(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]), slope_precision=1.0)
    assert 1 < slope < 4


@pytest.fixture(scope="module")
def finished(stacks, tmp_path_factory):
    """A run of the small stack whose halves were asked at its end, on one rank."""
    folder = tmp_path_factory.mktemp("halves")
    job = write_job(folder / "job.yaml", "classify2d", input=stacks / "plain/particles.star", output=folder / "run",
                    particle_diameter=150, n_classes=3, max_iterations=8, half_sets="true")
    assert main(["run", str(job)]) == 0
    return folder / "run"


def test_certain_classes_are_stable_and_the_report_tells(finished):
    told = json.loads((finished / "half_sets.json").read_text())
    assert told["stability"] > 0.97
    assert min(told["classes"]) > 0.95
    assert told["chance"] < 0.4
    rows = read_star(finished / "half_sets.star")["particles"]
    assert np.all(rows["vitreaClassProbability"].astype(float) > 0.5)
    assert "stability between halves" in (finished / "report.html").read_text()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_command_finds_the_same_bytes_on_any_number_of_ranks(finished, launch, tmp_path, ranks):
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    for name in FILES:
        (again / name).unlink()
    launch(ranks, "-m", "vitrea.jobs", "stability", again)
    same_files(again, finished, FILES)


def test_stability_of_halves_is_a_rule_of_select(finished, tmp_path):
    assert main(["select", str(finished), "--min-stability", "0.9", "--out", str(tmp_path / "kept")]) == 0
    assert len(read_star(tmp_path / "kept/selected.star")["particles"]["rlnImageName"]) == 240


def test_classes_of_one_view_share_their_particles(stacks, run_job, capsys):
    """Six classes of three views: what one class is not sure of goes to one that shows the same view."""
    folder = run_job("classify2d", input=stacks / "plain/particles.star", particle_diameter=150, n_classes=6,
                     max_iterations=8)
    assert main(["stability", str(folder)]) == 0
    assert "particles   stability" in capsys.readouterr().out
    classes = read_star(folder / "half_sets.star")["classes"]
    truth = read_star(stacks / "plain/truth.star")["particles"]["rlnClassNumber"].astype(int)
    number = read_star(folder / "run_data.star")["particles"]["rlnClassNumber"].astype(int)
    view = {k: np.bincount(truth[number == k]).argmax() for k in set(number)}
    doubtful = [(int(k), int(shared)) for k, shared, share in zip(*(classes[name].astype(float) for name in (
        "rlnClassNumber", "vitreaSharesWith", "vitreaShare"))) if share > 0.05]
    assert len(doubtful) == 6
    assert all(view[k] == view[shared] for k, shared in doubtful)


@pytest.mark.parametrize(("change", "told"), [
    (lambda run: (run / "checkpoint.h5").unlink(), "checkpoint.h5 is gone"),
    (lambda run: (run / "run_data.star").unlink(), "the run is not finished"),
])
def test_a_run_that_cannot_be_asked_is_told(finished, tmp_path, capsys, change, told):
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    change(again)
    assert main(["stability", str(again)]) == 2
    assert told in capsys.readouterr().err
