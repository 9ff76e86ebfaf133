"""The life of classes: how they start, which ones are re-seeded, where their middle is."""
from dataclasses import replace

import numpy as np

from vitrea.engine.comm import sum_over_ranks
from vitrea.engine.model import restrict
from vitrea.engine.storage import pieces
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.kernels.fourier import RingTransform
from vitrea.kernels.mask import apply_harmonic_disc, disc_image
from vitrea.kernels.polar import PolarSynthesis, rings_to_table, table_to_rings

SEED_PARTICLES = 10        # a class starts as the average of this many un-aligned particles
FIRST_DETAIL = 0.25        # of the particle's diameter: the resolution of the first references
EARLY_SUPPORT, LATE_SUPPORT = (
    0.5,
    0.2,
)  # of an even share: a class below it is re-seeded (while resolution grows; later)
WORTH_SPLITTING = 1.5      # even shares: only a class above it is split
LEAST_MEMBERS = 20         # of a class that is split
MOST_SEEDS = 200           # particles that a re-seeded class is the average of, about: more only take time
CENTRE_AT = 0.3            # px: smaller displacements are left alone
BATCH = 64


def first_noise(run):
    """float64[G, R]: σ² from the images' mean power: at these signal-to-noise ratios nearly all of it is noise."""
    shard, grid = run.passes.shard, run.geometry.grid
    n_groups = len(run.table.optics)
    power, count = np.zeros((n_groups, grid.n_rings)), np.zeros(n_groups)
    quanta = quantum(len(run.table) * (2.0 * grid.n_harmonics * np.maximum(run.passes.peak, 1e-30)) ** 2)
    for i, block in enumerate(shard.blocks):
        power[block.optics] += to_quanta(shard.power_sum[i], quanta)
        count[block.optics] += np.count_nonzero(shard.usable[shard.starts[i]:shard.starts[i + 1]])
    together = sum_over_ranks(np.column_stack([power, count]), comm=run.comm)
    power, count = together[:, :-1], together[:, -1]
    mean = power.sum(axis=0) / count.sum()
    by_group = np.where(count[:, None] > 0, power / np.maximum(count, 1)[:, None], mean)
    return np.maximum(by_group, 1e-12) / (2.0 * run.geometry.mask_fraction)


def first_sigma_offset(options):
    """Width of the shift prior at the start [px]: RELION's 3 px, or what the range allows."""
    return max(0.7, min(3.0, options.offset_range)) if options.offset_range else 1.0


