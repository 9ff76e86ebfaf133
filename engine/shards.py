"""A rank's particles as angular harmonics: read once, masked, transformed, multiplied by their CTF, and kept.

The particles of an optics group are dealt to blocks in runs of neighbours, in an order drawn from their number alone:
a block is then a fair sample of the data, however the file is sorted, and is still read in pieces. Ranks are dealt
whole blocks. What is computed in a block is computed the same way on whichever rank it lies, so results do not
depend on the number of ranks.
"""
from dataclasses import dataclass, field

import numpy as np

from vitrea.engine.storage import Kept, Memory, pieces
from vitrea.kernels.ctf import ctf
from vitrea.kernels.fourier import RingTransform
from vitrea.kernels.mask import disc_image, moments
from vitrea.kernels.packed import PackedTable
from vitrea.kernels.polar import PolarTransform, filter_rings, rings_to_table

BATCH = 16                # images transformed at once, and rows of a run of neighbours
LARGEST_BLOCK = 512       # particles: large enough for matrix products
SMALLEST_BLOCK = 64
BLOCKS_WANTED = 16        # for small data: so that several ranks and threads find work
FLAT = 1e-6               # a standard deviation below this is an empty image
BACKGROUND_MEAN, BACKGROUND_SD = 0.5, (0.5, 2.0)   # what RELION accepts as normalised


@dataclass(frozen=True)
class Block:
    """A fixed part of the particles, all of one optics group: rows int64[n] of the table."""

    number: int
    optics: int
    rows: np.ndarray


def make_blocks(optics_index, block_size=None, space=None):
    """Deal the rows of each optics group to blocks of at most `block_size`: a list in the order of groups.

    The rows of all blocks are one array in `space` (engine/storage.py; memory by default).
    """
    space = space or Memory()
    n = len(optics_index)
    dealt, blocks, done = space.zeros(n, np.int64), [], 0
    for group, count in enumerate(group_sizes(optics_index)):
        members = _members(optics_index, group, count, space)
        for hand in _hands(n, count, block_size):
            rows = members[hand]
            dealt[done:done + len(rows)] = rows
            blocks.append(Block(len(blocks), group, dealt[done:done + len(rows)]))
            done += len(rows)
            space.release()
    return blocks


def group_sizes(optics_index):
    """int64[G]: particles of each optics group."""
    counts = np.zeros(0, dtype=np.int64)
    for part in pieces(len(optics_index)):
        fresh = np.bincount(optics_index[part], minlength=len(counts))
        fresh[:len(counts)] += counts
        counts = fresh
    return counts


def _members(optics_index, group, count, space):
    """int64[count]: the rows of an optics group."""
    members, done = space.zeros(int(count), np.int64), 0
    for part in pieces(len(optics_index)):
        rows = part.start + np.flatnonzero(optics_index[part] == group)
        members[done:done + len(rows)] = rows
        done += len(rows)
        space.release()
    return members


