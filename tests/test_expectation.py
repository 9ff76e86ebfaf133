"""The E and M steps against the model itself: pixels, all poses, and the Gaussian noise between them.

The brute force places a view at every pose with engine/poses.py, filters it with the CTF on a box twice as large, and
compares pixels. Internal poses are X = R_ψ T_s A with X(r, θ) = (T_s A)(r, θ − ψ); RELION's are psi = −ψ and
origin = −R(psi) s.
"""
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
from scipy.special import logsumexp

from tests.tables import polar_half, tables_of_half
from vitrea.engine import expectation, scoring
from vitrea.engine.expectation import Search, Workspace, coarse_evidence, expect
from vitrea.engine.model import block_residual, solve_references
from vitrea.engine.poses import place, rotate_offset, wrap_degrees
from vitrea.engine.scoring import Particles, Scorer, ctf_terms, make_templates
from vitrea.engine.search import make_level
from vitrea.kernels.angles import reference_whole_lines
from vitrea.kernels.ctf import ctf
from vitrea.kernels.mask import disc_image
from vitrea.kernels.packed import PackedTable
from vitrea.kernels.polar import PolarGrid
from vitrea.kernels.posterior import NEGLIGIBLE

BOXES = [26, 27]
RINGS = 11
PIXEL_SIZE = 4.0
SIGMA = 1.7          # px, of the blobs: nothing is left of their transform beyond the rings
N_CLASSES = 3
TERMS = 6            # J of the astigmatic tests
PRIOR = np.array([0.5, 0.3, 0.2])
SIGMA_OFFSET = 1.5
ROUND, ASTIGMATIC = 0.0, 2500.0


# ---- a small world: views, optics, images, particles

@cache
def views(box_size):
    """Unlike, asymmetric heaps of blobs within 4 px of the centre, without mean: float64[K, L, L]."""
    random = np.random.default_rng(3)
    axis = np.arange(box_size) - box_size // 2
    out = []
    for _ in range(N_CLASSES):
        points, weights = random.uniform(-3.0, 3.0, (5, 2)), random.normal(size=5)
        weights -= weights.mean()
        rows = np.exp(-0.5 * ((axis - points[:, :1]) / SIGMA) ** 2)
        columns = np.exp(-0.5 * ((axis - points[:, 1:]) / SIGMA) ** 2)
        image = np.einsum("n,ny,nx->yx", weights, rows, columns)
        out.append(image / np.linalg.norm(image))
    return np.array(out)


def grid_of(box_size):
    return PolarGrid(box_size, RINGS, 12.0)


def optics_of(n, astigmatism, seed=0):
    """Defoci of n particles; [:, None, None] so that they broadcast over frequencies."""
    random = np.random.default_rng(seed)
    defocus, angle = random.uniform(5000.0, 9000.0, (n, 1, 1)), random.uniform(0.0, 180.0, (n, 1, 1))
    return {"defocus_u": defocus + astigmatism / 2, "defocus_v": defocus - astigmatism / 2, "defocus_angle": angle,
            "voltage": 300.0, "cs": 2.7, "amplitude_contrast": 0.1}


def filtered(images, optics):
    """C·image on a box twice as large: float64[n, 2L, 2L], pixel L//2 of the image at pixel L."""
    n, box_size = len(images), images.shape[-1]
    wide, first = np.zeros((n, 2 * box_size, 2 * box_size)), box_size - box_size // 2
    wide[:, first:first + box_size, first:first + box_size] = images
    y, x = half_plane(2 * box_size, PIXEL_SIZE)
    return scipy.fft.irfft2(scipy.fft.rfft2(wide) * ctf(np.hypot(y, x), np.arctan2(y, x), **optics), wide.shape[1:])


def half_plane(box_size, pixel_size):
    """Frequencies (y, x) of a real transform."""
    return np.fft.fftfreq(box_size, pixel_size)[:, None], np.fft.rfftfreq(box_size, pixel_size)[None]


def cut(wide):
    box_size = wide.shape[-1] // 2
    first = box_size - box_size // 2
    return wide[:, first:first + box_size, first:first + box_size]


