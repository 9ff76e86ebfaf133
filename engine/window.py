"""A window of poses about the given one: manifold learning that does not take alignments at their word.

A particle posed a little wrongly is y(R(−δ)k) exp(2πi k·s) in place of its class average y(k): turned by δ, shifted by
s. The E step sums over a few such poses of every class,

    log p(t | k) = log Σ_j w_j p(t | y_k at pose j),

w_j normal in δ and s, and so finds a pose for each class: another class may have been aligned otherwise. The
temperature of the annealing divides particles among classes, not among poses. In the M step the sums of each pose are
turned and shifted back: S_k = Σ_j A_jᵀ S_kj. As rotations and shifts keep what is on a ring, the sums of C² are those
of a particle in its pose. Costs as much as J times the classes.
"""
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vitrea.engine.poses import rotate_offset
from vitrea.kernels.embedding import HalfPlane
from vitrea.kernels.window import shift_ramp, turn_matrix

ANGLES = (-2.0, -1.0, 0.0, 1.0, 2.0)    # in standard deviations
SHIFTS = (-1.2, 0.0, 1.2)               # along each axis


@dataclass(frozen=True)
class PoseWindow:
    """Poses of deviations psi float64[A] [degrees] and shift float64[B, 2] (y, x) [px], J = A·B, shifts running faster;
    log_weight float64[J]: logarithms of their probabilities. Class averages are vectors of `plane`."""

    plane: HalfPlane
    psi: np.ndarray
    shift: np.ndarray
    log_weight: np.ndarray

    @property
    def n_poses(self):
        return len(self.log_weight)

    @cached_property
    def _turns(self):
        return [None if angle == 0 else turn_matrix(self.plane, angle) for angle in self.psi]

    @cached_property
    def _ramps(self):
        return np.stack([shift_ramp(self.plane, shift) for shift in self.shift])

    def moved(self, y):
        """float64[K·J, D]: class averages y float64[K, D] at every pose, those of one class together."""
        out = np.empty((len(y), len(self.psi), len(self.shift), y.shape[1]))
        for a, turn in enumerate(self._turns):
            turned = np.ascontiguousarray(y if turn is None else y @ turn.T).view(np.complex128)
            out[:, a] = (turned[:, None] * self._ramps).view(np.float64)
        return out.reshape(-1, y.shape[1])

    def returned(self, sums):
        """float64[K, D]: sums float64[K·J, D] over particles at each pose, brought back and added: the transpose of
        `moved`."""
        sums = np.ascontiguousarray(sums).view(np.complex128)
        sums = sums.reshape(-1, len(self.psi), len(self.shift), sums.shape[1])
        unshifted = np.einsum("kabh,bh->kah", sums, self._ramps.conj()).view(np.float64)
        return sum(unshifted[:, a] if turn is None else unshifted[:, a] @ turn for a, turn in enumerate(self._turns))

    def brought_back(self, transformed, pose):
        """float32[n, D]: particles float32[n, D], each from its own pose int[n], as `returned`."""
        out = np.empty_like(transformed)
        angle, shift = np.divmod(pose, len(self.shift))
        for a, turn in enumerate(self._turns):
            own = np.flatnonzero(angle == a)
            values = transformed[own].astype(np.float64).view(np.complex128) * self._ramps[shift[own]].conj()
            out[own] = values.view(np.float64) if turn is None else values.view(np.float64) @ turn
        return out

    def folded(self, totals):
        """Totals (engine/manifold.py) of K classes, from those of every class at every pose."""
        ctf2 = totals.ctf2.reshape(-1, self.n_poses, totals.ctf2.shape[1]).sum(axis=1)
        return replace(totals, data=self.returned(totals.data), ctf2=ctf2)

    def refined(self, psi, origin, pose):
        """(psi float64[n] [degrees], origin float64[n, 2] [px]) of particles at poses int[n] of the window."""
        angle, shift = np.divmod(pose, len(self.shift))
        return psi + self.psi[angle], origin + rotate_offset(self.shift[shift], psi)


def window_size(sigma_psi, sigma_offset):
    """Poses of the window that `make_window` makes; 1 for none."""
    return (len(ANGLES) if sigma_psi else 1) * (len(SHIFTS) ** 2 if sigma_offset else 1)


def make_window(plane, sigma_psi, sigma_offset):
    """The PoseWindow for pose errors of standard deviations sigma_psi [degrees] and sigma_offset [px], or None if both
    are 0."""
    if not sigma_psi and not sigma_offset:
        return None
    angles = np.array(ANGLES if sigma_psi else (0.0,))
    steps = np.array(SHIFTS if sigma_offset else (0.0,))
    shifts = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    log_weight = -0.5 * (angles[:, None] ** 2 + np.sum(shifts**2, axis=1)).ravel()
    return PoseWindow(plane, sigma_psi * angles, sigma_offset * shifts,
                      log_weight - np.logaddexp.reduce(log_weight))
