"""Particles brought to their poses: the input of manifold learning.

An image is masked about its particle's own centre, and its transform is evaluated where the pose puts the pixels of one
half of the Fourier plane: with ψ and o as in engine/poses.py

    F_view(k) = exp(−2πi R(ψ)k·o) F_image(R(ψ)k),

one non-uniform transform at the turned frequencies and a phase. Nothing is interpolated between pixels, and the image
is read once. The CTF belongs to the image, so in the frame of the view its astigmatism lies at defocus_angle + ψ.

Particles are whitened by the noise of their optics group, shell by shell, measured outside the particles' circles. The
mask leaves only a share f of the noise power in every component; likelihoods are those of the pixels inside if the
noise is that of the whole plane (kept here) and not the f times smaller scatter of masked components.
"""
import time
from dataclasses import dataclass, field

import numpy as np

from vitrea.engine.agreement import agree
from vitrea.engine.em import PROGRESS_SECONDS
from vitrea.engine.errors import JobError
from vitrea.engine.load import check_normalised, set_aside
from vitrea.engine.manifold import EmbeddedParticles, Layout, hold_out
from vitrea.engine.poses import rotate_offset
from vitrea.engine.shards import make_blocks, share_of, unusable
from vitrea.engine.staging import images_of
from vitrea.engine.storage import ScratchRows
from vitrea.kernels.ctf import ctf, electron_wavelength
from vitrea.kernels.embedding import HalfPlane, shell_power
from vitrea.kernels.fourier import PixelsToMovingPoints
from vitrea.kernels.mask import moved_disc, soft_disc

FINEST_BY_DEFAULT = 10.0    # Å
SMALLEST_RADIUS = 6         # shells; below this there is nothing to classify
BATCH = 32                  # images read and transformed at once
PHASE_IN_A_BIN = 0.5        # radians: the CTF's phase changes by less over an angular bin
MOST_ANGULAR_BINS = 16
BACKGROUNDS = 4096          # images of an optics group whose background is measured: spectra to a percent


@dataclass(frozen=True)
class PosedGeometry:
    """Lengths in px of the common box, which is that of the largest optics group."""

    plane: HalfPlane
    pixel_size: float          # [Å/px]
    particle_radius: float
    mask_edge: float
    mask_fraction: float       # Σ mask² / L²
    magnification: tuple[float, ...]   # by optics group: its pixel over the common pixel
    amplitude: tuple[float, ...]       # by optics group: factor on its orthonormal transform

    @property
    def box_size(self):
        return self.plane.box_size

    def resolution_of(self, shell):
        """[Å] of ring number `shell`; infinite for 0."""
        return self.box_size * self.pixel_size / shell if shell else np.inf