def _hands(n, count, block_size):
    """Yield the members of each block of a group of `count` among n: int64[m], whole runs of neighbours."""
    size = block_size or int(np.clip(-(-n // BLOCKS_WANTED), SMALLEST_BLOCK, LARGEST_BLOCK))
    run = min(BATCH, size)
    n_runs = -(-count // run)
    order = np.random.Generator(np.random.Philox(count)).permutation(n_runs)
    for hand in np.array_split(order, -(-n_runs // (size // run))) if count else []:
        members = (run * np.sort(hand)[:, None] + np.arange(run)).ravel()
        yield members[members < count]


def share_of(n_items, rank, size):
    """slice: the neighbouring items that `rank` of `size` works on."""
    return slice(n_items * rank // size, n_items * (rank + 1) // size)


@dataclass
class Shard:
    """The particles of a rank, in the order of its blocks.

    space: where its arrays are made (engine/storage.py); rows int64[n]: row of the table; storage: what is kept of the
    images; usable bool[n]: False for images set aside, whose numbers are zero; background float32[n, 2]: mean and
    deviation; power_sum float64[blocks, R]: Σ of ring means of |X|²; largest_unit float32[R]: of the packed
    coefficients; reasons: local index → why.
    """

    blocks: list
    space: object
    starts: np.ndarray
    rows: np.ndarray
    storage: object
    usable: np.ndarray
    background: np.ndarray
    power_sum: np.ndarray
    largest_unit: np.ndarray
    reasons: dict = field(default_factory=dict)

    @classmethod
    def allocate(cls, blocks, geometry, space=None):
        """An empty shard for `blocks` in `space` (memory by default). JobError if there is no room for it."""
        space = space or Memory()
        starts = np.concatenate([[0], np.cumsum([len(b.rows) for b in blocks])]).astype(np.int64)
        n, n_rings = int(starts[-1]), geometry.grid.n_rings
        rows, usable = space.zeros(n, np.int64), space.zeros(n, bool)
        for block, first, last in zip(blocks, starts, starts[1:]):
            rows[first:last], usable[first:last] = block.rows, True
            space.release()
        return cls(blocks, space, starts, rows, space.particles(n, geometry), usable, space.zeros((n, 2), np.float32),
                   np.zeros((len(blocks), n_rings)), np.zeros(n_rings, np.float32))

    def __len__(self):
        return len(self.rows)

    def put(self, i, local, coefficients, ctf2, power, grid):
        """Keep particles `local` int64[m] of block i: coefficients complex64[m, size]; ctf2, power as in Kept."""
        packed = PackedTable.of(coefficients, grid)
        self.storage.put(local, Kept(packed, np.arange(len(local)), ctf2, power))
        self.power_sum[i] += power.sum(axis=0, dtype=np.float64)
        np.maximum(self.largest_unit, packed.unit.max(axis=0, initial=0.0), out=self.largest_unit)

    def take(self, local):
        """Kept of the particles `local` int64[m]."""
        return self.storage.take(local)

    def of_block(self, i):
        """int64[n]: local indices of the usable particles of the i-th block of this shard."""
        return self.starts[i] + np.flatnonzero(self.usable[self.starts[i]:self.starts[i + 1]])


class Loader:
    """Reads images of one ParticleTable and writes their harmonics into a shard: plans and masks by optics group."""

    def __init__(self, table, options, geometry, reader):
        self._table, self._options, self._geometry, self._reader = table, options, geometry, reader
        self._rings = RingTransform(BATCH, geometry.grid.n_rings, geometry.grid.n_angles)
        self._groups = {}

    def load(self, shard, i):
        """Read, check and transform the i-th block of the shard."""
        for first in range(shard.starts[i], shard.starts[i + 1], BATCH):
            local = np.arange(first, min(first + BATCH, shard.starts[i + 1]))
            self._load_batch(shard, i, local)
        shard.space.release()

    def _load_batch(self, shard, i, local):
        rows, group = shard.rows[local], self._group(shard.blocks[i].optics)
        images = self._centred(self._reader.read(rows), rows)
        bad = unusable(images)
        shard.usable[local] = [why is None for why in bad]
        shard.reasons.update({int(j): why for j, why in zip(local, bad) if why})
        images[~shard.usable[local]] = 0
        if self._options.invert_contrast:
            np.negative(images, out=images)
        shard.background[local] = group.background(images)
        if self._options.normalise == "always":
            mean, deviation = shard.background[local].T
            images = (images - mean[:, None, None]) / np.where(deviation > 0, deviation, 1.0)[:, None, None]
            shard.background[local] = (0.0, 1.0)
        half = group.polar(images.astype(np.float32, copy=False))
        half *= self._fraction_ramp(rows)
        transfer = self._transfer(rows)
        harmonics, power = self._harmonics(half, transfer)
        shard.put(i, local, harmonics, self._ctf2(transfer), power, self._geometry.grid)

    def _group(self, optics):
        if optics not in self._groups:
            self._groups[optics] = _GroupTransform(self._table.optics[optics], self._geometry, optics)
        return self._groups[optics]

    def _centred(self, images, rows):
        """Shift by the whole pixels of the origins the table came with, as RELION does before masking."""
        shift = np.rint(self._origin_px(rows)).astype(int)
        for image, (dy, dx) in zip(images, shift):
            if dy or dx:
                image[:] = np.roll(image, (dy, dx), axis=(0, 1))
        return images

    def _origin_px(self, rows):
        pixel = np.array([group.pixel_size for group in self._table.optics])[self._table.optics_index[rows]]
        return self._table.origin[rows] / pixel[:, None]

    def _fraction_ramp(self, rows):
        """The remaining part of a pixel of the origins, as a phase: complex64[n, R, n_angles/2] or 1."""
        rest = self._origin_px(rows)
        rest -= np.rint(rest)
        if not rest.any():
            return np.complex64(1.0)
        pixel = np.array([group.pixel_size for group in self._table.optics])[self._table.optics_index[rows]]
        theta = self._theta()
        along = rest[:, :1] * np.sin(theta) + rest[:, 1:] * np.cos(theta)
        frequency = self._geometry.frequency()[None, :, None] * pixel[:, None, None]
        return np.exp(-2j * np.pi * frequency * along[:, None, :]).astype(np.complex64)

    def _theta(self):
        return self._geometry.grid.angles()[:self._geometry.grid.n_angles // 2]

    def _transfer(self, rows):
        """The CTF as the job wants it: float32[n, R, n_angles/2], or [n, R, 1] without astigmatism."""
        table, choice = self._table, self._options.ctf
        if choice == "none" or not table.has_ctf:
            return np.ones((len(rows), self._geometry.grid.n_rings, 1), dtype=np.float32)
        theta = self._theta()[None, None, :] if self._geometry.ctf_terms > 1 else np.zeros((1, 1, 1))
        group = table.optics[table.optics_index[rows[0]]]
        column = {name: getattr(table, name)[rows][:, None, None]
                  for name in ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "bfactor")}
        transfer = ctf(self._geometry.frequency()[None, :, None], theta, voltage=group.voltage, cs=group.cs,
                       amplitude_contrast=group.amplitude_contrast, intact_first_peak=choice == "intact_first_peak",
                       dtype=np.float32, **column)
        return np.abs(transfer) if choice == "phase_flipped" else transfer

    def _ctf2(self, transfer):
        """complex64[n, J, R]: the harmonics 0, 2, …, 2(J − 1) of C², which returns after half a ring."""
        square, count = transfer.astype(np.float64) ** 2, transfer.shape[2]
        waves = np.exp(-2j * np.pi / count * np.outer(np.arange(count), np.arange(self._geometry.ctf_terms))) / count
        return (square @ waves.view(np.float64)).view(np.complex128).transpose(0, 2, 1).astype(np.complex64)

    def _harmonics(self, half, transfer):
        """complex64[n, size] of half rings complex64[n, R, n_angles/2] times C; ring means of |half|² float32[n, R]."""
        grid, power = self._geometry.grid, np.empty(half.shape[:2], dtype=np.float32)
        filter_rings(half, transfer, self._rings.array[:len(half)], power)
        self._rings.array[len(half):] = 0
        self._rings.to_harmonics()
        coefficients = np.empty((len(half), grid.size), dtype=np.complex64)
        rings_to_table(self._rings.array, grid.first_ring, grid.offset, coefficients)
        return coefficients, power


class _GroupTransform:
    """Mask and polar transform of the boxes of one optics group."""

    def __init__(self, optics_group, geometry, number):
        box, to_px = optics_group.box_size, geometry.pixel_size / optics_group.pixel_size
        self._mask = disc_image(box, geometry.image_radius * to_px, geometry.mask_edge * to_px)
        self._outside = np.flatnonzero(disc_image(box, geometry.particle_radius * to_px, 0.0) == 0.0)
        self._amplitude = np.float32(geometry.amplitude[number])
        self._transform = PolarTransform(geometry.grid, BATCH, box, geometry.magnification[number])

    def background(self, images):
        """float64[n, 2]: mean and standard deviation outside the particle circle."""
        out = np.empty((len(images), 2))
        moments(images.reshape(len(images), -1), self._outside, out)
        return out

    def polar(self, images):
        """Masked images float32[n, L, L] on half rings: complex64[n, R, n_angles/2]."""
        return self._transform.forward(images * self._mask) * self._amplitude


def unusable(images):
    """Why each image cannot be used; None where it can."""
    flat, found = images.reshape(len(images), -1), np.empty((len(images), 2))
    moments(flat, np.arange(flat.shape[1]), found)
    return [None if deviation > FLAT else "has pixels that are not finite" if np.isnan(deviation)
            else "all pixels have one value" for deviation in found[:, 1]]
