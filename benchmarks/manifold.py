"""`vitrea bench manifold`: the E step of manifold learning beside the machine's sgemm, and the solve of its M step."""
import json
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.benchmarks.kernels import agree
from vitrea.benchmarks.machine import SGEMM_SIZE, TRIAD_FLOATS, measure_limits
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.benchmarks.suite import QUICK
from vitrea.benchmarks.timing import LEAST_SECONDS, clock
from vitrea.engine.comm import alone
from vitrea.engine.latent import chain
from vitrea.engine.manifold import EmbeddedParticles, Layout, Manifold, cut, expect, make_quanta
from vitrea.kernels.embedding import HalfPlane, shell_power
from vitrea.kernels.manifold import (
    BandedBasis,
    group_power,
    reference_node_scores,
    reference_weigh_nodes,
    solve_components,
)

CHECKED_PARTICLES, CHECKED_GROUPS, CHECKED_CLASSES = 20, 2, 60


@dataclass(frozen=True)
class Sizes:
    """classes: nodes of the chain; radius: Fourier rings of the E step; particles of it; box of the solve [px], all
    rings below Nyquist."""

    classes: int
    radius: int
    particles: int
    box: int
    seed: int = 0


class EStep:
    """Particles to responsibilities, and the sums for the M step, exact over ranks: four products a particle·node."""

    unit, twin = "particle·node", "reference_node_scores, reference_weigh_nodes and plain sums"

    def __init__(self, sizes):
        random = np.random.default_rng(sizes.seed)
        plane = HalfPlane(2 * sizes.radius + 2, sizes.radius)
        n, lattice = sizes.particles, chain(sizes.classes)
        t = random.normal(size=(n, plane.n_components)).astype(np.float32)
        c2 = random.uniform(0.1, 1.0, (n, plane.n_groups)).astype(np.float32)
        rows, starts = cut(n, rank=0, size=1)
        layout = Layout(plane.group, plane.shell)
        power = shell_power(t, plane.group, plane.shell)
        self.particles = EmbeddedParticles(t * np.sqrt(c2)[:, plane.group], c2, power, rows, starts, n, layout)
        self.manifold = _model(lattice, layout, 0.1 * random.normal(size=(sizes.classes, plane.n_components)))
        self.quanta = make_quanta(self.particles, comm=alone())
        self.units = n * sizes.classes
        self.flops = 4.0 * self.units * (plane.n_components + plane.n_groups)

    def run(self):
        self.totals = expect(self.particles, self.manifold, self.quanta)

    def check(self):
        """The sums over a few particles against float64 arithmetic, particle by particle; their difference."""
        whole, manifold = self.particles, self.manifold
        rows = slice(0, CHECKED_PARTICLES)
        few = EmbeddedParticles(whole.transformed[rows], whole.ctf2[rows], whole.power[rows], whole.rows[rows],
                                np.array([0, len(whole.rows[rows])]), whole.n_total, whole.layout)
        scores = np.empty((len(few), manifold.n_nodes))
        power = group_power(manifold.y**2, whole.layout.start)
        reference_node_scores(few.transformed, few.ctf2, manifold.y, power, scores)
        reference_weigh_nodes(scores, manifold.log_prior, 1.0, *np.empty((2, len(few))))
        found = expect(few, manifold, self.quanta)
        return max(agree("manifold", found.data, scores.T @ few.transformed),
                   agree("manifold", found.ctf2, scores.T @ few.ctf2))


def _model(lattice, layout, y):
    n, shells = lattice.n_nodes, len(layout.count)
    return Manifold(lattice, y, np.ones(shells), np.full(n, 1.0 / n), np.zeros(2), np.zeros(shells), np.ones(shells))


