"""Peaks: maxima found once, suppression by distance whatever the order, and DeepEM's two passes as published."""
import numpy as np
import pytest

from vitrea.picker.peaks import deepem_peaks, local_maxima, suppress


def literal_deepem(corners, scores, threshold, ranges):
    """The published passes, O(n²), a set of kept boxes after each."""
    rows = [row for row in range(len(scores)) if scores[row] > threshold]
    for reach in ranges:
        chosen = set()
        for row in rows:
            near = [other for other in rows if np.abs(corners[other] - corners[row]).max() <= reach]
            chosen.add(max(near, key=lambda other: (scores[other], corners[other][1], corners[other][0])))
        rows = sorted(chosen)
    return rows


def test_the_two_published_passes_equal_the_literal_ones():
    random = np.random.default_rng(0)
    for trial in range(100):
        n = [0, 1, 2, 40, 150][trial % 5]
        grid = 20 * np.stack(np.mgrid[:15, :13], axis=-1).reshape(-1, 2)
        corners = grid[random.permutation(len(grid))[:n]]
        scores = np.round(random.random(n), 1 if trial % 2 else 6)   # with ties
        found = deepem_peaks(corners, scores, 0.3, 70, 40)
        assert sorted(found.tolist()) == literal_deepem(corners, scores, 0.3, (70, 40))


@pytest.mark.parametrize("distance", [3.0, 10.0])
def test_suppression_keeps_the_best_and_nothing_near_it_in_any_order(distance):
    random = np.random.default_rng(1)
    positions, scores = random.random((300, 2)) * 100, np.round(random.random(300), 2)
    kept = suppress(positions, scores, distance)
    apart = np.hypot(*(positions[kept][:, None] - positions[kept][None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    assert apart.min() >= distance
    for row in set(range(300)) - set(kept.tolist()):   # whoever was dropped is near a better one
        near = np.hypot(*(positions[kept] - positions[row]).T) < distance
        assert (scores[kept][near] >= scores[row]).any()
    order = random.permutation(300)
    assert {tuple(p) for p in positions[order][suppress(positions[order], scores[order], distance)]} == {
        tuple(p) for p in positions[kept]}
    assert (np.diff(scores[kept]) <= 0).all()
    assert len(suppress(np.zeros((0, 2)), np.zeros(0), distance)) == 0
    assert suppress([[4.0, 5.0]], [0.2], distance).tolist() == [0]


def test_maxima_are_refined_between_the_places_of_the_map():
    y, x = np.mgrid[:40, :50]
    scores = 0.9 * np.exp(-((y - 12.3) ** 2 + (x - 20.6) ** 2) / 60)
    scores += 0.5 * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 30)
    positions, values = local_maxima(scores, 0.1)
    assert len(positions) == 2
    np.testing.assert_allclose(positions[np.argmax(values)], [12.3, 20.6], atol=0.05)
    assert len(local_maxima(scores, 0.95)[0]) == 0


def test_a_plateau_gives_one_maximum_and_an_edge_is_no_hindrance():
    scores = np.zeros((6, 7))
    scores[2:4, 3:5] = 0.8
    scores[0, 0] = 0.6
    positions, values = local_maxima(scores, 0.1)
    assert sorted(values.tolist()) == [0.6, 0.8]
    assert positions[np.argmin(values)].tolist() == [0.0, 0.0]
    assert len(local_maxima(np.full((5, 5), np.nan), 0.1)[0]) == 0
