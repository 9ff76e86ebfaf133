"""One micrograph to picks: prepare, scan, find maxima, suppress neighbours, back to the micrograph's own pixels."""
from dataclasses import dataclass

import numpy as np

from vitrea.picker.calibration import Calibration
from vitrea.picker.network import Network, stages
from vitrea.picker.peaks import local_maxima, suppress
from vitrea.picker.scan import ORIENTATIONS, DenseScan

SCORE_FLOOR = 0.05   # of the network's own score, before calibration: picks below it are not kept


@dataclass(frozen=True)
class Picks:
    """Picks of one micrograph, best first: x, y float64[n] px of the micrograph (of the centre, row 0 stored first),
    score float64[n] in 0..1, edge bool[n]: nearer than half a box to the edge, where the scan saw mirrored pixels."""

    x: np.ndarray
    y: np.ndarray
    score: np.ndarray
    edge: np.ndarray

    def __len__(self):
        return len(self.x)

    def inside(self, margin, shape):
        """The picks further than `margin` px from the edges of a micrograph of `shape` (height, width)."""
        height, width = shape
        apart = np.min([self.x, self.y, width - 1 - self.x, height - 1 - self.y], axis=0)
        return self.where(apart >= margin if margin else np.ones(len(self), dtype=bool))

    def where(self, kept):
        """The picks that are `kept` bool[n]."""
        return Picks(self.x[kept], self.y[kept], self.score[kept], self.edge[kept])


@dataclass(frozen=True)
class Picker:
    """A trained network with all that picking needs: preparation, the distance [Å] between picks, what makes
    probabilities of the network's scores (None: nothing), and how uneven the surroundings of a pick may be beside the
    micrograph's (`kernels.micrograph.deviation_ratios`; None: not known). `job: pick` leaves out what is more."""

    network: Network
    parameters: dict
    statistics: dict
    preparation: object
    distance: float
    orientations: tuple = ORIENTATIONS
    step: int | None = None
    calibration: Calibration | None = None
    max_deviation: float | None = None

    def planned(self, shape):
        """A DenseScan for prepared images of `shape`; the images are mirrored by half a box on every side."""
        margin = 2 * (self.network.box // 2)
        return DenseScan(stages(self.network, self.parameters, self.statistics), self.network.box,
                         tuple(n + margin for n in shape), step=self.step, orientations=self.orientations)

    def score_map(self, prepared, scan=None):
        """(scores float32[h, w], origin, step): the score at (i, j) is of the place origin + step·(i, j) [px]."""
        scan = scan or self.planned(prepared.shape)
        half = self.network.box // 2
        scores = scan.scores(np.pad(prepared, half, mode="symmetric"))
        return scores, (self.network.box - 1) / 2 - half, scan.step

    def pick(self, micrograph, scan=None, floor=SCORE_FLOOR):
        """Picks of a Micrograph with scores above `floor`."""
        return self.pick_prepared(micrograph, self.preparation.apply(micrograph), scan, floor)

    def pick_prepared(self, micrograph, prepared, scan=None, floor=SCORE_FLOOR):
        """As `pick`, where the prepared image float32[h, w] is there already."""
        scores, origin, step = self.score_map(prepared, scan)
        places, values = local_maxima(scores, floor)
        places = origin + step * places
        inside = ((places > -0.5) & (places < np.array(prepared.shape) - 0.5)).all(axis=1)
        places, values = places[inside], values[inside]
        kept = suppress(places * self._angstrom(micrograph, prepared), values, self.distance)
        places, values = places[kept], values[kept]
        half = self.network.box / 2
        edge = ((places < half) | (places > np.array(prepared.shape) - half)).any(axis=1)
        # Cropping in Fourier space keeps pixel 0 where it is, and with it the places of all samples.
        y, x = (places * np.array(micrograph.image.shape) / prepared.shape).T
        return Picks(x, y, self.calibration.apply(values) if self.calibration else values, edge)

    @staticmethod
    def _angstrom(micrograph, prepared):
        """Å per pixel of the prepared image along y and x."""
        return micrograph.pixel_size * np.array(micrograph.image.shape) / prepared.shape
