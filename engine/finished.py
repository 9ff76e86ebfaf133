"""A finished run of particles, read back: what reports, selections and scores are made of.

Everything comes from the files that RELION reads too (run_data.star, run_model.star, run_classes.mrcs), so that a run
folder that was moved, or whose checkpoint was deleted, can still be looked at.
"""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.stacks import read_header
from vitrea.engine.star import read_long_star
from vitrea.engine.storage import Memory, Scratch

DATA_NAME, MODEL_NAME, STACK_NAME = "run_data.star", "run_model.star", "run_classes.mrcs"
UNKNOWN = 999.0   # RELION's resolution of what has none
LARGE = 50_000_000   # bytes of a STAR file whose words are kept in scratch instead of memory


@dataclass(frozen=True)
class FinishedRun:
    """K classes of n particles, as a run folder holds them.

    blocks: {block: {label: TextColumn}} of run_data.star; class_number int32[n], from 0; averages float32[K, L, L];
    box_size L [px]; pixel_size [Å/px]; resolution float64[K] [Å], NaN where there is none; prior float64[K];
    frequency float64[S] [1/Å]; ssnr float64[K, S]; frc float64[K, S] of half-sets, None where the job has none.
    """

    folder: Path
    blocks: dict
    class_number: np.ndarray
    averages: np.ndarray
    pixel_size: float
    resolution: np.ndarray
    prior: np.ndarray
    frequency: np.ndarray
    ssnr: np.ndarray
    frc: np.ndarray | None

    @property
    def n_classes(self):
        return len(self.averages)

    @property
    def box_size(self):
        return self.averages.shape[-1]

    @cached_property
    def sizes(self):
        """int64[K]: particles of each class."""
        return np.bincount(self.class_number, minlength=self.n_classes)

    @property
    def particles(self):
        """{label: TextColumn} of the particles."""
        return self.blocks["particles"]

    def numbers(self, label):
        """float64[n] of a column of the particles, None if there is no such column."""
        return self.particles[label].astype(np.float64) if label in self.particles else None

    @property
    def expected_frc(self):
        """float64[K, S]: correlation of half-sets, measured, or what the SSNR lets one expect: SSNR / (SSNR + 2)."""
        return self.frc if self.frc is not None else self.ssnr / (self.ssnr + 2.0)


def is_finished(folder):
    """Whether a folder holds the results of a run on particles."""
    return all((Path(folder) / name).exists() for name in (DATA_NAME, MODEL_NAME, STACK_NAME))


def read_finished(folder):
    """The FinishedRun of a folder; JobError if there is none, or its files do not belong together."""
    folder = Path(folder)
    if not is_finished(folder):
        raise JobError(f"{folder}: {_what_it_is(folder)}; expected the folder of a run with {DATA_NAME}, {MODEL_NAME} "
                       f"and {STACK_NAME}, as classify2d, cluster and deep2d leave it when they are done")
    blocks, model = (read_long_star(folder / name, _space(folder, name)) for name in (DATA_NAME, MODEL_NAME))
    prior, resolution = (_column(folder / MODEL_NAME, model, "model_classes", label)
                         for label in ("rlnClassDistribution", "rlnEstimatedResolution"))
    averages, pixel_size = _stack(folder / STACK_NAME)
    number = _column(folder / DATA_NAME, blocks, "particles", "rlnClassNumber").astype(np.int32) - 1
    _require_together(folder, len(averages), len(prior), number)
    return FinishedRun(folder, blocks, number, averages, pixel_size,
                       np.where(resolution < UNKNOWN, resolution, np.nan), prior,
                       _column(folder / MODEL_NAME, model, "model_class_1", "rlnResolution"),
                       _spectra(folder, model, "rlnSsnrMap", len(prior)),
                       _spectra(folder, model, "rlnFourierShellCorrelation", len(prior)))


def _what_it_is(folder):
    """What stands in the place of a folder of finished classes, in words."""
    if not folder.exists():
        return "there is no such folder"
    return "holds no finished classes" if folder.is_dir() else "is a file, not a folder"


def _space(folder, name):
    """Where the words of a STAR file are kept: a million particles have a quarter of a gigabyte of them."""
    return Scratch(folder) if (folder / name).stat().st_size > LARGE else Memory()


def _require_together(folder, n_averages, n_classes, number):
    if n_averages != n_classes or (len(number) and not 0 <= number.min() <= number.max() < n_classes):
        raise JobError(f"{folder}: found {n_averages} class averages, {n_classes} classes in {MODEL_NAME} and class "
                       f"numbers up to {number.max(initial=-1) + 1} in {DATA_NAME}; expected files of one run; run it "
                       "again")


def _stack(path):
    """(float32[K, L, L], pixel size [Å/px]) of a whole stack."""
    header = read_header(path)
    shape = header.n_images, header.height, header.width
    values = np.fromfile(path, header.dtype, int(np.prod(shape)), offset=header.data_offset)
    return values.reshape(shape).astype(np.float32), header.pixel_size


def _column(path, blocks, block, label):
    try:
        return blocks[block][label].astype(np.float64)
    except KeyError as error:
        raise JobError(f"{path}: found no _{label} in data_{block}; expected a file of a finished run; run it again"
                       ) from error
    except ValueError as error:
        raise JobError(f"{path}: _{label} in data_{block} holds {str(error).rpartition(': ')[2]}; expected numbers; "
                       "correct the row") from error


def _spectra(folder, model, label, n_classes):
    """float64[K, S] of a column of the classes' spectra, None where the job has none."""
    if label not in model.get("model_class_1", {}):
        return None
    return np.array([_column(folder / MODEL_NAME, model, f"model_class_{k + 1}", label) for k in range(n_classes)])
