"""Particle stacks with known truth: views of a specimen, turned, shifted, filtered by the CTF, in white noise.

Each image is rendered in Fourier space on a grid half as wide again as the box and cut out of it, as a particle is cut
out of a micrograph: what the CTF spreads beyond the box is lost, not wrapped round. Every random number belongs to
(seed, particle), so that particle i is the same whatever the number of particles. Views are dealt like cards: every V
consecutive particles show all V views, in random order.

One noise level serves all particles: SNR = var(CTF-filtered signal over the whole box) / var(noise), the numerator
averaged over views and defoci. (A level for each particle would make the signal's scale depend on its defocus.)
"""
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import finufft
import mrcfile
import numpy as np
import scipy.fft

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.poses import rotate_offset, wrap_degrees
from vitrea.engine.specimen import (
    check_fits,
    hinged,
    make_views,
    random_blobs,
    read_atoms,
    read_map,
    spread_directions,
)
from vitrea.engine.star import ROWS_WRITTEN, write_star
from vitrea.engine.storage import pieces
from vitrea.kernels.ctf import ctf

BATCH_PIXELS = 1 << 18      # rendered at a time by a thread: what is made on the way stays in its caches
RUN_PIXELS = 1 << 26        # 256 MB of images, in which batches are gathered by view
PADDING = 1.5               # grid over box: a neighbour one box away must not wrap into the image
NUFFT_TOLERANCE = 1e-5      # of float32 images, far below any noise
DEFOCUS_LADDER = 4          # defoci over which the signal's variance is averaged
BACKGROUND_RADIUS = 0.375   # of the box: RELION's default circle, background outside
JUNK = ("none", "noise", "off_centre", "neighbour")
VIEW_STREAM = 1 << 41       # keys of the random streams that deal views, beyond those of particles


@dataclass(frozen=True)
class ParticleSimulation:
    """What to simulate. box_size [px], pixel_size [Å], max_shift [px, each of x and y], junk [fraction of particles],
    motion [degrees through which an arm of the built-in specimen turns over the views, seen from one direction],
    defocus (least, most) [Å], astigmatism [Å, largest U − V], phase_shift [degrees], voltage [kV], cs [mm], stack_size
    [particles in a stack; all in one by default].

    Without map_path or model_path the specimen is a built-in heap of blobs, drawn from the seed. Raises JobError for
    values that make no sense.
    """
    n: int
    views: int
    box_size: int
    pixel_size: float
    snr: float
    seed: int = 0
    max_shift: float = 3.0
    junk: float = 0.0
    motion: float = 0.0
    map_path: Path | None = None
    model_path: Path | None = None
    ctf: bool = True
    defocus: tuple[float, float] = (10_000.0, 25_000.0)
    astigmatism: float = 500.0
    phase_shift: float = 0.0
    voltage: float = 300.0
    cs: float = 2.7
    amplitude_contrast: float = 0.1
    stack_size: int | None = None

    def __post_init__(self):
        _require(self.n >= 1, "n", self.n, "at least one particle")
        _require(self.views >= 1, "views", self.views, "at least one view")
        _require(self.box_size >= 16, "box", self.box_size, "at least 16 px")
        _require(self.pixel_size > 0.0, "pixel_size", self.pixel_size, "a number of Å above 0")
        _require(self.snr > 0.0, "snr", self.snr, "a ratio above 0")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0")
        _require(0.0 <= self.max_shift <= self.box_size / 4, "max_shift", self.max_shift, "0 to a quarter of the box")
        _require(0.0 <= self.motion <= 180.0, "motion", self.motion, "0 to 180 degrees")
        _require(not self.motion or (self.map_path is None and self.model_path is None), "motion", "a map or model",
                 "the built-in specimen")
        _require(0.0 <= self.junk <= 1.0, "junk", self.junk, "a fraction from 0 to 1")
        _require(self.defocus[0] <= self.defocus[1], "defocus", self.defocus, "the lesser value first")
        _require(self.stack_size is None or self.stack_size >= 1, "stack_size", self.stack_size, "at least one")
        _require(self.map_path is None or self.model_path is None, "map and model", "both", "one of them at most")


