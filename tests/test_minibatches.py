"""Mini-batches of manifold learning: what they judge by, and the same answer as from all particles."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrea.engine import annealing, starts
from vitrea.engine.cluster import make_lattice, schedule
from vitrea.engine.comm import alone
from vitrea.engine.manifold import EmbeddedParticles, Expectation, Layout, Maximisation, Settings, cut, hold_out
from vitrea.engine.options import ClusterOptions
from vitrea.kernels.embedding import HalfPlane, shell_power

N, CLASSES = 1600, 4


@pytest.fixture(scope="module")
def particles():
    """Four unrelated classes in noise, a tenth of the particles held out, sixteen blocks."""
    random, plane = np.random.default_rng(3), HalfPlane(33, 8)
    y = random.normal(size=(CLASSES, plane.n_components)) * 5.0 / np.sqrt(plane.n_components)
    t = y[random.integers(CLASSES, size=N)] + random.normal(size=(N, plane.n_components))
    rows, starting = cut(N, rank=0, size=1, block=100)
    return EmbeddedParticles(t.astype(np.float32), np.ones((N, plane.n_groups), np.float32),
                             shell_power(t, plane.group, plane.shell), rows, starting, N,
                             Layout(plane.group, plane.shell), hold_out(rows, 0.1, 0))


def begun(particles, options):
    components, beta = starts.analyse(particles, 4, comm=alone())
    start = starts.from_components(make_lattice(options), particles.layout, components, beta)
    return annealing.begin(start, float(components.eigenvalues[0]))


def options_with(**keys):
    return ClusterOptions(input=Path("x"), output=Path("y"), n_classes=CLASSES, latent="none", particle_diameter=1.0,
                          **keys)


def test_the_judgement_is_that_of_a_full_pass(particles):
    manifold = begun(particles, options_with()).manifold
    learner = Maximisation(particles, manifold.lattice, Settings(), comm=alone())
    _, report = learner.step(manifold)
    assert learner.held_out_likelihood(manifold) == pytest.approx(report.held_out, abs=1e-6)
    nobody = replace(particles, held_out=np.zeros(N, dtype=bool))
    assert np.isnan(learner.of(nobody, Settings()).held_out_likelihood(manifold))


def test_batches_are_judged_by_all_that_are_held_out_and_only_between_temperatures(particles):
    """What is judged of a temperature is the model it ended with, by particles that no draw of batches changes."""
    options = options_with(minibatch_size=200)
    state = begun(particles, options)
    learner = annealing.Annealing(particles, state.manifold.lattice, Settings(), schedule(options, N), comm=alone())
    judge = Maximisation(particles, state.manifold.lattice, Settings(), comm=alone())
    judged = 0
    while state.stage == "cool":
        before = state
        state, report = learner.step(state)
        if before.in_stage or not before.previous:
            assert np.isnan(report.held_out)
        else:
            assert report.held_out == judge.held_out_likelihood(before.manifold)
            judged += 1
    assert judged > 3


def test_batches_end_where_full_passes_end(particles):
    ends = []
    for keys in ({}, {"minibatch_size": 400}):
        options = options_with(**keys)
        state = annealing.fit(particles, begun(particles, options), Settings(), schedule(options, N), comm=alone())
        learner = Maximisation(particles, state.manifold.lattice, Settings(), comm=alone())
        ends.append(learner.step(state.manifold)[1].log_likelihood)
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_the_class_switch_rate_is_of_particles_met_again(particles):
    """Those that had a class in an earlier iteration and have another now; none in the first."""
    manifold, before = begun(particles, options_with()).manifold, None
    learner = Maximisation(replace(particles, last_class=None), manifold.lattice, Settings(), comm=alone())
    for _ in range(3):
        now = np.concatenate([Expectation(particles, manifold).weights(block)[0][:, :CLASSES].argmax(axis=1)
                              for block in particles.blocks])
        manifold, report = learner.step(manifold)
        expected = np.nan if before is None else np.mean(now != before)
        assert report.mobility == pytest.approx(expected, nan_ok=True)
        before = now
    few = particles.blocks[:3]
    assert learner.step(manifold, few)[1].mobility < 1.0


def test_a_constant_step_keeps_the_noise_of_batches(particles):
    """What a batch weighs does not fall, and the model goes on moving."""
    averages = {}
    for step in (None, 0.5):
        options = options_with(minibatch_size=200, minibatch_step=step)
        learner = annealing.Annealing(particles, make_lattice(options), Settings(), schedule(options, N), comm=alone())
        state, ends = begun(particles, options), []
        state = replace(state, manifold=replace(state.manifold, temperature=1.0))
        for _ in range(7):
            state, _ = learner.step(state)
            ends.append(state.manifold.y)
        averages[step] = np.linalg.norm(ends[-1] - ends[-2])
    assert averages[0.5] > 1.3 * averages[None]


def test_many_particles_are_cooled_in_batches_unless_told_otherwise():
    """A few particles a class suffice, and batches that are no small part of the particles save nothing."""
    assert schedule(options_with(), 20_000).batch == 0
    assert schedule(options_with(), 100_000).batch == 16_384
    assert schedule(replace(options_with(), n_classes=1000), 40_000).batch == 0
    assert schedule(options_with(minibatch_size=7), 100).batch == 7
