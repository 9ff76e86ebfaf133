"""Manifold learning: many class averages on a latent lattice, found by EM over all ranks.

A rank holds its particles in pose as vectors (EmbeddedParticles), cut into blocks that the data alone determine.
An iteration goes block by block through two matrix products for the E step and two for the sums, adds the sums so that
no order matters (kernels/exact.py), reduces them once over the ranks, and solves for the class averages. What is sent
does not grow with the number of particles, and responsibilities exist for one block at a time.
"""
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from vitrea.engine.anneal import switch_rate
from vitrea.engine.comm import largest_over_ranks, sum_over_ranks
from vitrea.engine.latent import Lattice
from vitrea.engine.shards import share_of
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.kernels.manifold import (
    BandedBasis,
    add_rounded,
    group_power,
    log_empty,
    node_scores,
    responsibilities,
    signal_scores,
    solve_dense,
)
from vitrea.kernels.window import marginalise

BLOCK = 1024            # particles of a block: large enough for matrix products, R of a block stays small
LEAST_PRIOR = 1e-12     # of a class nobody belongs to: its logarithm stays finite
OUTLIER_START = 0.05    # prior of each of the two outlier components when they come in
SILENT = 0.05           # of the power of the median class
ON_TOP = 0.5            # of the power of a class: what is left of a neighbour cut by the edge of the box
EXACT_TRACE, PROBES = 32, 16   # basis functions up to which traces are exact; probes beyond
LEAST_DETERMINED = 1e-6        # of the weights of a shell: below it holds no signal
LARGEST_ALPHA = 1e6            # in units of β: a prior narrower than that is a shell without signal
LARGEST_SCORE = 1e6     # nats a particle: bound of one log-likelihood, for exact sums


@dataclass(frozen=True)
class Layout:
    """How components, groups of one C² and shells of one noise precision hang together (kernels/embedding.py).

    group int64[D] of each component, shell int64[S] of each group, both ascending from 0 without gaps. freedom: share
    of the components that are independent of each other, which is that of the noise power that a mask leaves.
    """

    group: np.ndarray
    shell: np.ndarray
    freedom: float = 1.0

    @cached_property
    def start(self):
        """int64[S]: first component of each group."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    @cached_property
    def shell_of_component(self):
        return self.shell[self.group]

    @cached_property
    def count(self):
        """int64[R]: components of each shell."""
        return np.bincount(self.shell_of_component)

    @property
    def degrees(self):
        """float64[R]: degrees of freedom of the noise of each shell."""
        return self.freedom * self.count

    @cached_property
    def share(self):
        """float64[S, R]: what share of a shell's components lies in each group."""
        share = np.zeros((len(self.shell), len(self.count)))
        share[np.arange(len(self.shell)), self.shell] = np.bincount(self.group) / self.count[self.shell]
        return share

    def by_shell(self, values):
        """float[…, R]: sums over the groups of each shell of values float[…, S]."""
        return np.add.reduceat(values, np.flatnonzero(np.diff(self.shell, prepend=-1)), axis=-1)


def cut(n_total, *, rank, size, block=BLOCK):
    """(rows int64[n], starts int64[B + 1]) of a rank: whole blocks of neighbouring rows of n_total."""
    edges = np.append(np.arange(0, n_total, block), n_total)
    mine = share_of(len(edges) - 1, rank, size)
    edges = edges[mine.start:mine.stop + 1]
    return np.arange(edges[0], edges[-1]), edges - edges[0]


