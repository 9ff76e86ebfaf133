"""The hinge benchmark: its simulation is the one that was described, and its comparison is fair."""
import json

import numpy as np
import pytest

from vitrea.benchmarks import judgements
from vitrea.benchmarks.aligned import CROWDED, DIAMETER, GOOD, MOVED, NOISE, accuracy, hinge_views
from vitrea.benchmarks.hinge import METHODS, means, measure, simulated, told
from vitrea.jobs.cli import main


@pytest.mark.parametrize(("snr", "expected"), [(0.02, 0.982), (0.01, 0.897)])
def test_the_true_references_reach_the_accuracy_the_recipe_has(snr, expected):
    rows = measure([snr], [0, 1, 2], ["oracle"])
    assert means(rows)[0]["oracle"] == pytest.approx(expected, abs=0.015)


def test_the_signal_to_noise_ratio_is_that_of_the_whole_box():
    hinge = simulated("hinge", 0.05, 0)
    signal = hinge.c * hinge.references[hinge.truth]
    noise = hinge.t - signal
    assert noise.var() == pytest.approx(1.0, rel=0.01)
    energy = np.mean(np.sum(signal**2, axis=1)) / 64**2   # its rings up to 16 hold nearly all of it, the mean apart
    assert 0.8 * 0.05 < energy < 1.02 * 0.05


def test_the_arm_turns_in_equal_steps_and_the_body_stays():
    views = hinge_views(0)
    steps = np.sum(np.diff(views, axis=0) ** 2, axis=(1, 2))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)
    assert np.abs(views[:, :, :28] - views[0, :, :28]).max() < 1e-3 * views.max()


def test_junk_is_of_three_kinds_and_as_far_away_as_it_says():
    whole, spoilt = simulated("hinge", 50.0, 1), simulated("hinge", 50.0, 1, junk=0.2)
    np.testing.assert_array_equal(np.bincount(spoilt.kind), [1200, 100, 100, 100])
    np.testing.assert_allclose(np.linalg.norm((whole.t - spoilt.t)[spoilt.kind == GOOD], axis=1), 0, atol=25)
    assert np.var(spoilt.t[spoilt.kind == NOISE]) < 1.1 < 20 < np.var(whole.t)
    signal = whole.c * whole.references[whole.truth]
    extra = spoilt.t[spoilt.kind == CROWDED] - signal[spoilt.kind == CROWDED]
    assert np.var(extra) > 0.2 * np.var(signal)
    images = spoilt.plane.images(np.stack([spoilt.t, whole.t])[:, spoilt.kind == MOVED].reshape(200, -1))
    spectra = np.fft.fft2(images).reshape(2, 100, 64, 64)
    shifts = np.fft.ifft2(spectra[0] * np.conj(spectra[1])).real.reshape(100, -1).argmax(axis=1)
    y, x = ((shift + 32) % 64 - 32 for shift in np.divmod(shifts, 64))
    distance = np.hypot(y, x)
    assert 0.2 * DIAMETER < np.percentile(distance, 5)
    assert np.percentile(distance, 95) < 0.55 * DIAMETER


def test_junk_is_set_aside_and_good_particles_are_not():
    found = of_table("junk", "hinge", 0.05, 5)
    assert found["precision"] > 0.97
    assert found["recall"] > 0.9
    assert found["recall_noise"] > 0.97
    assert found["recall_off_centre"] > 0.97
    assert found["false"] < 0.02


def test_a_motion_comes_out_in_its_order():
    assert of_table("order", "motion", 0.05, 4)["spearman"] > 0.98


def of_table(table, name, snr, seed):
    """The row of one table for one set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(judgements.SETS_OF, table, (name,))
        return judgements.measure(table, [snr], [seed])[0]


def test_the_number_of_classes_is_found():
    found = of_table("sizes", "disc", 0.03, 6)
    assert found["true"] == 10
    assert 9 <= found["classes"] <= 12


def test_accuracy_is_that_of_the_best_matching():
    truth = np.repeat([0, 1, 2], 4)
    assert accuracy(truth, (truth + 1) % 3) == 1.0
    assert accuracy(truth, np.zeros(12, int)) == pytest.approx(1 / 3)
    assert accuracy(truth, np.array([5, 5, 5, 2, 2, 2, 2, 2, 1, 1, 1, 5])) == pytest.approx(10 / 12)


def test_vitrea_beats_components_and_k_means_on_a_seed_of_its_own():
    row = measure([0.02], [10], ["oracle", "vitrea", "pca_kmeans"])[0]["accuracy"]
    assert row["pca_kmeans"] < row["vitrea"] < row["oracle"] + 0.01
    assert row["vitrea"] > row["oracle"] - 0.06


def test_the_command_prints_and_keeps_rows(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "hinge", ("oracle", "ml", "rome"))   # the quick ones
    assert main(["bench", "hinge", "--snr", "0.05", "--seeds", "3", "--json", "--records", str(tmp_path / "r")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "r").read_text())
    (row,) = record["rows"]
    assert (row["set"], row["snr"], row["seed"]) == ("hinge", 0.05, 3)
    assert set(row["accuracy"]) == {"oracle", "ml", "rome"}
    assert row["accuracy"]["oracle"] > row["accuracy"]["ml"] > 0.3
    assert "0.05    mean" in told(record["rows"])


def test_the_kernels_of_manifold_learning_are_checked_and_timed(capsys, tmp_path):
    words = ["--classes", "60", "--box", "20", "--radius", "8", "--particles", "200", "--n", "1", "--quick"]
    assert main(["bench", "manifold", *words, "--json", "--records", str(tmp_path / "r")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["check"]["e_step"] < 1e-4
    assert record["check"]["solve"] < 1e-8
    assert record["flops_per_second"] > 1e8
    assert main(["bench", "manifold", *words, "--records", str(tmp_path / "r")]) == 0
    assert "% of sgemm" in capsys.readouterr().out
