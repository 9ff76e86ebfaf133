"""Valleys of a loss as networks have them: descents with noise, endpoints at one loss, barriers, curvature.

Everything works on a `Landscape`, whose parameters are one flat float64 vector θ: engine/digits.py has one of a dense
network, picker/landscape.py of the picker's. A descent, a cooling or a spectrum is one process's own work, so that an
ensemble whose members are dealt to ranks has the same bits on any number of them.

Endpoints are compared at a matched training loss. Stochastic descents with different noise stop at different losses,
and curvature falls with the loss on its own (cross-entropy flattens as margins grow), so each is first cooled, by
full-batch descent, until its loss has come down to the same target.
"""
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

LINE_POINTS = 11         # on the straight line between two endpoints, ends included
COOLING_RATE = 0.1
MOST_COOLING = 20_000    # full-batch steps
EIGENVALUE_TOLERANCE = 1e-4


class Landscape(Protocol):
    """A training loss over float64[P] and what is wrong on samples that were not trained on."""

    n_parameters: int
    n_samples: int

    def initial(self, random: np.random.Generator) -> np.ndarray:
        """θ float64[P] of a random start."""

    def loss(self, theta: np.ndarray) -> float:
        """Mean over all training samples [nats]."""

    def gradient(self, theta: np.ndarray, rows: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """(loss, gradient float64[P]) over the training samples `rows`, all by default."""

    def hessian_product(self, theta: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """H v float64[P] of the loss over all training samples."""

    def wrong(self, theta: np.ndarray) -> np.ndarray:
        """bool[n]: which of the samples for testing are decided wrongly."""


@dataclass(frozen=True)
class Endpoint:
    """A cooled state: θ, its training loss, how many full-batch steps cooling took, bool[n] what it gets wrong."""

    theta: np.ndarray
    loss: float
    steps: int
    wrong: np.ndarray

    @property
    def accuracy(self):
        return 1.0 - float(np.mean(self.wrong))


def batches(n, size, random, *, replacement=False):
    """Endless int arrays of rows: the samples shuffled and cut into batches, again and again, or drawn with
    replacement. Shuffled noise is anti-correlated over an epoch (Kühn & Rosenow 2023); the last batch may be short."""
    while replacement:
        yield random.integers(n, size=size)
    while True:
        order = random.permutation(n) if size < n else np.arange(n)   # no order shows in the rounding of a whole sum
        yield from (order[first:first + size] for first in range(0, n, size))


def descend(landscape, theta, rate, rows):
    """Generator of θ after each step of plain gradient descent, one for each int array of `rows`."""
    for chosen in rows:
        theta = theta - rate * landscape.gradient(theta, chosen)[1]
        yield theta


def states_at(path, marks, theta):
    """[θ at each of the rising step numbers `marks`] along the generator `path` that starts at θ (step 0)."""
    found, step = [], 0
    for mark in marks:
        while step < mark:
            theta, step = next(path), step + 1
        found.append(theta)
    return found


def cool(landscape, theta, target, *, rate=COOLING_RATE, most=MOST_COOLING):
    """The Endpoint of full-batch descent, at the first state whose training loss is at most `target`.

    It has not reached the target, as its loss says, if `most` steps do not suffice or the loss ceases to be a number.
    """
    for step in range(most + 1):
        loss, gradient = landscape.gradient(theta)
        if loss <= target or step == most or not np.isfinite(loss):
            break
        theta = theta - rate * gradient
    return Endpoint(theta, loss, step, landscape.wrong(theta))


def barrier(landscape, one, other, points=LINE_POINTS):
    """Loss barrier [nats a sample] of the straight line between θ's: its largest rise above the line between the
    losses of the ends; 0 if it rises nowhere (Frankle et al. 2020)."""
    along = np.linspace(0.0, 1.0, points)
    losses = np.array([landscape.loss(one + t * (other - one)) for t in along])
    return float(np.max(losses - losses[0] - along * (losses[-1] - losses[0])))


def jaccard(one, other):
    """|A ∩ B| / |A ∪ B| of two bool[n], the valley identity of Yang et al.; 1 if both are empty."""
    either = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / either if either else 1.0


def leading_eigenvalues(product, n, k):
    """float64[k], falling: the algebraically largest eigenvalues of the symmetric n × n matrix with products
    `product(v)`, by Lanczos (ARPACK), from a fixed start, so that they have the same bits each time."""
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=n)
    values = eigsh(operator, k=k, which="LA", v0=start, tol=EIGENVALUE_TOLERANCE, return_eigenvectors=False)
    return np.sort(values)[::-1]


def sharpness(landscape, theta, k=1):
    """float64[k]: the leading eigenvalues of the Hessian of the training loss."""
    return leading_eigenvalues(lambda v: landscape.hessian_product(theta, v), landscape.n_parameters, k)


def invariant_sharpness(landscape, theta):
    """λ_max(|θ| H |θ|): the largest curvature per relative change of the parameters, which no rescaling changes.

    Rectified units can be scaled up before and down after without changing what the network computes, θ → Aθ with a
    diagonal A > 0. Then H → A⁻¹ H A⁻¹, so that λ(H) can be made anything (Dinh et al. 2017), but diag|θ| H diag|θ|
    stays. It is the second-order form of the elementwise adaptive sharpness of Kwon et al. 2021.
    """
    size = np.abs(theta)
    product = lambda v: size * landscape.hessian_product(theta, size * v.ravel())  # noqa: E731
    return float(leading_eigenvalues(product, landscape.n_parameters, 1)[0])
