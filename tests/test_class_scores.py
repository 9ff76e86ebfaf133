"""Class scores: what their figures mean, what a score is made of, and that junk scores below particles."""
import json

import numpy as np
import pytest

from tests.finished_runs import blob, make_run
from vitrea.benchmarks.classscores import RECORDS, fit, latest, scores_of
from vitrea.engine.class_scores import WEIGHTS, WORDS, class_figures, one_direction, score_classes
from vitrea.engine.finished import read_finished
from vitrea.jobs.cli import main

DIAMETER = 100.0   # Å, of a box of 128 Å


def run_of(tmp_path, averages, sizes=None):
    averages = np.stack(averages).astype(np.float32)
    return read_finished(make_run(tmp_path / "run", sizes or [20] * len(averages), averages=averages))


def disc(shift=0.0, width=0.12, size=32):
    axis = (np.arange(size) - size // 2) / size
    return np.exp(-0.5 * (axis[:, None] ** 2 + (axis - shift) ** 2) / width**2)


def test_figures_of_pixels_say_what_they_are_called(tmp_path):
    axis = np.arange(32) - 16
    ring = (np.abs(np.hypot(axis[:, None], axis) - 11.5) < 1.2).astype(float)
    noise = np.random.default_rng(0).normal(size=(32, 32))
    found = class_figures(run_of(tmp_path, [disc(), disc(0.2), ring, noise]), DIAMETER)
    assert found["centre"][0] > 1 > found["centre"][3] > found["centre"][2]
    assert found["edge"][2] > 0.5 > found["edge"][3] > found["edge"][0]
    assert found["offset"][1] > 0.3 > 0.1 > found["offset"][0]


@pytest.mark.parametrize("size", [32, 33])
def test_a_power_spectrum_along_one_line_is_told_from_a_symmetric_one(size):
    axis = np.arange(size)
    waves = np.sin(0.9 * axis[:, None] + 0.7 * axis)
    noise = np.random.default_rng(0).normal(size=(size, size))
    assert one_direction(waves * np.hanning(size) * np.hanning(size)[:, None]) > 0.9
    assert one_direction(waves.T) == pytest.approx(one_direction(waves), abs=1e-9), "no direction is special"
    assert one_direction(disc(size=size)) < 1e-9
    assert one_direction(noise) < 0.1


def test_figures_of_spectra_and_members(tmp_path):
    run = run_of(tmp_path, [disc()] * 4, (10, 20, 0, 70))
    found = class_figures(run, DIAMETER)
    resolution = 128.0 / np.array([4, 5, 1, 7])
    for k in (0, 1, 3):
        assert found["resolved"][k] == pytest.approx(np.log(DIAMETER / resolution[k]), abs=1e-4)
        assert found["relative"][k] == pytest.approx(np.log(resolution[3] / resolution[k]), abs=1e-4)
        assert found["population"][k] == pytest.approx(np.log(run.sizes[k] / 25), abs=1e-9)
    assert all(np.isnan(values[2]) for values in found.values()), "an empty class has no figures"
    pmax = run.numbers("rlnMaxValueProbDistribution")
    assert found["pmax"][1] == pytest.approx(pmax[10:30].mean() - pmax.mean())


def test_figures_do_not_depend_on_contrast_or_background(tmp_path):
    image = blob(32, 0.1, np.random.default_rng(1))
    found = class_figures(run_of(tmp_path, [image, 7.5 * image + 3]), DIAMETER)
    for name in ("centre", "edge", "offset", "stripes"):
        assert found[name][0] == pytest.approx(found[name][1], rel=1e-4), name


def test_a_score_is_the_logistic_of_what_its_figures_add(tmp_path):
    run = run_of(tmp_path, [disc(), disc(0.3)])
    found = score_classes(run, DIAMETER)
    learned = json.loads(WEIGHTS.read_text())
    for k in range(2):
        logit = learned["bias"] + sum(
            learned["weights"][name] * (found.figures[k, i] - learned["mean"][name]) / learned["deviation"][name]
            for i, name in enumerate(found.names))
        assert found.score[k] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert found.score[0] > found.score[1], "an off-centre blob is worse"
    reason = found.reasons(1)[0]
    assert reason.startswith("against (−")
    strongest = np.abs(found.added[1]).argmax()
    assert f"{found.added[1, strongest]:+.1f}".replace("-", "−") in reason


def test_every_weight_has_words_and_figures(tmp_path):
    learned = json.loads(WEIGHTS.read_text())
    assert set(learned["weights"]) == set(learned["mean"]) == set(learned["deviation"]) == set(WORDS)
    assert set(WORDS) == set(class_figures(run_of(tmp_path, [disc()]), DIAMETER))


def test_the_weights_are_those_of_the_script():
    learned = json.loads(WEIGHTS.read_text())
    found = fit([each for each in latest(RECORDS) if each["training"]])
    assert found["trained_on"] == learned["trained_on"]
    for key in ("weights", "mean", "deviation"):
        assert found[key] == pytest.approx(learned[key], abs=2e-3)


def test_junk_of_runs_held_back_is_told_from_particles():
    """Of runs that nothing was learned from, at 0.5: little junk passes, and few classes are lost."""
    learned = json.loads(WEIGHTS.read_text())
    held = [each for each in latest(RECORDS) if not each["training"]]
    assert held
    kept_junk = junk_total = lost = good_total = 0
    for record in held:
        score, particles, junk = scores_of(record, learned)
        good = junk < 0.5 * particles
        kept_junk += int(((score >= 0.5) & ~good).sum())
        junk_total += int((~good).sum())
        lost += int(((score < 0.5) & good).sum())
        good_total += int(good.sum())
    assert kept_junk <= 0.2 * junk_total
    assert lost <= 0.1 * good_total


def test_select_by_score_and_its_column(tmp_path, capsys):
    averages = np.stack([disc(), disc(0.35), disc()]).astype(np.float32)
    folder = make_run(tmp_path / "run", (30, 30, 30), averages=averages)
    score = score_classes(read_finished(folder), 200.0).score   # the diameter of its job file
    between = str((score[0] + score[1]) / 2)
    assert main(["select", str(folder), "--score", between]) == 0
    assert "2 of 3 classes" in capsys.readouterr().out
    found = json.loads((folder / "selection" / "selection.json").read_text())["classes"]
    assert [one["kept"] for one in found] == [True, False, True]
    assert found[1]["score"] == pytest.approx(score[1], abs=1e-4)
    (folder / "job.yaml").unlink()
    assert main(["select", str(folder), "--score", "0.5", "--out", str(tmp_path / "other")]) == 2
    assert "found no job.yaml with a particle_diameter" in capsys.readouterr().err
