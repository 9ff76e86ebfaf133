"""Simulated particles in their poses: what manifold learning is measured on.

Box 64 at 4 Å/px; 300 kV, C_s 2.7 mm, amplitude contrast 0.1, 20 defoci from 1.0 to 2.5 µm; white noise, SNR = variance
of the CTF-filtered signal over the whole box ÷ variance of the noise; Fourier rings up to 16 are kept. Specimens are
Gaussian blobs, drawn from a seed:

    hinge      a body of 14 blobs and an arm of 4 that turns from −45° to 45° in ten equal steps, 150 particles a step
    motion     the same, every particle at an angle of its own
    unrelated  ten discs of 18 blobs each, 150 particles a view
    rotations  one such disc in 25 rotations, 60 particles each

Junk stands in for good particles, a third of it each: images of noise; particles off-centre by 0.25 to 0.5 of the
diameter (of 40 px, the hinge's); particles beside which another stands, of any view and rotation, its centre 0.6 to
1.2 diameters away and inside the box.
"""
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage
from scipy.optimize import linear_sum_assignment

from vitrea.engine.manifold import EmbeddedParticles, Layout, cut, hold_out
from vitrea.kernels.ctf import ctf
from vitrea.kernels.embedding import HalfPlane, shell_power

BOX, PIXEL_SIZE, RADIUS, N_DEFOCI = 64, 4.0, 16, 20
BODY_BLOBS, DISC_BLOBS, BODY_RADIUS, BODY_SIGMA = 14, 18, 15.0, 2.5         # px
ARM_BLOBS, ARM_START, ARM_STEP, ARM_SIGMA, ARM_HEIGHT = 4, 4.0, 4.0, 2.25, 1.18
MOST_TURNED = 45.0   # degrees
POSITIONS = np.linspace(-MOST_TURNED, MOST_TURNED, 10)
DIAMETER, OFF_CENTRE, NEIGHBOUR = 40.0, (0.25, 0.5), (0.6, 1.2)   # px; diameters
GOOD, NOISE, MOVED, CROWDED = range(4)   # kinds of particles


def _grid():
    return np.mgrid[:BOX, :BOX] - BOX // 2


def _blobs(points, heights, sigma):
    y, x = _grid()
    return sum(height * np.exp(-((y - point[0]) ** 2 + (x - point[1]) ** 2) / (2.0 * sigma**2))
               for height, point in zip(heights, points))


def _disc_points(random, n):
    """(n points in the disc, their heights)."""
    points = random.uniform(-1, 1, (20 * n, 2))
    return BODY_RADIUS * points[np.sum(points**2, axis=1) < 1][:n], random.uniform(0.5, 1.5, n)


def hinge_views(seed, degrees=POSITIONS):
    """float64[V, 64, 64]: the hinge with its arm at these angles; the body is drawn from `seed`."""
    body = _blobs(*_disc_points(np.random.default_rng([seed, 1]), BODY_BLOBS), BODY_SIGMA)
    reach, heights = ARM_START + ARM_STEP * np.arange(1, ARM_BLOBS + 1), np.full(ARM_BLOBS, ARM_HEIGHT)
    return np.stack([body + _blobs(np.outer(reach, [np.sin(a), np.cos(a)]), heights, ARM_SIGMA)
                     for a in np.deg2rad(degrees)])


def unrelated_views(seed):
    """float64[10, 64, 64]: ten discs that have nothing to do with each other."""
    random = np.random.default_rng([seed, 11])
    return np.stack([_blobs(*_disc_points(random, DISC_BLOBS), BODY_SIGMA) for _ in range(10)])


def rotated_views(seed):
    """float64[25, 64, 64]: one disc, turned by whole steps of 14.4°."""
    points, heights = _disc_points(np.random.default_rng([seed, 12]), DISC_BLOBS)
    turns = 2.0 * np.pi * np.arange(25) / 25
    return np.stack([_blobs(points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]), heights, BODY_SIGMA)
                     for a in turns])


