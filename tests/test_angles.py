"""Scores at all angles by products over the folded circle, and what is asked of lines of them."""
import numpy as np
import pytest
from scipy.special import logsumexp

from vitrea.kernels.angles import (
    add_priors,
    fold_lines,
    folded_matrices,
    harmonic_order,
    keep_lines,
    line_peaks,
    log_sum_lines,
    reference_log_sum_lines,
    reference_whole_lines,
    whole_line,
)
from vitrea.kernels.posterior import NEGLIGIBLE

N, CLASSES, SHIFTS, ANGLES = 4, 2, 5, 40
LINES = N * CLASSES * SHIFTS
KEPT = np.dtype([("row", np.int32), ("column", np.int32), ("peak", np.float32)])


def random_complex(*shape, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def some_folded(size=1.0, seed=3):
    """Folded scores of more lines than are used: the last ones are larger than all others."""
    folded = size * np.random.default_rng(seed).normal(size=(ANGLES, LINES + 2))
    folded[:ANGLES // 8, LINES:] = 1e9
    return folded.astype(np.float32)


@pytest.mark.parametrize(("n_angles", "n_rows"),
                         [(16, 5), (16, 6), (24, 11), (32, 14), (8, 1), (8, 2), (8, 3), (240, 109)])
def test_the_folded_circle_gives_the_scores_at_all_angles_in_their_order(n_angles, n_rows):
    z = random_complex(n_rows, 9)
    product = np.empty((n_rows, 2, 9), np.float32)
    product[harmonic_order(n_rows)] = np.stack([z.real, z.imag], axis=1)
    folded = np.empty((n_angles, 9), np.float32)
    fold_lines(product, folded_matrices(n_angles, n_rows), folded)
    psi, m = 2 * np.pi * (np.arange(n_angles) + 0.5) / n_angles, np.arange(n_rows)[:, None]
    expected = np.real(z.T @ (np.where(m == 0, 1, 2) * np.exp(1j * m * psi)))
    np.testing.assert_allclose(reference_whole_lines(folded), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for kernel in (whole_line, whole_line.py_func):
        line = np.empty(n_angles, np.float32)
        kernel(folded, 7, line)
        np.testing.assert_allclose(line, expected[7], rtol=0, atol=1e-5 * np.abs(expected).max())


def test_priors_enter_where_the_transform_makes_them_constants_and_harmonics():
    n_rows, order = 6, harmonic_order(6)
    out = np.zeros((n_rows, 2 * N, CLASSES * SHIFTS), np.float32)
    log_prior = np.arange(CLASSES * SHIFTS, dtype=np.float32).reshape(CLASSES, SHIFTS)
    term = random_complex(CLASSES, N, 2)
    add_priors(log_prior, term, order, out)
    z = (out[order, :N] + 1j * out[order, N:]).reshape(n_rows, N, CLASSES, SHIFTS)
    np.testing.assert_allclose(z[0], term[:, :, 0].T[:, :, None] + log_prior, rtol=1e-6)
    np.testing.assert_allclose(z[2], np.broadcast_to(term[:, :, 1].T[:, :, None], z[2].shape), rtol=1e-6)
    assert not z[[1, 3, 4, 5]].any()


def test_ctf_terms_that_the_rows_do_not_hold_are_dropped():
    out = np.zeros((3, 2, 1), np.float32)
    terms = np.arange(1, 6, dtype=np.complex64).reshape(1, 1, 5)
    add_priors(np.zeros((1, 1), np.float32), terms, harmonic_order(3), out)
    np.testing.assert_array_equal(out[harmonic_order(3), 0, 0], [1, 0, 2])


@pytest.mark.parametrize("kernel", [line_peaks, line_peaks.py_func])
def test_the_peak_of_a_line_is_its_largest_score_at_any_angle(kernel):
    folded, peak = some_folded(), np.full(LINES + 2, 77, np.float32)
    kernel(folded, LINES, peak)
    np.testing.assert_allclose(peak[:LINES], reference_whole_lines(folded)[:LINES].max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(peak[LINES:], 77)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_log_sums_are_those_of_the_definition_at_any_size(size):
    folded, found, twin = some_folded(size), np.zeros((N, CLASSES)), np.zeros((N, CLASSES))
    overall = np.full(N, -np.inf, np.float32)
    log_sum_lines(folded, SHIFTS, overall, np.zeros(LINES, np.float32), np.zeros((2, ANGLES), np.float32), found)
    reference_log_sum_lines(folded[:, :LINES], SHIFTS, twin)
    scores = reference_whole_lines(folded)[:LINES].reshape(N, CLASSES, -1)
    np.testing.assert_allclose(twin, logsumexp(scores, axis=2), rtol=1e-9)
    np.testing.assert_allclose(overall, scores.max(axis=(1, 2)), rtol=1e-6)
    near = twin > overall[:, None] - NEGLIGIBLE
    np.testing.assert_allclose(found[near], twin[near], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found[~near], scores.max(axis=2)[~near], rtol=1e-6)


def test_an_image_far_below_a_class_before_gets_its_maxima_alone():
    folded, peak, scratch = some_folded(), np.zeros(LINES, np.float32), np.zeros((2, ANGLES), np.float32)
    overall, plain, found = np.full(N, -np.inf, np.float32), np.zeros((N, CLASSES)), np.zeros((N, CLASSES))
    log_sum_lines(folded, SHIFTS, overall, peak, scratch, plain)
    overall[2] += 100.0
    log_sum_lines(folded, SHIFTS, overall, peak, scratch, found)
    best = reference_whole_lines(folded)[:LINES].reshape(N, CLASSES, -1).max(axis=2)
    np.testing.assert_allclose(found[2], best[2], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(plain, 2, axis=0))


# ---- keeping lines

def keep(folded, overall, capacity=LINES, rows=None, used=0):
    scores, kept = np.full((capacity, ANGLES), np.nan, np.float32), np.zeros(capacity, KEPT)
    rows = np.array([3, 0, 5, 6]) if rows is None else rows
    used = keep_lines(folded, rows, CLASSES * SHIFTS, 70, overall, np.zeros(LINES, np.float32), scores, kept, used)
    return used, scores, kept


def test_kept_are_just_the_lines_whose_peak_is_not_far_below_the_particles_best():
    folded, overall = some_folded(12.0), np.full(7, -np.inf, np.float32)
    expected = reference_whole_lines(folded)[:LINES].reshape(N, CLASSES * SHIFTS, ANGLES)
    used, scores, kept = keep(folded, overall)
    best = expected.max(axis=(1, 2))
    np.testing.assert_allclose(overall[[3, 0, 5, 6]], best, rtol=1e-6)
    assert (overall[[1, 2, 4]] == -np.inf).all()
    image, column = np.nonzero(expected.max(axis=2) >= best[:, None] - NEGLIGIBLE)
    assert 0 < used == len(image) < LINES
    np.testing.assert_array_equal(kept["row"][:used], np.array([3, 0, 5, 6])[image])
    np.testing.assert_array_equal(kept["column"][:used], 70 + column)
    np.testing.assert_allclose(scores[:used], expected[image, column], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kept["peak"][:used], scores[:used].max(axis=1))


def test_what_was_seen_before_raises_the_bar_and_is_not_overwritten():
    folded, overall = some_folded(12.0), np.full(7, -np.inf, np.float32)
    before, _, _ = keep(folded, overall)
    overall += 8.0
    after, scores, _ = keep(folded, overall, used=2)
    assert after - 2 < before
    assert np.isnan(scores[:2]).all()


def test_lines_that_do_not_fit_are_told_and_nothing_is_written_beyond():
    overall = np.full(7, -np.inf, np.float32)
    assert keep(some_folded(), overall.copy(), capacity=LINES)[0] == LINES   # at this size all of them matter
    assert keep(some_folded(), overall.copy(), capacity=LINES - 1)[0] == -1
