"""Latent lattices: where the nodes stand, and the functions their class averages are made of.

Nodes stand at 1, 2, …, k along each axis. Radial basis functions φ_m(x) = exp(−|x − μ_m|²/2σ²) join neighbours: M =
⌊basis_fraction·k⌋ centres evenly along the axis, σ = width × their spacing, and one constant function, the bias, last
(Bishop, Svensén & Williams 1998, Neural Comput. 10, 215–234; these defaults: Wu et al. 2017, PLoS ONE 12, e0182130).
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lattice:
    """nodes float64[K, L]: positions; basis float64[K, M]: Φ, the bias last if there is one; shape: nodes an axis.

    n_bias: constant functions, last; periodic: an axis closes on itself; name: how the lattice was made, for logs.
    """

    nodes: np.ndarray
    basis: np.ndarray
    shape: tuple
    periodic: bool = False
    n_bias: int = 1
    name: str = "given"

    @property
    def n_nodes(self):
        return len(self.nodes)

    @property
    def dimension(self):
        return self.nodes.shape[1]

    @property
    def unit_nodes(self):
        """float64[K, L]: nodes scaled to −1…1 along each axis."""
        span = np.maximum(np.asarray(self.shape, dtype=np.float64) - 1.0, 1.0)
        return 2.0 * (self.nodes - 1.0) / span - 1.0


def chain(n_nodes, *, periodic=False, basis_fraction=0.8, width=1.0):
    """A line of nodes; closed (the last is next to the first) if `periodic`. ValueError below 3 (closed: 5) nodes."""
    least = 5 if periodic else 3
    if n_nodes < least:
        raise ValueError(f"a {'closed ' if periodic else ''}chain of {n_nodes} nodes: expected at least {least}")
    positions = np.arange(1.0, n_nodes + 1.0)
    functions = _axis(n_nodes, basis_fraction, width, periodic)
    name = f"{'closed ' if periodic else ''}chain of {n_nodes}"
    return Lattice(positions[:, None], _with_bias(functions), (n_nodes,), periodic, name=name)


def grid(shape, *, basis_fraction=0.8, width=1.0):
    """A rectangle or a box of nodes: shape (k1, k2) or (k1, k2, k3), each at least 2."""
    if not 2 <= len(shape) <= 3 or min(shape) < 2:
        raise ValueError(f"a grid of {shape}: expected two or three axes of at least 2 nodes")
    axes = [np.arange(1.0, k + 1.0) for k in shape]
    nodes = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    functions = np.ones((1, 1))
    for k in shape:
        functions = np.kron(functions, _axis(k, basis_fraction, width, periodic=False))
    return Lattice(nodes, _with_bias(functions), tuple(shape), name="grid of " + " × ".join(map(str, shape)))


def free(n_nodes):
    """Nodes that share nothing: a plain mixture, each class average its own."""
    return Lattice(np.arange(1.0, n_nodes + 1.0)[:, None], np.eye(n_nodes), (n_nodes,), n_bias=0,
                   name=f"{n_nodes} free classes")


def _axis(n_nodes, basis_fraction, width, periodic):
    """float64[k, M]: the radial functions along one axis."""
    n_centres = max(2, int(basis_fraction * n_nodes))
    positions = np.arange(1.0, n_nodes + 1.0)
    if periodic:
        centres = 1.0 + n_nodes * np.arange(n_centres) / n_centres
        distance = positions[:, None] - centres
        distance -= n_nodes * np.round(distance / n_nodes)
    else:
        centres = np.linspace(1.0, n_nodes, n_centres)
        distance = positions[:, None] - centres
    return np.exp(-0.5 * (distance / (width * (centres[1] - centres[0]))) ** 2)


def _with_bias(functions):
    return np.append(functions, np.ones((len(functions), 1)), axis=1)
