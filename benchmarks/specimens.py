"""What the kernel benchmarks are fed: references and particles as angular harmonics, made up but plausible.

References share most of their structure, as class averages of one specimen do; every particle is one of them, turned,
with white noise. The particle's ring weights are 1 and its noise has variance 1, so that the log-likelihood ratio of
the right pose against an empty image is half the reference's power: EVIDENCE nats, which leaves a posterior of a few
poses, as in the later iterations of a run.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.expectation import Search
from vitrea.engine.scoring import Particles, make_templates
from vitrea.engine.search import disc_shifts, level_angles, make_level
from vitrea.kernels.packed import PackedTable
from vitrea.kernels.polar import PolarGrid

EVIDENCE = 60.0       # nats
SHARED = 0.9          # of a reference's power
SIGMA_OFFSET = 3.0    # px
SUPPORT = 0.4         # of the box: the particle's radius where none is given


@dataclass(frozen=True)
class Sizes:
    """What is scored: classes × rotations × shifts poses on `rings` rings, and how many particles a run takes.

    box [px] and support [px], the radius of the particle, default to the smallest box with that many rings and to
    SUPPORT of it. Raises JobError for numbers that no search has.
    """

    classes: int = 200
    rotations: int = 240
    shifts: int = 21
    rings: int = 39
    particles: int = 64
    box: int | None = None
    support: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("classes", "rotations", "shifts", "rings", "particles"):
            if getattr(self, name) < 1:
                raise JobError(f"--{name}: {getattr(self, name)} was found; expected at least 1; give a larger number")
        if 2 * self.rings > self.box_size:
            raise JobError(f"--rings: {self.rings} rings, but a box of {self.box_size} px has {self.box_size // 2}; "
                           f"expected no more; use --box {2 * self.rings + 2}")
        if len(disc_shifts(self.offset_range, 1.0)) != self.shifts:
            counts = ", ".join(str(count) for count in _disc_counts(2 * self.shifts))
            raise JobError(f"--shifts: {self.shifts} points do not fill a disc; expected one of {counts}, …; "
                           "choose the nearest")
        self._check_rotations()

    def _check_rotations(self):
        next_one, least = level_angles(self.grid, 360.0 / self.rotations), 2 * self.grid.n_harmonics
        if self.rotations < least:
            raise JobError(f"--rotations: {self.rotations} angles are too few for {self.rings} rings of a particle of "
                           f"{self.grid.support:g} px radius; expected at least {least}; use --rotations {next_one}, "
                           "or fewer --rings")
        if self.rotations != next_one:
            raise JobError(f"--rotations: no search has {self.rotations} angles; expected a multiple of 8 with no "
                           f"prime factors but 2, 3 and 5; use --rotations {next_one}")

    @property
    def box_size(self):
        return self.box or 2 * (self.rings + 1)

    @cached_property
    def grid(self):
        return PolarGrid(self.box_size, self.rings, self.support or SUPPORT * self.box_size)

    @cached_property
    def offset_range(self):
        """Radius [steps] of the smallest disc of at least `shifts` points."""
        reach = int(np.sqrt(self.shifts)) + 2
        radii = sorted({float(np.hypot(y, x)) for y in range(reach) for x in range(reach)})
        return next(radius for radius in radii if len(disc_shifts(radius, 1.0)) >= self.shifts)

    @property
    def poses(self):
        """Poses of a particle."""
        return self.classes * self.rotations * self.shifts

    def as_dict(self):
        """Sizes as they are, defaults filled in."""
        return {"classes": self.classes, "rotations": self.rotations, "shifts": self.shifts, "rings": self.rings,
                "particles": self.particles, "box": self.box_size, "support": round(self.grid.support, 3),
                "coefficients": self.grid.size, "harmonics": self.grid.n_harmonics, "seed": self.seed}


def _disc_counts(most):
    reach = int(np.sqrt(most)) + 2
    radii = {float(np.hypot(y, x)) for y in range(reach) for x in range(reach)}
    return sorted({len(disc_shifts(radius, 1.0)) for radius in radii if len(disc_shifts(radius, 1.0)) <= most})


def make_search_of(sizes):
    """Search on a single, exhaustive level, over references of `references_of`."""
    level = make_level(sizes.grid, sizes.offset_range, 1.0, 360.0 / sizes.rotations)
    prior = np.full(sizes.classes, 1.0 / sizes.classes)
    return Search(make_templates(level, references_of(sizes), prior, SIGMA_OFFSET, 1), None, 0.999, refined=False)


def references_of(sizes):
    """complex64[K, size]: half the power 2·EVIDENCE, most of it common to all classes, falling off over the rings."""
    random, grid = np.random.default_rng(sizes.seed), sizes.grid
    falloff = np.exp(-2.0 * grid.ring_of / grid.n_rings) / np.sqrt(1.0 + grid.harmonic_of)

    def drawn(n):
        return (random.normal(size=(n, grid.size)) + 1j * random.normal(size=(n, grid.size))) * falloff

    references = np.sqrt(SHARED) * drawn(1) + np.sqrt(1.0 - SHARED) * drawn(sizes.classes)
    references[:, grid.harmonic_of == 0] = references[:, grid.harmonic_of == 0].real   # x(r, −0) = conj x(r, 0)
    power = np.sum(grid.multiplicity * np.abs(references) ** 2, axis=1, keepdims=True)
    return (references * np.sqrt(2.0 * EVIDENCE / power)).astype(np.complex64)


def particles_of(sizes):
    """(Particles, class int64[n]): each a reference turned by a random angle, with white noise of variance 1."""
    random, grid = np.random.default_rng([sizes.seed, 1]), sizes.grid
    n, shape = sizes.particles, (sizes.particles, grid.size)
    true = random.integers(sizes.classes, size=n)
    turn = random.uniform(0.0, 2.0 * np.pi, size=(n, 1))
    noise = (random.normal(size=shape) + 1j * random.normal(size=shape)) * np.sqrt(0.5)
    noise[:, grid.harmonic_of == 0] = noise[:, grid.harmonic_of == 0].real
    coefficients = references_of(sizes)[true] * np.exp(-1j * turn * grid.harmonic_of) + noise
    table = PackedTable.of(coefficients.astype(np.complex64), grid)
    ctf2 = np.ones((n, 1, grid.n_rings), dtype=np.complex64)
    return Particles(table, np.arange(n), ctf2, np.ones(grid.n_rings), np.ones(n, np.float32)), true
