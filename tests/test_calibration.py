"""Probabilities of picks: frequencies are found again, the order of picks stays, and few or no labels do no harm."""
import numpy as np
import pytest

from vitrea.picker.calibration import Reliability, fit, held_out


def drawn(seed, n=4000, slope=2.0, offset=-1.0):
    """Scores, and which are particles, with probability σ(slope · logit(score) + offset)."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0.05, 0.99, n)
    return scores, random.random(n) < 1 / (1 + np.exp(-slope * np.log(scores / (1 - scores)) - offset))


def test_a_probability_is_the_frequency_of_particles():
    scores, true = drawn(0)
    calibration = fit(scores, true, "here")
    assert (calibration.slope, calibration.offset) == pytest.approx((2.0, -1.0), abs=0.15)
    assert calibration.source == "here"
    others, which = drawn(1)
    before, after = Reliability.of(others, which), Reliability.of(calibration.apply(others), which)
    assert after.error < 0.02 < 0.1 < before.error
    assert after.brier < before.brier
    for mean, frequency, n in after.bins:
        assert abs(mean - frequency) < 4 * 0.5 / np.sqrt(n)
    assert sum(n for *_, n in after.bins) == len(others)


def test_the_order_of_picks_stays_even_where_the_labels_are_turned_round():
    scores, true = drawn(2, n=60)
    for labels in (true, ~true):
        found = fit(scores, labels).apply(np.sort(scores))
        assert (np.diff(found) > 0).all()
        assert (0 < found[0]) & (found[-1] < 1)


def test_candidates_that_are_told_apart_completely_are_not_certain():
    found = fit(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert 0.5 < found.apply([0.8])[0] < 0.9
    assert found.apply([0.0, 1.0]) == pytest.approx([0, 1], abs=0.01)
    many = fit(np.repeat([0.1, 0.9], 500), np.repeat([False, True], 500))
    assert many.apply([0.9])[0] > 0.98


def test_there_is_no_probability_to_learn_from_one_kind_alone():
    assert fit(np.array([0.3, 0.4]), np.array([True, True])) is None
    assert fit(np.zeros(0), np.zeros(0, dtype=bool)) is None
    assert np.isnan(Reliability.of(np.zeros(0), np.zeros(0, dtype=bool)).error)


def test_candidates_are_judged_by_a_fit_that_has_not_seen_their_micrograph():
    groups = [drawn(seed, n=400) for seed in range(4)]
    probabilities, true = held_out(groups)
    assert len(probabilities) == len(true) == 1600
    assert Reliability.of(probabilities, true).error < 0.04
    # A micrograph that is unlike the others is foretold by them, wrongly; a fit that had seen it would know better.
    odd = [*groups[:1], (groups[1][0], ~groups[1][1])]
    assert Reliability.of(*held_out(odd)).error > 0.3
    alone, _ = held_out(groups[:1])
    assert (alone != fit(*groups[0]).apply(groups[0][0])).all()
