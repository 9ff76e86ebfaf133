"""The comparison of optimisers: its bootstrap, its verdicts, its wrong labels, and that it goes on where it stopped."""
import json
from itertools import product

import numpy as np
import pytest

from vitrea.benchmarks import optimisers, paired
from vitrea.benchmarks.optimisers import ARMS, Case, Runs, recipe_of, run_one, spoiled
from vitrea.benchmarks.paired import Resamples, areas, judged, told
from vitrea.benchmarks.progress import SILENCE
from vitrea.picker.evaluate import curve, verdicts

SNRS = (0.4, 0.2, 0.13)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 150)


def micrographs(random, n=4):
    """[(places, scores, truth, discs)]: some candidates on particles, some beside them."""
    found = []
    for _ in range(n):
        truth = random.uniform(0, 300, (12, 2))
        places = np.concatenate([truth[:9] + random.normal(size=(9, 2)), random.uniform(400, 600, (15, 2))])
        found.append((places, np.concatenate([random.beta(4, 2, 9), random.beta(2, 4, 15)]), truth, np.zeros((0, 3))))
    return found


def test_areas_of_counted_micrographs_are_those_of_the_curve():
    scored = micrographs(np.random.default_rng(0))
    ranked = [(len(truth), (scores * verdicts(places, scores, truth, 10.0)).tolist())
              for places, scores, truth, _ in scored]
    found = areas(ranked, np.array([[1, 1, 1, 1], [0, 1, 0, 0], [0, 2, 0, 2]]))
    expected = [scored, scored[1:2], [scored[1], scored[3]]]   # a micrograph twice counts as once, all of them twice
    np.testing.assert_allclose(found, [curve(each, 10.0).auprc for each in expected], atol=0.02)
    np.testing.assert_allclose(found[:2], [curve(each, 10.0).auprc for each in expected[:2]], rtol=1e-12)


def ranked(random, quality):
    """Six micrographs of 20 particles whose scores are better separated the larger `quality` is."""
    return [[20, [*np.round(0.5 + 0.1 * quality + 0.15 * random.normal(size=20), 5).clip(0.01, 0.99).tolist(),
                  *(-np.round(0.4 + 0.15 * random.normal(size=30), 5).clip(0.01, 0.99)).tolist()]] for _ in range(6)]


def records(qualities, wrong=(0.0,)):
    """Test records of arms with a quality each, 6 seeds at three SNRs."""
    found = []
    for snr, share, seed, (arm, quality) in product(SNRS, wrong, range(6), qualities.items()):
        made = ranked(np.random.default_rng((seed, int(1000 * snr))), quality)   # a seed's noise is common to all arms
        auprc = float(areas(made, np.ones((1, 6), dtype=int))[0])
        found.append({"arm": arm, "snr": snr, "wrong": share, "seed": seed, "ranked": made, "auprc": auprc, "f1": 0.8,
                      "recall": 0.7, "calibration": 0.05, "seconds": 1.0})
    return found


ALL = dict.fromkeys(("cosine", "Adam", "SASA", "freeze-aware", "fixed fraction", "random time"), 1.0)


def test_pairs_tell_a_difference_that_single_intervals_do_not():
    found = judged(records({"Adam": 1.0, "cosine": 1.2}))
    row = found["conditions"][0]
    adam, cosine = row["arms"]["Adam"], row["arms"]["cosine"]
    assert adam["interval"][1] > cosine["interval"][0]       # one by one they overlap
    assert cosine["above_interval"][0] > 0                    # in pairs they do not
    assert adam["above_interval"] == [0.0, 0.0]
    assert row["seeds"] == 6


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    trials = [{seed: ranked(random, 1.0) for seed in range(8)} for _ in range(40)]
    truth = np.mean([areas(each, np.ones((1, 6), dtype=int)) for seeds in trials for each in seeds.values()])
    for seeds in trials:
        low, high = np.quantile(Resamples(range(8), 6).means(seeds), (0.025, 0.975))
        hits += low < truth < high
    assert 33 <= hits


@pytest.mark.parametrize(
    ("qualities", "helps", "timing", "default"),
    [
        ({}, False, False, "Adam"),
        ({"freeze-aware": 1.6}, True, True, "freeze-aware"),
        ({"freeze-aware": 1.6, "random time": 1.6}, True, False, "freeze-aware"),
        ({"SASA": 1.6}, False, False, "SASA"),
    ],
)
def test_verdicts_follow_the_rules_that_were_written_down(qualities, helps, timing, default):
    found = judged(records(ALL | qualities))["verdicts"]
    assert found["helps"]["holds"] is helps
    assert found["timing matters"]["holds"] is timing
    assert found["default"]["becomes"] == default


