"""Which classes are one: the evidence is that of the particles, halves of a view are joined, and views are not."""
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from vitrea.benchmarks.aligned import accuracy
from vitrea.benchmarks.hinge import labels, simulated
from vitrea.benchmarks.judgements import found_by_the_job
from vitrea.engine.comm import alone
from vitrea.engine.latent import free
from vitrea.engine.manifold import EmbeddedParticles, Layout, Manifold, Maximisation, Settings, cut
from vitrea.engine.merging import Classes, merged
from vitrea.engine.trials import MERGED, WIDE
from vitrea.kernels.embedding import HalfPlane, shell_power


def classified(views, apart, *, halves=2, members=30, seed=3):
    """(EmbeddedParticles of `views` images, the Manifold of their classes, each image in so many, its view by class).

    Components have CTFs of their own; of a class average nothing but its members tells.
    """
    random, plane = np.random.default_rng(seed), HalfPlane(17, 6)
    layout = Layout(plane.group, plane.shell)
    y = random.normal(size=(views, plane.n_components)) * apart
    own = np.repeat(np.arange(views * halves), members)
    c = random.uniform(0.3, 1.0, (len(own), plane.n_groups))[:, plane.group]
    t = c * y[own // halves] + random.normal(size=c.shape)
    rows, starts = cut(len(own), rank=0, size=1)
    particles = EmbeddedParticles(c * t, plane.group_means(c[:, ::2] ** 2), shell_power(t, plane.group, plane.shell),
                                  rows, starts, len(own), layout)
    member = (own == np.arange(views * halves)[:, None]).astype(float)
    average = member @ particles.transformed / (member @ particles.ctf2)[:, layout.group]
    shells, n = len(layout.count), len(average)
    manifold = Manifold(free(n), average, np.ones(shells), np.full(n, 1 / n), np.zeros(2), np.ones(shells),
                        np.ones(shells))
    return particles, manifold, own


def sums_of(particles, manifold):
    return Maximisation(particles, manifold.lattice, Settings(), comm=alone()).expect(manifold)


def hard_sums(particles, manifold, own):
    """Totals as if every particle were in its class for sure."""
    totals, member = sums_of(particles, manifold), (own == np.arange(manifold.n_nodes)[:, None]).astype(float)
    return replace(totals, data=member @ particles.transformed, ctf2=member @ particles.ctf2, count=member.sum(axis=1))


def test_the_evidence_is_that_of_the_particles_of_a_class():
    """log ∫ Π p(t|y) p(y) dy − log Π p(t|y = m), by quadrature over y, component by component."""
    particles, manifold, own = classified(3, 0.5, halves=1, members=4)
    layout = particles.layout
    manifold = replace(manifold, beta=np.linspace(0.7, 1.6, len(layout.count)))
    classes = Classes.of(manifold, hard_sums(particles, manifold, own), layout)
    prior, expected = classes.prior, 4 * np.log(4)
    for d in range(len(layout.group)):
        s = layout.group[d]
        b, c = particles.transformed[own == 1, d], np.sqrt(particles.ctf2[own == 1, s])
        width = 1 / np.sqrt(prior.beta[s] * prior.ridge[s])
        y = np.linspace(prior.mean[d] - 9 * width, prior.mean[d] + 9 * width, 4001)
        log_p = norm.logpdf(b / c, c * y[:, None], prior.beta[s] ** -0.5).sum(axis=1)
        at_mean = norm.logpdf(b / c, c * prior.mean[d], prior.beta[s] ** -0.5).sum()
        density = np.exp(log_p - at_mean) * norm.pdf(y, prior.mean[d], width)
        expected += np.log(np.trapezoid(density, y))
    assert classes.evidence[1] == pytest.approx(expected, rel=1e-6)


def test_losses_after_unions_are_those_of_the_new_sums():
    particles, manifold, own = classified(3, 0.3, members=8)
    classes = Classes.of(manifold, hard_sums(particles, manifold, own), particles.layout)
    part = np.array([0, 0, 1, 2, 0, 3])
    joint = [np.stack([np.bincount(part, column) for column in sums.T], axis=1)
             for sums in (classes.data, classes.ctf2, classes.count[:, None])]
    again = Classes(*joint[:2], joint[2][:, 0], classes.prior, particles.layout)
    classes.join(1, 4)
    classes.join(0, 1)
    left = np.flatnonzero(classes.alive)
    assert left.tolist() == [0, 2, 3, 5]
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(classes.loss[np.ix_(left, left)][upper], again.loss[upper], rtol=1e-9)
    assert np.isinf(classes.loss[1]).all()
    assert np.isinf(classes.loss[:, 4]).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_halves_of_a_view_are_joined_and_views_are_not(seed):
    particles, manifold, own = classified(5, 0.5, halves=3, seed=seed)
    found = merged(manifold, hard_sums(particles, manifold, own), particles.layout)
    assert len(found) == 5
    views = np.stack([manifold.y[3 * k:3 * k + 3].mean(axis=0) for k in range(5)])
    nearest = np.sum((found[:, None] - views) ** 2, axis=2).argmin(axis=1)
    assert sorted(nearest) == [0, 1, 2, 3, 4]


def test_as_many_are_left_as_were_asked_for():
    particles, manifold, own = classified(4, 0.5, halves=1)
    totals = hard_sums(particles, manifold, own)
    assert len(merged(manifold, totals, particles.layout)) == 4
    assert len(merged(manifold, totals, particles.layout, n_classes=2)) == 2
    alike, manifold, own = classified(1, 0.0, halves=5)
    assert len(merged(manifold, hard_sums(alike, manifold, own), alike.layout, least=3)) == 3


def test_views_that_several_starts_leave_merged_are_found_with_classes_to_spare():
    """One image in 25 rotations: of three starts with 25 classes none finds them all."""
    aligned = simulated("rot", 0.1, 0)
    trials, model = found_by_the_job(aligned, 0, 25)
    assert trials.starts == (0, 1, 2, WIDE, MERGED)
    assert trials.judged[-1] == max(trials.judged)
    assert accuracy(aligned.truth, labels(aligned.particles(), model)) > 0.99
