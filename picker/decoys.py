"""Decoys: artificial images of what is no particle, for training; few labelled micrographs show all that a session has.

A network that has never seen an edge of carbon, a crystal of ice or an empty hole takes some of them for particles. On
a decoy lie blobs of many sizes, some in heaps. Half of the decoys are copies of labelled micrographs, so that blobs
cannot be told by the noise around them; the others have about the spectrum of one, but random phases, so that nothing
is left in them that has a form, and some have the edge of a film. Spectra, outlines, contrasts and the fringes of
defocus on both sides of an edge are drawn at random, wider than any one session has them, and the image is brought to
an even background and contrast as micrographs are.
"""
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter

from vitrea.kernels.micrograph import even_out

BLOBS = 0.2                   # blobs a square diameter
HEAP_SHARE, HEAP = 0.3, 0.8   # of blobs that lie beside another one, and how far from it [diameters]
LIKE_PARTICLES = 0.8          # share of blobs that are as dark or as bright as particles are, not the opposite
HARMONICS = 4                 # of an outline
SOFT = (0.4, 2.5)             # width of an edge [px]
FRINGE_WIDTH = (1.0, 3.0)     # of the fringes inside and outside of an edge [px]


@dataclass(frozen=True)
class Kind:
    """Limits between which blobs or films are drawn: radius [diameters] and contrast [deviations of the noise], evenly
    in their logarithms, height of the fringes in contrasts, and roughness: the k-th harmonic of an outline is normal
    with a deviation of roughness/k of the radius."""

    radius: tuple = (0.2, 0.9)
    contrast: tuple = (0.5, 6.0)
    fringe: tuple = (0.0, 1.5)
    roughness: tuple = (0.0, 0.2)


# Every second blob is as large and as faint as particles are: those are the hardest to tell from them.
KINDS = (Kind(), Kind((0.3, 0.6), (0.4, 2.0), (0.3, 1.2), (0.0, 0.1)))
TILT = 0.7                    # deviation of the logarithm of the spectrum's gain, a wave in the logarithm of frequency
FILM_SHARE, FILM_NOISE = 0.5, (0.5, 2.0)   # of decoys with the edge of a film, and how strong the noise is on it
WAVES, WAVE = 3, 0.15         # that an edge has, of WAVE diameters


def decoy(image, diameter, window, sign, random, *, empty):
    """(image float32[h, w], blobs float[n, 3] (y, x, radius)): blobs on a prepared image float32[h, w] itself, or,
    where it shall be empty, on noise with about its spectrum, then perhaps with the edge of a film.

    diameter and window [px] are those of the micrographs' preparation; sign is −1 where particles are dark, +1 where
    they are bright; random is a NumPy Generator.
    """
    canvas = phases_drawn(image, random) if empty else image.copy()
    if empty and random.random() < FILM_SHARE:
        canvas = _with_film(canvas, diameter, random)
    blobs = _places(image.shape, diameter, random)
    for number, blob in enumerate(blobs):
        _add_blob(canvas, blob, KINDS[number % len(KINDS)], random, sign)
    return even_out(canvas, window), blobs


def phases_drawn(image, random):
    """float32[h, w] of deviation 1 with the phases of white noise, and amplitudes between those of white noise and
    those of an image, with more of some frequencies and less of others."""
    noise = fft.rfft2(random.standard_normal(image.shape, dtype=np.float32))
    size = np.abs(noise)
    frequency = np.hypot(fft.fftfreq(image.shape[0])[:, None], fft.rfftfreq(image.shape[1])) + 1 / max(image.shape)
    wave = np.cos(np.log(frequency) * random.uniform(0.5, 2) + random.uniform(0, 2 * np.pi))
    share = random.random()
    gain = np.exp(TILT * random.normal() * wave) * (np.abs(fft.rfft2(image)) / np.where(size > 0, size, 1)) ** share
    drawn = fft.irfft2(gain.astype(np.float32) * noise, image.shape)
    return drawn / max(drawn.std(), 1e-12)