def hold_out(rows, fraction, seed):
    """bool[n]: which rows are held out for judging, a fair draw from (seed, row); the same on any rank."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):   # splitmix64: arithmetic modulo 2^64 is what is meant
        x = (np.asarray(rows, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + mixed
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) < fraction * 2.0**64


@dataclass
class EmbeddedParticles:
    """The particles of a rank, in pose, as vectors.

    transformed float32[n, D]: b = c∘t, t whitened so that noise has variance near 1; ctf2 float32[n, S]: C² by group;
    power float64[n, R]: Σ t² by shell; rows int64[n]: their numbers among all n_total; starts int64[B + 1]: where
    blocks begin, and n; held_out bool[n]: judged but not learnt from; last_class int32[n]: the likeliest, of the last E
    step that saw the particle, −1 for none, which every E step writes. With `transformed` and `ctf2` in float64
    everything is computed in float64.
    """

    transformed: np.ndarray
    ctf2: np.ndarray
    power: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    n_total: int
    layout: Layout
    held_out: np.ndarray = None
    last_class: np.ndarray = None

    def __post_init__(self):
        if self.last_class is None:
            self.last_class = np.full(len(self.rows), -1, dtype=np.int32)
        if self.held_out is None:
            self.held_out = np.zeros(len(self.rows), dtype=bool)

    def __len__(self):
        return len(self.rows)

    @property
    def blocks(self):
        return [slice(a, b) for a, b in zip(self.starts, self.starts[1:])]


@dataclass(frozen=True)
class Manifold:
    """Parameters. y float64[K, D]: class averages in the units of t; beta float64[R]: noise precision by shell;
    class_prior float64[K] and outlier_prior float64[2] (an empty image; any signal on top of a class), together 1;
    signal2 float64[R]: spectrum of the classes; alpha float64[R]: prior precision of the basis weights by shell;
    temperature T of the responsibilities; least_signal2 float64[R]: below this variance of the basis weights their
    prior is not learnt, however alike the nodes are."""

    lattice: Lattice
    y: np.ndarray
    beta: np.ndarray
    class_prior: np.ndarray
    outlier_prior: np.ndarray
    signal2: np.ndarray
    alpha: np.ndarray
    temperature: float = 1.0
    least_signal2: np.ndarray = field(default_factory=lambda: np.zeros(1))

    @property
    def n_nodes(self):
        return len(self.y)

    @property
    def log_prior(self):
        """float64[K] or, with outliers, float64[K + 2]."""
        prior = self.class_prior
        if self.outlier_prior.any():
            prior = np.append(prior, self.outlier_prior)
        return np.log(np.maximum(prior, LEAST_PRIOR))

    def with_outliers(self):
        """The same with the two components for junk."""
        return replace(self, class_prior=(1.0 - 2.0 * OUTLIER_START) * self.class_prior / self.class_prior.sum(),
                       outlier_prior=np.full(2, OUTLIER_START))

    def without_silent(self, layout):
        """The same with no weight on nodes that show next to nothing: empty images have a component of their own."""
        power = layout.by_shell(group_power(self.y**2, layout.start)) @ self.beta
        prior = np.where(power < SILENT * np.median(power), 0.0, self.class_prior)
        return replace(self, class_prior=prior * (self.class_prior.sum() / prior.sum()))


@dataclass(frozen=True)
class Settings:
    """What the M step is told.

    learn_alpha: the prior precision α_s of the basis weights is found for each shell, by its evidence, and holds for
    the bias too, whose size keeps the prior from shrinking to nothing while the nodes are still alike; otherwise α
    stays what it is and the bias is free (Bishop et al. 1998). window PoseWindow (engine/window.py) or None: particles
    are near their poses. learn_prior, learn_noise: whether class weights and β
    are updated; outliers: two components for junk, as soon as there are classes; subspace Components or None: class
    averages stay in it; threads of a rank.
    """

    learn_alpha: bool = True
    learn_prior: bool = True
    learn_noise: bool = True
    outliers: bool = False
    subspace: object = None
    window: object = None
    threads: int = 1


@dataclass
class Totals:
    """Sums over particles; every term a multiple of its quantum.

    data float64[K, D]: Rᵀb; ctf2 float64[K, S]: Rᵀc²; count float64[K (+ 2)]: ΣR; power float64[R]: Σ t² by shell of
    particles by what is not `other signal` in them; scalars float64: as in SCALARS, log-likelihoods at T = 1.
    """

    data: np.ndarray
    ctf2: np.ndarray
    count: np.ndarray
    power: np.ndarray
    scalars: np.ndarray

    SCALARS = ("tempered", "log_likelihood", "learnt", "held_out_likelihood", "held_out", "changed", "met")

    def __getattr__(self, name):
        if name in Totals.SCALARS:
            return float(self.scalars[Totals.SCALARS.index(name)])
        raise AttributeError(name)

    @classmethod
    def zeros(cls, n_nodes, n_columns, layout):
        return cls(np.zeros((n_nodes, len(layout.group))), np.zeros((n_nodes, len(layout.shell))),
                   np.zeros(n_columns), np.zeros(len(layout.count)), np.zeros(len(cls.SCALARS)))

    def arrays(self):
        return (self.data, self.ctf2, self.count, self.power, self.scalars)

    def reduced(self, *, comm):
        """The sums over all ranks: one message."""
        total = sum_over_ranks(np.concatenate([a.ravel() for a in self.arrays()]), comm=comm)
        parts = np.split(total, np.cumsum([a.size for a in self.arrays()])[:-1])
        return Totals(*(part.reshape(a.shape) for part, a in zip(parts, self.arrays())))

    def scaled(self, factor):
        return Totals(*(factor * a for a in self.arrays()))

    def blend(self, other, rate):
        """(1 − rate)·self + rate·other: the running average of online EM (Cappé & Moulines 2009)."""
        return Totals(*((1.0 - rate) * a + rate * b for a, b in zip(self.arrays(), other.arrays())))


@dataclass(frozen=True)
class Quanta:
    """The rounding that makes sums exact, from bounds that are the same on every rank: data float64[D], ctf2, one,
    power float64[R], log_likelihood."""

    data: np.ndarray
    ctf2: np.ndarray
    one: float
    power: np.ndarray
    log_likelihood: float


def make_quanta(particles, *, comm):
    """Quanta for sums over all particles. Collective."""
    layout, n = particles.layout, particles.n_total
    peak, ctf2, power = np.zeros(len(layout.group)), np.zeros(len(layout.shell)), np.zeros(len(layout.count))
    for block in particles.blocks:
        for out, values in ((peak, np.abs(particles.transformed[block])), (ctf2, particles.ctf2[block]),
                            (power, particles.power[block])):
            np.maximum(out, values.max(axis=0, initial=0), out=out)
    peak, ctf2, power = np.split(largest_over_ranks(np.concatenate([peak, ctf2, power]), comm=comm),
                                 np.cumsum([len(peak), len(ctf2)]))
    # particles in float32 are summed over a block in float32: a responsibility may be a little above 1
    return Quanta(quantum(1.01 * n * peak), quantum(1.01 * n * ctf2), float(quantum(1.01 * n)),
                  quantum(1.01 * n * power), float(quantum(n * LARGEST_SCORE)))


class Expectation:
    """E steps of one model over a rank's particles. `weights(block)`, a slice or rows, is R float[n, K (+ 2)].

    With a window of poses, class averages are compared with particles at each of them (engine/window.py).
    """

    def __init__(self, particles, manifold, window=None):
        layout, dtype = particles.layout, particles.transformed.dtype
        self.particles, self.manifold, self._layout, self._window = particles, manifold, layout, window
        y = manifold.y if window is None else window.moved(manifold.y)
        weighted = y * manifold.beta[layout.shell_of_component]
        self._weighted = weighted.astype(dtype)
        self._power = group_power(weighted * y, layout.start).astype(dtype)
        self.n_compared = len(y)

    def weights(self, block, transformed=None):
        """(R float[n, K (+ 2)], log p at T, log p at T = 1: float64[n]) of the particles of a block.

        transformed: what is kept of them under this name, if it has been read. The temperature divides a particle among
        the classes; whether it is junk is decided at T = 1.
        """
        weights, _, tempered, plain = self.joint_weights(block, transformed)
        return weights, tempered, plain

    def joint_weights(self, block, transformed=None):
        """As `weights`, with the probabilities of the poses of each class, float[n, K·J] or None, in second place."""
        particles, manifold = self.particles, self.manifold
        b, n_nodes = particles.transformed[block] if transformed is None else transformed, manifold.n_nodes
        tempered, plain, poses = np.empty(len(b)), np.empty(len(b)), None
        scores = np.empty((len(b), self.n_compared), dtype=b.dtype)
        node_scores(b, particles.ctf2[block], self._weighted, self._power, scores)
        nearest = scores.argmax(axis=1)
        if self._window is not None:
            poses, scores = scores, np.empty((len(b), n_nodes), dtype=b.dtype)
            marginalise(poses, self._window.log_weight.astype(b.dtype), scores)
        responsibilities(scores, manifold.log_prior[:n_nodes], manifold.temperature, tempered, plain)
        tempered *= manifold.temperature
        if manifold.outlier_prior.any():
            junk = self._junk(block, b, nearest, plain)
            total = np.logaddexp(plain, np.logaddexp(*junk.T))
            scores = np.concatenate([scores * np.exp(plain - total)[:, None], np.exp(junk - total[:, None])], axis=1,
                                    dtype=b.dtype)
            tempered, plain = tempered + total - plain, total
        noise = log_empty(particles.power[block], self._layout.degrees, manifold.beta)
        return scores, poses, tempered + noise, plain + noise

    def _junk(self, block, b, nearest, log_classes):
        """float64[n, 2]: log π p, against the empty image, of an empty image, and of any signal on top of a class.

        The latter as if what the signal adds were the same for all classes: as for the nearest int64[n].
        """
        particles, manifold, layout = self.particles, self.manifold, self._layout
        c2 = particles.ctf2[block]
        # 2 b·y − c² Σ y²: what the nearest class takes from the power
        taken = layout.by_shell(2.0 * group_power(b * self._weighted[nearest], layout.start)
                                - c2 * self._power[nearest]) / manifold.beta
        more = signal_scores(particles.power[block] - taken, c2 @ layout.share, layout.degrees, manifold.beta,
                             ON_TOP * manifold.signal2)
        more += log_classes - np.log(manifold.class_prior.sum())
        return manifold.log_prior[manifold.n_nodes:] + np.stack([np.zeros(len(b)), more], axis=1)


def expect(particles, manifold, quanta, threads=1, blocks=None, window=None):
    """Totals of this rank's particles: the E step and the sums of the M step, of every pose of a window if there is
    one; blocks: slices, all by default."""
    expectation = Expectation(particles, manifold, window)
    totals = Totals.zeros(expectation.n_compared, len(manifold.log_prior), particles.layout)

    def one(block):
        return _block_sums(expectation, block)

    blocks = particles.blocks if blocks is None else blocks
    if threads == 1:
        for block in blocks:
            _add(totals, quanta, one(block))
        return totals
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(blocks), threads):   # no more blocks' sums in memory than threads
            for sums in pool.map(one, blocks[start:start + threads]):
                _add(totals, quanta, sums)
    return totals


def _block_sums(expectation, block):
    particles, n_nodes = expectation.particles, expectation.manifold.n_nodes
    transformed = particles.transformed[block]
    weights, poses, tempered, plain = expectation.joint_weights(block, transformed)
    switches = _switches(particles, block, weights[:, :n_nodes])
    learnt = ~particles.held_out[block]
    weights[~learnt] = 0
    nodes = np.ascontiguousarray(weights[:, :n_nodes].T)
    if poses is not None:
        nodes = (nodes[:, None] * poses.T.reshape(n_nodes, -1, len(weights))).reshape(-1, len(weights))
    data, ctf2 = nodes @ transformed, nodes @ particles.ctf2[block]
    count = weights.sum(axis=0, dtype=np.float64)
    noisy = learnt.astype(np.float64) - (weights[:, -1] if weights.shape[1] > n_nodes else 0.0)
    scalars = [tempered[learnt].sum(), plain[learnt].sum(), learnt.sum(), plain[~learnt].sum(), (~learnt).sum(),
               *switches]
    return data, ctf2, count, noisy @ particles.power[block], np.array(scalars, dtype=np.float64)


def _switches(particles, block, weights):
    """(changed, met): of the particles of a block that had a class, those that have another now, and all of them."""
    before, now = particles.last_class[block].copy(), weights.argmax(axis=1)
    particles.last_class[block] = now
    return np.count_nonzero((before >= 0) & (before != now)), np.count_nonzero(before >= 0)


def _add(totals, quanta, sums):
    data, ctf2, count, power, scalars = sums
    add_rounded(data, quanta.data, totals.data)
    add_rounded(ctf2, quanta.ctf2, totals.ctf2)
    totals.count += to_quanta(count, quanta.one)
    totals.power += to_quanta(power, quanta.power)
    totals.scalars += to_quanta(scalars, quanta.log_likelihood)


class Solver:
    """The M step of one lattice: a banded solver where basis functions meet only their neighbours, else a dense one."""

    def __init__(self, lattice, layout):
        self.lattice, self.layout = lattice, layout
        banded = BandedBasis(lattice.basis, lattice.n_bias)
        self._solve = banded.solve if banded.pays else self._dense
        self._probes = _probes(lattice.basis.shape[1])

    def _dense(self, weight, target, start, ridge, probes):
        return solve_dense(self.lattice.basis, weight, target, start, ridge, probes)

    def class_averages(self, totals, manifold, settings, *, comm):
        """(y float64[K, D], α float64[R]): solved and, if told, the prior found anew. Collective.

        Each rank solves a share of the groups. The evidence of α: with γ = Σ (1 − α/β diag A⁻¹) weights determined
        by the data, α = γ / ΣW² (MacKay 1992, Neural Comput. 4, 415–447).
        """
        layout, basis = self.layout, self.lattice.basis
        mine = share_of(len(layout.start), comm.rank, comm.size)
        edges = np.append(layout.start, len(layout.group))
        y, found = np.zeros_like(totals.data), np.zeros((2, len(layout.start)))
        if mine.stop > mine.start:
            first = edges[mine.start]
            ridge = np.repeat((manifold.alpha / manifold.beta)[layout.shell[mine], None], basis.shape[1], axis=1)
            if not settings.learn_alpha:
                ridge[:, basis.shape[1] - self.lattice.n_bias:] = 0
            weights, found[0, mine] = self._solve(totals.ctf2[:, mine], totals.data[:, first:edges[mine.stop]],
                                                  layout.start[mine] - first, ridge, self._probes)
            for group in range(mine.start, mine.stop):   # one at a time: the same arithmetic on any rank
                own = np.ascontiguousarray(weights[:, edges[group] - first:edges[group + 1] - first])
                y[:, edges[group]:edges[group + 1]] = basis @ own
                found[1, group] = np.sum(own**2)
        if comm.size > 1:   # zeros elsewhere: exact
            both = sum_over_ranks(np.append(y.ravel(), found), comm=comm)
            y, found = both[:y.size].reshape(y.shape), both[y.size:].reshape(found.shape)
        return y, self._evidence(manifold, *found) if settings.learn_alpha else manifold.alpha

    def _evidence(self, manifold, traces, squares):
        layout, n_functions = self.layout, self.lattice.basis.shape[1]
        free = n_functions - (manifold.alpha / manifold.beta)[layout.shell] * traces
        determined = layout.by_shell(np.bincount(layout.group) * np.maximum(free, 0.0))
        squares = layout.by_shell(squares)
        mean_square = squares / np.maximum(determined, LEAST_DETERMINED * layout.count)
        return 1.0 / np.maximum(np.maximum(mean_square, manifold.least_signal2), 1.0 / (LARGEST_ALPHA * manifold.beta))


def _probes(n_functions):
    """float64[M, P] with Σ_p z zᵀ = 1, or nearly so: signs drawn once and for all (Hutchinson 1990)."""
    if n_functions <= EXACT_TRACE:
        return np.eye(n_functions)
    signs = np.random.default_rng(n_functions).integers(2, size=(n_functions, PROBES)) * 2.0 - 1.0
    return signs / np.sqrt(PROBES)


def maximise(manifold, totals, solver, settings, *, comm):
    """The M step: a new Manifold from the sums over all ranks. Collective."""
    layout, n_nodes = solver.layout, manifold.n_nodes
    y, alpha = solver.class_averages(totals, manifold, settings, comm=comm)
    if settings.subspace is not None:
        y = settings.subspace.project(y)
    beta = noise_precision(totals, y, layout, n_nodes) if settings.learn_noise else manifold.beta
    prior = totals.count / totals.count.sum()
    if not settings.learn_prior:
        prior[:n_nodes] = prior[:n_nodes].sum() / n_nodes
    share = totals.count[:n_nodes] / totals.count[:n_nodes].sum()
    signal2 = share @ layout.by_shell(group_power(y**2, layout.start)) / layout.count
    outlier_prior = np.append(prior[n_nodes:], np.zeros(2))[:2]
    return replace(manifold, y=y, beta=beta, alpha=alpha, class_prior=prior[:n_nodes], outlier_prior=outlier_prior,
                   signal2=signal2)


def noise_precision(totals, y, layout, n_nodes):
    """β float64[R]: the inverse of the mean squared residual of each shell, all components real and counted once."""
    cross = layout.by_shell(group_power((totals.data * y).sum(axis=0)[None], layout.start)[0])
    square = layout.by_shell((totals.ctf2 * group_power(y**2, layout.start)).sum(axis=0))
    n = totals.count[:n_nodes + 1].sum() if len(totals.count) > n_nodes else totals.count.sum()
    residual = totals.power - 2.0 * cross + square
    return n * layout.degrees / np.maximum(residual, 1e-12 * np.maximum(totals.power, 1e-300))


@dataclass
class Assignment:
    """What the model says of n particles. class_number int32, −1 where junk is likelier than all classes together;
    probability float32 of that class, and outlier float32 of junk; latent float32[n, L]: posterior mean of the
    position of the node; entropy float32 [nats] over classes; log_likelihood float64 at T = 1; pose int64 or None: the
    likeliest of a window, in the class of the highest probability."""

    class_number: np.ndarray
    probability: np.ndarray
    outlier: np.ndarray
    latent: np.ndarray
    entropy: np.ndarray
    log_likelihood: np.ndarray
    pose: np.ndarray = None


def assign(expectation, block):
    """The Assignment of the particles of a block, by an Expectation of the model at its temperature."""
    lattice, n_nodes = expectation.manifold.lattice, expectation.manifold.n_nodes
    weights, poses, _, log_likelihood = expectation.joint_weights(block)
    junk = weights[:, n_nodes:].sum(axis=1)
    nodes = weights[:, :n_nodes]
    number = nodes.argmax(axis=1).astype(np.int32)
    probability = nodes.max(axis=1)
    inside = nodes / np.maximum(nodes.sum(axis=1, keepdims=True), np.finfo(nodes.dtype).tiny)
    entropy = -np.sum(inside * np.log(np.maximum(inside, np.finfo(nodes.dtype).tiny)), axis=1)
    pose = None
    if poses is not None:
        pose = poses.reshape(len(nodes), n_nodes, -1)[np.arange(len(nodes)), number].argmax(axis=1)
    number[junk > 0.5] = -1
    return Assignment(number, probability, junk, _latent_mean(inside, lattice).astype(np.float32), entropy,
                      log_likelihood, pose)


def _latent_mean(weights, lattice):
    """float64[n, L]: Σ R x; round the circle of a closed chain, the direction of the mean."""
    if not lattice.periodic:
        return weights @ lattice.nodes
    turn = np.exp(2j * np.pi * (lattice.nodes - 1.0) / lattice.n_nodes)
    return 1.0 + np.angle(weights @ turn) % (2.0 * np.pi) * lattice.n_nodes / (2.0 * np.pi)


@dataclass(frozen=True)
class Report:
    """What an iteration found: log-likelihoods per particle at T = 1, of the model it began with; sizes of classes;
    mobility: class-switch rate of the particles met again (engine/anneal.py)."""

    iteration: int
    temperature: float
    log_likelihood: float
    tempered: float
    held_out: float
    class_sizes: np.ndarray
    outliers: np.ndarray
    beta: np.ndarray
    mobility: float = np.nan
    stage: str = ""
    seconds: dict = field(default_factory=dict)


class Maximisation:
    """EM of one lattice over the particles of all ranks: `step` is an iteration. Collective, also to make."""

    def __init__(self, particles, lattice, settings, *, comm):
        self.particles, self.settings, self.comm = particles, settings, comm
        self.quanta = make_quanta(particles, comm=comm)
        self.solver = Solver(lattice, particles.layout)

    def of(self, particles, settings):
        """The same with other settings and for the same particles with others, or none, held out."""
        other = copy(self)
        other.particles, other.settings = particles, settings
        return other

    def expect(self, manifold, blocks=None):
        """Totals over all ranks."""
        return self._folded(self._expected(manifold, blocks).reduced(comm=self.comm))

    def _expected(self, manifold, blocks):
        return expect(self.particles, manifold, self.quanta, self.settings.threads, blocks, self.settings.window)

    def _folded(self, totals):
        return totals if self.settings.window is None else self.settings.window.folded(totals)

    def held_out_likelihood(self, manifold):
        """log p at T = 1 of the particles held out, of all ranks: nats a particle; NaN if there are none."""
        expectation, total, n = Expectation(self.particles, manifold, self.settings.window), np.zeros(1), 0
        for block in self.particles.blocks:
            held = block.start + np.flatnonzero(self.particles.held_out[block])
            if len(held):
                total += to_quanta(expectation.weights(held)[2].sum(), self.quanta.log_likelihood)
                n += len(held)
        total, n = sum_over_ranks(total, comm=self.comm), self.comm.allreduce(n)
        return float(total[0]) / n if n else np.nan

    def step(self, manifold, blocks=None, blend=None):
        """(Manifold, Report): one E step over the blocks (all by default) and one M step.

        blend(totals) -> totals: what the M step sees instead, e.g. a running average.
        """
        begin = time.perf_counter()
        own = self._expected(manifold, blocks)
        expected = time.perf_counter()
        totals = self._folded(own.reduced(comm=self.comm))
        reduced = time.perf_counter()
        seen = totals if blend is None else blend(totals)
        after = maximise(manifold, seen, self.solver, self.settings, comm=self.comm)
        seconds = {"e_step": expected - begin, "reduce": reduced - expected, "m_step": time.perf_counter() - reduced}
        return after, self._report(manifold, totals, seconds)

    def _report(self, manifold, totals, seconds):
        n, held = max(totals.learnt, 1.0), totals.held_out
        return Report(0, manifold.temperature, totals.log_likelihood / n, totals.tempered / n,
                      totals.held_out_likelihood / held if held else np.nan, totals.count[:manifold.n_nodes],
                      np.append(totals.count[manifold.n_nodes:], np.zeros(2))[:2], manifold.beta,
                      switch_rate(totals.changed, totals.met), seconds=seconds)


def manifold_arrays(manifold):
    """dict of arrays that determine a Manifold, for a checkpoint."""
    found = {f.name: np.asarray(getattr(manifold, f.name)) for f in fields(Manifold) if f.name != "lattice"}
    return found | {f"lattice_{f.name}": np.asarray(getattr(manifold.lattice, f.name)) for f in fields(Lattice)}


def manifold_from_arrays(arrays):
    """The Manifold that `manifold_arrays` took apart."""
    def entry(name, kind):
        value = np.asarray(arrays[name])
        return value if kind is np.ndarray else kind(value.item() if value.ndim == 0 else value.tolist())

    kinds = {"periodic": bool, "n_bias": int, "name": _text, "shape": tuple, "temperature": float}
    lattice = Lattice(**{f.name: entry(f"lattice_{f.name}", kinds.get(f.name, np.ndarray)) for f in fields(Lattice)})
    return Manifold(lattice, **{f.name: entry(f.name, kinds.get(f.name, np.ndarray)) for f in fields(Manifold)
                                if f.name != "lattice"})


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)