def make_posed_geometry(table, options):
    """The half plane for a ParticleTable; JobError if diameter, resolution and box do not fit each other."""
    common = table.optics[int(np.bincount(table.optics_index, minlength=len(table.optics)).argmax())]
    box, pixel = common.box_size, common.pixel_size
    radius = 0.5 * options.particle_diameter / pixel
    if options.particle_diameter >= box * pixel:
        raise JobError(
            f"particle_diameter: {options.particle_diameter:g} Å, but the boxes of {table.path} are {box} px of "
            f"{pixel:g} Å, {box * pixel:.0f} Å wide; expected a diameter smaller than the box; correct the diameter "
            "or extract larger boxes")
    edge = min(options.mask_edge, max(box / 2 - 1 - radius, 1.0))
    shells = _shells(table, options, box, pixel)
    distance = np.hypot(*np.meshgrid(*[np.arange(box) - box // 2] * 2))
    return PosedGeometry(
        plane=HalfPlane(box, shells, _angular_bins(table, options, shells / (box * pixel))), pixel_size=pixel,
        particle_radius=radius, mask_edge=edge, mask_fraction=float(np.mean(soft_disc(distance, radius, edge) ** 2)),
        magnification=tuple(group.pixel_size / pixel for group in table.optics),
        amplitude=tuple(group.box_size * group.pixel_size**2 / (box * pixel**2) for group in table.optics))


def _shells(table, options, box, pixel):
    """Rings of the half plane: as far as asked for, below the Nyquist frequency of every group."""
    finest = options.max_resolution or FINEST_BY_DEFAULT
    coarsest = max(group.pixel_size for group in table.optics)
    shells = min(int(np.floor(box * pixel / finest + 1e-6)), int((box - 1) // 2 * pixel / coarsest))
    if shells < SMALLEST_RADIUS:
        raise JobError(
            f"{table.path}: {shells} Fourier shells between the box of {box} px and {finest:g} Å; expected at least "
            f"{SMALLEST_RADIUS}; use larger boxes or a finer max_resolution")
    return shells


def _angular_bins(table, options, finest):
    """Pieces of a shell on which C² is one number for each particle; 1 without noticeable astigmatism."""
    if options.ctf == "none" or not table.has_ctf:
        return 1
    voltage = np.array([group.voltage for group in table.optics])[table.optics_index]
    change = 0.5 * np.pi * electron_wavelength(voltage) * finest**2 * np.abs(table.defocus_u - table.defocus_v)
    # χ varies as `change`·cos 2θ, at most 2·change a radian; the square of the CTF has twice its phase
    bins = int(np.ceil(4.0 * np.pi * float(np.percentile(change, 95)) / PHASE_IN_A_BIN / 2.0))
    return int(np.clip(bins, 1, MOST_ANGULAR_BINS))


def require_poses(table):
    """JobError unless the table came with alignments."""
    if not np.any(table.psi) and not np.any(table.origin):
        raise JobError(
            f"{table.path}: no alignments were found (rlnAnglePsi and rlnOriginXAngst are missing or 0 in every row); "
            "expected the result of an alignment; run 'job: classify2d' first and give its run_data.star")


class Poser:
    """Brings images of one optics group to their poses: frequencies, distances and plans."""

    def __init__(self, optics_group, geometry, number):
        self._box = optics_group.box_size
        self._to_px = 1.0 / geometry.magnification[number]
        self._radius, self._edge = (length * self._to_px for length in (geometry.particle_radius, geometry.mask_edge))
        # cycles a pixel of this group's box
        self._frequency = geometry.plane.frequency / (geometry.box_size * self._to_px)
        self._amplitude = geometry.amplitude[number] / self._box
        self._transform = PixelsToMovingPoints(self._box)
        self._mask = np.empty((self._box, self._box))

    def mask(self, origin):
        """float64[L, L], until the next: the soft disc about a particle of `origin` (y, x) [px], which lies at
        −origin."""
        moved_disc(-origin[0], -origin[1], self._radius, self._edge, self._mask)
        return self._mask

    def pose(self, image, psi, origin):
        """complex128[H]: the orthonormal transform, at the half plane's frequencies, of an image float[L, L] turned
        and shifted by psi [degrees] and origin (y, x) [px of this group]."""
        turned = rotate_offset(self._frequency, psi)
        values = self._transform.execute(image, *(2.0 * np.pi * np.ascontiguousarray(turned.T)))
        return self._amplitude * np.exp(-2j * np.pi * (turned @ origin)) * values


@dataclass
class PosedShard:
    """The particles of a rank in pose, in the order of its blocks (engine/shards.py).

    rows int64[n]: rows of the table; starts int64[B + 1]: where blocks begin, and n; embedded: what the manifold is
    learned from, without the images set aside;
    usable bool[n], background float64[n, 2], reasons: as in shards.Shard; kept int64[m]: rows of `embedded`;
    noise float64[G, R]: σ² per pixel of the common box by optics group and shell; level float64[R]: the common
    noise level, in whose units class averages are learned.
    """

    blocks: list
    rows: np.ndarray
    starts: np.ndarray
    usable: np.ndarray
    background: np.ndarray
    reasons: dict = field(default_factory=dict)
    embedded: EmbeddedParticles | None = None
    kept: np.ndarray | None = None
    noise: np.ndarray | None = None
    level: np.ndarray | None = None

    @classmethod
    def of(cls, blocks):
        """An empty shard for `blocks`."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(block.rows for block in blocks)])
        starts = np.cumsum([0, *(len(block.rows) for block in blocks)]).astype(np.int64)
        return cls(blocks, rows, starts, np.ones(len(rows), dtype=bool), np.zeros((len(rows), 2)))


def read_posed(table, options, geometry, stop, log, *, comm, scratch=None):
    """The PosedShard of this rank, or None if asked to stop. Collective.

    scratch: folder of a file that the components are kept in; None for memory. Images that cannot be used are set aside
    and listed. Raises JobError, on all ranks, if they are more than skip_limit, if the particles are not normalised
    although the job expects it, if a stack cannot be read, or if scratch has too little space.
    """
    blocks = make_blocks(table.optics_index)
    shard = PosedShard.of(blocks[share_of(len(blocks), comm.rank, comm.size)])
    mistake, last = None, time.perf_counter()
    try:
        arrays = _Arrays(shard, geometry, len(table.optics), scratch)
    except JobError as error:
        mistake = str(error)
    agree(mistake, comm)
    with images_of(table, shard.rows, options, stop, log, comm=comm) as reader:
        loader = _Loader(table, options, geometry, reader)
        for i in range(len(shard.blocks)):
            if stop.asked() or mistake:
                break
            try:
                loader.load(shard, arrays, i)
            except JobError as error:
                mistake = str(error)
            if time.perf_counter() - last > PROGRESS_SECONDS:
                last = time.perf_counter()
                log.record("progress", iteration=0, of=0, stage="read", fraction=(i + 1) / len(shard.blocks),
                           phase="reading")
        mistake = mistake or reader.changed()
    agree(mistake, comm)
    if stop.agreed():
        return None
    set_aside(table, options, shard, log, comm)
    check_normalised(table, options, shard, comm)
    _finish(shard, arrays, table, geometry, comm)
    shard.embedded.held_out[:] = hold_out(shard.kept, options.held_out, options.seed)
    return shard


class _Arrays:
    """Components of the particles before whitening, and sums of the background's power by block and shell."""

    def __init__(self, shard, geometry, n_optics, scratch):
        plane, n = geometry.plane, len(shard.rows)
        self.transformed = (ScratchRows(n, plane.n_components, scratch) if scratch else
                            np.zeros((n, plane.n_components), dtype=np.float32))
        self.ctf2 = np.zeros((n, plane.n_groups), dtype=np.float32)
        self.power = np.zeros((n, plane.radius))
        # the last column: share of the box that is outside
        self.background = np.zeros((len(shard.blocks), n_optics, plane.radius + 1))


class _Loader:
    """Reads images by block, brings them to their poses and fills _Arrays."""

    def __init__(self, table, options, geometry, reader):
        self._table, self._options, self._geometry, self._reader = table, options, geometry, reader
        self._posers, self._spectra = {}, {}
        ky, kx = geometry.plane.frequency.T
        self._frequency = np.hypot(ky, kx) / (geometry.box_size * geometry.pixel_size)
        self._angle = np.arctan2(ky, kx)
        self._measured = _evenly(table.optics_index, BACKGROUNDS)

    def load(self, shard, arrays, i):
        """Fill the entries of the i-th block of the shard."""
        for first in range(shard.starts[i], shard.starts[i + 1], BATCH):
            self._load_batch(shard, arrays, i, np.arange(first, min(first + BATCH, shard.starts[i + 1])))

    def _load_batch(self, shard, arrays, i, local):
        rows, group, plane = shard.rows[local], shard.blocks[i].optics, self._geometry.plane
        images = self._checked(shard, local, group)
        origin = self._table.origin[rows] / self._table.optics[group].pixel_size
        poser, spectrum = self._tools(group)
        modes = np.zeros((len(local), len(plane.frequency)), dtype=np.complex128)
        for j in np.flatnonzero(shard.usable[local]):
            mask = poser.mask(origin[j])
            modes[j] = poser.pose(images[j] * mask, self._table.psi[rows[j]], origin[j])
            if self._measured[rows[j]]:
                arrays.background[i, group] += spectrum.outside(images[j], mask)
        transfer = self._transfer(rows, group)
        components = plane.embed(modes)
        arrays.power[local] = shell_power(components, plane.group, plane.shell)
        arrays.transformed[local] = components * np.repeat(transfer, 2, axis=1)
        arrays.ctf2[local] = plane.group_means(transfer.astype(np.float64) ** 2)
        arrays.ctf2[local[~shard.usable[local]]] = 0

    def _checked(self, shard, local, group):
        """The images, normalised if asked for; those that cannot be used are noted."""
        images = self._reader.read(shard.rows[local])
        bad = unusable(images)
        shard.usable[local] = [why is None for why in bad]
        shard.reasons.update({int(j): why for j, why in zip(local, bad) if why})
        images[~shard.usable[local]] = 0
        if self._options.invert_contrast:
            np.negative(images, out=images)
        outside = self._tools(group)[1].circle
        ring = images[:, outside].astype(np.float64)
        mean, deviation = ring.mean(axis=1), ring.std(axis=1)
        shard.background[local] = np.stack([mean, deviation], axis=1)
        if self._options.normalise == "always":
            images = (images - mean[:, None, None]) / np.where(deviation > 0, deviation, 1.0)[:, None, None]
            shard.background[local] = (0.0, 1.0)
        return images

    def _tools(self, group):
        if group not in self._posers:
            optics = self._table.optics[group]
            self._posers[group] = Poser(optics, self._geometry, group), _Background(optics, self._geometry, group)
        return self._posers[group]

    def _transfer(self, rows, group):
        """float64[n, H]: the CTF, as the job wants it, in the frame of the posed particle."""
        table, choice = self._table, self._options.ctf
        if choice == "none" or not table.has_ctf:
            return np.ones((len(rows), len(self._frequency)))
        column = {name: getattr(table, name)[rows][:, None] for name in ("defocus_u", "defocus_v", "phase_shift",
                                                                        "bfactor")}
        turned = (table.defocus_angle + table.psi)[rows][:, None]
        optics = table.optics[group]
        transfer = ctf(self._frequency, self._angle, defocus_angle=turned, voltage=optics.voltage, cs=optics.cs,
                       amplitude_contrast=optics.amplitude_contrast, intact_first_peak=choice == "intact_first_peak",
                       **column)
        return np.abs(transfer) if choice == "phase_flipped" else transfer


def _evenly(optics_index, wanted):
    """bool[n]: of each optics group, at least `wanted` rows (or all) at even distances."""
    chosen = np.zeros(len(optics_index), dtype=bool)
    for group in np.unique(optics_index):
        rows = np.flatnonzero(optics_index == group)
        chosen[rows[::max(len(rows) // wanted, 1)]] = True
    return chosen


class _Background:
    """Power spectra of what lies outside the particle, on the shells of the common half plane."""

    def __init__(self, optics_group, geometry, number):
        box = optics_group.box_size
        ky, kx = np.meshgrid(np.fft.fftfreq(box, 1.0 / box), np.arange(box // 2 + 1), indexing="ij")
        # shells of the common box, in which this group's own are longer or shorter
        common = geometry.box_size / (box * geometry.magnification[number])
        shell = np.rint(np.hypot(ky, kx) * common).astype(np.int64)
        self._shell = np.where(shell > geometry.plane.radius, 0, shell).ravel()
        self._n = geometry.plane.radius + 1
        self._count = np.maximum(np.bincount(self._shell, minlength=self._n), 1)
        self._empty = np.bincount(self._shell, minlength=self._n)[1:] == 0
        self._amplitude2 = geometry.amplitude[number] ** 2
        axis = np.arange(box) - box // 2
        self.circle = np.hypot(axis[:, None], axis) > geometry.particle_radius / geometry.magnification[number]

    def outside(self, image, mask):
        """float64[R + 1]: shell means of the power of image·(1 − mask), and last the share of the box it is of."""
        left = 1.0 - mask
        power = np.abs(np.fft.rfft2(image * left, norm="ortho")).ravel() ** 2
        means = (np.bincount(self._shell, weights=power, minlength=self._n) / self._count)[1:]
        if self._empty.any():
            shells = np.arange(len(means))
            means = np.interp(shells, shells[~self._empty], means[~self._empty])
        return np.append(self._amplitude2 * means, np.mean(left**2))


def _finish(shard, arrays, table, geometry, comm):
    """Whiten by the background's spectrum and leave out what was set aside. Collective."""
    # summed block by block on every rank: the order of the terms does not depend on where they were made
    sums = np.concatenate(comm.allgather(arrays.background)).sum(axis=0)
    seen = sums[:, -1] > 0
    noise = np.where(seen[:, None], sums[:, :-1], 1.0) / np.where(seen, sums[:, -1], 1.0)[:, None]
    noise = np.maximum(noise, 1e-30)
    members = np.bincount(table.optics_index, minlength=len(noise)) * seen
    level = np.exp(members @ np.log(noise) / members.sum())
    shell, plane = geometry.plane.shell, geometry.plane
    for i in range(0, len(shard.rows), BATCH):
        part = slice(i, i + BATCH)
        sigma2 = noise[table.optics_index[shard.rows[part]]]
        # t = T/σ, c = C σ̄/σ: what is kept is c·t, c² and t²
        arrays.transformed[part] *= (np.sqrt(level) / sigma2)[:, shell][:, plane.group]
        arrays.ctf2[part] *= (level / sigma2)[:, shell]
        arrays.power[part] /= sigma2
    shard.noise, shard.level = noise, level
    shard.kept = shard.rows[shard.usable]
    shard.embedded = _embedded(shard, arrays, plane, geometry.mask_fraction, comm)


def _embedded(shard, arrays, plane, freedom, comm):
    """The usable particles; what is left of a block stays a block."""
    counts = comm.allgather(int(shard.usable.sum()))
    starts = np.concatenate([[0], np.cumsum(shard.usable)])[shard.starts].astype(np.int64)
    kept = np.flatnonzero(shard.usable)
    transformed, ctf2, power = (_compacted(array, kept) for array in (arrays.transformed, arrays.ctf2, arrays.power))
    return EmbeddedParticles(transformed, ctf2, power, rows=sum(counts[:comm.rank]) + np.arange(len(kept)),
                             starts=starts, n_total=sum(counts), layout=Layout(plane.group, plane.shell, freedom))


def _compacted(array, kept):
    """The rows `kept` (ascending) of an array, moved to its front: a large shard is not held twice."""
    if len(kept) < len(array):
        for i in range(0, len(kept), BATCH):
            array[i:min(i + BATCH, len(kept))] = array[kept[i:i + BATCH]]
    return array.first(len(kept)) if isinstance(array, ScratchRows) else array[:len(kept)]
