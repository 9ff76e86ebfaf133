"""Class averages of a manifold: the Wiener formula, the spectra they claim, and who belongs where."""
import numpy as np
import pytest

from vitrea.engine import latent
from vitrea.engine.averages import ClassSums, assign, averaged, gathered, resolved_shells
from vitrea.engine.manifold import EmbeddedParticles, Layout, Manifold, cut
from vitrea.kernels.embedding import HalfPlane, shell_power

K, N = 4, 900


class One:
    """A communicator of this process alone, and of one of several that deal the particles."""

    rank, size = 0, 1

    def Allreduce(self, given, total, op=None):
        total[:] = given

    def gather(self, value, root):
        return [value]

    def Gatherv(self, given, received, root):
        received[0][:] = given


@pytest.fixture(scope="module")
def particles():
    """(EmbeddedParticles, Manifold, labels): four random class averages, CTFs of many zeros, unit noise."""
    random = np.random.default_rng(4)
    plane = HalfPlane(33, 12, angular_bins=2)
    radius = np.hypot(*plane.frequency.T)
    y = random.normal(size=(K, plane.n_components)) * np.repeat(4.0 * np.exp(-radius / 2.5), 2)
    labels = random.integers(0, K, N)
    ctf = plane.group_means(np.sin(random.uniform(1, 3, (N, 1)) * radius))[:, plane.group[::2]]
    c = np.repeat(ctf, 2, axis=1).astype(np.float64)
    t = c * y[labels] + random.normal(size=(N, plane.n_components))
    rows, starts = cut(N, rank=0, size=1, block=200)
    embedded = EmbeddedParticles((c * t).astype(np.float32), plane.group_means(ctf**2), shell_power(t, plane.group,
                                 plane.shell), rows, starts, N, Layout(plane.group, plane.shell))
    manifold = Manifold(latent.chain(K), y, np.ones(12), np.full(K, 1 / K), np.zeros(2), np.ones(12), np.ones(12))
    return embedded, manifold, labels


def test_classes_and_latent_coordinates_are_those_of_the_nodes(particles):
    embedded, manifold, labels = particles
    known, _ = assign(embedded, manifold, embedded.rows, comm=One())
    assert np.mean(known["class_number"] == labels) > 0.99
    sure = known["probability"] > 0.999
    assert sure.mean() > 0.9
    np.testing.assert_allclose(known["latent"][sure, 0], labels[sure] + 1, atol=0.01)
    assert known["entropy"][sure].max() < 0.01
    assert known["entropy"].min() >= 0
    weights = np.exp(-0.5 * (embedded.power.sum(axis=1)[:, None] - 2 * embedded.transformed @ manifold.y.T
                     + embedded.ctf2[:, embedded.layout.group] @ (manifold.y**2).T)).astype(np.float64)
    log_p = np.log(weights.mean(axis=1)) - 0.5 * len(embedded.layout.group) * np.log(2 * np.pi)
    finite = np.isfinite(log_p)
    np.testing.assert_allclose(known["log_likelihood"][finite], log_p[finite], rtol=1e-4)


def test_the_average_is_the_wiener_formula(particles):
    """Particle by particle in plain loops, for one class; by shell from its definition."""
    embedded, manifold, _ = particles
    layout = embedded.layout
    known, sums = assign(embedded, manifold, embedded.rows, comm=One())
    found = averaged(sums, manifold.beta, layout)
    b, g = np.zeros(len(layout.group)), np.zeros(len(layout.group))
    for i in np.flatnonzero(known["class_number"] == 1):
        b += known["probability"][i] * embedded.transformed[i]
        g += known["probability"][i] * embedded.ctf2[i][layout.group]
    for shell in range(12):
        mine = layout.shell_of_component == shell
        tau2 = max(np.mean((b[mine] / g[mine]) ** 2 - 1 / g[mine]), 0)
        np.testing.assert_allclose(found.tau2[1, shell], tau2, rtol=1e-6)
        expected = b[mine] / (g[mine] + 1 / tau2) if tau2 else np.zeros(mine.sum())
        np.testing.assert_allclose(found.average[1, mine], expected, atol=1e-6)


def test_the_ssnr_is_that_of_the_average(particles):
    """Signal power of the truth over the squared error of the unfiltered average, shell by shell, within a third."""
    embedded, manifold, _ = particles
    layout = embedded.layout
    _, sums = assign(embedded, manifold, embedded.rows, comm=One())
    found = averaged(sums, manifold.beta, layout)
    plain = sums.data.sum(axis=0) / sums.ctf2.sum(axis=0)[:, layout.group]
    shells = layout.shell_of_component
    signal = np.bincount(shells, weights=(manifold.y**2).sum(axis=0))
    error = np.bincount(shells, weights=((plain - manifold.y) ** 2).sum(axis=0))
    seen = signal > 0.3 * error
    assert seen.sum() > 8
    np.testing.assert_allclose(np.log(found.ssnr.mean(axis=0))[seen], np.log(signal / error)[seen], atol=0.5)
    error = np.sum((found.average - manifold.y) ** 2)
    assert error < np.sum((plain - manifold.y) ** 2)


