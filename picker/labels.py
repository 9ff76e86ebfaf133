"""Labelled micrographs and the tiles that are drawn from them for training.

A tile is a turned, perhaps mirrored, piece of a prepared micrograph, somewhat larger than the network's box, so that
the network has several outputs on it. An output is positive within NEAR of a labelled centre, negative beyond FAR of
all of them, and counts for nothing in between or in a disc that is to be ignored. Half of the tiles are drawn around
labelled centres, the others anywhere, so that all of the background is seen in the end.
"""
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from vitrea.kernels.micrograph import NORMAL_MAD
from vitrea.picker.decoys import decoy, mean_profile

NEAR, FAR = 0.12, 0.27   # of the diameter
GIVEN_SHARE = 0.5        # of the background tiles that are drawn around given negatives, where there are any
DECOY_AREA = 2000         # square diameters of decoys, for a few hundred blobs
BLOB_SHARE = 0.75         # of the tiles of decoys that are drawn around blobs
UNEVEN, LEAST_KNOWN = 4.0, 10   # robust deviations; labels that tell a median and a deviation
DECOY_STREAM, EMPTY_STREAM = 2**31 + 1, 2**31 + 2   # the number of steps is smaller


@dataclass(frozen=True)
class LabelledMicrograph:
    """A prepared image float32[h, w] with labels in its pixels: positives and negatives float[n, 2] (y, x), ignored
    float[n, 3] (y, x, radius), how many particles it holds that are not labelled, as far as is known, and the width of
    the margin [px] along its edges where nobody labelled; how uneven the micrograph is around each positive, as
    kernels.micrograph.deviation_ratios has it, where that is known."""

    image: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    unlabelled: float = 0.0
    margin: float = 0.0
    deviations: np.ndarray = field(default_factory=lambda: np.zeros(0))
    coefficients: np.ndarray = field(init=False)

    def __post_init__(self):
        # Cubic splines, because linear interpolation smooths the noise, which a network notices.
        object.__setattr__(self, "coefficients", spline_filter(self.image, order=3, output=np.float32, mode="mirror"))


def most_uneven(micrographs):
    """The largest deviation ratio that the surroundings of a particle may have, as labels tell it; None for few labels.

    That is UNEVEN robust deviations of the ratio's logarithm above the median, or the largest of any label.
    """
    ratios = np.concatenate([np.zeros(0), *(each.deviations for each in micrographs)])
    logarithms = np.log(ratios[np.isfinite(ratios) & (ratios > 0)])
    if len(logarithms) < LEAST_KNOWN:
        return None
    middle = np.median(logarithms)
    spread = NORMAL_MAD * np.median(np.abs(logarithms - middle))
    return float(np.exp(max(middle + UNEVEN * spread, logarithms.max())))


def covered(source, image, blobs, diameter):
    """LabelledMicrograph of an image float32[h, w] that has blobs float[n, 3] (y, x, radius) on that of `source`: under
    a blob there is no particle, and a particle that one touches counts for nothing."""
    apart = np.full(len(source.positives), np.inf)
    for blob in blobs:
        apart = np.minimum(apart, np.hypot(*(source.positives - blob[:2]).T) - blob[2])
    touched = source.positives[(apart > 0) & (apart < 0.5 * diameter)]
    discs = np.column_stack([touched, np.full(len(touched), FAR * diameter)])
    return LabelledMicrograph(image, source.positives[apart >= 0.5 * diameter], blobs[:, :2],
                              np.concatenate([source.ignored, discs]), margin=source.margin)


@dataclass(frozen=True)
class Augmentation:
    """How tiles differ from their micrograph: turned by any angle or by quarters, mirrored; moved from the labelled
    centre by up to `shift` px; contrast times e^(contrast·n), level plus offset·n, white noise of up to `noise`; and
    another defocus, cos(defocus·n·(s/Nyquist)²) in Fourier space, n normal. A share `decoys` of the background tiles is
    from decoys (picker/decoys.py).

    An image under the phase χ of its defocus is sin χ times the specimen's transform; a change Δ of the phase makes it
    sin χ cos Δ + cos χ sin Δ. Of that the first part can be had from the image alone, and Δ = πλ·Δz·s² in `defocus`.
    """

    any_angle: bool = True
    mirror: bool = True
    shift: float = 8.0
    contrast: float = 0.15
    offset: float = 0.1
    noise: float = 0.3
    defocus: float = 0.0
    decoys: float = 0.5


