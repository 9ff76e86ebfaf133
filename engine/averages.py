"""From a fitted manifold to what is looked at: each particle's class and latent coordinates, each class's average.

The averages that are written are not the nodes of the model, which borrow from their neighbours, but Wiener averages of
each class's own particles, weighted by their responsibilities: with b = c∘t and noise precision β,

    A = Σ w b ÷ (Σ w c² + 1/(β τ²)),     τ² = max(⟨|Σ w b ÷ Σ w c²|²⟩ − 1/(β Σ w c²), 0) on each shell,

in two half-sets, whose Fourier ring correlation says what repeats.
"""
from dataclasses import dataclass, fields, replace

import numpy as np

from vitrea.engine.comm import gather_rows, sum_over_ranks
from vitrea.engine.manifold import Expectation, make_quanta
from vitrea.engine.manifold import assign as manifold_assign
from vitrea.kernels.exact import to_quanta

HALVES = 2
AT_ONCE = 64          # classes averaged at once
LEAST_WEIGHT = 1e-6   # of Σ w c², relative to the largest: below it a component was not measured


def assignment_type(dimension):
    """dtype of what is known of a particle: row of the table, class (0-based; K for an outlier), its probability, that
    of being an outlier, latent coordinates (nodes count from 1), entropy of the class posterior [nats], log p, and its
    pose, a number of the window if there is one."""
    return np.dtype([("row", "i8"), ("class_number", "i4"), ("probability", "f8"), ("outlier", "f8"),
                     ("latent", "f8", (dimension,)), ("entropy", "f8"), ("log_likelihood", "f8"), ("pose", "i4")])


@dataclass(frozen=True)
class ClassSums:
    """Sums over the particles of each class and half-set: data float64[2, C, D]: Σ w b; ctf2 float64[2, C, S]: Σ w c².
    C is K, or K + 1 where outliers have a class of their own."""

    data: np.ndarray
    ctf2: np.ndarray


@dataclass(frozen=True)
class Averages:
    """By class C and shell R: average float64[C, D] in the units of t; frc, ssnr, tau2 float64[C, R]; tau2 is the
    variance of a component."""

    average: np.ndarray
    frc: np.ndarray
    ssnr: np.ndarray
    tau2: np.ndarray


def assign(particles, manifold, rows, *, outliers=False, window=None, comm):
    """(assignments of this rank's particles, ClassSums of all ranks). Collective.

    rows int64[n]: rows of the table of the particles; outliers: whether there is a class for them; window: PoseWindow
    or None, particles are averaged at the likeliest of its poses. Held-out particles are assigned, and averaged, like
    all others.
    """
    n_classes = manifold.n_nodes + bool(outliers)
    known = np.zeros(len(particles), dtype=assignment_type(manifold.lattice.dimension))
    known["row"] = rows
    layout = particles.layout
    sums = ClassSums(np.zeros((HALVES, n_classes, len(layout.group))), np.zeros((HALVES, n_classes, len(layout.shell))))
    quanta = make_quanta(particles, comm=comm)
    if window is not None:   # of a particle turned back, a component is at most the length of the particle
        length = np.exp2(np.ceil(0.5 * np.log2(len(layout.group))))
        quanta = replace(quanta, data=np.full_like(quanta.data, length * quanta.data.max()))
    expectation = Expectation(particles, manifold, window)
    for block in particles.blocks:
        if block.stop > block.start:
            part, told = known[block], manifold_assign(expectation, block)
            for name in ("outlier", "latent", "entropy", "log_likelihood"):
                part[name] = getattr(told, name)
            junk = told.class_number < 0
            part["class_number"] = np.where(junk, manifold.n_nodes, told.class_number)
            part["probability"] = np.where(junk, told.outlier, told.probability)
            transformed = particles.transformed[block]
            if window is not None:
                part["pose"] = told.pose
                transformed = window.brought_back(transformed, told.pose)
            _add_members(sums, quanta, (transformed, particles.ctf2[block]), part)
    return known, _over_ranks(sums, comm)


