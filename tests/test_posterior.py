"""From scores to probabilities: exponentials, log-sum-exp at any size of score, significance, peaks below the grid."""
import numpy as np
import pytest
from scipy.special import logsumexp

from vitrea.kernels.posterior import (
    LOWEST,
    NEGLIGIBLE,
    SIGNIFICANCE_BINS,
    exp_line,
    line_maximum,
    reference_exp_line,
    reference_sum_lines,
    refine_peak,
    significant_poses,
    smallest_line_sets,
    smallest_sets,
    sum_lines,
    weigh_lines,
)

LENGTHS = [1, 7, 60, 98]


# ---- exponentials

def test_exp_line_is_exact_to_three_parts_in_ten_million_down_to_its_lowest_value():
    values = np.linspace(LOWEST, 0.0, 500_001, dtype=np.float32)
    out = np.empty_like(values)
    exp_line(values, np.float32(0.0), out)
    assert np.abs(out / np.exp(values.astype(np.float64)) - 1.0).max() < 3e-7


@pytest.mark.parametrize("n", LENGTHS)
def test_exp_line_equals_its_twin_and_returns_the_sum(n):
    values = np.random.default_rng(n).uniform(-120.0, 40.0, n).astype(np.float32)
    out, expected = np.full(n + 2, 9.0, np.float32), np.empty(n, np.float32)
    total = exp_line(values, np.float32(40.0), out[1:-1])
    reference_total = reference_exp_line(values, 40.0, expected)
    np.testing.assert_allclose(out[1:-1], expected, rtol=1e-6)
    assert total == pytest.approx(reference_total, rel=1e-5)
    np.testing.assert_array_equal(out[[0, -1]], 9.0)


