"""Where manifold learning begins: principal components, given references, or chance; and the order of references.

Everything here is drawn from the data or from the seed, so that a start is the same on any number of ranks.
"""
from dataclasses import replace

import numpy as np

from vitrea.engine.components import principal_components
from vitrea.engine.manifold import Manifold, make_quanta
from vitrea.kernels.manifold import group_power

SPREAD = np.sqrt(3.0)   # makes the variance of evenly spaced nodes in −1…1 that of the data along a component


def analyse(particles, q, *, comm, seed=0):
    """(Components, β): the q leading principal components of the particles of all ranks. Collective."""
    return principal_components(particles, make_quanta(particles, comm=comm), q, comm=comm, seed=seed)


def from_components(lattice, layout, components, beta):
    """Manifold whose nodes lie on the plane of the first components, as many as the lattice has axes.

    A closed chain lies on an ellipse in the first two.
    """
    if lattice.periodic:
        angle = 2.0 * np.pi * (lattice.nodes[:, 0] - 1.0) / lattice.n_nodes
        coordinates = np.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        coordinates = SPREAD * lattice.unit_nodes
    return from_coordinates(lattice, layout, coordinates, components, beta)


def bent(lattice, layout, components, beta):
    """Manifold of a chain on an arc of the first two components: a motion that returns no image twice is bent.

    The data do not tell the side of the bend to second order; annealing does.
    """
    u = lattice.unit_nodes[:, 0]
    coordinates = np.sqrt(2.0) * np.stack([np.sin(0.5 * np.pi * u), -np.cos(np.pi * u)], axis=1)
    return from_coordinates(lattice, layout, coordinates, components, beta)


def at_random(lattice, layout, components, beta, seed):
    """Manifold of nodes drawn from a normal distribution in the space of the significant components."""
    q = max(components.significant(), lattice.dimension)
    coordinates = np.random.default_rng([seed, 1]).normal(size=(lattice.n_nodes, q))
    return from_coordinates(lattice, layout, coordinates, components, beta)


def from_coordinates(lattice, layout, coordinates, components, beta):
    """Manifold whose nodes have the coordinates float64[K, q], in standard deviations of the components' signal."""
    if coordinates.shape[1] > len(components.eigenvalues):
        raise ValueError(f"{coordinates.shape[1]} coordinates, but {len(components.eigenvalues)} components")
    y = components.mean + coordinates @ components.directions[:coordinates.shape[1]]
    return replace(from_references(lattice, layout, y, beta), least_signal2=components.signal2(layout))


def from_references(lattice, layout, references, beta):
    """Manifold of references float64[K, D] in the order of the nodes, in the units of the particles."""
    if references.shape != (lattice.n_nodes, len(layout.group)):
        raise ValueError(f"references of shape {references.shape}: expected {(lattice.n_nodes, len(layout.group))}")
    n, y = lattice.n_nodes, np.asarray(references, dtype=np.float64)
    weights = np.linalg.lstsq(lattice.basis, y, rcond=None)[0]
    square = layout.by_shell(group_power(weights**2, layout.start)).mean(axis=0) / layout.count
    signal2 = layout.by_shell(group_power(y**2, layout.start)).mean(axis=0) / layout.count
    prior = np.full(n, 1.0 / n)
    return Manifold(lattice, y, beta, prior, np.zeros(2), signal2, 1.0 / np.maximum(square, 1e-12))


def put_in_order(references):
    """int64[K]: references float[K, D] as a line, neighbours alike: the shortest path found between them all.

    Begun by the order of the second eigenvector of their similarities (Atkins, Boman & Hendrickson 1998, SIAM J.
    Comput. 28, 297–310), then improved by turning stretches round as long as that shortens the line (2-opt).
    """
    square = np.sum(references**2, axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2.0 * references @ references.T, 0.0))
    if len(distance) < 3:
        return np.arange(len(distance))
    nearest = np.sort(distance + np.diag(np.full(len(distance), np.inf)), axis=1)[:, 0]
    likeness = np.exp(-0.5 * (distance / max(np.median(nearest), 1e-30)) ** 2)
    vectors = np.linalg.eigh(np.diag(likeness.sum(axis=1)) - likeness)[1]
    return _two_opt(distance, np.argsort(vectors[:, 1], kind="stable"))


def _two_opt(distance, order):
    """The order of a path, improved until no turn of a stretch shortens it."""
    n, improved = len(order), True
    while improved:
        improved = False
        for i in range(n - 1):
            stops = np.arange(i + 1, n)
            before = distance[order[i - 1], order[i]] if i else 0.0
            inner = np.append(distance[order[stops[:-1]], order[stops[1:]]], 0.0)
            joined = (distance[order[i - 1], order[stops]] if i else 0.0) + np.append(
                distance[order[i], order[stops[1:]]], 0.0)
            gain = before + inner - joined
            best = int(np.argmax(gain))
            if gain[best] > 1e-9 * distance.max():
                order[i:stops[best] + 1] = order[i:stops[best] + 1][::-1]
                improved = True
    return order


def in_order(lattice, layout, manifold, *, comm):
    """Manifold of a chain whose nodes are the classes of another, put in order: neighbours alike. Collective.

    The order that free classes show is surer than that of nodes which had to find it while they were still alike.
    """
    y = manifold.y[comm.bcast(put_in_order(manifold.y) if comm.rank == 0 else None)]
    start = from_references(lattice, layout, y, manifold.beta)
    scale = manifold.class_prior.sum()
    return replace(start, class_prior=start.class_prior * scale, outlier_prior=manifold.outlier_prior)