def given(particles, class_numbers, rows, n_classes, *, comm):
    """ClassSums of all ranks, of particles in classes int[n] that are known, −1 in none. Collective."""
    layout, known = particles.layout, np.zeros(len(particles), dtype=assignment_type(1))
    known["row"], known["probability"] = rows, class_numbers >= 0
    known["class_number"] = np.maximum(class_numbers, 0)
    sums = ClassSums(np.zeros((HALVES, n_classes, len(layout.group))), np.zeros((HALVES, n_classes, len(layout.shell))))
    quanta = make_quanta(particles, comm=comm)
    for block in particles.blocks:
        if block.stop > block.start:
            _add_members(sums, quanta, (particles.transformed[block], particles.ctf2[block]), known[block])
    return _over_ranks(sums, comm)


def _over_ranks(sums, comm):
    return ClassSums(sum_over_ranks(sums.data, comm=comm), sum_over_ranks(sums.ctf2, comm=comm))


def gathered(known, *, comm):
    """All ranks' assignments in the order of the table on rank 0, None elsewhere. Collective."""
    everything = gather_rows(known, comm=comm)
    return everything if everything is None else everything[np.argsort(everything["row"])]


def _add_members(sums, quanta, vectors, part):
    """Add a block's particles, `vectors` (b, c²), to the sums of their classes, each term a multiple of its quantum."""
    half = part["row"] % HALVES
    place = half * sums.data.shape[1] + part["class_number"]
    order = np.argsort(place, kind="stable")
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    weight = part["probability"][order, None]
    where = place[order][first]
    for array, total, rounding in zip(vectors, (sums.data, sums.ctf2), (quanta.data, quanta.ctf2)):
        terms = to_quanta(weight * array[order], rounding)
        total.reshape(-1, total.shape[2])[where] += np.add.reduceat(terms, first, axis=0)


def averaged(sums, beta, layout):
    """The Averages of ClassSums, at a noise precision float64[R]. A class without particles is zero everywhere."""
    parts = [_averaged(ClassSums(sums.data[:, i:i + AT_ONCE], sums.ctf2[:, i:i + AT_ONCE]), beta, layout)
             for i in range(0, sums.data.shape[1], AT_ONCE)]
    return Averages(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Averages)))


def _averaged(sums, beta, layout):
    """The same of a few classes: every class is averaged by itself, and what that takes is many times its size."""
    data, ctf2 = sums.data.sum(axis=0), sums.ctf2.sum(axis=0)
    plain, weight = _divided(data, ctf2, layout)
    noise = 1.0 / beta
    measured = np.maximum(_shell_means(weight > 0, layout), 1e-30)
    spread = np.divide(noise[layout.shell_of_component], weight, out=np.zeros_like(weight), where=weight > 0)
    tau2 = np.maximum(_shell_means(plain**2 - spread, layout) / measured, 0.0)
    tau2[data.any(axis=1) == 0] = 0
    by_component = tau2[:, layout.shell_of_component]
    average = plain * by_component / np.maximum(by_component + spread, 1e-300)
    ssnr = tau2 * _shell_means(weight, layout) / noise
    halves = [_divided(sums.data[h], sums.ctf2[h], layout)[0] for h in range(HALVES)]
    return Averages(average, _correlation(*halves, layout), ssnr, tau2)


def _divided(data, ctf2, layout):
    """(Σ w b ÷ Σ w c², Σ w c²) by component, both 0 where next to nothing was measured."""
    weight = np.where(ctf2 > LEAST_WEIGHT * ctf2.max(axis=1, keepdims=True), ctf2, 0.0)[:, layout.group]
    return np.divide(data, weight, out=np.zeros_like(data), where=weight > 0), weight


def _shell_means(values, layout):
    """float64[C, R]: means over the components of each shell of values [C, D]."""
    start = np.flatnonzero(np.diff(layout.shell_of_component, prepend=-1))
    return np.add.reduceat(np.asarray(values, dtype=np.float64), start, axis=1) / layout.count


def _correlation(a, b, layout):
    """float64[C, R]: the Fourier ring correlation; 0 where a half-set is empty."""
    norm = np.sqrt(_shell_means(a**2, layout) * _shell_means(b**2, layout))
    return np.divide(_shell_means(a * b, layout), norm, out=np.zeros_like(norm), where=norm > 0)


def resolved_shells(ssnr):
    """int64[C]: shells up to the first with SSNR ≤ 1, by class."""
    below = ssnr <= 1.0
    return np.where(below.any(axis=1), below.argmax(axis=1), ssnr.shape[1])
