"""Poses nearby: turned and shifted averages are exact, the E step is the sum over them, and wrong alignments mend."""
from pathlib import Path

import numpy as np
import pytest

from vitrea.engine import starts
from vitrea.engine.cluster_plan import plan_cluster
from vitrea.engine.comm import alone
from vitrea.engine.compare import compare
from vitrea.engine.latent import chain, free
from vitrea.engine.manifold import (
    EmbeddedParticles,
    Expectation,
    Layout,
    Maximisation,
    Settings,
    assign,
    cut,
    expect,
    make_quanta,
)
from vitrea.engine.options import ClusterOptions
from vitrea.engine.particles import read_particles
from vitrea.engine.poses import place, wrap_degrees
from vitrea.engine.star import read_star, write_star
from vitrea.engine.window import make_window, window_size
from vitrea.jobs import cli
from vitrea.kernels.embedding import HalfPlane, shell_power
from vitrea.kernels.window import marginalise, reference_marginalise

BOXES = [32, 33]


def blobs(box, seed=0):
    """A smooth lopsided image well inside the box and below the half plane's radius."""
    random, axis = np.random.default_rng(seed), np.arange(box) - box // 2
    spots = [(random.uniform(-0.13 * box, 0.13 * box, 2), random.uniform(0.5, 1.5)) for _ in range(5)]
    return sum(h * np.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / (2 * 2.0**2)) for (y, x), h in spots)


