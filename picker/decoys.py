"""Decoys: artificial images of what is no particle, for training; few labelled micrographs show all that a session has.

A network that has never seen an edge of carbon, a crystal of ice or an empty hole takes some of them for particles. On
a decoy lie blobs of many sizes, some in heaps. Half of the decoys are copies of labelled micrographs, so that blobs
cannot be told by the noise around them; the others have about the spectrum of one, but random phases, so that nothing
is left in them that has a form, and some have the edge of a film. Spectra, outlines, contrasts and the fringes of
defocus on both sides of an edge are drawn at random, wider than any one session has them, and the image is brought to
an even background and contrast as micrographs are. A blob whose profile is much like the mean particle's is left out:
of a particle that looks like a blob, a network would unlearn the particle.
"""
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

from vitrea.kernels.micrograph import even_out

BLOBS = 0.2                   # blobs a square diameter
HEAP_SHARE, HEAP = 0.3, 0.8   # of blobs that lie beside another one, and how far from it [diameters]
LIKE_PARTICLES = 0.8          # share of blobs that are as dark or as bright as particles are, not the opposite
HARMONICS, ROUGHNESS = 4, 0.15   # of an outline; the k-th has a deviation of ROUGHNESS/k of the radius at most
PROFILE, PROFILED = 0.75, 100    # radius of the particle's profile [diameters], labels of an image it is taken from
MOST_ALIKE, TRIES = 0.8, 8       # correlation with it from which a blob is drawn again, and how often
SOFT = (0.4, 2.5)             # width of an edge [px]
FRINGE_WIDTH = (1.0, 3.0)     # of the fringes inside and outside of an edge [px]


@dataclass(frozen=True)
class Kind:
    """Limits between which blobs or films are drawn: radius [diameters] and contrast [deviations of the noise], evenly
    in their logarithms, and height of the fringes in contrasts."""

    radius: tuple = (0.2, 0.9)
    contrast: tuple = (0.5, 6.0)
    fringe: tuple = (0.0, 1.5)


# Every second blob is as large and as faint as particles are: those are the hardest to tell from them.
KINDS = (Kind(), Kind((0.3, 0.6), (0.4, 2.0), (0.3, 1.2)))
TILT = 0.7                    # deviation of the logarithm of the spectrum's gain, a wave in the logarithm of frequency
FILM_SHARE, FILM_NOISE = 0.5, (0.5, 2.0)   # of decoys with the edge of a film, and how strong the noise is on it
WAVES, WAVE = 3, 0.15         # that an edge has, of WAVE diameters


def decoy(image, diameter, window, profile, random, *, empty):
    """(image float32[h, w], blobs float[n, 3] (y, x, radius)): blobs on a prepared image float32[h, w] itself, or,
    where it shall be empty, on noise with about its spectrum, then perhaps with the edge of a film.

    diameter and window [px] are those of the micrographs' preparation; profile is that of the particle, as
    `mean_profile` gives it; random is a NumPy Generator.
    """
    canvas = phases_drawn(image, random) if empty else image.copy()
    if empty and random.random() < FILM_SHARE:
        canvas = _with_film(canvas, diameter, random)
    blobs = _places(image.shape, diameter, random)
    for number, blob in enumerate(blobs):
        _add_blob(canvas, blob, _unlike(profile, blob[2], KINDS[number % len(KINDS)], random), random)
    return even_out(canvas, window), blobs


def mean_profile(images, places, diameter):
    """float64[n]: mean of images float32[h, w] on circles of (k + ½) px around the places float[m, 2] (y, x) of each,
    up to PROFILE diameters; of the first PROFILED places of each image. Without places, a dark disc's."""
    radius = np.arange(0.5, PROFILE * diameter)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.outer(radius, np.sin(angle)), np.outer(radius, np.cos(angle))])
    found = [map_coordinates(image, circle + np.reshape(place, (2, 1, 1)), order=1, mode="mirror").mean(axis=1)
             for image, at in zip(images, places) for place in at[:PROFILED]]
    return np.mean(found, axis=0) if found else np.where(radius < diameter / 2, -1.0, 0.0)


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


def _places(shape, diameter, random):
    """float[n, 3] (y, x, radius) of blobs, up to a radius outside the image."""
    n = random.poisson(BLOBS * np.prod(shape) / diameter**2)
    centres = random.uniform(-0.5 * diameter, np.array(shape) + 0.5 * diameter, size=(n, 2))
    for row in range(1, n):
        if random.random() < HEAP_SHARE:
            centres[row] = centres[row - 1] + HEAP * diameter * random.normal(size=2)
    radii = [_log_uniform(KINDS[number % len(KINDS)].radius, random) for number in range(n)]
    return np.column_stack([centres, diameter * np.array(radii)])


def _unlike(profile, radius, kind, random):
    """An edge of a blob of a radius [px] that does not look like the particle itself, or None."""
    at = np.arange(len(profile)) + 0.5
    sign = np.sign(np.sum(profile * at * (at < len(profile) / (2 * PROFILE)))) or -1.0
    for _ in range(TRIES):
        edge = _drawn_edge(kind, random, sign if random.random() < LIKE_PARTICLES else -sign)
        if _correlation(edge(radius - at), profile, at) < MOST_ALIKE:
            return edge
    return None


def _correlation(first, second, weights):
    first, second = (each - np.average(each, weights=weights) for each in (first, second))
    scale = np.sqrt(np.sum(weights * first**2) * np.sum(weights * second**2))
    return float(np.sum(weights * first * second) / max(scale, 1e-12))


def _add_blob(canvas, blob, edge, random):
    """Add a blob float[3] (y, x, radius) with an edge to the canvas float32[h, w]."""
    centre, radius = blob[:2], blob[2]
    harmonics = random.uniform(0, ROUGHNESS) * random.normal(size=(2, HARMONICS)) / np.arange(1, HARMONICS + 1)
    reach = int(1.6 * radius + 3 * FRINGE_WIDTH[1] + 3 * SOFT[1])
    low = np.maximum(np.rint(centre).astype(int) - reach, 0)
    high = np.minimum(np.rint(centre).astype(int) + reach + 1, canvas.shape)
    if edge is None or (high <= low).any():
        return
    y, x = (np.arange(a, b) - c for a, b, c in zip(low, high, centre))
    distance = np.hypot(y[:, None], x)
    turn = (x + 1j * y[:, None]) / np.maximum(distance, 1e-9)   # e^(i·angle); its powers are the harmonics
    outline, power = 1.0, 1.0
    for cosine, sine in harmonics.T:
        power = power * turn
        outline = outline + cosine * power.real + sine * power.imag
    canvas[low[0]:high[0], low[1]:high[1]] += edge(radius * outline - distance)


def _drawn_edge(kind, random, sign):
    """The function that gives the contrast of something whose outline a place is `depth` [px] inside of."""
    soft, width = random.uniform(*SOFT), random.uniform(*FRINGE_WIDTH)
    within, beyond = random.uniform(*kind.fringe, size=2)
    contrast = sign * _log_uniform(kind.contrast, random)

    def edge(depth):
        fringes = within * np.exp(-0.5 * (depth / width - 1) ** 2) - beyond * np.exp(-0.5 * (depth / width + 1) ** 2)
        return contrast * (0.5 * (1 + np.tanh(depth / soft)) + fringes)

    return edge


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
    return canvas * gain + _drawn_edge(KINDS[0], random, random.choice([-1, 1]))(depth)


def _log_uniform(limits, random):
    return float(np.exp(random.uniform(*np.log(limits))))