def particle_sign(images, places, diameter):
    """−1 if images float32[h, w] are darker at the places float[n, 2] (y, x) of each than elsewhere, else +1."""
    inside = [gaussian_filter(image, diameter / 6)[tuple(np.rint(at).astype(int).clip(0, np.array(image.shape) - 1).T)]
              for image, at in zip(images, places) if len(at)]
    return -1 if not inside or np.concatenate(inside).mean() < 0 else 1


def _places(shape, diameter, random):
    """float[n, 3] (y, x, radius) of blobs, up to a radius outside the image."""
    n = random.poisson(BLOBS * np.prod(shape) / diameter**2)
    centres = random.uniform(-0.5 * diameter, np.array(shape) + 0.5 * diameter, size=(n, 2))
    for row in range(1, n):
        if random.random() < HEAP_SHARE:
            centres[row] = centres[row - 1] + HEAP * diameter * random.normal(size=2)
    radii = [_log_uniform(KINDS[number % len(KINDS)].radius, random) for number in range(n)]
    return np.column_stack([centres, diameter * np.array(radii)])


def _add_blob(canvas, blob, kind, random, sign):
    """Add a blob float[3] (y, x, radius) of a Kind to the canvas float32[h, w]."""
    centre, radius = blob[:2], blob[2]
    harmonics = random.uniform(*kind.roughness) * random.normal(size=(2, HARMONICS)) / np.arange(1, HARMONICS + 1)
    reach = int(1.6 * radius + 3 * FRINGE_WIDTH[1] + 3 * SOFT[1])
    low = np.maximum(np.rint(centre).astype(int) - reach, 0)
    high = np.minimum(np.rint(centre).astype(int) + reach + 1, canvas.shape)
    sign = sign if random.random() < LIKE_PARTICLES else -sign
    if (high <= low).any():
        return
    y, x = (np.arange(a, b) - c for a, b, c in zip(low, high, centre))
    distance = np.hypot(y[:, None], x)
    turn = (x + 1j * y[:, None]) / np.maximum(distance, 1e-9)   # e^(i·angle); its powers are the harmonics
    outline, power = 1.0, 1.0
    for cosine, sine in harmonics.T:
        power = power * turn
        outline = outline + cosine * power.real + sine * power.imag
    depth = radius * outline - distance
    canvas[low[0]:high[0], low[1]:high[1]] += sign * _edge(depth, kind, random)


def _edge(depth, kind, random):
    """The contrast of something whose outline places are `depth` [px] inside of, with its fringes."""
    inside = 0.5 * (1 + np.tanh(depth / random.uniform(*SOFT)))
    width = random.uniform(*FRINGE_WIDTH)
    within, beyond = random.uniform(*kind.fringe, size=2)
    fringes = within * np.exp(-0.5 * (depth / width - 1) ** 2) - beyond * np.exp(-0.5 * (depth / width + 1) ** 2)
    return _log_uniform(kind.contrast, random) * (inside + fringes)


def _with_film(canvas, diameter, random):
    """The canvas float32[h, w] with a film beyond a wavy line."""
    angle, along = random.uniform(0, 2 * np.pi), np.array(canvas.shape)
    y, x = (np.arange(n) - random.uniform(0.2, 0.8) * n for n in canvas.shape)
    depth = y[:, None] * np.sin(angle) + x * np.cos(angle)
    across = y[:, None] * np.cos(angle) - x * np.sin(angle)
    for _ in range(WAVES):
        length = along.max() * random.uniform(0.05, 1)
        depth = depth + WAVE * diameter * random.normal() * np.sin(2 * np.pi * (across / length + random.random()))
    gain = 1 + (_log_uniform(FILM_NOISE, random) - 1) * 0.5 * (1 + np.tanh(depth))
    return canvas * gain + random.choice([-1, 1]) * _edge(depth, KINDS[0], random)


def _log_uniform(limits, random):
    return float(np.exp(random.uniform(*np.log(limits))))