@dataclass(frozen=True)
class Truth:
    """What is known of n particles: view int32[n] (0-based), psi float64[n] [degrees], origin float64[n, 2] (y, x) [px]
    (poses as in engine/poses.py), defocus_u, defocus_v [Å] and defocus_angle [degrees] float64[n], junk int8[n] (index
    into JUNK), and the view, psi and origin of a junk image's neighbour.
    """
    view: np.ndarray
    psi: np.ndarray
    origin: np.ndarray
    defocus_u: np.ndarray
    defocus_v: np.ndarray
    defocus_angle: np.ndarray
    junk: np.ndarray
    neighbour_view: np.ndarray
    neighbour_psi: np.ndarray
    neighbour_origin: np.ndarray

    def __len__(self):
        return len(self.view)

    def take(self, rows):
        """The truth of some particles."""
        return Truth(*(getattr(self, column.name)[rows] for column in fields(self)))


def simulate_particles(simulation, out, progress=None, threads=1):
    """Write particles.star, particles.mrcs, truth.star and views.mrcs into the folder `out`, each whole or not at all.

    particles.mrcs (with stack_size particles_0001.mrcs and so on): white particles, background mean 0 and sd 1 as
    RELION normalises them. views.mrcs: the noise-free views without CTF in units of the noise. truth.star: the same
    rows with class (1-based, 0 for junk), pose, and kind of junk in vitreaJunk.
    Image names are written relative to the working directory (if `out` is), as RELION resolves them.
    `progress(done, n)` is called after every batch; by default a line on the terminal, if there is one. The images do
    not depend on the number of threads.
    Raises JobError for bad maps or models and when `out` cannot be written.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{out}: could not be made ({error.strerror}); expected a writable place; choose another "
                       "--out") from error
    views, directions = simulated_views(simulation)
    views = views / np.float32(noise_sd(views, simulation))
    progress = progress or TerminalProgress("particles")
    done = 0
    for stack, first, last in _stacks(out, simulation):
        with written_beside(stack) as beside, _new_stack(beside, simulation, last - first) as mrc:
            for count in _fill(mrc.data, views, first, simulation, threads):
                done += count
                progress(done, simulation.n)
    with written_beside(out / "views.mrcs") as beside:
        _write_views(beside, views, simulation.pixel_size)
    optics = _optics_columns(simulation)
    write_star(out / "truth.star", {"optics": optics, "particles": (
        _particle_columns(out, rows, truth, simulation) | _truth_columns(truth, directions, simulation)
        for rows, truth in _drawn(simulation))})
    write_star(out / "particles.star", {"optics": optics, "particles": (
        _particle_columns(out, rows, truth, simulation) for rows, truth in _drawn(simulation))})


def _drawn(simulation):
    """(rows, Truth) of all particles, as many at a time as are written at once: to draw them again is little work."""
    for part in pieces(simulation.n, ROWS_WRITTEN):
        rows = np.arange(part.start, part.stop)
        yield rows, draw_truth(simulation, rows)


def _fill(images, views, first, simulation, threads):
    """Simulate particles first, first + 1, … into a stack float32[n, L, L]; yields how many more are done."""
    with ThreadPoolExecutor(threads) as pool:
        for part in pieces(len(images), max(1, RUN_PIXELS // simulation.box_size**2)):
            rows = np.arange(first + part.start, first + part.stop)
            truth = draw_truth(simulation, rows)

            def one(batch, out=images[part], rows=rows, truth=truth):
                out[batch] = make_particles(views, truth.take(batch), rows[batch], simulation)
                return len(batch)

            yield from pool.map(one, _batches(truth.view, simulation.box_size))


def simulated_views(simulation):
    """Noise-free views float32[V, L, L] of unit mean variance, and their (rot, tilt) float64[V, 2] [degrees]."""
    sim = simulation
    if sim.map_path is not None:
        specimen, name = read_map(sim.map_path, sim.pixel_size), sim.map_path
    elif sim.model_path is not None:
        specimen, name = read_atoms(sim.model_path), sim.model_path
    else:
        specimen, name = random_blobs(sim.box_size, sim.pixel_size, sim.seed), "built-in specimen"
    if sim.motion:
        views, directions = _moving_views(specimen, sim)
    else:
        directions = spread_directions(sim.views, sim.seed)
        views = make_views(specimen, directions, sim.box_size, sim.pixel_size)
    check_fits(views, sim.pixel_size, name)
    return views / np.sqrt(np.mean(np.var(views, axis=(1, 2), dtype=np.float64))).astype(np.float32), directions


def _moving_views(specimen, simulation):
    """The specimen from one direction, its arm turning evenly by `motion` in all: (views, directions)."""
    sim = simulation
    stages = [hinged(specimen, angle, sim.seed) for angle in np.linspace(-0.5, 0.5, sim.views) * sim.motion]
    views = [make_views(stage, [direction], sim.box_size, sim.pixel_size) for stage, direction in stages]
    return np.concatenate(views), np.array([direction for _, direction in stages])


def noise_sd(views, simulation):
    """The standard deviation of white noise at which particles of `views` float32[V, L, L] have simulation.snr."""
    ladder = (np.arange(DEFOCUS_LADDER) + 0.5) / DEFOCUS_LADDER
    defocus = np.repeat(simulation.defocus[0] + ladder * np.diff(simulation.defocus), len(views))
    n = len(defocus)
    zeros, integers = np.zeros(n), np.zeros(n, dtype=np.int32)
    truth = Truth(np.resize(np.arange(len(views), dtype=np.int32), n), zeros, np.zeros((n, 2)), defocus, defocus, zeros,
                  integers.astype(np.int8), integers, zeros, np.zeros((n, 2)))
    variances = [np.var(render(views, truth.take(rows), simulation), axis=(1, 2), dtype=np.float64)
                 for rows in _batches(truth.view, simulation.box_size)]
    return float(np.sqrt(np.mean(np.concatenate(variances)) / simulation.snr))


def draw_truth(simulation, rows):
    """The truth of particles `rows` int[n] (their numbers, which seed their random streams)."""
    sim = simulation
    uniform = np.stack([_stream(sim.seed, row).random(14) for row in rows])
    kind = np.minimum((3.0 * uniform[:, 1]).astype(np.int8), 2) + 1
    junk = np.where(uniform[:, 0] < sim.junk, kind, 0).astype(np.int8)
    mean, half = sim.defocus[0] + uniform[:, 2] * np.ptp(sim.defocus), 0.5 * sim.astigmatism * uniform[:, 3]
    origin = sim.max_shift * (2.0 * uniform[:, 5:7] - 1.0)
    off_centre = _far_origin(uniform[:, 7], uniform[:, 8], sim.box_size)
    return Truth(view=_dealt_views(sim, rows),
                 psi=wrap_degrees(360.0 * uniform[:, 9]),
                 origin=np.where(junk[:, None] == JUNK.index("off_centre"), off_centre, origin),
                 defocus_u=mean + half, defocus_v=mean - half, defocus_angle=180.0 * uniform[:, 4], junk=junk,
                 neighbour_view=(sim.views * uniform[:, 10]).astype(np.int32),
                 neighbour_psi=wrap_degrees(360.0 * uniform[:, 11]),
                 neighbour_origin=_far_origin(uniform[:, 12], uniform[:, 13], sim.box_size))


def make_particles(views, truth, rows, simulation):
    """Normalised images float32[n, L, L] of particles `rows` int[n] (their numbers): rendered `views` plus unit noise.

    views float32[V, L, L] in units of the noise; truth of the same n particles.
    """
    images = render(views, truth, simulation)
    for image, row in zip(images, rows, strict=True):
        random = _stream(simulation.seed, row)
        random.random(14)   # the draws of the truth come first in the stream
        image += random.standard_normal(image.shape, dtype=np.float32)
    return normalised(images)


def normalised(images):
    """Images float32[n, L, L] with mean 0 and sd 1 outside the circle of radius 0.375 L, as relion_preprocess does."""
    axis = np.arange(images.shape[-1]) - images.shape[-1] // 2
    background = images[:, np.hypot(axis[:, None], axis) > BACKGROUND_RADIUS * images.shape[-1]]
    mean = background.mean(axis=1, dtype=np.float64)[:, None, None]
    return ((images - mean) / background.std(axis=1, dtype=np.float64)[:, None, None]).astype(np.float32)


def render(views, truth, simulation):
    """Noise-free images float32[n, L, L]: C · place(view, psi, origin) (engine/poses.py), plus neighbours."""
    sim, grid = simulation, _Grid.of(simulation)
    modes = np.zeros((len(truth), grid.ky.size), dtype=np.complex64)
    _add_views(modes, grid, views, (truth.view, truth.psi, truth.origin),
               np.flatnonzero(truth.junk != JUNK.index("noise")))
    _add_views(modes, grid, views, (truth.neighbour_view, truth.neighbour_psi, truth.neighbour_origin),
               np.flatnonzero(truth.junk == JUNK.index("neighbour")))
    if sim.ctf:
        column = np.s_[:, None]
        modes *= ctf(grid.radius / sim.pixel_size, grid.angle, defocus_u=truth.defocus_u[column],
                     defocus_v=truth.defocus_v[column], defocus_angle=truth.defocus_angle[column], voltage=sim.voltage,
                     cs=sim.cs, amplitude_contrast=sim.amplitude_contrast, phase_shift=sim.phase_shift)
    return grid.images(modes)


# ---- rendering

def _batches(view, box_size):
    """Rows int[n] rendered together, of particles with `view` int[N]: pieces of a run that is ordered by view.

    A view's interpolation table is made once for all its images of a batch, so batches should hold few views; a run is
    short enough to stay in the page cache while it is written out of order.
    """
    step, run = max(1, BATCH_PIXELS // box_size**2), max(1, RUN_PIXELS // box_size**2)
    for start in range(0, len(view), run):
        rows = start + np.argsort(view[start:start + run], kind="stable")
        yield from (rows[first:first + step] for first in range(0, len(rows), step))


@dataclass(frozen=True)
class _Grid:
    """The half plane of frequencies below Nyquist of the padded box: ky, kx float64[M] [cycles/px] and their places."""
    box_size: int
    grid_size: int
    needed: np.ndarray
    ky: np.ndarray
    kx: np.ndarray
    place: tuple[np.ndarray, np.ndarray]
    radius: np.ndarray = field(init=False)
    angle: np.ndarray = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "radius", np.hypot(self.ky, self.kx))
        object.__setattr__(self, "angle", np.arctan2(self.ky, self.kx))

    @classmethod
    def of(cls, simulation):
        box_size = simulation.box_size
        grid_size = scipy.fft.next_fast_len(int(np.ceil(PADDING * box_size)), real=True)
        ky, kx = np.meshgrid(np.fft.fftfreq(grid_size), np.fft.rfftfreq(grid_size), indexing="ij")
        needed = np.hypot(ky, kx) < 0.5
        return cls(box_size, grid_size, needed, ky[needed], kx[needed], np.nonzero(needed))

    def ramp(self, origin):
        """exp(2πi k·o) for origins (y, x) float64[n, 2] [px]: complex64[n, M], of one factor a row and a column."""
        along_y = np.exp(2j * np.pi * origin[:, :1] * np.fft.fftfreq(self.grid_size)).astype(np.complex64)
        along_x = np.exp(2j * np.pi * origin[:, 1:] * np.fft.rfftfreq(self.grid_size)).astype(np.complex64)
        return along_y[:, self.place[0]] * along_x[:, self.place[1]]

    def images(self, modes):
        """The box cut out of the inverse transform of `modes` complex64[n, M]: float32[n, L, L]."""
        half_plane = np.zeros((len(modes), *self.needed.shape), dtype=np.complex64)
        half_plane[:, self.needed] = modes
        padded = scipy.fft.irfft2(half_plane, s=(self.grid_size, self.grid_size), workers=1, overwrite_x=True)
        axis = (np.arange(self.box_size) - self.box_size // 2) % self.grid_size
        return padded[:, axis[:, None], axis]


def _add_views(modes, grid, views, poses, rows):
    """Add views at their poses (view, psi, origin) to the `rows` of modes complex64[n, M], view by view."""
    view, psi, origin = poses
    for k in np.unique(view[rows]):
        chosen = rows[view[rows] == k]
        # Frequencies turn back by psi: F_image(k) = exp(2πi k·o) F_view(R(−psi) k).
        turned = rotate_offset(np.stack([grid.ky, grid.kx], axis=-1), -psi[chosen, None])
        y, x = np.ascontiguousarray(2.0 * np.pi * turned.reshape(-1, 2).T, dtype=np.float32)
        values = finufft.nufft2d2(y, x, views[k].astype(np.complex64), isign=-1, eps=NUFFT_TOLERANCE, upsampfac=2.0,
                                  nthreads=1)
        modes[chosen] += values.reshape(len(chosen), -1) * grid.ramp(origin[chosen])


# ---- random numbers

def _stream(seed, number):
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))


def _dealt_views(simulation, rows):
    """The view of each particle: hands of V particles, each a random permutation of all views."""
    views = simulation.views
    hands = {hand: _stream(simulation.seed, VIEW_STREAM + hand).permutation(views) for hand in np.unique(rows // views)}
    return np.array([hands[row // views][row % views] for row in rows], dtype=np.int32)


def _far_origin(distance, direction, box_size):
    """Origins 0.3 to 0.5 box away from the centre, (y, x) [px]."""
    radius, angle = (0.3 + 0.2 * distance) * box_size, 2.0 * np.pi * direction
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)


# ---- files

def _stacks(out, simulation):
    """[(path, first particle, one after the last)] of the stacks."""
    n, size = simulation.n, simulation.stack_size
    if size is None:
        return [(out / "particles.mrcs", 0, n)]
    return [(out / f"particles_{i:04d}.mrcs", first, min(first + size, n))
            for i, first in enumerate(range(0, n, size), 1)]


def _new_stack(path, simulation, n):
    """A memory-mapped stack whose bytes are reserved now: a full disk is an error here and not a crash later."""
    shape = (n, simulation.box_size, simulation.box_size)
    mrc = mrcfile.new_mmap(path, shape=shape, mrc_mode=2, overwrite=True)
    try:
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.path.getsize(path))
    except OSError:
        mrc.close()
        raise
    mrc.set_image_stack()
    mrc.voxel_size = simulation.pixel_size
    return mrc


def _write_views(path, views, pixel_size):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(views)
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size


def _optics_columns(simulation):
    sim = simulation
    return {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["simulated"], "rlnImagePixelSize": [sim.pixel_size],
            "rlnImageSize": [sim.box_size], "rlnImageDimensionality": [2], "rlnVoltage": [sim.voltage],
            "rlnSphericalAberration": [sim.cs], "rlnAmplitudeContrast": [sim.amplitude_contrast]}


def _particle_columns(out, rows, truth, simulation):
    n, size, stacks = len(rows), simulation.stack_size or simulation.n, _stacks(out, simulation)
    names = [f"{row % size + 1:06d}@{stacks[row // size][0]}" for row in rows.tolist()]
    columns = {"rlnImageName": np.array(names),
               "rlnMicrographName": np.full(n, "simulated.mrc"),
               "rlnOpticsGroup": np.ones(n, dtype=np.int32)}
    if simulation.ctf:
        columns |= {"rlnDefocusU": truth.defocus_u, "rlnDefocusV": truth.defocus_v,
                    "rlnDefocusAngle": truth.defocus_angle, "rlnPhaseShift": np.full(n, simulation.phase_shift)}
    return columns


def _truth_columns(truth, directions, simulation):
    rot, tilt = directions[truth.view].T
    y, x = simulation.pixel_size * truth.origin.T
    return {"rlnClassNumber": np.where(truth.junk == 0, truth.view + 1, 0), "rlnAngleRot": rot, "rlnAngleTilt": tilt,
            "rlnAnglePsi": truth.psi, "rlnOriginXAngst": x, "rlnOriginYAngst": y,
            "vitreaJunk": np.array(JUNK)[truth.junk]}


class TerminalProgress:
    """A line on stderr about how many of `what` are simulated, overwritten, from two seconds on; silent where stderr is
    no terminal."""

    def __init__(self, what):
        self.what = what
        self.start = time.monotonic()
        self.shown = False

    def __call__(self, done, n):
        elapsed = time.monotonic() - self.start
        if sys.stderr.isatty() and (self.shown or elapsed > 2.0):
            self.shown = True
            end = "\n" if done == n else ""
            left = f"{elapsed * (n / done - 1.0):.0f} s left {end}"
            sys.stderr.write(f"\rsimulated {done:,} of {n:,} {self.what}, {left}")
            sys.stderr.flush()


def _require(fine, name, found, expected):
    if not fine:
        raise JobError(f"simulate: found {name} = {found}; expected {expected}; change {name}")
