"""What lies where on a simulated micrograph: particles, heaps of them, a carbon edge, contamination.

Places are drawn by darts: contamination and carbon first, then aggregates, then single particles at least SPACING
diameters from everything else, some of them with a neighbour so near that neither is a clean particle.
"""
from dataclasses import dataclass

import numpy as np

SPACING = 1.05                   # least distance of single particles [diameters]
OVERLAP = (0.4, 0.8)             # distance of an overlapping neighbour [diameters]
AGGREGATE_SIZE, AGGREGATE_SPREAD = (4, 13), 0.45   # particles, and their standard deviation [diameters]
CARBON_SHARE = (0.08, 0.3)       # of the micrograph's extent across the edge
BLOB_RADIUS = (0.3, 1.2)         # of contamination [diameters]
BLOB_WOBBLE = 0.12               # of its outline, six-fold: crystals of ice
TRIES = 200                      # darts a particle before the ice is called full
CLEAN, OVERLAPPING, AGGREGATED, CUT = range(4)   # kinds of particles; CUT: nearer than a radius to an edge


@dataclass(frozen=True)
class Scene:
    """One micrograph's truth, in its pixels: centres float64[n, 2] (y, x), kind int8[n]; carbon: None, or (angle
    [radians], offset [px]) of the line y·sin + x·cos = offset beyond which it lies; contamination float64[m, 4] (y, x,
    radius, turn of its outline [radians])."""

    shape: tuple[int, int]
    centres: np.ndarray
    kind: np.ndarray
    carbon: tuple[float, float] | None
    contamination: np.ndarray

    def carbon_depth(self, y, x):
        """How far places are inside the carbon [px]; negative beside it, −∞ where there is none."""
        if self.carbon is None:
            return np.full(np.broadcast_shapes(np.shape(y), np.shape(x)), -np.inf)
        angle, offset = self.carbon
        return y * np.sin(angle) + x * np.cos(angle) - offset

    def contamination_depth(self, y, x):
        """How far places are inside the nearest piece of contamination [px]; negative beside it."""
        depth = np.full(np.broadcast_shapes(np.shape(y), np.shape(x)), -np.inf)
        for b, a, radius, turn in self.contamination:
            outline = radius * (1 + BLOB_WOBBLE * np.cos(6 * (np.arctan2(y - b, x - a) - turn)))
            depth = np.maximum(depth, outline - np.hypot(y - b, x - a))
        return depth


def draw_scene(random, shape, diameter, wanted):
    """Scene of a micrograph `shape` (height, width) with particles of `diameter` [px], drawn from a Generator.

    wanted has particles, overlapping, aggregates, carbon and contamination, as a MicrographSimulation does.
    """
    carbon = _carbon(random, shape) if random.random() < wanted.carbon else None
    n_blobs = random.poisson(wanted.contamination)
    blobs = np.column_stack([random.uniform(0, shape[0], n_blobs), random.uniform(0, shape[1], n_blobs),
                             diameter * random.uniform(*BLOB_RADIUS, n_blobs), random.uniform(0, np.pi, n_blobs)])
    empty = Scene(shape, np.zeros((0, 2)), np.zeros(0, dtype=np.int8), carbon, blobs)
    centres, kinds = _aggregates(random, empty, diameter, random.poisson(wanted.aggregates))
    for _ in range(random.poisson(wanted.particles)):
        place = _free_place(random, empty, centres, diameter)
        if place is None:
            break
        centres, kinds = [*centres, place], [*kinds, CLEAN]
        if random.random() < wanted.overlapping:
            distance, angle = diameter * random.uniform(*OVERLAP), random.uniform(0, 2 * np.pi)
            beside = place + distance * np.array([np.sin(angle), np.cos(angle)])
            if _apart(beside, centres[:-1], diameter):
                centres, kinds = [*centres, beside], [*kinds[:-1], OVERLAPPING, OVERLAPPING]
    return Scene(shape, *_with_cut(np.reshape(centres, (-1, 2)), np.array(kinds, dtype=np.int8), shape, diameter),
                 carbon, blobs)


def _carbon(random, shape):
    """(angle, offset) of an edge with a random direction, behind which a share of the micrograph lies."""
    angle, share = random.uniform(0, 2 * np.pi), random.uniform(*CARBON_SHARE)
    corners = [y * np.sin(angle) + x * np.cos(angle) for y in (0, shape[0]) for x in (0, shape[1])]
    return angle, max(corners) - share * (max(corners) - min(corners))


def _aggregates(random, scene, diameter, n):
    centres = []
    for _ in range(n):
        middle = _free_place(random, scene, [], diameter)
        if middle is not None:
            size = random.integers(AGGREGATE_SIZE[0], AGGREGATE_SIZE[1] + 1)
            centres += list(middle + diameter * AGGREGATE_SPREAD * random.normal(size=(size, 2)))
    return centres, [AGGREGATED] * len(centres)


def _free_place(random, scene, centres, diameter):
    """A place (y, x) on clear ice, up to a radius outside the frame, apart from the centres; None if there is none."""
    margin = diameter / 2
    for _ in range(TRIES):
        place = random.uniform(-margin, np.array(scene.shape) + margin)
        clear = max(scene.carbon_depth(*place), scene.contamination_depth(*place)) < -margin
        if clear and _apart(place, centres, diameter):
            return place
    return None


def _apart(place, centres, diameter):
    return not len(centres) or np.hypot(*(np.asarray(centres) - place).T).min() >= SPACING * diameter


def _with_cut(centres, kind, shape, diameter):
    """(centres, kinds) where what the frame cuts is CUT, and what lies outside of it altogether is gone."""
    beyond = np.max([-centres, centres - (np.array(shape) - 1)], axis=0).max(axis=1, initial=-np.inf)
    kind = np.where((kind == CLEAN) & (beyond > -diameter / 2), CUT, kind).astype(np.int8)
    kept = beyond < diameter / 2
    return centres[kept], kind[kept]