def first_references(run):
    """(complex64[K, size], rings): each class the average of a few particles of its own, at low resolution."""
    n_classes, geometry = run.options.n_classes, run.geometry
    rings = max(4, int(np.ceil(geometry.box_size / (FIRST_DETAIL * 2.0 * geometry.particle_radius))))
    grid = geometry.grid.with_rings(rings)
    order = _drawn(run, SEED_PARTICLES * n_classes)
    count = max(1, min(SEED_PARTICLES, len(order) // n_classes))
    members = [order[np.arange(count * k, count * (k + 1)) % len(order)] for k in range(n_classes)]
    data, weight = summed(run, members, count, grid, lambda kept, _: kept.table.take(kept.rows, grid))
    prior = 0.1 * weight.mean(axis=1, keepdims=True)
    references = (data / (weight + prior)[:, grid.ring_of]).astype(np.complex64)
    apply_harmonic_disc(grid, restrict(run.operators, grid), references)
    return geometry.grid.embed(references, grid), grid.n_rings


def _drawn(run, count):
    """int64[count]: table rows of usable particles drawn from the seed, all of them if they are fewer. Collective."""
    shard, drawn = run.passes.shard, None
    bad = run.comm.gather([int(shard.rows[local]) for local in shard.reasons], root=0)
    if run.comm.rank == 0:
        rows = np.arange(len(run.table), dtype=np.int32)   # all particles at once: four bytes each, for a moment
        rows = np.delete(rows, [row for each in bad for row in each])
        np.random.Generator(np.random.Philox(np.random.SeedSequence([run.options.seed, 0]))).shuffle(rows)
        drawn = rows[:count].astype(np.int64)
    return run.comm.bcast(drawn, root=0)


def summed(run, members, most, grid, coefficients):
    """Sums over the particles of each list of rows: (complex128[n, size] of `coefficients(kept, local)`, float64[n, R']
    of C²). Collective.

    Every term is rounded to its quantum, so the sums do not depend on where the particles lie. A rank may leave out
    rows of others; most: a bound of what any list has on all ranks together, the same on each.
    """
    shard, peak = run.passes.shard, run.passes.peak[:grid.n_rings]
    where = _places(shard, np.unique(np.concatenate(members)))
    data_quanta, weight_quanta = quantum(4.0 * most * np.maximum(peak, 1e-30))[grid.ring_of], quantum(2.0 * most)
    data, weight = np.zeros((len(members), grid.size), np.complex128), np.zeros((len(members), grid.n_rings))
    for k, rows in enumerate(members):
        local = np.array([where[row] for row in rows.tolist() if row in where], dtype=np.int64)
        for first in range(0, len(local), BATCH):
            part = local[first:first + BATCH]
            kept = shard.take(part)
            terms = coefficients(kept, part)
            data[k] += to_quanta(terms.real, data_quanta).sum(axis=0) + 1j * to_quanta(terms.imag, data_quanta).sum(
                axis=0
            )
            weight[k] += to_quanta(kept.ctf2[:, 0, :grid.n_rings].real, weight_quanta).sum(axis=0)
    together = sum_over_ranks(np.concatenate([data.view(np.float64).ravel(), weight.ravel()]), comm=run.comm)
    data_part, weight_part = np.split(together, [2 * data.size])
    return data_part.view(np.complex128).reshape(data.shape), weight_part.reshape(weight.shape)


def _places(shard, wanted):
    """{row: local index} of those of the table rows `wanted` int64[m], in ascending order, that are on this rank."""
    found = {}
    for part in pieces(len(shard) if len(wanted) else 0):
        rows = shard.rows[part]
        place = np.minimum(np.searchsorted(wanted, rows), len(wanted) - 1)
        here = np.flatnonzero(wanted[place] == rows)
        found.update(zip(rows[here].tolist(), (part.start + here).tolist()))
        shard.space.release()
    return found


def resolved(model):
    """Rings up to the first where no populated class has SSNR > 1."""
    populated = model.class_prior > 0.1 / model.n_classes
    below = np.flatnonzero(~(model.ssnr[populated] > 1.0).any(axis=0))
    return int(below[0]) if len(below) else model.ssnr.shape[1]


def reseed(run, model, class_weight, assigned, support, iteration):
    """Give classes that lost their support some members of the largest: (Model, {new class: old class}).
    Collective; one message, of a size that depends on the number of re-seeded classes only, and none without any.

    A class with less than `support` even shares of class_weight float64[K] is replaced by the average, at their best
    poses, of a random half, or some MOST_SEEDS, of the particles of a class that holds more than WORTH_SPLITTING
    shares; EM then finds out whether the two differ. assigned [K]: how many particles each class has.
    """
    share = class_weight / class_weight.sum() * model.n_classes
    pairs = splits(share, assigned.astype(np.int64), support)
    if not pairs:
        return model, {}
    grid = run.geometry.grid.with_rings(model.rings)
    members = [_seeds(run, donor, iteration, number, assigned[donor]) for number, (_, donor) in enumerate(pairs)]
    data, weight = summed(run, members, int(assigned.max()), grid,
                          lambda kept, local: _turned_back(run, kept, local, grid))
    references, tau2 = model.references.copy(), model.tau2.copy()
    ssnr, prior = model.ssnr.copy(), model.class_prior.copy()
    for j, (new, donor) in enumerate(pairs):
        # both sums carry w = n_r/(2σ²) in the M step; without it the prior n_r/(2Tτ²) becomes σ²/(Tτ²)
        sigma2 = model.sigma2.mean(axis=0)[:grid.n_rings]
        regular = sigma2 / (run.options.tau2_fudge * np.maximum(tau2[donor, :grid.n_rings], 1e-30))
        fresh = (data[j] / (weight[j] + regular)[grid.ring_of]).astype(np.complex64)[None]
        apply_harmonic_disc(grid, restrict(run.operators, grid), fresh)
        references[new], tau2[new], ssnr[new] = run.geometry.grid.embed(fresh, grid)[0], tau2[donor], 0.5 * ssnr[donor]
        prior[new] = prior[donor] = 0.5 * prior[donor]
    model = replace(model, references=references, tau2=tau2, ssnr=ssnr, class_prior=prior / prior.sum())
    return model, {int(new): int(donor) for new, donor in pairs}


def splits(share, counts, support):
    """[(class to replace, class its members come from)], the emptiest first, each time the largest is split.

    A class that was replaced a moment ago may be the largest; what it holds are members of the class it came from.
    """
    pairs, share, counts, origin = [], share.copy(), counts.copy(), np.arange(len(share))
    for new in np.argsort(share, kind="stable"):
        donor = np.argmax(share)
        if share[new] >= support or share[donor] < WORTH_SPLITTING or counts[donor] < LEAST_MEMBERS:
            break
        origin[new] = origin[donor]
        pairs.append((int(new), int(origin[donor])))
        share[new] = share[donor] = 0.5 * share[donor]
        counts[new] = counts[donor] = counts[donor] // 2
    return pairs


def _seeds(run, donor, iteration, number, count):
    """Table rows of some of a class's `count` particles, of those on this rank; the draw belongs to the particle."""
    shard = run.passes.shard
    key = np.random.SeedSequence([run.options.seed, 2, iteration, number])
    generator, coin = np.random.Generator(np.random.Philox(key)), np.empty(len(run.table), dtype=bool)
    for part in pieces(len(coin)):
        coin[part] = generator.random(part.stop - part.start) < min(0.5, MOST_SEEDS / count)
    chosen = [np.zeros(0, dtype=np.int64)]
    for part in pieces(len(shard)):
        rows = shard.rows[part]
        mine = shard.usable[part] & (run.passes.poses.class_number[part] == donor)
        chosen.append(rows[mine & coin[rows]])
        shard.space.release()
    return np.concatenate(chosen)


def _turned_back(run, kept, local, grid):
    """Coefficients of particles brought to their best poses: complex64[n, size]."""
    poses = run.passes.poses
    table = kept.table.take(kept.rows, grid, scale=run.passes.scale[local])
    table = table * np.exp(1j * grid.harmonic_of * poses.psi[local, None])
    return translated(table.astype(np.complex64), -poses.shift[local], grid)


def translated(table, shift, grid):
    """Coefficients complex64[n, size] of objects moved by `shift` float64[n, 2] (y, x) [px]."""
    rings = RingTransform(len(table), grid.n_rings, grid.n_angles)
    table_to_rings(table, grid.first_ring, grid.offset, rings.array)
    rings.to_angles()
    theta = grid.angles()
    along = shift[:, :1] * np.sin(theta) + shift[:, 1:] * np.cos(theta)
    radius = 2.0 * np.pi / grid.box_size * np.arange(1, grid.n_rings + 1)
    rings.array *= np.exp(-1j * radius[:, None] * along[:, None, :])
    rings.to_harmonics()
    out = np.empty_like(table)
    rings_to_table(rings.array, grid.first_ring, grid.offset, out)
    return out


def centre(run, model):
    """Move class averages to the middle of the box; the shifts of their particles follow."""
    displacement = displacements(run, model)
    moving = np.hypot(*displacement.T) > CENTRE_AT
    if not moving.any():
        return model
    references = model.references.copy()
    grid = run.geometry.grid.with_rings(model.rings)
    table = run.geometry.grid.crop(references[moving], grid)
    references[moving] = run.geometry.grid.embed(translated(table, -displacement[moving], grid), grid)
    poses = run.passes.poses
    follow = np.where(moving[:, None], displacement, 0.0)
    for part in pieces(len(poses.class_number)):
        assigned = poses.class_number[part] >= 0
        poses.shift[part][assigned] += follow[poses.class_number[part][assigned]]
        run.passes.shard.space.release()
    return replace(model, references=references)


def displacements(run, model):
    """float64[K, 2] (y, x) [px]: centre of mass of what is bright in each class average, within half the shift
    range."""
    grid = run.geometry.grid.with_rings(model.rings)
    images = PolarSynthesis(grid).images(run.geometry.grid.crop(model.references, grid))
    images = np.maximum(images, 0.0) * disc_image(
        run.geometry.box_size, run.geometry.particle_radius, run.geometry.mask_edge
    )
    axis = np.arange(run.geometry.box_size) - run.geometry.box_size // 2
    mass = np.maximum(images.sum(axis=(1, 2), dtype=np.float64), 1e-30)
    centre_y = (images.sum(axis=2, dtype=np.float64) @ axis) / mass
    centre_x = (images.sum(axis=1, dtype=np.float64) @ axis) / mass
    limit = 0.5 * run.options.offset_range
    return np.clip(np.stack([centre_y, centre_x], axis=1), -limit, limit)