@pytest.mark.parametrize("lowest", [-80.5, -1e4, -1e30])
def test_values_far_below_stay_finite_and_without_weight(lowest):
    out = np.empty(3, np.float32)
    exp_line(np.array([0.0, lowest, lowest], np.float32), np.float32(0.0), out)
    assert out[0] == 1.0
    assert (out[1:] >= 0.0).all()
    assert (out[1:] < 1e-34).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_line_maximum_finds_the_largest_wherever_it_stands(n):
    values = np.random.default_rng(n).normal(size=n).astype(np.float32) - 50.0
    for place in {0, n // 2, n - 1}:
        line = values.copy()
        line[place] = -3.0
        assert line_maximum(line) == -3.0


# ---- sums of lines

KEPT = np.dtype([("row", np.int32), ("column", np.int32), ("peak", np.float32)])


def lines_of(scores, row):
    """What is known of the lines scores[lines, n] of particles `row`, and the best score of each particle."""
    about = np.zeros(len(scores), KEPT)
    about["row"], about["peak"] = row, scores.max(axis=1)
    best = np.full(row.max() + 1, -np.inf, np.float32)
    np.maximum.at(best, row, about["peak"])
    return about, best


def expected_log_sums(values, owner, n_images):
    return np.array([logsumexp(values[owner == i].astype(np.float64)) for i in range(n_images)])


def sums_of(scores, row):
    about, best = lines_of(scores, row)
    sums = np.full(len(scores), np.nan)
    sum_lines(scores, about, best, np.zeros(scores.shape[1], np.float32), sums)
    return about, best, sums


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("centre", [0.0, 300.0, -300.0])
def test_sums_of_lines_add_up_to_the_log_sums_of_scipy(n, centre):
    random = np.random.default_rng(n)
    scores = (centre + 4.0 * random.normal(size=(40, n))).astype(np.float32)
    row = np.r_[np.arange(5), random.integers(0, 5, 35)]
    _, best, sums = sums_of(scores, row)
    found = best + np.log(np.bincount(row, weights=sums))
    np.testing.assert_allclose(found, expected_log_sums(scores, row, 5), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("scores", [
    np.full((6, 12), 1e6), np.full((6, 12), -1e6), np.full((6, 12), -1e30),
    np.r_[[np.full(12, -1e30)], np.full((5, 12), 3.0)], np.r_[np.full((5, 12), 3.0), [np.full(12, 500.0)]],
    np.where(np.arange(72) == 31, 1e6, 0.0).reshape(6, 12), np.linspace(-100.0, 100.0, 72).reshape(6, 12),
], ids=["large", "small", "forbidden", "one forbidden", "one dominates", "one pose", "rising"])
def test_extreme_scores_neither_overflow_nor_vanish(scores):
    scores, row = scores.astype(np.float32), np.zeros(len(scores), np.int64)
    _, best, sums = sums_of(scores, row)
    np.testing.assert_allclose(best + np.log(sums.sum()), expected_log_sums(scores, row, 1), rtol=1e-6)


def test_sum_lines_equals_its_twin_but_for_the_lines_it_may_neglect():
    random = np.random.default_rng(9)
    scores, row = (20.0 * random.normal(size=(50, 24))).astype(np.float32), random.integers(0, 4, 50)
    about, best, sums = sums_of(scores, row)
    twin = reference_sum_lines(scores, about, best)
    neglected = about["peak"] < best[row] - NEGLIGIBLE
    assert neglected.any()
    np.testing.assert_array_equal(sums[neglected], 0.0)
    assert twin[neglected].max() < 24 * np.exp(-NEGLIGIBLE)
    np.testing.assert_allclose(sums[~neglected], twin[~neglected], rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.5, 0.999, 1.0])
def test_the_smallest_sets_of_lines_suffice_and_cannot_do_with_one_less(fraction):
    random = np.random.default_rng(3)
    scores, row = (3.0 * random.normal(size=(90, 8))).astype(np.float32), random.permutation(np.arange(90) % 4)
    about, best, sums = sums_of(scores, row)
    chosen, best_line = np.zeros(90, bool), np.zeros(4, np.int64)
    total, held = np.zeros(4), np.zeros(4)
    smallest_line_sets(about, sums, fraction, chosen, total, held, best_line)
    for i in range(4):
        mine = row == i
        assert total[i] == pytest.approx(sums[mine].sum())
        assert held[i] == pytest.approx(sums[mine & chosen].sum())
        assert held[i] >= fraction * total[i] * (1 - 1e-12)
        assert held[i] - sums[mine & chosen].min() < fraction * total[i]
        assert sums[mine & chosen].min() >= sums[mine & ~chosen].max(initial=0.0)   # and the chosen are the largest
        assert about["peak"][best_line[i]] == best[i]
        assert row[best_line[i]] == i


# ---- smallest sets

@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("n_classes", [1, 2, 9])
def test_smallest_sets_suffice_and_cannot_do_with_one_less(fraction, n_classes):
    random = np.random.default_rng(n_classes)
    log_weights = 3.0 * random.normal(size=(60, n_classes)) + random.uniform(-1e5, 1e5, (60, 1))
    marked = np.zeros((60, n_classes), dtype=bool)
    smallest_sets(log_weights, fraction, marked)
    weights = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
    held = np.sum(weights * marked, axis=1)
    assert (held >= fraction - 1e-9).all()
    least = np.where(marked, weights, np.inf).min(axis=1)
    assert (held - least < fraction).all()
    assert (least >= np.where(marked, 0.0, weights).max(axis=1)).all()   # and the marked are the largest


def test_smallest_sets_of_everything_mark_all_that_has_weight():
    marked = np.zeros((2, 4), dtype=bool)
    smallest_sets(np.array([[0.0, -1.0, -2.0, -3.0], [0.0, -np.inf, -np.inf, -5.0]]), 1.0, marked)
    np.testing.assert_array_equal(marked, [[True] * 4, [True, False, False, True]])


def test_a_row_without_finite_weight_marks_nothing():
    marked = np.ones((2, 3), dtype=bool)
    smallest_sets(np.array([[-np.inf] * 3, [0.0, -np.inf, -np.inf]]), 0.999, marked)
    np.testing.assert_array_equal(marked, [[False] * 3, [True, False, False]])


# ---- weights

def weigh(scores, row, n_rows):
    """Weights of all lines, histogram and mean scores."""
    log_total = expected_log_sums(scores, row, n_rows)
    out = np.full((len(scores) + 1, scores.shape[1]), -7.0, np.float32)
    histogram, expected = np.zeros((n_rows, SIGNIFICANCE_BINS, 2)), np.zeros(n_rows)
    weigh_lines(scores, log_total, np.arange(len(scores)), row, out, histogram, expected)
    np.testing.assert_array_equal(out[-1], -7.0)
    return out[:-1], histogram, expected


@pytest.mark.parametrize("centre", [0.0, -2500.0, 31000.0, 1e6])
def test_the_weights_of_a_particle_sum_to_one(centre):
    """Also where float32 scores are so large that their logarithm of the sum does not fit into float32."""
    random = np.random.default_rng(10)
    scores = (centre + 3.0 * random.normal(size=(12, 31))).astype(np.float32)
    row = np.repeat([0, 1, 2], 4)
    weights, histogram, expected = weigh(scores, row, 3)
    np.testing.assert_allclose([weights[row == i].sum(dtype=np.float64) for i in range(3)], 1.0, atol=1e-5)
    np.testing.assert_allclose(histogram[:, :, 1].sum(axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(expected, [np.sum(weights[row == i] * scores[row == i].astype(float)) for i in range(3)],
                               rtol=1e-5, atol=1e-3)


def test_lines_are_weighed_in_the_order_they_are_asked_for():
    scores = np.log(np.arange(1.0, 13.0)).reshape(4, 3).astype(np.float32)
    out, histogram, expected = np.empty((2, 3), np.float32), np.zeros((2, SIGNIFICANCE_BINS, 2)), np.zeros(2)
    weigh_lines(scores, np.log([50.0, 20.0]), np.array([3, 0]), np.array([1, 0]), out, histogram, expected)
    np.testing.assert_allclose(out, [np.array([10, 11, 12]) / 20, np.array([1, 2, 3]) / 50], rtol=1e-5)
    np.testing.assert_allclose(histogram[:, :, 1].sum(axis=1), [6 / 50, 33 / 20], rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_the_number_of_significant_poses_is_that_of_sorting_to_the_width_of_a_bin(fraction):
    scores = (2.5 * np.random.default_rng(11).normal(size=(40, 50))).astype(np.float32)
    row = np.repeat(np.arange(4), 10)
    weights, histogram, _ = weigh(scores, row, 4)
    for i, found in enumerate(significant_poses(histogram, np.full(4, fraction))):
        largest_first = np.sort(weights[row == i].ravel().astype(np.float64))[::-1]
        exact = np.searchsorted(np.cumsum(largest_first), fraction * largest_first.sum()) + 1
        assert found == pytest.approx(exact, rel=0.06, abs=1)


def test_equal_weights_need_their_fraction_of_poses_and_one_sure_pose_needs_one():
    flat = np.zeros((1, SIGNIFICANCE_BINS, 2))
    flat[0, 18] = [100, 1.0]
    assert significant_poses(flat, np.array([0.999]))[0] == 100
    assert significant_poses(flat, np.array([0.5]))[0] == 50
    sure = np.zeros((1, SIGNIFICANCE_BINS, 2))
    sure[0, 0], sure[0, 60] = [1, 0.9999], [40, 0.0001]
    assert significant_poses(sure, np.array([0.999]))[0] == 1


# ---- peaks

LINE = np.array([[-1, -1, -1, 1], [-1, -1, 0, 2], [-1, -1, 1, -1]])   # neighbours of three shifts along x


def parabola(angles, shifts, angle, x):
    """Scores float32[3, n] with their maximum at (angle, x) in steps."""
    turn = (np.arange(angles) - angle + angles / 2) % angles - angles / 2
    return (-0.7 * turn**2 - 1.3 * (np.arange(shifts) - x)[:, None] ** 2).astype(np.float32)


@pytest.mark.parametrize("angle", [4.3, 5.0, 8.62, -0.3, 8.9])   # of 9: also across the seam
@pytest.mark.parametrize("x", [0.7, 1.0, 1.45])
def test_a_parabolic_peak_is_found_exactly_below_the_grid(angle, x):
    scores = parabola(9, 3, angle, x)
    best = int(np.rint(angle)) % 9
    turn, along_y, along_x = refine_peak(scores, 1, best, LINE)
    assert turn == pytest.approx(angle - np.rint(angle), abs=1e-5)
    assert along_x == pytest.approx(x - 1, abs=1e-5)
    assert along_y == 0.0


def test_axes_of_the_shifts_are_not_mixed_up():
    """Five shifts in a cross: −y, −x, middle, +x, +y."""
    cross = np.full((5, 4), -1)
    cross[2] = [0, 4, 1, 3]
    y, x = np.array([-1, 0, 0, 0, 1]), np.array([0, -1, 0, 1, 0])
    scores = np.repeat((-2.0 * (y - 0.3) ** 2 - (x + 0.2) ** 2)[:, None], 6, axis=1).astype(np.float32)
    assert refine_peak(scores, 2, 0, cross) == pytest.approx((0.0, 0.3, -0.2), abs=1e-5)


def test_a_turn_that_trades_against_a_shift_is_found_together_with_it():
    """Off-centre classes: score = −(turn + 2x − 1.2 y)² − small terms, far from separable."""
    y, x = (axis.ravel() for axis in np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"))
    square = np.full((9, 4), -1)
    for i in range(9):
        for side, (dy, dx) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
            there = np.flatnonzero((y == y[i] + dy) & (x == x[i] + dx))
            square[i, side] = there[0] if len(there) else -1
    truth = np.array([0.4, -0.3, 0.2])
    d = np.array(np.broadcast_arrays((np.arange(9) - 4.0)[None, :], y[:, None], x[:, None])) - truth[:, None, None]
    scores = (-((d[0] + 2 * d[2] - 1.2 * d[1]) ** 2) - 0.4 * d[0] ** 2 - 0.3 * d[1] ** 2 - 0.2 * d[2] ** 2)
    assert refine_peak(scores.astype(np.float32), 4, 4, square) == pytest.approx(truth, abs=1e-5)


def test_at_the_rim_of_the_shifts_no_step_is_taken():
    scores = parabola(9, 3, 4.0, 2.4)
    assert refine_peak(scores, 2, 4, LINE)[2] == 0.0
    assert tuple(refine_peak(scores, 0, 4, LINE)[1:]) == (0.0, 0.0)


def test_a_step_is_at_most_half_of_the_grid_and_none_where_there_is_no_peak():
    scores = np.zeros((1, 8), np.float32)
    alone = np.full((1, 4), -1)
    assert refine_peak(scores, 0, 3, alone)[0] == 0.0
    scores[0, 4:] = 5.0   # a cliff: the highest of the three is a neighbour
    assert abs(refine_peak(scores, 0, 3, alone)[0]) <= 0.5
    scores[0] = np.array([9, 8, 6, 3, 1, 3, 6, 8])   # a valley at 4
    assert refine_peak(scores, 0, 4, alone)[0] == 0.0