@dataclass(frozen=True)
class Aligned:
    """Simulated particles: t, c float64[n, D], c2 float64[n, S], true class int64[n], true references float64[K, D]
    (noise of variance 1), kind int64[n]: GOOD, NOISE, MOVED or CROWDED."""

    plane: HalfPlane
    t: np.ndarray
    c: np.ndarray
    c2: np.ndarray
    truth: np.ndarray
    references: np.ndarray
    kind: np.ndarray

    @property
    def n_classes(self):
        return len(self.references)

    @property
    def flipped(self):
        """float64[n, D]: particles with the phases the CTF turned turned back."""
        return self.t * np.sign(self.c)

    def particles(self, held_out=0.0, seed=0):
        """EmbeddedParticles of a single rank."""
        rows, starts = cut(len(self.t), rank=0, size=1)
        power = shell_power(self.t, self.plane.group, self.plane.shell)
        return EmbeddedParticles((self.c * self.t).astype(np.float32), self.c2.astype(np.float32), power, rows, starts,
                                 len(rows), Layout(self.plane.group, self.plane.shell),
                                 hold_out(rows, held_out, seed))


def simulate(views, per_view, snr, seed, junk=0.0):
    """Aligned particles, per_view of each of views float[K, 64, 64], a share of which is junk."""
    random = np.random.default_rng([seed, 2])
    truth = np.repeat(np.arange(len(views)), per_view)
    scenes, kind = _with_junk(views, truth, junk, seed)
    defocus = random.uniform(1.0e4, 2.5e4, N_DEFOCI)
    which = random.integers(N_DEFOCI, size=len(truth))
    frequency = np.hypot(fft.fftfreq(BOX)[:, None], fft.rfftfreq(BOX)) / PIXEL_SIZE
    transfer = np.stack([ctf(frequency, 0.0, defocus_u=z, defocus_v=z, defocus_angle=0.0, voltage=300.0, cs=2.7,
                             amplitude_contrast=0.1) for z in defocus])
    signal = fft.irfft2(fft.rfft2(scenes) * transfer[which], s=(BOX, BOX))
    sigma = np.sqrt(signal[kind == GOOD].var() / snr)
    images = signal / sigma + random.normal(size=signal.shape)
    plane = HalfPlane(BOX, RADIUS)
    c = transfer[:, plane.frequency[:, 0], plane.frequency[:, 1]]
    return Aligned(plane, plane.embed_images(images).astype(np.float64), np.repeat(c, 2, axis=1)[which],
                   plane.group_means(c**2)[which], truth, plane.embed_images(views / sigma).astype(np.float64), kind)


def _with_junk(views, truth, share, seed):
    """(scenes float64[n, 64, 64], kind int64[n])."""
    random = np.random.default_rng([seed, 7])
    scenes, kind = views[truth], np.zeros(len(truth), dtype=np.int64)
    spoilt = random.permutation(len(truth))[:round(share * len(truth))]
    kind[spoilt] = 1 + np.arange(len(spoilt)) % 3
    scenes[kind == NOISE] = 0
    for i in np.flatnonzero(kind == MOVED):
        scenes[i] = ndimage.shift(scenes[i], _offset(random, OFF_CENTRE))
    for i in np.flatnonzero(kind == CROWDED):
        other = ndimage.rotate(views[random.integers(len(views))], random.uniform(0.0, 360.0), reshape=False)
        scenes[i] += ndimage.shift(other, _offset(random, NEIGHBOUR))
    return scenes, kind


def _offset(random, diameters):
    """(y, x) [px] of a random direction and a length in this range, inside the box."""
    while True:
        angle, length = random.uniform(0.0, 2.0 * np.pi), DIAMETER * random.uniform(*diameters)
        offset = length * np.array([np.sin(angle), np.cos(angle)])
        if np.abs(offset).max() < BOX / 2:
            return offset


def simulate_motion(n, snr, seed):
    """(Aligned particles of a hinge, each a view of its own; degrees float64[n])."""
    degrees = np.random.default_rng([seed, 13]).uniform(-MOST_TURNED, MOST_TURNED, n)
    return simulate(hinge_views(seed, degrees), 1, snr, seed), degrees


def accuracy(truth, found):
    """Share of particles in the class matched to theirs, one to one, as well as can be (Hungarian)."""
    table = np.zeros((truth.max() + 1, max(truth.max(), found.max()) + 1))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))
