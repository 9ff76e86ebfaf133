"""Which classes are one: the evidence of two classes against that of their union.

Annealing leaves some views to several nodes and, for want of them, others to a common one. More nodes than views find
them all; afterwards those that share a view are joined. Let a class of n particles have the sums g = Σ c² and
b = Σ c∘(t − c∘m), and let class averages be normal about their common mean m, with the variance v of each shell that
the nodes themselves show. With β of a shell and the ridge r = 1/(βv) the logarithm of its evidence is, up to terms that
are the same for any classes,

    E = ½ Σ_d [ β b²_d / (g_d + r_d) − log(1 + g_d / r_d) ] + n log n,

the last from the labels (as in the integrated classification likelihood: Biernacki, Celeux & Govaert 2000, IEEE Trans.
Pattern Anal. 22, 719–725). Two classes are joined where E of both is less than E of the union, the pair that loses
least first. Of two halves of one view the labels alone speak for the union, by n log 2.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.annealing import begin_reheated
from vitrea.engine.manifold import Maximisation
from vitrea.engine.starts import from_references, put_in_order
from vitrea.kernels.manifold import group_power

WIDER = 1.5             # times the classes that are wanted: so many find every view, and are merged
LEAST_VARIANCE = 1e-9   # of class averages on a shell, in units of the noise: a shell without signal


@dataclass(frozen=True)
class ClassPrior:
    """Where class averages lie: mean float64[D]; ridge, beta and degrees float64[S] by group: 1/(βv), the noise
    precision, and how many independent components there are."""

    mean: np.ndarray
    ridge: np.ndarray
    beta: np.ndarray
    degrees: np.ndarray

    @classmethod
    def of(cls, manifold, totals, layout):
        """That of the nodes of a manifold, from the sums over its particles."""
        mean = totals.data.sum(axis=0) / np.maximum(totals.ctf2.sum(axis=0)[layout.group], 1e-30)
        spread = layout.by_shell(group_power((manifold.y - manifold.y.mean(axis=0)) ** 2, layout.start)).mean(axis=0)
        variance = np.maximum(spread / layout.count, LEAST_VARIANCE / manifold.beta)
        beta = manifold.beta[layout.shell]
        return cls(mean, 1.0 / (beta * variance[layout.shell]), beta, layout.freedom * np.bincount(layout.group))


class Classes:
    """Classes two of which can become one. data float64[K, D]: Σ c∘(t − c∘m), ctf2 float64[K, S] and count float64[K]
    of each; alive bool[K]; evidence float64[K]: E; loss float64[K, K]: of E, by a union (above the diagonal; infinite
    elsewhere and where one is no more)."""

    def __init__(self, data, ctf2, count, prior, layout):
        n = len(data)
        self.data, self.ctf2, self.count, self.prior, self._layout = data, ctf2, count, prior, layout
        self.alive = np.ones(n, dtype=bool)
        self._power = group_power(data**2, layout.start)
        self.evidence = self._evidence(self._power, ctf2, count)
        self.loss = np.full((n, n), np.inf)
        for i in range(n - 1):
            self.loss[i, i + 1:] = self._losses(i, np.arange(i + 1, n))

    @classmethod
    def of(cls, manifold, totals, layout):
        """Those of a manifold, from the sums over its particles."""
        prior = ClassPrior.of(manifold, totals, layout)
        data = totals.data - totals.ctf2[:, layout.group] * prior.mean
        return cls(data, totals.ctf2.copy(), totals.count[:manifold.n_nodes].copy(), prior, layout)

    def _evidence(self, power, ctf2, count):
        """E float64[K] of classes of power float64[K, S]: Σ b² of each group, and of these Σ c² and n."""
        prior = self.prior
        share = self._layout.freedom   # of the components: the others are not independent of these
        told = share * power * prior.beta / (ctf2 + prior.ridge) - prior.degrees * np.log1p(ctf2 / prior.ridge)
        return 0.5 * told.sum(axis=1) + count * np.log(np.maximum(count, 1e-30))

    def _losses(self, i, others):
        """E_i + E_j − E_ij float64[n] of class i and others int64[n]."""
        both = self._power[i] + self._power[others] + 2.0 * group_power(self.data[i] * self.data[others],
                                                                        self._layout.start)
        union = self._evidence(both, self.ctf2[i] + self.ctf2[others], self.count[i] + self.count[others])
        return self.evidence[i] + self.evidence[others] - union

    def cheapest(self):
        """(i, j, loss) of the two classes whose union loses least."""
        i, j = np.unravel_index(np.argmin(self.loss), self.loss.shape)
        return int(i), int(j), float(self.loss[i, j])

    def join(self, i, j):
        """Class j becomes part of class i."""
        for sums in (self.data, self.ctf2, self.count):
            sums[i] += sums[j]
        self._power[i] = group_power(self.data[i:i + 1] ** 2, self._layout.start)[0]
        self.evidence[i] = self._evidence(self._power[i:i + 1], self.ctf2[i:i + 1], self.count[i:i + 1])[0]
        self.alive[j] = False
        self.loss[j], self.loss[:, j] = np.inf, np.inf
        before, after = (np.flatnonzero(part) for part in (self.alive[:i], self.alive[i + 1:]))
        self.loss[before, i], self.loss[i, i + 1 + after] = self._losses(i, before), self._losses(i, i + 1 + after)

    def averages(self):
        """float64[n, D] of the classes that are left: what is likeliest under the prior."""
        prior, group = self.prior, self._layout.group
        return prior.mean + self.data[self.alive] / (self.ctf2[self.alive] + prior.ridge)[:, group]


def merged(manifold, totals, layout, n_classes=None, least=1):
    """float64[n, D]: averages of the classes of a manifold, joined until n_classes are left or, if that is None, for as
    long as the evidence rises (never fewer than `least`); totals: sums over its particles, of all ranks."""
    classes = Classes.of(manifold, totals, layout)
    while classes.alive.sum() > max(least, n_classes or 1):
        i, j, loss = classes.cheapest()
        if n_classes is None and loss >= 0:
            break
        classes.join(i, j)
    return classes.averages()


def wider(n_classes):
    """Classes that are found where n_classes are wanted, and merged."""
    return int(np.ceil(WIDER * n_classes))


def begin_merged(particles, found, n_classes, least, make_lattice, settings, *, comm):
    """The State of the classes of another, found, merged and on the lattice make_lattice(number of them), to be cooled
    from a little above the temperature at which those were best; None if no two are one. Collective.

    n_classes, least: as of `merged`. On an open chain they are put in order anew.
    """
    manifold, layout = found.manifold, particles.layout
    totals = Maximisation(particles, manifold.lattice, settings, comm=comm).expect(manifold)
    averages = comm.bcast(merged(manifold, totals, layout, n_classes, least) if comm.rank == 0 else None)
    if len(averages) == manifold.n_nodes:
        return None
    lattice = make_lattice(len(averages))
    if lattice.n_bias and not lattice.periodic:
        averages = averages[comm.bcast(put_in_order(averages) if comm.rank == 0 else None)]
    start = from_references(lattice, layout, averages, manifold.beta)
    return replace(begin_reheated(start, manifold.temperature), critical=found.critical)
