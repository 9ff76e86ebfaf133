"""Matching and F against cases worked out by hand."""
import numpy as np
import pytest

from vitrea.picker.evaluate import Counts, best_threshold, count, match


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


def test_the_best_threshold_is_the_middle_of_the_best():
    truth = np.array([[0.0, 0.0], [0.0, 100.0], [0.0, 200.0]])
    picks = np.concatenate([truth, truth + np.array([50, 0])])
    scores = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])
    threshold, counts = best_threshold([(picks, scores, truth, ())], 10, 1, np.linspace(0.05, 0.95, 19))
    assert counts == Counts(3, 0, 0)
    assert threshold == pytest.approx(0.6)   # of 0.45 to 0.7
    # Recall weighs more with β = 2: two false picks are a fair price for a third particle.
    scores = np.array([0.9, 0.8, 0.2, 0.5, 0.5, 0.1])
    assert best_threshold([(picks, scores, truth, ())], 10, 2, [0.15, 0.6])[0] == 0.15
    assert best_threshold([(picks, scores, truth, ())], 10, 0.5, [0.15, 0.6])[0] == 0.6