class Sampler:
    """Draws tiles of `outputs` × `outputs` places; draw k of a step is the same on any rank and in any order."""

    def __init__(self, micrographs, network, diameter, outputs, augmentation, seed):
        self.micrographs, self.diameter, self.outputs = micrographs, diameter, outputs
        self.augmentation, self.seed = augmentation, seed
        self.side = network.box + network.stride * (outputs - 1)
        self._grid = _centred(self.side, 1.0)
        self._places = _centred(outputs, network.stride)
        self._square = (np.fft.fftfreq(self.side)[:, None] ** 2 + np.fft.rfftfreq(self.side) ** 2) / 0.5**2
        areas = np.array([each.image.size for each in micrographs], dtype=float)
        self._area_share = np.cumsum(areas) / areas.sum()
        self._positives = [(m, y, x) for m, each in enumerate(micrographs) for y, x in each.positives]
        self._negatives = [(m, y, x) for m, each in enumerate(micrographs) for y, x in each.negatives]
        self._decoy_share, self._decoy_size = augmentation.decoys, (diameter, round(network.window * diameter))
        self._decoys = self._made_decoys() if self._decoy_share else []

    def _made_decoys(self):
        """LabelledMicrographs with blobs, copies of the micrographs and empty ones in turn, until they have DECOY_AREA.
        Blobs are their given negatives."""
        size, found, area = self._decoy_size, [], 0.0
        profile = _profile(self.micrographs, self.diameter)
        while area < DECOY_AREA * self.diameter**2:
            source = self.micrographs[len(found) // 2 % len(self.micrographs)]
            random = np.random.default_rng((self.seed, DECOY_STREAM, len(found)))
            found.append(_decoy(source, size, profile, random, empty=len(found) % 2 == 1))
            area += source.image.size
        return found

    def draw(self, step, k):
        """(tile float32[T, T], target float32[o, o], weight float32[o, o]) of draw k of a step; even k are positive."""
        random = np.random.default_rng((self.seed, step, k))
        micrograph, centre = self._centre(random, positive=k % 2 == 0)
        turn = self._turn(random)
        at = centre[:, None] + turn @ self._grid
        tile = map_coordinates(micrograph.coefficients, at, order=3, prefilter=False, mode="mirror")
        tile = self._disturbed(tile.reshape(self.side, self.side), random)
        target, weight = self._labels(micrograph, (centre[:, None] + turn @ self._places).T)
        return tile, target, weight

    def draws(self, step, numbers):
        """Several draws as arrays: tiles [n, T, T], targets and weights [n, o, o]."""
        return tuple(np.stack(parts) for parts in zip(*(self.draw(step, k) for k in numbers)))

    def _centre(self, random, positive):
        if positive:
            m, y, x = self._positives[random.integers(len(self._positives))]
            shift = random.uniform(-1, 1, 2) * self.augmentation.shift
            return self.micrographs[m], np.array([y, x]) + shift
        if self._negatives and random.random() < GIVEN_SHARE:
            m, y, x = self._negatives[random.integers(len(self._negatives))]
            return self.micrographs[m], np.array([y, x])
        if random.random() < self._decoy_share:
            return self._on_decoy(random)
        micrograph = self.micrographs[int(np.searchsorted(self._area_share, random.random(), side="right"))]
        return micrograph, random.uniform(-0.5, np.array(micrograph.image.shape) - 0.5)

    def _on_decoy(self, random):
        """A decoy and a place there, most often near the middle of a blob."""
        decoy = self._decoys[random.integers(len(self._decoys))]
        if len(decoy.negatives) and random.random() < BLOB_SHARE:
            shift = random.uniform(-1, 1, 2) * self.augmentation.shift
            return decoy, decoy.negatives[random.integers(len(decoy.negatives))] + shift
        return decoy, random.uniform(-0.5, np.array(decoy.image.shape) - 0.5)

    def _turn(self, random):
        angle = random.uniform(0, 2 * np.pi) if self.augmentation.any_angle else random.integers(4) * np.pi / 2
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if self.augmentation.mirror and random.random() < 0.5:
            turn[:, 1] *= -1
        return turn

    def _disturbed(self, tile, random):
        augmentation = self.augmentation
        if augmentation.defocus:
            change = np.cos(augmentation.defocus * random.normal() * self._square)
            tile = np.fft.irfft2(np.fft.rfft2(tile) * change, tile.shape)
        tile = tile * np.exp(augmentation.contrast * random.normal()) + augmentation.offset * random.normal()
        tile += augmentation.noise * random.random() * random.normal(size=tile.shape)
        return tile.astype(np.float32)

    def _labels(self, micrograph, places):
        """Targets and weights of places float[n, 2] (y, x)."""
        distance = _nearest(places, micrograph.positives)
        target = distance < NEAR * self.diameter
        weight = target | (distance > FAR * self.diameter)
        if len(micrograph.ignored):
            apart = np.hypot(*(places[:, None] - micrograph.ignored[None, :, :2]).transpose(2, 0, 1))
            weight &= ~(apart < micrograph.ignored[:, 2]).any(axis=1)
        edge = micrograph.margin - 0.5
        inside = ((places > edge) & (places < np.array(micrograph.image.shape) - 1 - edge)).all(axis=1)
        shape = (self.outputs, self.outputs)
        return target.astype(np.float32).reshape(shape), (weight & inside).astype(np.float32).reshape(shape)

    def unlabelled_share(self):
        """The part of the places called negative where a particle stands that nobody labelled."""
        disc = np.pi * (NEAR * self.diameter) ** 2
        missed = sum(each.unlabelled for each in self.micrographs) * disc
        return min(0.5, (1 - self._decoy_share) * missed / sum(each.image.size for each in self.micrographs))


def empty_decoys(micrographs, size, seed):
    """A LabelledMicrograph without particles for each that is given, of its size; none that a Sampler draws from.

    size: (diameter, window of the preparation) [px].
    """
    profile = _profile(micrographs, size[0])
    return [_decoy(each, size, profile, np.random.default_rng((seed, EMPTY_STREAM, number)), empty=True)
            for number, each in enumerate(micrographs)]


def _decoy(source, size, profile, random, *, empty):
    image, blobs = decoy(source.image, *size, profile, random, empty=empty)
    if empty:
        return LabelledMicrograph(image, np.zeros((0, 2)), blobs[:, :2], margin=source.margin)
    return covered(source, image, blobs, size[0])


def _profile(micrographs, diameter):
    return mean_profile([each.image for each in micrographs], [each.positives for each in micrographs], diameter)


def _centred(n, spacing):
    axis = (np.arange(n) - (n - 1) / 2) * spacing
    return np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)


def _nearest(places, centres):
    """Distance of each place to the nearest centre; infinite if there is none."""
    if not len(centres):
        return np.full(len(places), np.inf)
    return np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1)).min(axis=1)
