"""Matching and F against cases worked out by hand."""
import numpy as np
import pytest

from vitrea.picker.evaluate import Counts, best_threshold, count, curve, match, verdicts


def test_of_two_picks_on_one_particle_one_is_false():
    truth = np.array([[10.0, 10.0], [50.0, 50.0]])
    picks = np.array([[11.0, 10.0], [10.0, 12.0], [52.0, 50.0], [90.0, 90.0]])
    assert match(picks, truth, 5).tolist() == [[0, 0], [2, 1]]
    counts = count(picks, truth, 5)
    assert counts == Counts(true=2, false=2, missed=0)
    assert counts.precision == 0.5
    assert counts.recall == 1
    assert counts.f() == pytest.approx(2 / 3)
    assert counts.f(2) == pytest.approx(5 * 0.5 / (4 * 0.5 + 1))


def test_as_many_pairs_as_possible_come_before_the_nearest():
    truth = np.array([[0.0, 0.0], [0.0, 6.0]])
    picks = np.array([[0.0, 3.0], [0.0, 7.5]])   # the first is near both, the second only one
    assert match(picks, truth, 4).tolist() == [[0, 0], [1, 1]]
    picks = np.array([[0.0, 3.5], [0.0, 0.0]])   # a distance of zero is a distance
    assert match(picks, truth, 4).tolist() == [[0, 1], [1, 0]]


def test_discs_that_are_ignored_take_picks_and_truth_out():
    truth = np.array([[10.0, 10.0], [50.0, 50.0]])
    picks = np.array([[50.0, 51.0], [70.0, 70.0], [72.0, 70.0]])
    assert count(picks, truth, 5) == Counts(1, 2, 1)
    assert count(picks, truth, 5, [[71.0, 70.0, 3.0]]) == Counts(1, 0, 1)
    assert count(picks, truth, 5, [[71.0, 70.0, 3.0], [12.0, 12.0, 10.0]]) == Counts(1, 0, 0)


def test_nothing_picked_or_nothing_there():
    none, some = np.zeros((0, 2)), np.array([[1.0, 2.0]])
    assert count(none, some, 3) == Counts(0, 0, 1)
    assert count(some, none, 3) == Counts(0, 1, 0)
    assert Counts(0, 0, 0).f() == Counts(0, 0, 0).precision == Counts(0, 0, 0).recall == 0


def test_the_best_threshold_is_half_way_to_the_next_worse_pick():
    truth = np.array([[0.0, 0.0], [0.0, 100.0], [0.0, 200.0]])
    picks = np.concatenate([truth, truth + np.array([50, 0])])
    scores = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])
    threshold, counts = best_threshold(curve([(picks, scores, truth, ())], 10), 1)
    assert counts == Counts(3, 0, 0)
    assert threshold == pytest.approx(0.55)
    # A pick in a disc that is ignored is no reason to draw the line above it.
    beside = np.concatenate([picks, [[300.0, 300.0]]])
    found = curve([(beside, [*scores, 0.69], truth, [[300.0, 300.0, 5.0]])], 10)
    assert best_threshold(found, 1)[0] == pytest.approx(0.55)
    # Recall weighs more with β = 2: two false picks are a fair price for a third particle.
    scores = np.array([0.9, 0.8, 0.2, 0.5, 0.5, 0.1])
    found = curve([(picks, scores, truth, ())], 10)
    assert best_threshold(found, 2)[0] == pytest.approx(0.15)
    assert best_threshold(found, 0.5)[0] == pytest.approx(0.65)
    assert best_threshold(curve([(np.zeros((0, 2)), np.zeros(0), truth, ())], 10), 1) == (0.5, Counts(0, 0, 3))


def test_the_curve_counts_what_matching_counts_at_every_threshold():
    random = np.random.default_rng(5)
    for _ in range(20):
        scored = []
        for _ in range(3):
            # Crowded: a pick is near several labels, and a label near several picks; scores with ties.
            picks, truth = random.uniform(0, 40, (25, 2)), random.uniform(0, 40, (12, 2))
            scored.append((picks, np.round(random.random(25), 1), truth, ()))
        found = curve(scored, 8.0)
        for threshold in np.arange(0, 1.05, 0.05):
            expected = sum((count(picks[scores >= threshold], truth, 8.0) for picks, scores, truth, _ in scored),
                           start=Counts(0, 0, 0))
            assert found.counts(threshold) == expected
        np.testing.assert_allclose(found.f(2), [found.counts(score).f(2) for score in found.score])


def test_the_better_of_two_picks_on_a_particle_is_the_true_one_and_discs_count_for_nothing():
    truth = np.array([[10.0, 10.0], [50.0, 50.0]])
    picks = np.array([[10.0, 10.0], [12.0, 10.0], [50.0, 51.0], [70.0, 70.0]])
    assert verdicts(picks, [0.4, 0.8, 0.7, 0.6], truth, 5).tolist() == [-1, 1, 1, -1]
    discs = np.array([[52.0, 52.0, 8.0], [70.0, 71.0, 2.0]])
    assert verdicts(picks, [0.4, 0.8, 0.7, 0.6], truth, 5, discs).tolist() == [-1, 1, 0, 0]
    assert curve([(picks, [0.4, 0.8, 0.7, 0.6], truth, discs)], 5).truth == 1


def test_the_area_under_a_curve_worked_out_by_hand():
    truth = np.array([[0.0, 0.0], [0.0, 100.0], [0.0, 200.0], [0.0, 300.0]])
    picks = np.concatenate([truth[:3], [[50.0, 50.0]]])
    found = curve([(picks, [0.9, 0.8, 0.5, 0.7], truth, ())], 10)
    # Recall 1/4, 2/4, 2/4, 3/4 at precision 1, 1, 2/3, 3/4; the fourth particle is never picked.
    assert found.auprc == pytest.approx(0.25 + 0.25 + 0.25 * 0.75)
    assert curve([], 10).auprc == 0.0
