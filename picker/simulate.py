"""Micrographs with known truth: particles in ice of uneven thickness, CTF, shot noise, and what else is met.

The projected potential of particles, carbon and contamination, with the noise of their amorphous structure, is
filtered by the CTF on a canvas wider than the frame; the dose behind ice, carbon and contamination is lowered by what
they absorb; then electrons are counted (Poisson). Particles are dark, as in a micrograph. All contrasts are in units of
the shot noise of clear ice: relative 1/√(dose per pixel).

Every random number belongs to (seed, micrograph), so that micrograph i is the same whatever their number.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter, zoom

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.simulate import ParticleSimulation, TerminalProgress, Truth, noise_sd, render, simulated_views
from vitrea.engine.star import write_star
from vitrea.kernels.ctf import ctf
from vitrea.picker.scene import CLEAN, draw_scene

DIAMETER_IN_BOX = 0.65       # of a particle's box: the built-in specimen fills as much of it
FULLEST = 0.3                # of the frame covered by particles: darts find no room beyond
MICROGRAPH_STREAM = 1 << 43  # keys of the random streams of micrographs, beyond those of particles
ROWS_AT_ONCE = 256           # of the CTF
STRUCTURE = 0.35             # deviation of ice's amorphous structure, in shot noises
CARBON_STRUCTURE, CARBON_STEP, CARBON_ABSORBED = 1.0, 4.0, 0.2   # deviation, potential, part of the dose
BLOB_STEP, BLOB_ABSORBED = 5.0, 0.25
STRUCTURE_LENGTH = 40.0      # Å: amorphous structure has the spectrum 1 / (1 + (length · s)²)
GRAIN = 16                   # px of the grid on which the ice's thickness varies, before smoothing
HOT = 5e-6                   # share of pixels that count ten times too much

LABEL = "vitrea simulate micrographs"
MICROGRAPHS, COORDINATES, IGNORE, STAR_NAME = "micrographs", "coordinates", "ignore", "micrographs.star"


@dataclass(frozen=True)
class MicrographSimulation:
    """What to simulate: n micrographs of `size` (width, height) [px]; diameter [Å] of the particle, particles (mean
    number on a micrograph, without aggregates and overlapping neighbours).

    snr: var(CTF-filtered signal over the particle's box of diameter / 0.65) / var(shot noise). overlapping: fraction of
    particles with a neighbour that overlaps. aggregates, contamination: mean numbers on a micrograph. carbon: fraction
    of micrographs with an edge of carbon. ice_gradient: relative change of the dose over a micrograph. dose [e/Å²];
    the other keys as in ParticleSimulation. Raises JobError for values that make no sense.
    """

    n: int
    pixel_size: float
    diameter: float
    particles: float
    snr: float
    size: tuple[int, int] = (2048, 2048)
    seed: int = 0
    views: int = 50
    map_path: Path | None = None
    model_path: Path | None = None
    overlapping: float = 0.1
    aggregates: float = 1.0
    contamination: float = 2.0
    carbon: float = 0.25
    ice_gradient: float = 0.2
    dose: float = 30.0
    defocus: tuple[float, float] = (10_000.0, 25_000.0)
    astigmatism: float = 500.0
    voltage: float = 300.0
    cs: float = 2.7
    amplitude_contrast: float = 0.1

    def __post_init__(self):
        _require(self.n >= 1, "n", self.n, "at least one micrograph")
        _require(self.pixel_size > 0, "pixel_size", self.pixel_size, "a number of Å above 0")
        _require(self.diameter >= 8 * self.pixel_size, "diameter", self.diameter,
                 f"at least 8 px, {8 * self.pixel_size:g} Å")
        _require(min(self.size) * self.pixel_size >= 2 * self.diameter, "size", self.size,
                 f"sides of at least two diameters, {2 * self.diameter / self.pixel_size:.0f} px")
        _require(self.particles >= 0, "particles", self.particles, "a number from 0")
        covered = self.particles * np.pi / 4 * (self.diameter / self.pixel_size) ** 2 / np.prod(self.size)
        _require(covered <= FULLEST, "particles", self.particles,
                 f"at most {int(FULLEST / max(covered, 1e-9) * self.particles)}, {100 * FULLEST:.0f} % of the area")
        for name in ("overlapping", "carbon", "ice_gradient"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a fraction from 0 to 1")
        for name in ("aggregates", "contamination"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number from 0")
        _require(self.dose > 0, "dose", self.dose, "electrons per Å² above 0")
        self.particle_simulation()

    def particle_simulation(self):
        """The ParticleSimulation whose boxes are put on the micrographs."""
        box_size = 2 * int(np.ceil(self.diameter / DIAMETER_IN_BOX / self.pixel_size / 2))
        return ParticleSimulation(
            n=1, views=self.views, box_size=max(16, box_size), pixel_size=self.pixel_size, snr=self.snr, seed=self.seed,
            max_shift=0.0, map_path=self.map_path, model_path=self.model_path, defocus=self.defocus,
            astigmatism=self.astigmatism, voltage=self.voltage, cs=self.cs, amplitude_contrast=self.amplitude_contrast)


@dataclass(frozen=True)
class Optics:
    """Defoci [Å] and angle [degrees] of one micrograph."""

    defocus_u: float
    defocus_v: float
    defocus_angle: float


def simulate_micrographs(simulation, out, progress=None, threads=1):
    """Write `n` micrographs with their truth into the folder `out`; the number of clean particles of each, int64[n].

    micrographs/mic_0001.mrc: counted electrons, float32. coordinates/mic_0001.star: centres of clean particles.
    ignore/mic_0001.csv: x, y, radius [px] of particles that overlap, are aggregated or cut by the frame; picking them
    is neither right nor wrong. micrographs.star: all of them with their CTF, written last.
    progress(done, n) is called after every micrograph. Nothing depends on the number of threads, each of which takes
    about 60 bytes a pixel. Raises JobError when `out` cannot be written or the specimen does not fit.
    """
    out, sim = Path(out), simulation
    for part in (MICROGRAPHS, COORDINATES, IGNORE):
        try:
            (out / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"{out / part}: could not be made ({error.strerror}); expected a writable place; choose "
                           "another --out") from error
    views, counts, optics = _views(sim), [], []
    progress = progress or TerminalProgress("micrographs")
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda number: _write_one(sim, views, out, number), range(sim.n)):
            counts.append(found[0])
            optics.append(found[1])
            progress(len(counts), sim.n)
    _write_star(sim, out, optics)
    return np.array(counts)


def make_micrograph(simulation, views, number):
    """(image float32[H, W] of counted electrons, Scene, Optics) of micrograph `number` (from 0).

    views float32[V, L, L] in units of the shot noise, at simulation.particle_simulation()'s box.
    """
    sim, shape = simulation, (simulation.size[1], simulation.size[0])
    random, optics, scene = _drawn(sim, number)
    margin = views.shape[-1]
    canvas = tuple(scipy.fft.next_fast_len(n + 2 * margin, real=True) for n in shape)
    y, x = np.arange(canvas[0])[:, None] - margin, np.arange(canvas[1]) - margin
    on_carbon, in_blob = _soft(scene.carbon_depth(y, x)), _soft(scene.contamination_depth(y, x))
    structure = _structure(random, canvas, sim.pixel_size)
    potential = structure * (STRUCTURE + (CARBON_STRUCTURE - STRUCTURE) * on_carbon)
    potential += CARBON_STEP * on_carbon + BLOB_STEP * in_blob
    _add_particles(potential, random, scene, views, sim, margin)
    seen = np.s_[margin:margin + shape[0], margin:margin + shape[1]]
    contrast = _through_ctf(potential, optics, sim)[seen]
    per_pixel = sim.dose * sim.pixel_size**2
    dose = _thickness(random, shape, sim.ice_gradient)
    dose *= (1 - CARBON_ABSORBED * on_carbon[seen]) * (1 - BLOB_ABSORBED * in_blob[seen])
    image = random.poisson(np.maximum(per_pixel * dose * (1 - contrast / np.sqrt(per_pixel)), 0)).astype(np.float32)
    hot = random.random(round(HOT * image.size) * 2).reshape(2, -1)
    image[tuple((hot * np.array(shape)[:, None]).astype(int))] *= 10
    return image, scene, optics


def scene_of(simulation, number):
    """The Scene of micrograph `number` (from 0), as `make_micrograph` has it, without the image."""
    return _drawn(simulation, number)[2]


def _drawn(sim, number):
    """(random generator of the image, Optics, Scene) of a micrograph."""
    random = _stream(sim.seed, number)
    optics = _draw_optics(random, sim)
    return random, optics, draw_scene(random, (sim.size[1], sim.size[0]), sim.diameter / sim.pixel_size, sim)


# ---- what is seen through the microscope

def _views(simulation):
    """The specimen's views in units of the shot noise: float32[V, L, L]."""
    particles = simulation.particle_simulation()
    try:
        views, _ = simulated_views(particles)
    except JobError as mistake:   # its words are those of simulate particles
        raise JobError(str(mistake).replace("--box or --pixel-size", "--diameter")) from mistake
    return views / np.float32(noise_sd(views, particles))


def _draw_optics(random, sim):
    mean, half = random.uniform(*sim.defocus), 0.5 * sim.astigmatism * random.random()
    return Optics(mean + half, mean - half, 180.0 * random.random())


def _soft(depth):
    """1 inside an outline, 0 outside, over about two pixels: float32."""
    return (0.5 * (1 + np.tanh(depth))).astype(np.float32)


def _structure(random, canvas, pixel_size):
    """White noise of deviation 1 under the spectrum of amorphous matter, its deviation brought back to 1."""
    modes = scipy.fft.rfft2(random.standard_normal(canvas, dtype=np.float32))
    ky, kx = scipy.fft.fftfreq(canvas[0]), scipy.fft.rfftfreq(canvas[1])
    modes /= (1 + (ky[:, None] ** 2 + kx**2) * (STRUCTURE_LENGTH / pixel_size) ** 2).astype(np.float32)
    noise = scipy.fft.irfft2(modes, canvas, overwrite_x=True)
    return noise / noise.std(dtype=np.float64).astype(np.float32)


def _add_particles(potential, random, scene, views, sim, margin):
    """Add each particle of a Scene in a random view and turn to the potential float32[h, w], whose first pixel is
    (−margin, −margin) of the micrograph."""
    n, box = len(scene.centres), views.shape[-1]
    view, psi = random.integers(len(views), size=n).astype(np.int32), random.uniform(-180, 180, n)
    whole = np.rint(scene.centres).astype(int)
    zeros = np.zeros(n)
    truth = Truth(view, psi, whole - scene.centres, zeros, zeros, zeros, np.zeros(n, dtype=np.int8), view, psi,
                  np.zeros((n, 2)))
    bare = ParticleSimulation(n=1, views=len(views), box_size=box, pixel_size=sim.pixel_size, snr=1.0, ctf=False)
    for first in range(0, n, 64):
        rows = np.arange(first, min(first + 64, n))
        for image, (y, x) in zip(render(views, truth.take(rows), bare), whole[rows] - box // 2 + margin):
            low, high = np.maximum((y, x), 0), np.minimum((y + box, x + box), potential.shape)
            potential[low[0]:high[0], low[1]:high[1]] += image[low[0] - y:high[0] - y, low[1] - x:high[1] - x]


def _through_ctf(potential, optics, sim):
    """The potential float32[h, w] filtered by the CTF, some rows of frequencies at a time."""
    modes = scipy.fft.rfft2(potential, overwrite_x=True)
    ky = scipy.fft.fftfreq(potential.shape[0], sim.pixel_size)[:, None]
    kx = scipy.fft.rfftfreq(potential.shape[1], sim.pixel_size)
    for first in range(0, len(modes), ROWS_AT_ONCE):
        rows = np.s_[first:first + ROWS_AT_ONCE]
        modes[rows] *= ctf(np.hypot(ky[rows], kx), np.arctan2(ky[rows], kx), defocus_u=optics.defocus_u,
                           defocus_v=optics.defocus_v, defocus_angle=optics.defocus_angle, voltage=sim.voltage,
                           cs=sim.cs, amplitude_contrast=sim.amplitude_contrast, phase_shift=0.0, dtype=np.float32)
    return scipy.fft.irfft2(modes, potential.shape, overwrite_x=True)


def _thickness(random, shape, gradient):
    """Relative dose behind ice of uneven thickness, a slope and hills, float32[H, W] with mean about 1."""
    angle = random.uniform(0, 2 * np.pi)
    y, x = (np.linspace(-0.5, 0.5, n) for n in shape)
    slope = (y[:, None] * np.sin(angle) + x * np.cos(angle)).astype(np.float32)
    grid = tuple(-(-n // GRAIN) + 1 for n in shape)
    hills = gaussian_filter(random.standard_normal(grid), max(grid) / 12, mode="reflect")
    hills = zoom(hills / max(hills.std(), 1e-12), GRAIN, order=1)[:shape[0], :shape[1]]
    return np.maximum(1 + gradient * (slope + 0.15 * hills), 0.05).astype(np.float32)


# ---- files

def _write_one(sim, views, out, number):
    """Write one micrograph and its truth; (number of clean particles, Optics)."""
    image, scene, optics = make_micrograph(sim, views, number)
    clean = scene.centres[scene.kind == CLEAN]
    write_star(out / COORDINATES / f"{_stem(number)}.star", {
        "": {"rlnCoordinateX": clean[:, 1], "rlnCoordinateY": clean[:, 0]}})
    with written_beside(out / IGNORE / f"{_stem(number)}.csv") as beside:
        rows = [f"{x:.2f},{y:.2f},{sim.diameter / sim.pixel_size / 2:.2f}"
                for y, x in scene.centres[scene.kind != CLEAN]]
        beside.write_text("\n".join(["x,y,radius", *rows]) + "\n", encoding="utf-8")
    with written_beside(out / MICROGRAPHS / f"{_stem(number)}.mrc") as beside, \
            mrcfile.new(beside, data=image, overwrite=True) as mrc:
        mrc.voxel_size = sim.pixel_size
        mrc.header.label[0] = LABEL   # mrcfile's own holds the time, and two runs of one seed would differ
    return len(clean), optics


def _stem(number):
    return f"mic_{number + 1:04d}"


def number_of(stem):
    """The number (from 0) of a micrograph by its file's name without suffix."""
    return int(stem.rpartition("_")[2]) - 1


def _write_star(sim, out, optics):
    names = [str(out / MICROGRAPHS / f"{_stem(number)}.mrc") for number in range(sim.n)]
    write_star(out / STAR_NAME, {
        "optics": {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["simulated"],
                   "rlnMicrographPixelSize": [sim.pixel_size], "rlnVoltage": [sim.voltage],
                   "rlnSphericalAberration": [sim.cs], "rlnAmplitudeContrast": [sim.amplitude_contrast]},
        "micrographs": {"rlnMicrographName": names, "rlnOpticsGroup": [1] * sim.n,
                        "rlnDefocusU": [one.defocus_u for one in optics],
                        "rlnDefocusV": [one.defocus_v for one in optics],
                        "rlnDefocusAngle": [one.defocus_angle for one in optics], "rlnPhaseShift": [0.0] * sim.n}})


def _stream(seed, number):
    return np.random.Generator(np.random.Philox(key=np.array([seed, MICROGRAPH_STREAM + number], dtype=np.uint64)))


def _require(fine, name, found, expected):
    if not fine:
        raise JobError(f"simulate micrographs: found {name} = {found}; expected {expected}; change {name}")
