"""Classification from Python, in a notebook say: arrays in, arrays out.

    from vitrea.engine.notebook import Microscope, classify2d
    found = classify2d(images, pixel_size=1.3, particle_diameter=180, n_classes=20, microscope=Microscope(defocus))
    found.class_averages[found.sizes.argmax()]

The steps, the files and the result are those of `vitrea run` on one rank; `folder` keeps the files.
"""
import contextlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.comm import alone
from vitrea.engine.finished import read_finished
from vitrea.engine.options import Classify2dOptions, ClusterOptions
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import write_star

STACK, PARTICLES, RUN, CLUSTERED = "particles.mrcs", "particles.star", "run", "clustered"


@dataclass(frozen=True)
class Microscope:
    """What the CTF of n images is made of: defocus float[n] or float[n, 3], underfocus U, V [Å] and angle [degrees];
    voltage [kV], spherical aberration cs [mm], amplitude contrast [fraction]."""

    defocus: np.ndarray
    voltage: float = 300.0
    cs: float = 2.7
    amplitude_contrast: float = 0.1


@dataclass(frozen=True)
class Classification:
    """What was found for n particles in K classes, in the order of the images.

    class_averages float32[K, L, L]; class_number int32[n], from 0; psi float64[n] [degrees] and origin float64[n, 2]
    (y, x) [px], RELION's convention (engine/poses.py: apply_pose brings an image onto its class average); probability
    float64[n] of the best pose; latent float64[n, axes] of `cluster`, else None; resolution float64[K] [Å], NaN where
    there is none; sizes int64[K]; rows int64[n]: indices of the images, for those that could not be used are left out;
    folder: where the files are, None if they were not kept.
    """

    class_averages: np.ndarray
    class_number: np.ndarray
    psi: np.ndarray
    origin: np.ndarray
    probability: np.ndarray
    latent: np.ndarray | None
    resolution: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    folder: Path | None


def classify2d(images, *, pixel_size, microscope=None, folder=None, quiet=True, **keys):
    """Align and classify images[n, L, L], white particles on dark: a Classification.

    pixel_size [Å/px]; microscope: None for images without a CTF; keys are those of `job: classify2d`, of which
    particle_diameter [Å] and n_classes are needed. ValueError for arrays that do not fit, OptionError for keys that
    make no sense, JobError for images that cannot be used.
    """
    from vitrea.engine import classify2d as job

    images = np.asarray(images)
    _require_images(images)
    keys = keys if microscope else {"ctf": "none"} | keys
    with _folder(folder) as (place, kept):
        write_stack(place / STACK, images, pixel_size)
        _write_particles(place, images.shape, pixel_size, microscope)
        options = Classify2dOptions(input=place / PARTICLES, output=place / RUN, **keys)
        _carry_out(job.run, options, quiet)
        return _read(place / RUN, kept)


def cluster(found, *, quiet=True, **keys):
    """Sort the particles of a Classification, whose folder was kept, into classes on a latent grid: a Classification
    with latent coordinates. Keys are those of `job: cluster`, of which particle_diameter and n_classes are needed."""
    from vitrea.engine import cluster as job

    if found.folder is None:
        raise ValueError("cluster needs the files of the classification: give classify2d a folder")
    options = ClusterOptions(input=found.folder / "run_data.star", output=found.folder.parent / CLUSTERED, **keys)
    _carry_out(job.run, options, quiet)
    return _read(options.output, found.folder.parent)


@contextlib.contextmanager
def _folder(folder):
    """(the folder that files are written to, the folder that is kept or None)."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vitrea-") as temporary:
            yield Path(temporary), None
        return
    folder = Path(os.path.abspath(folder))
    if (folder / STACK).exists() or (folder / RUN).exists():
        raise ValueError(f"{folder} already holds a classification; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder, folder


def _require_images(images):
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not len(images):
        raise ValueError(f"images are float[n, L, L] with n > 0, not an array of shape {images.shape}")


def _defocus_columns(n, microscope):
    """The columns of the CTF of n particles; ValueError for a defocus that does not fit."""
    defocus = np.asarray(microscope.defocus, dtype=np.float64)
    if defocus.shape not in ((n,), (n, 3)):
        raise ValueError(f"defocus is float[{n}] or float[{n}, 3], not of shape {defocus.shape}")
    if defocus.ndim == 1:
        defocus = np.stack([defocus, defocus, np.zeros(len(defocus))], axis=1)
    return dict(zip(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), defocus.T))


def _write_particles(place, shape, pixel_size, microscope):
    """Write the STAR file of a stack of `shape`."""
    n, box_size = shape[:2]
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnImagePixelSize": [float(pixel_size)],
              "rlnImageSize": [box_size], "rlnImageDimensionality": [2]}
    columns = _defocus_columns(n, microscope) if microscope else {}
    if microscope:
        optics |= {"rlnVoltage": [float(microscope.voltage)], "rlnSphericalAberration": [float(microscope.cs)],
                   "rlnAmplitudeContrast": [float(microscope.amplitude_contrast)]}
    names = np.array([f"{i + 1:06d}@{place / STACK}" for i in range(n)])
    write_star(place / PARTICLES, {"optics": optics, "particles": {
        "rlnImageName": names, "rlnOpticsGroup": np.ones(n, np.int64), **columns}})


def _carry_out(run, options, quiet):
    options.output.mkdir(parents=True, exist_ok=True)
    silence = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
    with silence:
        run(options, resume=False, comm=alone())


def _read(folder, kept):
    run = read_finished(folder)
    names = run.particles["rlnImageName"].tolist()
    latent = [run.numbers(f"vitreaLatentCoordinate{axis}") for axis in (1, 2, 3)]
    latent = [column for column in latent if column is not None]
    return Classification(
        class_averages=run.averages, class_number=run.class_number, psi=run.numbers("rlnAnglePsi"),
        origin=np.stack([run.numbers("rlnOriginYAngst"), run.numbers("rlnOriginXAngst")], axis=1) / run.pixel_size,
        probability=run.numbers("rlnMaxValueProbDistribution"),
        latent=np.stack(latent, axis=1) if latent else None, resolution=run.resolution, sizes=run.sizes,
        rows=np.array([int(name.partition("@")[0]) - 1 for name in names]), folder=folder if kept else None)