@pytest.mark.parametrize("box", BOXES)
def test_moved_averages_are_those_of_the_moved_image(box):
    plane, window = HalfPlane(box, (box - 1) // 2), make_window(HalfPlane(box, (box - 1) // 2), 4.0, 1.3)
    images = np.stack([blobs(box, seed) for seed in (0, 1)])
    moved = window.moved(plane.embed_images(images).astype(np.float64)).reshape(2, window.n_poses, -1)
    for k, image in enumerate(images):
        for j in (0, 7, 22, window.n_poses - 1):
            angle, shift = divmod(j, len(window.shift))
            expected = plane.embed_images(place(image, window.psi[angle], window.shift[shift])[None])[0]
            np.testing.assert_allclose(moved[k, j], expected, atol=2e-3 * np.abs(expected).max())


def test_what_is_returned_is_the_transpose():
    plane = HalfPlane(24, 9)
    window, random = make_window(plane, 5.0, 0.7), np.random.default_rng(1)
    y, sums = random.normal(size=(3, plane.n_components)), random.normal(size=(3 * 45, plane.n_components))
    assert np.sum(window.moved(y) * sums) == pytest.approx(np.sum(y * window.returned(sums)), rel=1e-12)
    pose = random.integers(45, size=3)
    picked = np.zeros((3, 45, plane.n_components))
    picked[np.arange(3), pose] = sums[:3]
    expected = window.returned(picked.reshape(135, -1))
    np.testing.assert_allclose(window.brought_back(sums[:3], pose), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_marginal_scores_are_their_twins(dtype):
    scores = np.random.default_rng(2).normal(size=(40, 4 * 9)).astype(dtype) * 50
    log_weight = np.log(np.full(9, 1 / 9)).astype(dtype)
    found, expected = (np.empty((40, 4), dtype) for _ in range(2))
    twin = scores.copy()
    marginalise(scores, log_weight, found)
    reference_marginalise(twin, log_weight, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(scores, twin, atol=1e-4 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(scores.reshape(40, 4, 9).sum(axis=2), 1.0, atol=1e-5)


def some_particles(n=60):
    """float64 particles with a CTF, and the plane."""
    random, plane = np.random.default_rng(3), HalfPlane(20, 6)
    c = random.uniform(0.2, 1.0, size=(n, plane.n_groups))
    t = random.normal(size=(n, plane.n_components)) * 1.3
    rows, starting = cut(n, rank=0, size=1, block=25)
    return EmbeddedParticles(c[:, plane.group] * t, c**2, shell_power(t, plane.group, plane.shell), rows, starting, n,
                             Layout(plane.group, plane.shell)), t, c, plane


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("lattice", [free(3), chain(5)], ids=["free", "chain"])
def test_the_e_step_is_the_sum_over_classes_and_poses(lattice, temperature):
    """Against densities written out one by one in float64: R, its sums, and both log-likelihoods. Poses are summed at
    T = 1, classes at T."""
    particles, t, c, plane = some_particles()
    window, random, n = make_window(plane, 6.0, 0.8), np.random.default_rng(4), lattice.n_nodes
    y = random.normal(size=(n, plane.n_components))
    start = starts.from_references(lattice, particles.layout, y, np.full(6, 1.4))
    manifold = type(start)(**(vars(start) | {"temperature": temperature}))
    log_p = np.empty((len(t), n, window.n_poses))
    moved = window.moved(y).reshape(n, window.n_poses, -1)
    beta = manifold.beta[plane.shell][plane.group]
    for i in range(len(t)):
        residual = t[i] - c[i, plane.group] * moved
        log_p[i] = 0.5 * np.sum(np.log(beta / 2 / np.pi) - beta * residual**2, axis=2) + window.log_weight
    of_class = np.logaddexp.reduce(log_p, axis=2)
    tempered = np.log(manifold.class_prior) + of_class / temperature
    weights = np.exp(tempered - np.logaddexp.reduce(tempered, axis=1)[:, None])
    expectation = Expectation(particles, manifold, window)
    found = [expectation.weights(block) for block in particles.blocks]
    np.testing.assert_allclose(np.concatenate([each[0] for each in found]), weights, atol=1e-10)
    plain = np.logaddexp.reduce(np.log(manifold.class_prior) + of_class, axis=1)
    np.testing.assert_allclose(np.concatenate([each[2] for each in found]), plain, rtol=1e-12)
    joint = weights[:, :, None] * np.exp(log_p - of_class[:, :, None])
    totals = expect(particles, manifold, make_quanta(particles, comm=alone()), window=window)
    data = np.einsum("nkj,nd->kjd", joint, particles.transformed).reshape(n * window.n_poses, -1)
    np.testing.assert_allclose(totals.data, data, atol=1e-9)
    np.testing.assert_allclose(window.folded(totals).ctf2, weights.T @ particles.ctf2, atol=1e-9)


def test_em_over_poses_raises_the_likelihood_and_finds_them():
    """One image at the poses of the window, in noise: EM begun from its blurred mean."""
    box, random = 32, np.random.default_rng(5)
    plane, view = HalfPlane(32, 10), blobs(box, 3)
    window = make_window(plane, 5.0, 1.0)
    pose = random.choice(window.n_poses, size=400, p=np.exp(window.log_weight))
    images = np.stack([place(view, window.psi[a], window.shift[b])
                       for a, b in zip(*np.divmod(np.arange(window.n_poses), len(window.shift)))])[pose]
    t = plane.embed_images(images + random.normal(size=images.shape) * 0.25) / 0.25
    rows, starting = cut(400, rank=0, size=1, block=100)
    particles = EmbeddedParticles(t.astype(np.float32), np.ones((400, plane.n_groups), np.float32),
                                  shell_power(t, plane.group, plane.shell), rows, starting, 400,
                                  Layout(plane.group, plane.shell))
    start = starts.from_references(free(1), particles.layout, t.mean(axis=0)[None].astype(float), np.ones(10))
    learner = Maximisation(particles, free(1), Settings(window=window), comm=alone())
    manifold, course = start, []
    for _ in range(12):
        manifold, report = learner.step(manifold)
        course.append(report.log_likelihood)
    assert np.all(np.diff(course) > -0.01)
    found = np.concatenate([assign(Expectation(particles, manifold, window), block).pose for block in particles.blocks])
    angle, shift = np.divmod(found, 9)
    true_angle, true_shift = np.divmod(pose, 9)
    assert np.mean(angle == true_angle) > 0.8
    assert np.mean(shift == true_shift) > 0.95


# ---- the job

@pytest.fixture(scope="module")
def misaligned(stacks, tmp_path_factory):
    """The plain stack with angles wrong by 6° and shifts by 1 px (6 Å) along each axis, as standard deviations."""
    blocks, random = read_star(stacks / "plain" / "truth.star"), np.random.default_rng(6)
    particles = dict(blocks["particles"])
    for label, error in (("rlnAnglePsi", 6.0), ("rlnOriginXAngst", 6.0), ("rlnOriginYAngst", 6.0)):
        particles[label] = (particles[label].astype(float) + random.normal(0, error, len(particles[label]))).astype(str)
    path = tmp_path_factory.mktemp("misaligned") / "wrong.star"
    write_star(path, blocks | {"particles": particles})
    return path


def job_on(folder, star, name="run", **keys):
    given = {"input": star, "output": folder / name, "n_classes": 3, "particle_diameter": 140, "max_resolution": 14,
             "latent": "none", "cooling": 0.6, "outliers": "false", "starts": 1} | keys
    (folder / f"{name}.yaml").write_text("job: cluster\n" + "".join(f"{k}: {v}\n" for k, v in given.items()))
    return folder / f"{name}.yaml", folder / name


def test_alignments_that_are_a_little_wrong_are_mended(misaligned, stacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth, errors = stacks / "plain" / "truth.star", []
    for name, keys in (("given", {}), ("near", {"psi_error": 6, "offset_error": 1})):
        job, folder = job_on(tmp_path, misaligned, name, **keys)
        assert cli.main(["run", str(job)]) == 0
        found = compare(truth, folder / "run_data.star")
        errors.append((found.angle_error_median, found.shift_error_median_px, 1.0 - found.purity))
    assert np.all(np.array(errors[1]) < 0.75 * np.array(errors[0])), errors
    changed = read_star(tmp_path / "near" / "run_data.star")["particles"]["rlnAnglePsi"].astype(float)
    given = read_star(misaligned)["particles"]["rlnAnglePsi"].astype(float)
    assert set(np.unique(np.abs(np.round(wrap_degrees(changed - given), 3)))) <= {0.0, 6.0, 12.0}


def run_near(folder, star, launch, ranks):
    """A few iterations of a chain with angles nearby, on some ranks (0: without MPI's launcher): the run folder."""
    job, run = job_on(folder, star, psi_error=6, max_iterations=8, latent="chain")
    ended = launch(ranks, "-m", "vitrea.jobs", "run", job.name, folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return run


def test_a_window_does_not_make_the_result_depend_on_ranks(misaligned, tmp_path, launch):
    folders = []
    for ranks in (0, 4):
        (tmp_path / str(ranks)).mkdir()
        folders.append(run_near(tmp_path / str(ranks), misaligned, launch, ranks))
    for name in ("run_data.star", "run_classes.mrcs"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_the_plan_counts_the_poses(stacks):
    table = read_particles(stacks / "plain" / "truth.star")
    keys = {"input": table.path, "output": Path("run"), "n_classes": 50, "particle_diameter": 140.0}
    plain, wide = (plan_cluster(ClusterOptions(**keys, **more), table, 1).memory_per_rank_bytes
                   for more in ({}, {"psi_error": 3.0, "offset_error": 1.0}))
    assert window_size(3.0, 1.0) == 45
    assert wide - plain > 45 * 50 * 300 * 8 * 3