class Solve:
    """The weights of a chain for every component of a box: banded, one factorisation a group."""

    unit, twin = "solve", "solve_components, by LU, at a smaller size"

    def __init__(self, sizes):
        self.arguments, self.banded, _ = self._problem(sizes.classes, sizes.box, sizes.seed)
        self.units, self.groups = 1, len(self.arguments[2])
        self.components = self.arguments[1].shape[1]

    @staticmethod
    def _problem(classes, box, seed):
        random, lattice = np.random.default_rng(seed), chain(classes)
        plane = HalfPlane(box, (box - 1) // 2)
        weight = random.uniform(1.0, 30.0, (classes, plane.n_groups))
        start = Layout(plane.group, plane.shell).start
        ridge = np.full((len(start), lattice.basis.shape[1]), 0.01)
        probes = random.integers(2, size=(lattice.basis.shape[1], 16)) * 0.5 - 0.25
        target = random.normal(size=(classes, plane.n_components))
        return (weight, target, start, ridge, probes), BandedBasis(lattice.basis, lattice.n_bias), lattice

    def run(self):
        self.banded.solve(*self.arguments)

    def check(self):
        """The same solver at a smaller size against the plain one; their difference."""
        arguments, banded, lattice = self._problem(CHECKED_CLASSES, 10, 0)
        plain, traces = solve_components(lattice.basis, *arguments)
        found = banded.solve(*arguments)
        return max(agree("manifold solve", found[0], plain), agree("manifold solve", found[1], traces))


def measure(sizes, n, quick=False, progress=SILENCE):
    """The record: E step rate and its share of sgemm, core-seconds of the solve; WrongAnswerError before any clock."""
    with threadpool_limits(1):
        progress.step("manifold: made ready, compiled and checked")
        e_step, solve = EStep(sizes), Solve(sizes)
        checks = {"e_step": e_step.check(), "solve": solve.check()}
        least = QUICK["least_seconds"] if quick else LEAST_SECONDS
        progress.step("E step: warm-up, then runs under the clock", n)
        rates = clock(e_step.run, n, least, between=progress.done)
        limits = (QUICK["sgemm_size"], QUICK["triad_floats"]) if quick else (SGEMM_SIZE, TRIAD_FLOATS)
        sgemm = measure_limits(240, *limits, progress).sgemm
        progress.step("solve of the M step: warm-up, then runs under the clock", n)
        solves = clock(solve.run, n, least, between=progress.done)
    figures = {"flops_per_second": e_step.flops / rates.median, "sgemm": sgemm,
               "fraction_of_sgemm": e_step.flops / rates.median / sgemm,
               "particle_nodes_per_second": e_step.units / rates.median, "e_step": rates.as_dict()}
    figures |= {"solve_seconds": solves.median, "solve": solves.as_dict(), "groups": solve.groups,
                "components": solve.components, "band": solve.banded.width}
    return {"benchmark": "manifold", **vars(sizes), "check": checks, **figures} | surroundings()


def command(arguments):
    """Measure, keep and print what `vitrea bench manifold` was asked for; the exit code."""
    sizes = Sizes(arguments.classes, arguments.radius, arguments.particles, arguments.box, arguments.seed)
    record = measure(sizes, arguments.n, arguments.quick, arguments.progress)
    keep(arguments.records, record)
    arguments.progress.result(json.dumps(record) if arguments.json else told(record))
    return 0


def told(record):
    """A record for people, a few lines."""
    return "\n".join([
        f"manifold   K {record['classes']:,}   E step: {record['radius']} rings, {record['particles']:,} particles   "
        f"solve: box {record['box']} px, {record['components']:,} components in {record['groups']} groups",
        f"  check    {record['check']['e_step']:.1e} away from {EStep.twin}; {record['check']['solve']:.1e} from "
        f"{Solve.twin}",
        f"  E step   {record['flops_per_second'] / 1e9:.1f} GFLOP/s   {100 * record['fraction_of_sgemm']:.0f} % of "
        f"sgemm ({record['sgemm'] / 1e9:.1f})   {record['particle_nodes_per_second']:,.0f} particle·nodes / core·s   "
        f"n {record['e_step']['n']}",
        f"  solve    {record['solve_seconds']:.2f} core·s   band of {record['band']}   n {record['solve']['n']}",
    ])