def relion_pose(psi, shift):
    """Internal psi [radians] and shift (y, x) → rlnAnglePsi [degrees] and origin (y, x) [px]."""
    return -np.rad2deg(psi), -rotate_offset(shift, -np.rad2deg(psi))


def reference_tables(box_size):
    return tables_of_half(grid_of(box_size), polar_half(grid_of(box_size), views(box_size)))


def ring_transfer(grid, optics):
    frequency = np.arange(1, grid.n_rings + 1)[:, None] / (grid.box_size * PIXEL_SIZE)
    return ctf(frequency, grid.angles(), **optics)


def particles_of(images, optics, noise_sd, n_terms=1):
    """What a shard would hold of the images, all rows in use: Particles."""
    grid = grid_of(images.shape[-1])
    transfer = ring_transfer(grid, optics)
    harmonics = np.fft.fft(transfer**2, axis=2) / grid.n_angles
    table = tables_of_half(grid, polar_half(grid, images) * transfer[:, :, :grid.n_angles // 2].astype(np.float32))
    ctf2 = np.ascontiguousarray(harmonics[:, :, 0:2 * n_terms:2].transpose(0, 2, 1)).astype(np.complex64)
    # σ² per real component is half the variance of a pixel
    return Particles(PackedTable.of(table, grid), np.arange(len(images)), ctf2, grid.pixels_on_ring / noise_sd**2,
                     np.ones(len(images), dtype=np.float32))


def take(particles, which):
    return Particles(particles.table, particles.rows[which], particles.ctf2[which],
                     particles.ring_weight, particles.scale[which])


def noisy_images(box_size, n, noise_sd, astigmatism, seed=0):
    """n images of random classes and poses, masked, and their optics."""
    random = np.random.default_rng(seed)
    optics, all_views = optics_of(n, astigmatism, seed), views(box_size)
    placed = np.array([place(all_views[i % N_CLASSES], random.uniform(-180, 180), random.uniform(-1.5, 1.5, 2))
                       for i in range(n)])
    images = cut(filtered(placed, optics)) + noise_sd * random.normal(size=(n, box_size, box_size))
    return images * disc_image(box_size, 9.5, 2.5), optics


def a_level(box_size, rings=RINGS, step=1.0, psi_step=6.0):
    return make_level(grid_of(box_size).with_rings(rings), 2.0, step, psi_step)


def templates_of(box_size, n_terms=1, references=None, prior=PRIOR, together=8, **level):
    references = reference_tables(box_size) if references is None else references
    level = a_level(box_size, **level)
    return make_templates(level, grid_of(box_size).crop(references, level.grid), prior, SIGMA_OFFSET, n_terms,
                          together)


def one_level(templates, temperature=1.0, fraction=0.999):
    return Search(templates, None, fraction, temperature)


def e_step(particles, search):
    return expect(particles, search, Workspace(search))


def scores_of(particles, templates):
    """Every score, as the E step sees them: float64[n, K, T, n_angles]."""
    level, n, scorer = templates.level, len(particles), Scorer(templates)
    terms = ctf_terms(particles, templates, 1.0)
    out = np.full((n, templates.n_classes, level.n_shifts, level.n_angles), np.nan)
    scorer.gather(particles, np.arange(n), 1.0)
    for number, group in enumerate(templates.groups):
        for tile in scorer.tiles(number, terms[group]):
            mine = out[tile, group]
            lines = reference_whole_lines(scorer.folded)[:mine.shape[0] * mine.shape[1] * level.n_shifts]
            out[tile, group] = lines.reshape(mine.shape)
    return out


# ---- brute force

@cache
def all_placed(box_size):
    """Every view at every pose: float64[K, T, n_angles, L, L]; turned by place(), shifted by a phase ramp."""
    level = a_level(box_size)
    psi = 2 * np.pi * (np.arange(level.n_angles) + 0.5) / level.n_angles
    turned = np.array([[place(view, -angle, (0.0, 0.0)) for angle in np.rad2deg(psi)] for view in views(box_size)])
    origin = np.array([[relion_pose(angle, shift)[1] for angle in psi] for shift in level.shifts])
    y, x = half_plane(box_size, 1.0)
    ramp = np.exp(2j * np.pi * (y * origin[..., :1, None] + x * origin[..., 1:, None]))
    return scipy.fft.irfft2(scipy.fft.rfft2(turned)[:, None] * ramp, turned.shape[2:])


@pytest.mark.parametrize("box_size", BOXES)
def test_the_brute_force_places_views_as_place_does(box_size):
    level = a_level(box_size)
    for k, t, j in [(0, 0, 5), (1, 7, 40), (2, 12, 71)]:
        expected = place(views(box_size)[k], *relion_pose(2 * np.pi * (j + 0.5) / level.n_angles, level.shifts[t]))
        np.testing.assert_allclose(all_placed(box_size)[k, t, j], expected, atol=1e-3 * np.abs(expected).max())


@cache
def log_prior(box_size):
    level = a_level(box_size)
    by_shift = np.exp(-0.5 * np.sum(level.shifts**2, axis=1) / SIGMA_OFFSET**2)
    return np.log(PRIOR[:, None, None] * (by_shift / by_shift.sum())[:, None] / level.n_angles)


def pixel_log_posterior(image, optics, noise_sd):
    """log [prior · exp(−½ Σ_pix (X − C·place(A))²/σ²)] for every pose, from a given image: float64[K, T, n_angles]."""
    box_size = len(image)
    placed = all_placed(box_size)
    predicted = filtered(placed.reshape(-1, box_size, box_size), optics)
    observed, first = np.zeros((2 * box_size, 2 * box_size)), box_size - box_size // 2
    observed[first:first + box_size, first:first + box_size] = image
    distance = np.sum((observed - predicted) ** 2, axis=(1, 2)).reshape(placed.shape[:3])
    return log_prior(box_size) - 0.5 * distance / noise_sd**2


def one_of(optics, i):
    return {name: value[i] if np.ndim(value) else value for name, value in optics.items()}


@pytest.mark.parametrize("astigmatism", [ROUND, ASTIGMATIC])
@pytest.mark.parametrize("box_size", BOXES)
def test_the_posterior_is_that_of_comparing_pixels_at_every_pose(box_size, astigmatism):
    """Log posteriors agree to 0.02 wherever they matter, and what is reported of them to a few per cent of that."""
    noise_sd, n_terms = 0.16, TERMS if astigmatism else 1
    images, optics = noisy_images(box_size, 2, noise_sd, astigmatism)
    particles, templates = particles_of(images, optics, noise_sd, n_terms), templates_of(box_size, n_terms)
    poses, sums = e_step(particles, one_level(templates))
    scores = scores_of(particles, templates)
    class_weight, shift2 = np.zeros(N_CLASSES), 0.0
    for i, image in enumerate(images):
        expected = pixel_log_posterior(image, one_of(optics, i), noise_sd)
        expected -= logsumexp(expected)
        found = scores[i] - logsumexp(scores[i])
        matters = expected > expected.max() - 16.0
        assert matters.sum() > 50   # a posterior with something to compare
        np.testing.assert_allclose(found[matters], expected[matters], atol=0.02)
        assert poses.log_likelihood[i] == pytest.approx(logsumexp(scores[i]), abs=1e-4)
        assert poses.pmax[i] == pytest.approx(np.exp(expected.max()), rel=0.05)
        largest_first = np.sort(np.exp(expected).ravel())[::-1]
        assert poses.n_significant[i] == pytest.approx(np.searchsorted(np.cumsum(largest_first), 0.999), rel=0.1)
        class_weight += np.exp(logsumexp(expected, axis=(1, 2)))
        shift2 += np.sum(np.exp(logsumexp(expected, axis=(0, 2))) * np.sum(templates.level.shifts**2, axis=1))
    np.testing.assert_allclose(sums.class_weight, class_weight, atol=0.02)
    assert sums.shift2 == pytest.approx(shift2, rel=0.02)


def test_without_its_astigmatic_terms_the_posterior_is_another():
    """So that the agreement above is not the agreement of a negligible term."""
    images, optics = noisy_images(26, 2, 0.05, ASTIGMATIC)
    full, first_only = (scores_of(particles_of(images, optics, 0.05, n), templates_of(26, n)) for n in (TERMS, 1))
    assert np.abs(full - first_only).max() > 1.0
    np.testing.assert_allclose(scores_of(particles_of(images, optics, 0.05, TERMS + 4), templates_of(26, TERMS + 4)),
                               full, atol=2e-3)


@pytest.mark.parametrize("box_size", BOXES)
def test_the_expected_score_is_the_posterior_mean_of_the_log_likelihood_ratio(box_size):
    images, optics = noisy_images(box_size, 2, 0.16, ROUND)
    particles, templates = particles_of(images, optics, 0.16), templates_of(box_size)
    poses, _ = e_step(particles, one_level(templates))
    for found, score in zip(poses.expected_score, scores_of(particles, templates)):
        weights = np.exp(score - logsumexp(score))
        assert found == pytest.approx(np.sum(weights * (score - log_prior(box_size))), abs=0.02)


# ---- known poses

def images_at_grid_poses(box_size, n, astigmatism, seed=1):
    """Noise-free images at poses of the level: images, optics, (class, shift index, angle index) int[3, n]."""
    level, random = a_level(box_size), np.random.default_rng(seed)
    chosen = np.array([np.arange(n) % N_CLASSES, random.integers(0, level.n_shifts, n),
                       random.integers(0, level.n_angles, n)])
    optics = optics_of(n, astigmatism, seed)
    return cut(filtered(all_placed(box_size)[tuple(chosen)], optics)), optics, chosen


@pytest.mark.parametrize("astigmatism", [ROUND, ASTIGMATIC])
@pytest.mark.parametrize("box_size", BOXES)
def test_with_known_poses_the_m_step_returns_the_known_averages(box_size, astigmatism):
    """References of less contrast suffice to know the poses; what comes back has the full one."""
    noise_sd, n_terms = 0.004, TERMS if astigmatism else 1
    images, optics, (classes, shifts, angles) = images_at_grid_poses(box_size, 36, astigmatism)
    particles = particles_of(images, optics, noise_sd, n_terms)
    truth = reference_tables(box_size)
    templates = templates_of(box_size, n_terms, 0.9 * truth)
    poses, sums = e_step(particles, one_level(templates))
    level = templates.level
    np.testing.assert_array_equal(poses.class_number, classes)
    np.testing.assert_allclose(poses.pmax, 1.0, atol=1e-3)
    np.testing.assert_allclose(sums.class_weight, 12.0, atol=1e-2)
    np.testing.assert_allclose(poses.shift, level.shifts[shifts], atol=0.25)
    turn = wrap_degrees(np.rad2deg(poses.psi) - 360.0 * (angles + 0.5) / level.n_angles)
    np.testing.assert_allclose(turn, 0.0, atol=0.25 * 360.0 / level.n_angles)
    prior = 1e-3 * particles.ring_weight[:RINGS] * np.ones((N_CLASSES, 1))
    found = solve_references(sums, level.grid, prior)
    for k in range(N_CLASSES):
        assert np.linalg.norm(found[k] - truth[k]) < 0.005 * np.linalg.norm(truth[k])


@pytest.mark.parametrize("box_size", BOXES)
def test_poses_between_those_of_the_grid_are_found_in_relions_convention(box_size):
    """To half a step of the angle, 4.5°, and of the shifts, ¼ px; most of them closer."""
    random = np.random.default_rng(5)
    n = 24
    optics, psi, origin = optics_of(n, ROUND), random.uniform(-180, 180, n), random.uniform(-0.9, 0.9, (n, 2))
    placed = np.array([place(views(box_size)[i % N_CLASSES], psi[i], origin[i]) for i in range(n)])
    particles = particles_of(cut(filtered(placed, optics)), optics, 0.03)
    poses, _ = e_step(particles, one_level(templates_of(box_size, step=0.25)))
    found_psi, found_origin = zip(*(relion_pose(*pose) for pose in zip(poses.psi, poses.shift)))
    turn, shift = np.abs(wrap_degrees(np.array(found_psi) - psi)), np.abs(np.array(found_origin) - origin)
    assert turn.max() < 2.25
    assert np.median(turn) < 1.0
    assert shift.max() < 0.125
    assert np.median(shift) < 0.03


@pytest.mark.parametrize("astigmatism", [ROUND, ASTIGMATIC])
@pytest.mark.parametrize("box_size", BOXES)
def test_the_residual_is_what_the_predicted_images_leave(box_size, astigmatism):
    """Σ_i ⟨|X − CA|² − |X|²⟩ on each ring, from the sums alone, for particles whose poses are sure."""
    noise_sd, n_terms = 0.006, TERMS if astigmatism else 1
    images, optics, chosen = images_at_grid_poses(box_size, 9, astigmatism)
    images = images + noise_sd * np.random.default_rng(0).normal(size=images.shape)
    particles, templates = particles_of(images, optics, noise_sd, n_terms), templates_of(box_size, n_terms)
    poses, sums = e_step(particles, one_level(templates))
    assert poses.pmax.min() > 0.999
    grid = templates.level.grid
    half = ring_transfer(grid, optics)[:, :, :grid.n_angles // 2]
    observed, predicted = polar_half(grid, images), half * polar_half(grid, all_placed(box_size)[tuple(chosen)])
    expected = np.sum(np.mean(np.abs(observed - predicted) ** 2 - np.abs(observed) ** 2, axis=2), axis=0)
    found = block_residual(sums, templates, reference_tables(box_size), grid, particles.ring_weight)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_a_brighter_particle_is_scaled_back_before_it_is_compared_and_averaged():
    images, optics, _ = images_at_grid_poses(26, 6, ROUND)
    plain, bright = particles_of(images, optics, 0.02), particles_of(images / 1.25, optics, 0.02)
    bright.scale[:] = 1.25
    search = one_level(templates_of(26))
    (_, expected), (_, found) = e_step(plain, search), e_step(bright, search)
    np.testing.assert_allclose(found.data, expected.data, atol=1e-4 * np.abs(expected.data).max())


# ---- coarse and fine

def crowd(box_size, n=24, noise_sd=0.12):
    images, optics = noisy_images(box_size, n, noise_sd, ROUND, seed=9)
    return particles_of(images, optics, noise_sd)


def two_levels(box_size, fraction):
    fine = templates_of(box_size, together=1)
    return Search(fine, templates_of(box_size, rings=6, step=2.0, psi_step=12.0), fraction)


@pytest.mark.parametrize("box_size", BOXES)
def test_keeping_everything_a_coarse_level_changes_nothing(box_size):
    particles = crowd(box_size)
    (poses, sums), (exact_poses, exact) = (
        e_step(particles, search)
        for search in (two_levels(box_size, 1.0), one_level(templates_of(box_size), fraction=1.0)))
    np.testing.assert_array_equal(poses.class_number, exact_poses.class_number)
    for name in ("pmax", "log_likelihood", "psi", "shift"):
        np.testing.assert_allclose(getattr(poses, name), getattr(exact_poses, name), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums.data, exact.data, atol=1e-5 * np.abs(exact.data).max())
    np.testing.assert_allclose(sums.class_weight, exact.class_weight, atol=1e-4)


@pytest.mark.parametrize("box_size", BOXES)
def test_keeping_nearly_everything_skips_classes_and_changes_next_to_nothing(box_size):
    particles, search = crowd(box_size), two_levels(box_size, 0.999)
    evidence = coarse_evidence(particles, search, Workspace(search))
    share = np.exp(evidence - logsumexp(evidence, axis=1, keepdims=True))
    assert (share < 1e-3).any()   # there are classes to be skipped
    (poses, sums), (exact_poses, exact) = (
        e_step(particles, other) for other in (search, one_level(templates_of(box_size))))
    assert (poses.log_likelihood < exact_poses.log_likelihood - 1e-5).any()   # and some are
    np.testing.assert_array_equal(poses.class_number, exact_poses.class_number)
    np.testing.assert_allclose(poses.pmax, exact_poses.pmax, atol=0.01)
    np.testing.assert_allclose(sums.class_weight, exact.class_weight, atol=0.01 * len(particles))
    assert np.linalg.norm(sums.data - exact.data) < 0.01 * np.linalg.norm(exact.data)


@pytest.mark.parametrize("prior", [PRIOR, np.array([0.6, 0.0, 0.4])], ids=["three classes", "one forbidden"])
@pytest.mark.parametrize(("noise_sd", "n_terms"), [(0.12, 1), (0.01, TERMS), (0.12, 20)])
def test_coarse_evidence_is_the_log_sum_over_the_coarse_poses(noise_sd, n_terms, prior):
    """Faint and bright particles, and more CTF terms than the coarse angles resolve."""
    images, optics = noisy_images(26, 5, noise_sd, ASTIGMATIC)
    particles, coarse = particles_of(images, optics, noise_sd, n_terms), {"rings": 3, "step": 2.0, "psi_step": 30.0}
    search = Search(templates_of(26, n_terms), templates_of(26, n_terms, prior=prior, **coarse), 0.999)
    expected = logsumexp(scores_of(particles, search.coarse), axis=(2, 3))
    found = coarse_evidence(particles, search, Workspace(search))
    matters = expected > expected.max(axis=1, keepdims=True) - NEGLIGIBLE
    np.testing.assert_allclose(found[matters], expected[matters], rtol=2e-5, atol=1e-4)   # packed twice: 2e-5
    assert (found[~matters] < expected.max(axis=1, keepdims=True).repeat(3, axis=1)[~matters] - 10).all()


# ---- the same results however the work is cut

@pytest.mark.parametrize("sizes", [
    {"SCORE_BUDGET": 1}, {"SCORE_BUDGET": 30_000}, {"SCORE_BUDGET": 10_000, "LINES_KEPT": 1e-9}, {"LINES": 7},
    {"MOST_IMAGES": 5, "LEAST_IMAGES": 5}, {"TILE_SCORES": 5_000}, {"CLASSES_TOGETHER": 2},
], ids=["one particle a chunk", "uneven chunks", "chunks that do not fit at first", "few lines",
        "few images a product", "small tiles", "uneven groups"])
def test_results_do_not_depend_on_how_a_block_is_cut(monkeypatch, sizes):
    images, optics = noisy_images(27, 24, 0.12, ASTIGMATIC, seed=9)
    particles = particles_of(images, optics, 0.12, TERMS)
    search = Search(templates_of(27, TERMS), templates_of(27, TERMS, rings=6, step=2.0, psi_step=12.0), 0.999)
    poses, sums = e_step(particles, search)
    for name, size in sizes.items():
        monkeypatch.setattr(scoring if hasattr(scoring, name) else expectation, name, size)
    if "CLASSES_TOGETHER" in sizes:
        search = Search(templates_of(27, TERMS, together=2), search.coarse, 0.999)
    other_poses, other = e_step(particles, search)
    for name, values in vars(poses).items():
        close = {"atol": 1.0} if name == "n_significant" else {"rtol": 1e-5, "atol": 1e-4}
        np.testing.assert_allclose(getattr(other_poses, name), values, **close, err_msg=name)
    for name in ("data", "ctf2", "class_weight"):
        expected = getattr(sums, name)
        np.testing.assert_allclose(getattr(other, name), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_two_blocks_sum_to_what_they_would_be_as_one_and_a_workspace_keeps_nothing():
    particles, search = crowd(26), two_levels(26, 0.999)
    whole_poses, whole = e_step(particles, search)
    work, parts = Workspace(search), [np.arange(0, 24, 2), np.arange(1, 24, 2)]
    results = [expect(take(particles, part), search, work) for part in parts]
    np.testing.assert_allclose(sum(sums.data for _, sums in results), whole.data, atol=1e-5 * np.abs(whole.data).max())
    assert sum(sums.shift2 for _, sums in results) == pytest.approx(whole.shift2, rel=1e-5)
    for part, (poses, _) in zip(parts, results):
        np.testing.assert_array_equal(poses.class_number, whole_poses.class_number[part])
    again = expect(take(particles, parts[0]), search, work)[1]
    np.testing.assert_array_equal(again.data, results[0][1].data)


# ---- edges of the model

def test_more_ctf_terms_than_few_rings_resolve_are_left_out():
    """Early iterations use few rings; strong astigmatism needs many terms, but not on those rings."""
    images, optics = noisy_images(26, 4, 0.16, ASTIGMATIC)
    results = []
    for n_terms in (4, 20):
        particles = particles_of(images, optics, 0.16, n_terms)
        templates = templates_of(26, n_terms, rings=3, psi_step=30.0)
        assert 2 * 19 > templates.level.n_angles // 2
        results.append(e_step(particles, one_level(templates)))
    (poses, sums), (other_poses, other) = results
    np.testing.assert_allclose(other_poses.log_likelihood, poses.log_likelihood, atol=1e-3)
    np.testing.assert_allclose(other.data, sums.data, atol=1e-3 * np.abs(sums.data).max())
    np.testing.assert_allclose(other.ctf2[:, :4], sums.ctf2, atol=1e-3 * np.abs(sums.ctf2).max())
    assert np.isfinite(other.ctf2).all()


def test_a_class_without_prior_gets_no_particle_and_spoils_nothing():
    particles = crowd(26, n=9)
    poses, sums = e_step(particles, one_level(templates_of(26, prior=np.array([0.6, 0.0, 0.4]))))
    assert not (poses.class_number == 1).any()
    assert sums.class_weight[1] == 0.0
    assert not sums.data[1].any()
    for values in (poses.log_likelihood, poses.pmax, poses.expected_score, poses.n_significant, sums.data, sums.ctf2):
        assert np.isfinite(values).all()


def test_at_a_high_temperature_only_the_prior_is_left():
    particles = crowd(26, n=6)
    poses, sums = e_step(particles, one_level(templates_of(26), temperature=1e6))
    np.testing.assert_allclose(sums.class_weight / 6, PRIOR, atol=1e-3)
    np.testing.assert_allclose(poses.pmax, np.exp(log_prior(26).max()), rtol=1e-2)


# ---- expectation–maximisation

@pytest.mark.parametrize("astigmatism", [ROUND, ASTIGMATIC])
@pytest.mark.parametrize("box_size", BOXES)
def test_the_penalised_likelihood_never_falls_while_noise_and_priors_are_fixed(box_size, astigmatism):
    """Each E and M step of exact EM may only raise log p(X | A) + log p(A)."""
    noise_sd, n_terms = 0.15, TERMS if astigmatism else 1
    images, optics = noisy_images(box_size, 45, noise_sd, astigmatism, seed=2)
    particles, grid = particles_of(images, optics, noise_sd, n_terms), grid_of(box_size)
    prior = 4.0 * grid.pixels_on_ring * np.ones((N_CLASSES, 1))
    thirds = [particles.table.take(np.arange(k, 45, 15), ring_weight=particles.ring_weight) for k in range(3)]
    sums = SimpleNamespace(
        data=np.array([third.sum(axis=0) for third in thirds]),
        ctf2=np.array([(particles.ctf2[k::15] * particles.ring_weight).sum(axis=0) for k in range(3)]))
    course = []
    for _ in range(8):
        references = solve_references(sums, grid, prior)
        poses, sums = e_step(particles, one_level(templates_of(box_size, n_terms, references)))
        course.append(poses.log_likelihood.sum() - 0.5 * np.sum(prior * grid.ring_power(references)))
    assert np.diff(course).min() > -0.01
    assert course[-1] - course[0] > 10.0
