"""Manifold learning: kernels against their twins, EM against theory and ugtm, and the same bits on any ranks."""
import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from vitrea.engine.annealing import Annealing, Schedule, begin, begin_settled, fit, state_arrays, state_from_arrays
from vitrea.engine.comm import alone
from vitrea.engine.components import principal_components
from vitrea.engine.latent import chain, free, grid
from vitrea.engine.manifold import (
    EmbeddedParticles,
    Expectation,
    Layout,
    Maximisation,
    Settings,
    assign,
    cut,
    hold_out,
    make_quanta,
)
from vitrea.engine.selection import (
    best,
    next_size,
    ordered_beginnings,
    tried,
    usual_beginnings,
)
from vitrea.engine.starts import analyse, at_random, bent, from_components, from_references, in_order, put_in_order
from vitrea.kernels import manifold as kernels
from vitrea.kernels.embedding import HalfPlane, shell_power

FULL = Schedule()
PLAIN = Settings(learn_alpha=False, learn_prior=False)


ALONE = alone()


@pytest.fixture(params=[15, 16])
def plane(request):
    return HalfPlane(request.param, 6, angular_bins=2)


def simulated(plane, classes, n, *, noise=1.0, seed=0, flat=False, dtype=np.float32, comm=ALONE, block=64, held=0.0):
    """(EmbeddedParticles of this rank, true class of all): n noisy views of classes float[K, D] under random CTFs."""
    random = np.random.default_rng(seed)
    truth = random.integers(len(classes), size=n)
    c2 = np.ones((n, plane.n_groups)) if flat else random.uniform(0.1, 1.0, (n, plane.n_groups))
    c = np.sqrt(c2)[:, plane.group]
    t = c * classes[truth] + noise * random.normal(size=c.shape)
    rows, starts = cut(n, rank=comm.rank, size=comm.size, block=block)
    power = shell_power(t, plane.group, plane.shell)
    return EmbeddedParticles((c * t)[rows].astype(dtype), c2[rows].astype(dtype), power[rows], rows, starts, n,
                             Layout(plane.group, plane.shell), hold_out(rows, held, seed)), truth


def some_classes(plane, n_classes, size=1.0, seed=5):
    return size * np.random.default_rng(seed).normal(size=(n_classes, plane.n_components))


def started(lattice, particles, y, **values):
    """A Manifold of class averages y with β = 1 and a weak prior."""
    start = from_references(lattice, particles.layout, y, np.ones(len(particles.layout.count)))
    return replace(start, alpha=np.full(len(start.beta), 0.01), **values)


# The embedding