def test_half_sets_are_disjoint_and_their_correlation_falls_with_the_signal(particles):
    embedded, manifold, _ = particles
    known, sums = assign(embedded, manifold, embedded.rows, comm=One())
    odd = (known["class_number"] == 2) & (known["row"] % 2 == 1)
    expected = known["probability"][odd] @ embedded.transformed[odd].astype(np.float64)
    np.testing.assert_allclose(sums.data[1, 2], expected, atol=1e-6)
    found = averaged(sums, manifold.beta, embedded.layout)
    assert found.frc[:, 0].min() > 0.9
    # two halves, each with half the SSNR of the whole
    np.testing.assert_allclose(found.frc.mean(axis=0), np.mean(found.ssnr / (found.ssnr + 2.0), axis=0), atol=0.15)
    assert found.frc[:, -1].mean() < 0.8
    shells = resolved_shells(found.ssnr)
    assert np.all(shells > 3)
    assert np.all(found.ssnr[np.arange(K), np.minimum(shells, 11)] <= 1.0)


def test_blocks_and_their_order_change_no_bit(particles):
    embedded, manifold, _ = particles
    _, sums = assign(embedded, manifold, embedded.rows, comm=One())
    parts = [assign(part(embedded, rows), manifold, rows, comm=Same(embedded))[1]
             for rows in (np.arange(600, 900), np.arange(200), np.arange(200, 600))]
    np.testing.assert_array_equal(sum(p.data for p in parts), sums.data)
    np.testing.assert_array_equal(sum(p.ctf2 for p in parts), sums.ctf2)


class Same(One):
    """One of several ranks that know the largest value of all of them."""

    def __init__(self, embedded):
        self.peak = np.concatenate([np.abs(embedded.transformed).max(axis=0), embedded.ctf2.max(axis=0),
                                    embedded.power.max(axis=0)])

    def Allreduce(self, given, total, op=None):
        total[:] = self.peak if op is not None else given


def part(embedded, rows):
    starts = np.append(np.arange(0, len(rows), 200), len(rows))
    return EmbeddedParticles(embedded.transformed[rows], embedded.ctf2[rows], embedded.power[rows], rows, starts, N,
                             embedded.layout)


def test_junk_has_a_class_of_its_own(particles):
    """Particles replaced by pure noise, and none of the others, are in class K."""
    embedded, manifold, labels = particles
    random = np.random.default_rng(1)
    junk = np.arange(N) % 5 == 0
    c = np.sqrt(embedded.ctf2)[:, embedded.layout.group]
    t = np.divide(embedded.transformed, c, out=np.zeros_like(c), where=c > 0)
    t[junk] = random.normal(size=(junk.sum(), t.shape[1]))
    plane = HalfPlane(33, 12, angular_bins=2)
    mixed = EmbeddedParticles(c * t, embedded.ctf2, shell_power(t, plane.group, plane.shell), embedded.rows,
                              embedded.starts, N, embedded.layout)
    tolerant = Manifold(manifold.lattice, manifold.y, manifold.beta, np.full(K, 0.8 / K), np.array([0.1, 0.1]),
                        np.full(12, 0.01), np.ones(12))
    known, sums = assign(mixed, tolerant, mixed.rows, outliers=True, comm=One())
    assert np.mean((known["class_number"] == K) == junk) > 0.98
    assert np.mean(known["class_number"][~junk] == labels[~junk]) > 0.97
    assert sums.data.shape[1] == K + 1
    assert averaged(sums, tolerant.beta, mixed.layout).average.shape[0] == K + 1


def test_on_a_closed_chain_the_mean_goes_the_short_way_round():
    """Half at the first node and half at the last is between the two, and not in the middle of the chain."""
    plane = HalfPlane(17, 6)
    lattice, y = latent.chain(6, periodic=True), np.zeros((6, plane.n_components))
    y[1:5] = 9.0
    b, c2 = np.zeros((3, plane.n_components), np.float32), np.ones((3, plane.n_groups), np.float32)
    embedded = EmbeddedParticles(b, c2, np.zeros((3, 6)), np.arange(3), np.array([0, 3]), 3,
                                 Layout(plane.group, plane.shell))
    manifold = Manifold(lattice, y, np.ones(6), np.full(6, 1 / 6), np.zeros(2), np.ones(6), np.ones(6))
    known, _ = assign(embedded, manifold, embedded.rows, comm=One())
    np.testing.assert_allclose(known["latent"][:, 0], 6.5, atol=1e-6)


def test_a_class_without_particles_is_empty_and_not_a_number_less(particles):
    embedded, manifold, _ = particles
    sums = ClassSums(np.zeros((2, 2, len(embedded.layout.group))), np.zeros((2, 2, len(embedded.layout.shell))))
    found = averaged(sums, manifold.beta, embedded.layout)
    for values in (found.average, found.frc, found.ssnr, found.tau2):
        np.testing.assert_array_equal(values, 0.0)
    assert resolved_shells(found.ssnr).tolist() == [0, 0]


def test_assignments_come_in_the_order_of_the_table(particles):
    embedded, manifold, _ = particles
    rows = np.arange(N)[::-1].copy()
    known, _ = assign(embedded, manifold, rows, comm=One())
    np.testing.assert_array_equal(gathered(known, comm=One())["row"], np.arange(N))
