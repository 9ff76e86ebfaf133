"""How finely poses are searched as the resolution marches: one level at first, a coarse and a fine one later."""
import numpy as np

from vitrea.engine.expectation import Search
from vitrea.engine.scoring import make_templates
from vitrea.engine.search import disc_shifts, level_angles, make_level

LEAST_COARSE_RINGS = 6


def coarse_ring_limit(geometry, options):
    """Rings on which the coarse shifts are dense enough: half a step changes the phase by at most one radian."""
    half_step = 0.5 * max(options.offset_step, 1.0)
    limit = int(np.ceil(geometry.box_size / (2.0 * np.pi * half_step)))
    return min(max(LEAST_COARSE_RINGS, limit), geometry.grid.n_rings)


def make_search(model, geometry, options, temperature=1.0, refined=True):
    """Levels and templates for a model: one level while its rings cannot tell finer shifts apart, two later."""
    coarse_rings = coarse_ring_limit(geometry, options)
    if model.rings <= coarse_rings:
        only = _templates(model, geometry, options, model.rings, 1)
        return Search(only, None, options.adaptive_fraction, temperature, refined)
    fine = _templates(model, geometry, options, model.rings, 2, together=1)
    coarse = _templates(model, geometry, options, coarse_rings, 1)
    return Search(fine, coarse, options.adaptive_fraction, temperature, refined)


def level_shape(grid, options, step, divisor):
    """(shifts, angles) of a level on `grid`."""
    return len(disc_shifts(options.offset_range, step)), level_angles(grid, options.psi_step / divisor)


def _templates(model, geometry, options, rings, divisor, **grouping):
    grid = geometry.grid.with_rings(rings)
    level = make_level(grid, options.offset_range, options.offset_step / divisor, options.psi_step / divisor)
    references = geometry.grid.crop(model.references, grid)
    return make_templates(level, references, model.class_prior, model.sigma_offset, geometry.ctf_terms, **grouping)