def test_a_default_that_is_worse_with_wrong_labels_does_not_win():
    clean, wrong = records(ALL | {"SASA": 1.6}), records(ALL | {"SASA": 0.4}, wrong=(0.2,))
    found = judged(clean + wrong)
    assert found["verdicts"]["default"]["best"] == "SASA"
    assert found["verdicts"]["default"]["becomes"] == "Adam"
    text = told(found)
    assert "SNR 0.4, 20 % wrong, n = 6" in text
    assert "* **The default** is Adam. Largest mean AUPRC: SASA" in text


def test_seeds_that_an_arm_lacks_are_left_out():
    found = judged([each for each in records(ALL) if (each["arm"], each["seed"]) != ("SASA", 3)])
    assert [row["seeds"] for row in found["conditions"]] == [5, 5, 5]


def test_wrong_labels_are_half_missing_and_half_where_nothing_is():
    random = np.random.default_rng(0)
    places, discs = random.uniform(20, 170, (20, 2)), np.array([[30.0, 30.0, 8.0]])
    extent = (192, 192), 16.0
    found = spoiled(places, discs, 0.2, extent, (1, 2))
    kept = [any((place == each).all() for each in places) for place in found]
    assert len(found) == 20
    assert sum(kept) == 18
    taken = np.concatenate([places, discs[:, :2]])
    for place in found[~np.array(kept)]:
        assert np.hypot(*(taken - place).T).min() > 16.0
    none = spoiled(places, discs, 0.0, extent, (1, 2))
    np.testing.assert_array_equal(np.sort(none, axis=0), np.sort(places, axis=0))


def test_every_arm_has_eight_trials_and_one_budget():
    for arm in ARMS.values():
        assert len(arm.trials()) == 8
        for trial in arm.trials():
            recipe = recipe_of(trial)
            gradients = recipe.steps * recipe.batch // 8 * (2 if recipe.optimizer == "sam" else 1)
            assert optimisers.BUDGET - recipe.batch // 8 * 2 < gradients <= optimisers.BUDGET


@pytest.fixture
def small(monkeypatch):
    for name, value in (("TRAINED", 2), ("VALIDATED", 1), ("TESTED", 2), ("BUDGET", 64), ("SIDE", 128),
                        ("PARTICLES", 20.0)):
        monkeypatch.setattr(optimisers, name, value)
    for cached in (optimisers.case_of, optimisers.micrographs_of, optimisers._views):
        cached.cache_clear()
    yield
    for cached in (optimisers.case_of, optimisers.micrographs_of, optimisers._views):
        cached.cache_clear()


def test_a_training_is_a_record_and_is_not_done_twice(small, monkeypatch, tmp_path):
    path, progress = tmp_path / "runs.jsonl", SILENCE
    key, trial = ("test", "freeze-aware", 0, 0.4, 0.1, 5), {"optimizer": "freeze_aware", "rate": 0.2, "batch": 16,
                                                            "hot": (0.3, 0.5)}
    found = Runs(path, progress).done(key, trial)
    assert 0.3 <= found["recipe"]["hot"] <= 0.5
    assert found["hot"] == pytest.approx(found["recipe"]["hot"], abs=0.07)   # 32 steps
    assert found["probes"] <= 0.15
    assert len(found["ranked"]) == 2
    assert found["auprc"] == pytest.approx(areas(found["ranked"], np.ones((1, 2), dtype=int))[0], abs=1e-3)
    monkeypatch.setattr(optimisers, "run_one", lambda *rest, **keys: pytest.fail("trained again"))
    again = Runs(path, progress).done(key, trial)
    assert again == json.loads(json.dumps(found))


def test_arms_share_micrographs_start_and_draws(small):
    case = Case(0.4, 0.0, 3)
    first = next(optimisers.states_of(case, recipe_of({"optimizer": "sgd", "rate": 1e-9, "batch": 16})))
    other = next(optimisers.states_of(case, recipe_of({"optimizer": "sam", "rate": 1e-9, "batch": 16})))
    assert first.loss == other.loss
    alike = run_one(case, recipe_of({"optimizer": "sgd", "rate": 0.1, "batch": 16}), tested=True)
    again = run_one(Case(0.4, 0.0, 3), recipe_of({"optimizer": "sgd", "rate": 0.1, "batch": 16}), tested=True)
    assert alike["ranked"] == again["ranked"]
