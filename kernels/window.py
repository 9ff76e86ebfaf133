"""Class averages turned and shifted a little, as vectors of the half plane: what a particle near its pose is compared
with.

A band-limited image Y of a box of L px has, at a frequency q between the pixels, the value Σ_k Y_k d(q − k) over the
whole plane, d(u) = 1/L Σ_x exp(−2πi u x/L) along each axis: turning is a real matrix on the components. Y_0, which is
none of them, is what makes the corners of the box 0 on average. Where the image fills the box only within a disc, the
matrix keeps lengths, and its transpose turns back.
"""
import numba
import numpy as np


def turn_matrix(plane, degrees):
    """float64[D, D]: takes the components of an image y to those of y(R(−degrees) k); R as in engine/poses.py."""
    radians, (ky, kx) = np.deg2rad(-degrees), plane.frequency.T.astype(np.float64)
    qy, qx = np.cos(radians) * ky - np.sin(radians) * kx, np.sin(radians) * ky + np.cos(radians) * kx
    same = _between(qy, ky, plane.box_size) * _between(qx, kx, plane.box_size)
    mirror = _between(qy, -ky, plane.box_size) * _between(qx, -kx, plane.box_size)   # Y(−k) = conj Y(k)
    corners, mean = _corner_waves(plane), _between(qy, [0.0], plane.box_size) * _between(qx, [0.0], plane.box_size)
    same, mirror = same - mean * corners, mirror - mean * corners.conj()
    real, imaginary = same + mirror, same - mirror
    out = np.empty((2 * len(kx), 2 * len(kx)))
    out[0::2, 0::2], out[0::2, 1::2] = real.real, -imaginary.imag
    out[1::2, 0::2], out[1::2, 1::2] = real.imag, imaginary.real
    return out


def _between(q, k, box_size):
    """complex128[H, H]: d(q − k) along one axis, pixels counted from box_size // 2."""
    x = np.arange(box_size) - box_size // 2
    return np.exp(-2j * np.pi / box_size * np.outer(q, x)) @ np.exp(2j * np.pi / box_size * np.outer(x, k)) / box_size


def _corner_waves(plane):
    """complex128[H]: means of exp(2πi k·x/L) over the pixels beyond half a box from the centre."""
    axis = np.arange(plane.box_size) - plane.box_size // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    outside = np.stack([y, x])[:, np.hypot(y, x) > plane.box_size / 2]
    return np.exp(2j * np.pi / plane.box_size * (plane.frequency @ outside)).mean(axis=1)


def shift_ramp(plane, shift):
    """complex128[H]: exp(2πi k·shift/L), by which a shift (y, x) [px] multiplies the transform."""
    return np.exp(2j * np.pi / plane.box_size * (plane.frequency @ np.asarray(shift, dtype=np.float64)))


@numba.njit(nogil=True, cache=True)
def marginalise(scores, log_weight, out):
    """Turn scores float[n, K·J] of J poses of each class, in place, into probabilities of the poses of each class.

    out float[n, K] = log Σ_j exp(log_weight_j + score_kj): log_weight float[J], of the poses before a particle is seen.
    """
    n_poses = len(log_weight)
    for i in range(scores.shape[0]):
        for k in range(out.shape[1]):
            row = scores[i, k * n_poses:(k + 1) * n_poses]
            peak = -np.inf
            for j in range(n_poses):
                row[j] += log_weight[j]
                peak = max(peak, row[j])
            total = row[0] * 0
            for j in range(n_poses):
                row[j] = np.exp(row[j] - peak)
                total += row[j]
            for j in range(n_poses):
                row[j] /= total
            out[i, k] = peak + np.log(total)


def reference_marginalise(scores, log_weight, out):
    """NumPy twin of `marginalise`."""
    joint = scores.reshape(len(scores), out.shape[1], -1) + log_weight
    out[:] = np.logaddexp.reduce(joint, axis=2)
    scores[:] = np.exp(joint - out[:, :, None]).reshape(scores.shape)
