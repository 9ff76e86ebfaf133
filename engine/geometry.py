"""From a particle table and the job's options to the common polar grid: rings, masks, and what each optics group needs.

Optics groups may differ in box and pixel size. All are sampled on the rings of the largest group's box, so that a
ring means one spatial frequency; amplitudes are scaled so that one specimen density gives one transform, whatever the
pixel.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.shards import group_sizes
from vitrea.engine.storage import pieces
from vitrea.kernels.ctf import electron_wavelength
from vitrea.kernels.mask import disc_image
from vitrea.kernels.polar import PolarGrid

FINEST_BY_DEFAULT = 6.0   # Å: class averages of single particles rarely hold more, and rings cost memory and time
NYQUIST_MARGIN = 1        # rings left out below Nyquist, where the corners of the box and interpolation meet
LEAST_DIAMETER = 8       # px: a smaller particle has no views to tell apart
SMALLEST_GRID = 8         # rings; below this there is nothing to classify


@dataclass(frozen=True)
class Geometry:
    """Lengths in px of the common box unless said otherwise."""

    grid: PolarGrid
    pixel_size: float          # [Å/px]
    particle_radius: float     # half of particle_diameter: references are masked here
    image_radius: float        # images are masked here: the particle and its largest shift fit
    mask_edge: float
    mask_fraction: float       # Σ mask² / L²: share of the noise power that the image mask leaves
    reference_fraction: float  # the same of the mask of the references
    ctf_terms: int             # J: harmonics 0, 2, …, 2(J−1) that hold C² of every particle
    magnification: tuple[float, ...]   # by optics group: its box in Å over the common box in Å
    amplitude: tuple[float, ...]       # by optics group: factor on its transform

    @property
    def box_size(self):
        return self.grid.box_size

    def frequency(self):
        """float64[R]: spatial frequency of the rings [1/Å]."""
        return np.arange(1, self.grid.n_rings + 1) / (self.box_size * self.pixel_size)

    def ring_at(self, resolution):
        """Rings (a count) whose frequency is at most 1/resolution [Å]."""
        return int(np.floor(self.box_size * self.pixel_size / resolution + 1e-6))

    def resolution_of(self, rings):
        """[Å] of ring number `rings`; infinite for 0."""
        return self.box_size * self.pixel_size / rings if rings else np.inf


def make_geometry(table, options):
    """The common grid of a ParticleTable for a job; JobError if diameter and box do not fit each other."""
    common = table.optics[int(group_sizes(table.optics_index).argmax())]
    box, pixel = common.box_size, common.pixel_size
    radius = 0.5 * options.particle_diameter / pixel
    _check_diameter(table, options, box, pixel)
    # a soft edge needs room; where the particle fills the box the edge shrinks rather than the particle
    largest = box / 2 - 1
    edge = min(options.mask_edge, max(largest - radius, 1.0))
    image_radius = min(radius + options.offset_range, largest - edge)
    finest = options.max_resolution or FINEST_BY_DEFAULT
    nyquist = min((group.box_size * box * pixel) / (group.box_size * group.pixel_size) for group in table.optics) / 2
    rings = min(int(np.floor(nyquist)) - NYQUIST_MARGIN, int(np.ceil(box * pixel / finest)))
    if rings < SMALLEST_GRID:
        reach = max(finest, box * pixel / max(nyquist, 1))
        raise JobError(
            f"{table.path}: a box of {box} px of {pixel:.4g} Å has {rings} Fourier {'ring' if rings == 1 else 'rings'} "
            f"up to {reach:.1f} Å; expected at least {SMALLEST_GRID}; use larger boxes, or a finer max_resolution "
            "(align_resolution in deep2d)"
        )
    grid = PolarGrid(box, rings, image_radius + edge)
    length = [group.box_size * group.pixel_size / (box * pixel) for group in table.optics]
    amplitude = [ratio * group.pixel_size / pixel for ratio, group in zip(length, table.optics)]
    return Geometry(
        grid=grid, pixel_size=pixel, particle_radius=radius, image_radius=image_radius, mask_edge=edge,
        mask_fraction=_fraction(box, image_radius, edge), reference_fraction=_fraction(box, radius, edge),
        ctf_terms=_ctf_terms(table, options, rings / (box * pixel)), magnification=tuple(length),
        amplitude=tuple(amplitude))


def _fraction(box, radius, edge):
    """Share of white noise power that a soft disc leaves: the mean of its square."""
    return float(np.mean(disc_image(box, radius, edge).astype(np.float64) ** 2))


def _check_diameter(table, options, box, pixel):
    if options.particle_diameter >= box * pixel:
        raise JobError(
            f"particle_diameter: {options.particle_diameter:g} Å, but the boxes of {table.path} are {box} px "
            f"of {pixel:g} Å, {box * pixel:.0f} Å wide; expected a diameter smaller than the box; correct the "
            "diameter or extract larger boxes"
        )
    if options.particle_diameter < LEAST_DIAMETER * pixel:
        raise JobError(
            f"particle_diameter: {options.particle_diameter:g} Å, but a pixel of {table.path} is {pixel:g} Å; expected "
            f"at least {LEAST_DIAMETER} px, {LEAST_DIAMETER * pixel:.0f} Å; give the diameter in Å, or use finer pixels"
        )


def _ctf_terms(table, options, finest):
    """Harmonics 2j that C²(θ) needs: with astigmatism it is a Bessel series in the phase change along the ring."""
    if options.ctf == "none" or not table.has_ctf:
        return 1
    wavelength = electron_wavelength(np.array([group.voltage for group in table.optics]))
    largest = 0.0
    for part in pieces(len(table)):
        astigmatism = np.abs(table.defocus_u[part] - table.defocus_v[part])
        change = 0.5 * np.pi * wavelength[table.optics_index[part]] * finest**2 * astigmatism
        largest = max(largest, float(change.max()))
    return 1 if largest < 0.01 else 2 + int(np.ceil(2.0 * largest + 1.0))