@pytest.mark.parametrize("box_size", [31, 32])
def test_the_embedding_keeps_the_energy_of_the_band_limited_image_and_returns_it(box_size):
    plane = HalfPlane(box_size, 12)
    images = np.random.default_rng(1).normal(size=(3, box_size, box_size))
    components = plane.embed_images(images)
    limited = plane.images(components)
    np.testing.assert_allclose(np.sum(components**2, axis=1), np.sum(limited**2, axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(plane.embed_images(limited), components, atol=1e-5)


def test_white_noise_has_the_same_variance_in_every_component():
    components = HalfPlane(24, 11).embed_images(np.random.default_rng(2).normal(scale=3.0, size=(4000, 24, 24)))
    np.testing.assert_allclose(components.var(axis=0), 9.0, rtol=0.12)   # 5 standard deviations of 4,000 draws


def test_groups_are_pieces_of_rings_and_halves_of_the_plane_are_not_counted_twice():
    plane = HalfPlane(20, 8, angular_bins=4)
    ring = plane.ring[plane.shell[plane.group[::2]]]
    np.testing.assert_array_equal(ring, np.round(np.hypot(*plane.frequency.T)))
    both = {tuple(f) for f in plane.frequency} | {tuple(-f) for f in plane.frequency}
    assert len(both) == 2 * len(plane.frequency) == plane.n_components
    np.testing.assert_allclose(plane.group_means(np.square(ring)[None])[0], plane.ring[plane.shell] ** 2, rtol=1e-6)


def test_a_radius_that_reaches_nyquist_is_refused():
    with pytest.raises(ValueError, match="radius 8 of a box of 16: expected 1 to 7"):
        HalfPlane(16, 8)


# Kernels and their twins


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_log_likelihoods_against_the_empty_image(plane, dtype):
    particles, _ = simulated(plane, some_classes(plane, 3), 20, dtype=dtype)
    start, y = particles.layout.start, some_classes(plane, 5)
    beta = np.random.default_rng(3).uniform(0.5, 2.0, plane.n_components)
    out, twin = np.zeros((20, 7), dtype), np.zeros((20, 7))
    power = kernels.group_power(beta * y**2, start)
    for function, result in ((kernels.node_scores, out), (kernels.reference_node_scores, twin)):
        function(particles.transformed, particles.ctf2, (beta * y).astype(dtype), power.astype(dtype), result)
    np.testing.assert_allclose(out, twin, rtol=0, atol=2e-4 if dtype == np.float32 else 1e-10)
    c = np.sqrt(particles.ctf2)[:, plane.group].astype(np.float64)
    t = particles.transformed / c
    direct = np.array([[-0.5 * np.sum(beta * ((a - b * k) ** 2 - a**2)) for k in y] for a, b in zip(t, c)])
    np.testing.assert_allclose(twin[:, :5], direct, atol=1e-3 if dtype == np.float32 else 1e-9)


def test_responsibilities_agree_with_their_twin_far_from_overflow():
    random = np.random.default_rng(4)
    scores = random.normal(scale=300.0, size=(50, 33)).astype(np.float32)
    log_prior = np.log(random.dirichlet(np.ones(33)))
    for temperature in (1.0, 3.0):
        fast, twin, sums = scores.copy(), scores.astype(np.float64), np.empty((4, 50))
        kernels.responsibilities(fast, log_prior, temperature, sums[0], sums[1])
        kernels.responsibilities(twin, log_prior, temperature, sums[2], sums[3])
        np.testing.assert_allclose(fast, twin, atol=3e-5)
        np.testing.assert_allclose(sums[:2], sums[2:], atol=1e-3)
        np.testing.assert_allclose(twin.sum(axis=1), 1.0, rtol=1e-12)


def test_small_kernels_agree_with_their_twins():
    random = np.random.default_rng(5)
    terms, quanta = random.normal(size=(7, 9)).astype(np.float32), np.exp2(random.integers(-20, -2, 9))
    sums, twin = random.normal(size=(2, 7, 9))
    twin = sums.copy()
    kernels.add_rounded(terms, quanta, sums)
    kernels.reference_add_rounded(terms, quanta, twin)
    np.testing.assert_array_equal(sums, twin)
    kernels.subtract_half(terms, sums)
    kernels.reference_subtract_half(terms, twin)
    np.testing.assert_allclose(sums, twin, rtol=1e-6)
    bands = np.abs(random.normal(size=(4, 30))) * 0.2
    bands[0] += 1.0
    right = random.normal(size=(30, 5))
    twin = right.copy()
    kernels.substitute_banded(bands, right)
    kernels.reference_substitute_banded(bands, twin)
    np.testing.assert_allclose(right, twin, rtol=1e-10)


@pytest.mark.parametrize("lattice", [chain(60), chain(60, periodic=True), chain(20, width=0.5), grid((5, 4)),
                                     grid((3, 3, 3)), free(9)], ids=lambda lattice: lattice.name)
def test_the_three_solvers_agree_to_1e_8(lattice):
    random = np.random.default_rng(6)
    start, n, m = np.array([0, 2, 5, 9]), lattice.n_nodes, lattice.basis.shape[1]
    weight, target = random.uniform(1.0, 30.0, (n, 4)), random.normal(size=(n, 11))
    ridge = np.full((4, m), 0.01)
    ridge[:, m - lattice.n_bias:] = 0
    arguments = (weight, target, start, ridge, np.eye(m))
    plain, traces = kernels.solve_components(lattice.basis, *arguments)
    banded = kernels.BandedBasis(lattice.basis, lattice.n_bias)
    assert banded.pays or lattice.name not in ("chain of 60", "9 free classes")
    for found in (kernels.solve_dense(lattice.basis, *arguments), banded.solve(*arguments)):
        np.testing.assert_allclose(found[0], plain, rtol=0, atol=1e-8 * np.abs(plain).max())
        np.testing.assert_allclose(found[1], traces, rtol=1e-8)


# EM


# ugtm 2.3.0 (numpy 2.4), its Φ, start and first β replaced by ours: 1/β, log-likelihood and every fifth class average
# after 1 and 10 iterations with regul 0.1
UGTM = {
    1: (0.8192414060274389, -495.08894007327075, [
        [1.969529151768, -2.578994181211, -1.324419321549, -0.240094302595, 1.214749521992, 1.428976819095],
        [0.873353902056, -1.112188883619, -0.598092032981, -0.093637392134, 0.549705413795, 0.596631622971],
        [-0.745488376257, 1.278220478052, 0.975852556285, 0.20643250621, -0.163755245864, -0.492229393826],
        [-2.032163560421, 2.934358706879, 1.748158353958, 0.36252281785, -1.01343141671, -1.295119821721]]),
    10: (0.21398228293698296, -377.80594708321024, [
        [3.388934904139, -3.695555393151, -0.487774254246, -0.195449440584, 2.851933018193, 2.734012983696],
        [1.092009596485, -1.380166288438, -0.597780035745, -0.053749906657, 0.628899740796, 0.791602616739],
        [-1.704796267213, 2.373223688263, 1.221723140266, 0.241509268088, -1.002633270215, -1.106359513721],
        [-3.206424124808, 4.617505542287, 2.625828346003, 0.503199288831, -1.67165629033, -2.26111251246]]),
}


@pytest.mark.parametrize("iterations", UGTM)
def test_without_a_ctf_the_trajectory_is_that_of_ugtm(iterations):
    random = np.random.default_rng(20170807)
    t = random.normal(size=(60, 2)) @ random.normal(size=(2, 6)) + 0.3 * random.normal(size=(60, 6))
    layout = Layout(np.zeros(6, int), np.zeros(1, int))
    rows, starts = cut(60, rank=0, size=1, block=25)
    particles = EmbeddedParticles(t, np.ones((60, 1)), np.sum(t**2, axis=1, keepdims=True), rows, starts, 60, layout)
    lattice = replace(grid((4, 4)), n_bias=0)   # ugtm regularises the bias as well
    side = np.linspace(-1, 1, 4)
    y = np.stack([axis.ravel() for axis in np.meshgrid(side, side, indexing="ij")], 1) @ random.normal(size=(2, 6))
    model = replace(started(lattice, particles, y), alpha=np.array([0.1]))
    em = Maximisation(particles, lattice, PLAIN, comm=ALONE)
    for _ in range(iterations):
        model, _ = em.step(model)
    beta_inverse, log_likelihood, averages = UGTM[iterations]
    np.testing.assert_allclose(1.0 / model.beta, beta_inverse, rtol=1e-9)
    np.testing.assert_allclose(model.y[::5], averages, atol=1e-9)
    np.testing.assert_allclose(em.step(model)[1].log_likelihood * 60, log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("lattice", [free(4), chain(6)], ids=lambda lattice: lattice.name)
def test_the_likelihood_never_falls_at_temperature_1(lattice):
    plane = HalfPlane(16, 6, angular_bins=2)
    particles, _ = simulated(plane, some_classes(plane, 4, 0.5), 300, dtype=np.float64)
    model = started(lattice, particles, some_classes(plane, lattice.n_nodes, 0.1, seed=8))
    model = replace(model, alpha=np.zeros(len(model.beta)), outlier_prior=np.zeros(2))
    em = Maximisation(particles, lattice, replace(PLAIN, learn_prior=True), comm=ALONE)
    found = []
    for _ in range(100):
        model, report = em.step(model)
        found.append(report.log_likelihood)
    assert np.diff(found).min() > -1e-9 * abs(found[0])
    assert found[-1] > found[0] + 1.0


def test_the_noise_precision_of_every_shell_is_recovered_within_2_percent():
    plane = HalfPlane(24, 9)
    sigma = np.linspace(0.5, 2.0, 9)
    noise = sigma[plane.shell[plane.group]]
    classes = some_classes(plane, 1)
    particles, _ = simulated(plane, classes, 4000, noise=noise)
    em = Maximisation(particles, free(1), PLAIN, comm=ALONE)
    model = started(free(1), particles, classes)
    for _ in range(3):
        model, _ = em.step(model)
    np.testing.assert_allclose(model.beta * sigma**2, 1.0, rtol=0.02)


def test_the_symmetric_state_stays_and_a_small_spread_grows_by_the_rate_of_theory():
    plane = HalfPlane(12, 4)
    particles, _ = simulated(plane, some_classes(plane, 5, 0.5), 400, dtype=np.float64)
    components, beta = principal_components(particles, make_quanta(particles, comm=ALONE), 3, comm=ALONE,
                                            tolerance=1e-10)
    lattice, temperature = free(5), 1.7
    coordinates = np.random.default_rng(1).normal(size=(5, 1))
    coordinates -= coordinates.mean()
    em = Maximisation(particles, lattice, replace(PLAIN, learn_noise=False), comm=ALONE)

    def spread(size, iterations):
        model = started(lattice, particles, components.mean + size * coordinates * components.directions[:1],
                        beta=beta, temperature=temperature)
        model = replace(model, alpha=np.zeros(len(beta)))
        sizes = []
        for _ in range(iterations):
            sizes.append(np.linalg.norm(model.y - model.y.mean(axis=0)))
            model, _ = em.step(model)
        return np.array(sizes)

    assert spread(0.0, 10).max() < 1e-12
    grown = spread(1e-6, 4)
    np.testing.assert_allclose(grown[1:] / grown[:-1], components.eigenvalues[0] / temperature, rtol=1e-3)


def test_components_are_those_of_the_dense_eigenproblem():
    plane = HalfPlane(12, 4)
    particles, _ = simulated(plane, some_classes(plane, 5), 300, dtype=np.float64)
    found, beta = principal_components(particles, make_quanta(particles, comm=ALONE), 4, comm=ALONE, tolerance=1e-12)
    c2 = particles.ctf2[:, plane.group]
    x = (particles.transformed - c2 * found.mean) * np.sqrt(beta[plane.shell[plane.group]] / c2.sum(axis=0))
    np.testing.assert_allclose(found.mean, particles.transformed.sum(axis=0) / c2.sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.svd(x, compute_uv=False)[:4] ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.project(found.project(x)), found.project(x), atol=1e-10)


def test_the_evidence_finds_the_spectrum_of_the_classes_and_silences_empty_shells():
    plane = HalfPlane(32, 12)
    amplitude = np.where(plane.shell[plane.group] < 6, 1.0, 0.0)
    classes = some_classes(plane, 30) * amplitude
    particles, truth = simulated(plane, classes, 900)
    model = started(free(30), particles, classes)
    em = Maximisation(particles, free(30), Settings(learn_prior=False), comm=ALONE)
    for _ in range(20):
        model, _ = em.step(model)
    np.testing.assert_allclose(model.alpha[:6], 1.0 / np.mean(classes[:, amplitude > 0] ** 2), rtol=0.35)
    assert model.alpha[6:].min() > 50
    error = np.mean((model.y - classes)[:, amplitude == 0] ** 2)
    assert error < 0.02 * np.mean(1.0 / (truth.size / 30 * particles.ctf2.mean()))   # far below the unshrunk noise


@pytest.mark.parametrize("n", [800, 4000])
def test_components_show_the_spectrum_of_the_signal_and_not_that_of_their_own_noise(n):
    """Four classes that cancel in the mean, on the lower half of the shells, few particles or many."""
    plane = HalfPlane(32, 12)
    classes = some_classes(plane, 4, 0.6) * (plane.shell[plane.group] < 6)
    particles, _ = simulated(plane, classes - classes.mean(axis=0), n)
    found = principal_components(particles, make_quanta(particles, comm=ALONE), 8, comm=ALONE)[0]
    assert found.significant() == 3
    signal2 = found.signal2(particles.layout)
    np.testing.assert_allclose(signal2[2:6], 0.36 * 3 / 4, rtol=0.3)
    uncorrected = 3 * np.mean(found.directions[:3, plane.shell[plane.group] >= 6] ** 2)
    assert signal2[6:].mean() < 0.15 * uncorrected


@pytest.mark.parametrize("lattice", [chain(6), free(6)], ids=lambda lattice: lattice.name)
def test_the_prior_is_the_number_of_weights_the_data_determine_over_their_squares(lattice):
    plane = HalfPlane(16, 6, angular_bins=2)
    particles, _ = simulated(plane, some_classes(plane, 6, 0.05), 200, dtype=np.float64)   # hardly any signal
    model = replace(started(lattice, particles, some_classes(plane, 6, 0.05)), beta=np.linspace(0.5, 1.5, 6))
    model = replace(model, alpha=np.linspace(20.0, 400.0, 6))
    em = Maximisation(particles, lattice, Settings(), comm=ALONE)
    totals, shell, basis = em.expect(model), particles.layout.shell, lattice.basis
    free_weights, squares = np.zeros(6), np.zeros(6)
    for d, group in enumerate(plane.group):
        ridge = model.alpha[shell[group]] / model.beta[shell[group]]
        inverse = np.linalg.inv(basis.T @ (totals.ctf2[:, group, None] * basis) + ridge * np.eye(basis.shape[1]))
        free_weights[shell[group]] += basis.shape[1] - ridge * np.trace(inverse)
        squares[shell[group]] += np.sum((inverse @ basis.T @ totals.data[:, d]) ** 2)
    np.testing.assert_allclose(em.step(model)[0].alpha, free_weights / squares, rtol=1e-8)


def test_junk_is_set_aside_by_the_outlier_components():
    plane = HalfPlane(24, 8)
    classes = some_classes(plane, 4, 0.8)
    particles, truth = simulated(plane, np.concatenate([classes, np.zeros((1, plane.n_components))]), 800)
    alien, _ = simulated(plane, some_classes(plane, 100, 0.8, seed=77), 100, seed=9)   # signal, but of no class
    for name in ("transformed", "ctf2", "power"):
        getattr(particles, name)[:100] = getattr(alien, name)
    junk = (truth == 4) | (np.arange(800) < 100)
    start = from_references(free(4), particles.layout, classes + 0.3 * some_classes(plane, 4, seed=3),
                            np.ones(8))
    state = fit(particles, begin_settled(start), Settings(outliers=True), Schedule(), comm=ALONE)
    found = assign(Expectation(particles, state.manifold), slice(0, 800))
    flagged = found.class_number == -1
    assert np.mean(junk[flagged]) > 0.97   # precision
    assert np.mean(flagged[junk]) > 0.97   # recall
    np.testing.assert_allclose(state.manifold.class_prior.sum() + state.manifold.outlier_prior.sum(), 1.0)


def test_classes_with_something_on_top_and_empty_images_are_junk_and_nothing_else_is():
    """Five nodes for four classes: the fifth would take the empty images, but the component for them does."""
    plane = HalfPlane(24, 8)
    classes = some_classes(plane, 4, 1.2)
    particles, truth = simulated(plane, np.concatenate([classes, np.zeros((1, plane.n_components))]), 800)
    alien, _ = simulated(plane, some_classes(plane, 100, 1.2, seed=77), 80, noise=0.0, seed=9)
    c = np.sqrt(particles.ctf2[:80])[:, plane.group]
    t = particles.transformed[:80] / c + alien.transformed / np.sqrt(alien.ctf2)[:, plane.group]
    particles.transformed[:80], particles.power[:80] = c * t, shell_power(t, plane.group, plane.shell)
    junk = (truth == 4) | (np.arange(800) < 80)
    for kept in (np.arange(800), np.flatnonzero(~junk)):
        seen = replace(particles, transformed=particles.transformed[kept], ctf2=particles.ctf2[kept],
                       power=particles.power[kept], rows=np.arange(len(kept)), starts=np.array([0, len(kept)]),
                       n_total=len(kept), held_out=None)
        begun = from_references(free(5), particles.layout, np.append(classes, 0.05 * classes[:1], axis=0), np.ones(8))
        state = fit(seen, begin_settled(begun), Settings(outliers=True), Schedule(), comm=ALONE)
        flagged = assign(Expectation(seen, state.manifold), slice(0, len(kept))).class_number == -1
        assert np.mean(flagged != junk[kept]) < 0.02
        assert len(kept) == 800 or state.manifold.outlier_prior.sum() < 0.002


def test_the_odds_of_something_on_top_are_those_of_two_normal_densities():
    plane = HalfPlane(12, 4)
    particles, _ = simulated(plane, some_classes(plane, 1), 6, dtype=np.float64)
    model = replace(started(free(1), particles, some_classes(plane, 1)), beta=np.linspace(0.6, 1.4, 4),
                    signal2=np.linspace(2.0, 0.5, 4), class_prior=np.array([0.7]), outlier_prior=np.array([0.1, 0.2]))
    weights, _, _ = Expectation(particles, model).weights(slice(0, 6))
    shell = plane.shell[plane.group]
    c2 = particles.ctf2[:, plane.group]
    t, narrow = particles.transformed / np.sqrt(c2), np.broadcast_to(1.0 / model.beta[shell], c2.shape)
    c2_of_shell = (particles.ctf2 @ particles.layout.share)[:, shell]
    broad = narrow + 0.5 * c2_of_shell * model.signal2[shell]
    density = [prior * np.prod(norm.pdf(t, mean, np.sqrt(variance)), axis=1) for prior, mean, variance in (
        (0.7, np.sqrt(c2) * model.y, narrow), (0.1, 0.0, narrow), (0.2, np.sqrt(c2) * model.y, broad))]
    np.testing.assert_allclose(weights, (density / np.sum(density, axis=0)).T, rtol=1e-6)


def arc(plane, n_classes):
    """Classes along a bent line: a motion."""
    u = np.linspace(-1, 1, n_classes)[:, None]
    a, b, mean = some_classes(plane, 3, 0.7, seed=11)
    return mean + np.sin(1.5 * u) * a + np.cos(3.0 * u) * b


def test_a_chain_learns_the_order_of_a_motion():
    plane = HalfPlane(24, 8)
    particles, truth = simulated(plane, arc(plane, 60), 1200)
    components, beta = analyse(particles, 4, comm=ALONE)
    critical = components.eigenvalues[0]
    start = at_random(free(12), particles.layout, components, beta, seed=0)
    state = fit(particles, begin(start, critical), Settings(learn_prior=False), FULL, comm=ALONE)
    ordered = in_order(chain(12, basis_fraction=1.0), particles.layout, state.manifold, comm=ALONE)
    state = fit(particles, begin_settled(ordered), Settings(), FULL, comm=ALONE)
    latent = assign(Expectation(particles, state.manifold), slice(0, 1200)).latent[:, 0]
    ranks = np.argsort(np.argsort(latent + 1e-9 * np.arange(1200)))
    assert abs(np.corrcoef(ranks, truth)[0, 1]) > 0.95


def test_references_in_any_order_are_put_in_line():
    plane = HalfPlane(24, 8)
    shuffled = np.random.default_rng(0).permutation(15)
    order = put_in_order(arc(plane, 15)[shuffled])
    np.testing.assert_array_equal(np.abs(np.diff(shuffled[order])), 1)


def test_the_latent_mean_of_a_closed_chain_goes_across_the_seam():
    plane = HalfPlane(12, 4)
    particles, _ = simulated(plane, some_classes(plane, 1, 0.0), 4)
    lattice = chain(8, periodic=True)
    y = np.zeros((8, plane.n_components))
    y[1:7] = 50.0   # only nodes 1 and 8, neighbours across the seam, fit
    model = started(lattice, particles, y)
    latent = assign(Expectation(particles, model), slice(0, 4)).latent[:, 0]
    np.testing.assert_allclose(latent, 8.5, atol=1e-4)


def test_starts_lie_where_they_say_on_the_components():
    plane = HalfPlane(20, 7)
    particles, _ = simulated(plane, arc(plane, 40), 500)
    components, beta = analyse(particles, 3, comm=ALONE)

    def coordinates(model):
        inside = ((model.y - components.mean) * components.metric) @ components.vectors
        return inside / np.sqrt(components.eigenvalues - 1.0)

    line = coordinates(from_components(chain(7), particles.layout, components, beta))
    np.testing.assert_allclose(line[:, 1:], 0, atol=1e-8)
    np.testing.assert_allclose(np.diff(line[:, 0]), np.sqrt(3.0) / 3.0)
    curved = coordinates(bent(chain(7), particles.layout, components, beta))
    np.testing.assert_allclose(curved[[0, 3, 6], :2] / np.sqrt(2.0), [[-1, 1], [0, -1], [1, 1]], atol=1e-8)
    ring = coordinates(from_components(chain(7, periodic=True), particles.layout, components, beta))
    np.testing.assert_allclose(np.hypot(ring[:, 0], ring[:, 1]), np.sqrt(2.0))


def test_held_out_particles_are_a_fair_draw_that_does_not_depend_on_the_share():
    whole = hold_out(np.arange(20000), 0.1, seed=4)
    assert abs(whole.mean() - 0.1) < 0.01
    np.testing.assert_array_equal(hold_out(np.arange(5000, 9000), 0.1, seed=4), whole[5000:9000])
    assert abs(np.mean(whole & hold_out(np.arange(20000), 0.1, seed=5)) - 0.01) < 0.004


@pytest.mark.parametrize("size", [1, 3, 8])
def test_blocks_are_the_same_pieces_of_the_rows_on_any_number_of_ranks(size):
    pieces = []
    for rank in range(size):
        rows, starts = cut(1000, rank=rank, size=size, block=300)
        pieces += [rows[a:b].tolist() for a, b in pairwise(starts)]
    assert pieces == [list(range(a, min(a + 300, 1000))) for a in range(0, 1000, 300)]


# Annealing and selection


def annealed(comm, schedule=FULL, stop_at=None, state=None, seed=3):
    """(State of a run on simulated particles, tempered log-likelihoods): small, but with every part in use."""
    plane = HalfPlane(16, 6)
    particles, _ = simulated(plane, some_classes(plane, 4, 0.6), 500, comm=comm, held=0.2, seed=seed)
    components, beta = analyse(particles, 4, comm=comm)
    if state is None:
        start = from_components(chain(5, basis_fraction=1.0, width=0.5), particles.layout, components, beta)
        state = begin(start, components.eigenvalues[0])
    found = []

    def note(state, report):
        found.append(report.tempered)
        return stop_at is not None and len(found) == stop_at

    return fit(particles, state, Settings(outliers=True), schedule, comm=comm, on_iteration=note), found


def test_annealing_cools_from_below_the_critical_temperature_and_keeps_the_best():
    state, _ = annealed(ALONE)
    assert state.stage == "done"
    assert 1.0 <= state.manifold.temperature < state.critical
    assert np.isfinite(state.best_held_out)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(batch=128, sweeps=3)], ids=["full", "batches"])
def test_a_run_that_is_stopped_and_continued_from_its_arrays_ends_with_the_same_bits(schedule):
    whole, found = annealed(ALONE, schedule)
    half, _ = annealed(ALONE, schedule, stop_at=len(found) // 2)
    again = state_from_arrays({name: np.array(value) for name, value in state_arrays(half).items()})
    ended, _ = annealed(ALONE, schedule, state=again)
    for name, value in state_arrays(whole).items():
        np.testing.assert_array_equal(state_arrays(ended)[name], value, err_msg=name)


def test_an_iteration_in_batches_leaves_nothing_behind():
    """Sums of a thousand classes that wait for the garbage collector would be gigabytes."""
    comm, plane = ALONE, HalfPlane(16, 6)
    particles, _ = simulated(plane, some_classes(plane, 4, 0.6), 500, comm=comm, held=0.2)
    components, beta = analyse(particles, 4, comm=comm)
    state = begin(from_components(chain(5), particles.layout, components, beta), components.eigenvalues[0])
    learner = Annealing(particles, state.manifold.lattice, Settings(), Schedule(batch=128, sweeps=3), comm=comm)
    gc.collect()
    gc.disable()
    try:
        seen = []
        for _ in range(8):
            state, _ = learner.step(state)
            seen.append(weakref.ref(state.running))
        assert [each() is None for each in seen] == 7 * [True] + [False]
    finally:
        gc.enable()


def test_held_out_particles_choose_the_right_number_of_classes():
    plane = HalfPlane(20, 7)
    particles, _ = simulated(plane, some_classes(plane, 4, 0.7), 900, held=0.25)
    components, beta = analyse(particles, 6, comm=ALONE)
    starts = ((f"{k}", at_random(free(k), particles.layout, components, beta, seed=0)) for k in (2, 4, 8, 16))
    begun = ((name, begin(start, components.eigenvalues[0])) for name, start in starts)
    candidates = list(tried(particles, begun, Settings(), FULL, comm=ALONE))
    judged = {candidate.name: candidate.held_out for candidate in candidates}
    assert judged["4"] > judged["2"] + 1.0
    assert judged["16"] < judged["4"] + 0.05   # what more classes find does not pay
    assert best(candidates).name in ("4", "8")


def test_chains_begun_by_classes_in_order_are_judged_beside_them():
    plane = HalfPlane(20, 7)
    particles, truth = simulated(plane, arc(plane, 40), 700, held=0.2)
    components, beta = analyse(particles, 4, comm=ALONE)
    beginnings = usual_beginnings([free(8)], particles.layout, components, beta, n_random=1)
    first = next(tried(particles, beginnings, Settings(), FULL, comm=ALONE))
    begun = ordered_beginnings(first, particles.layout, comm=ALONE)
    chains = list(tried(particles, begun, Settings(), FULL, comm=ALONE))
    assert [candidate.name.split()[-1] for candidate in chains] == ["0.5", "0.7", "1"]
    chosen = best([first, *chains])
    assert chosen in chains   # what neighbours share explains particles not seen
    latent = assign(Expectation(particles, chosen.state.manifold), slice(0, 700)).latent[:, 0]
    assert abs(np.corrcoef(latent, truth)[0, 1]) > 0.95


def test_class_averages_stay_in_the_space_of_the_components_they_are_given():
    plane = HalfPlane(16, 6)
    particles, _ = simulated(plane, some_classes(plane, 4), 300)
    components, beta = analyse(particles, 3, comm=ALONE)
    start = at_random(free(4), particles.layout, components, beta, seed=0)
    em = Maximisation(particles, free(4), Settings(subspace=components), comm=ALONE)
    model, first = em.step(start)
    for _ in range(8):
        model, last = em.step(model)
    np.testing.assert_allclose(components.project(model.y), model.y, atol=1e-10)
    assert last.log_likelihood > first.log_likelihood
    unbound, _ = Maximisation(particles, free(4), Settings(), comm=ALONE).step(start)
    assert np.abs(components.project(unbound.y) - unbound.y).max() > 0.01


@pytest.mark.parametrize(("true", "most"), [(3, 60), (10, 60), (11, 300), (25, 300), (100, 120), (40, 40), (90, 40)])
def test_numbers_of_classes_grow_until_two_do_not_pay_and_then_close_in(true, most):
    """Too few classes cost much, too many little: the best of those tried is near, and few are tried."""
    judged = {}
    while (size := next_size(judged, 3, most)) is not None:
        assert 3 <= size <= most
        assert size not in judged
        judged[size] = -abs(size - true) * (1.0 if size < true else 0.02)
    assert max(judged, key=judged.get) == pytest.approx(min(true, most), rel=0.12)
    assert len(judged) < 16
    assert max(judged) <= 1.5**3 * true


def test_selection_without_held_out_particles_is_refused():
    particles, _ = simulated(HalfPlane(12, 4), some_classes(HalfPlane(12, 4), 2), 20)
    with pytest.raises(ValueError, match="no particles are held out"):
        next(tried(particles, [], Settings(), FULL, comm=ALONE))


def test_a_lattice_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="a closed chain of 4 nodes: expected at least 5"):
        chain(4, periodic=True)
    with pytest.raises(ValueError, match="expected two or three axes"):
        grid((4,))


# Ranks


@pytest.mark.mpi
@pytest.mark.parametrize("lattice", [chain(60), grid((3, 3)), free(9)], ids=lambda lattice: lattice.name)
def test_an_iteration_gives_the_same_bits_on_any_number_of_ranks(comm, lattice):
    plane = HalfPlane(16, 6, angular_bins=2)

    def iterated(comm):
        particles, _ = simulated(plane, some_classes(plane, 9), 300, comm=comm, held=0.1)
        model = started(lattice, particles, some_classes(plane, lattice.n_nodes, 0.3))
        model = replace(model, outlier_prior=np.full(2, 0.01), temperature=1.3)
        em = Maximisation(particles, lattice, Settings(threads=2), comm=comm)
        for _ in range(3):
            model, report = em.step(model)
        return model, report

    (mine, report), (alone, expected) = iterated(comm), iterated(ALONE)
    for name in ("y", "beta", "alpha", "class_prior", "outlier_prior", "signal2"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(alone, name), err_msg=name)
    assert (report.log_likelihood, report.held_out) == (expected.log_likelihood, expected.held_out)


@pytest.mark.mpi
@pytest.mark.parametrize("schedule", [Schedule(sweeps=3), Schedule(batch=128, sweeps=3)], ids=["full", "batches"])
def test_a_whole_run_gives_the_same_bits_on_any_number_of_ranks(comm, schedule):
    (mine, found), (alone, expected) = annealed(comm, schedule), annealed(ALONE, schedule)
    assert found == expected
    for name, value in state_arrays(alone).items():
        np.testing.assert_array_equal(state_arrays(mine)[name], value, err_msg=name)


@pytest.mark.mpi
def test_ranks_without_particles_take_part(comm):
    plane = HalfPlane(12, 4)
    particles, _ = simulated(plane, some_classes(plane, 2), 40, comm=comm, block=40)   # one block: one rank has it
    em = Maximisation(particles, free(2), Settings(), comm=comm)
    model, report = em.step(started(free(2), particles, some_classes(plane, 2)))
    assert np.isfinite(report.log_likelihood)
    assert np.isfinite(model.y).all()
