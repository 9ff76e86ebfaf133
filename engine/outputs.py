"""What a run folder holds for other programs: RELION 3.1 STAR files of particles, classes and skipped images.

RELION finds images relative to the folder it was started in. An image name is therefore kept as it was written when it
leads to its stack from the working directory; otherwise it is written relative to the working directory, or, for a
stack outside of it, as an absolute path.
"""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.files import from_here
from vitrea.engine.star import write_star

PER_ROW_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDetectorPixelSize",
                  "rlnMagnification", "rlnPixelSize", "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality")
OLD_ORIGINS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")   # [px], replaced by those in Å
UNKNOWN_ANGSTROM = 999.0   # what RELION writes for the resolution of shell 0 and for values it does not have


@dataclass(frozen=True)
class ParticleResults:
    """What a run found for n particles, one entry each."""

    class_number: np.ndarray    # int32[n], 0-based; written 1-based
    psi: np.ndarray             # float64[n] [degrees]
    origin: np.ndarray          # float64[n, 2] (y, x) [Å]
    pmax: np.ndarray            # float64[n], largest posterior weight
    n_significant: np.ndarray   # int32[n], poses that hold the kept weight
    log_likelihood: np.ndarray  # float64[n]
    norm: np.ndarray            # float64[n], norm correction


@dataclass(frozen=True)
class ModelResults:
    """The references and noise of a finished run: K classes, G optics groups, S shells of one grid."""

    box_size: int                      # [px], of the class averages
    pixel_size: float                  # [Å/px]
    current_size: int                  # [px], box that holds the shells in use
    current_resolution: float          # [Å]
    tau2_fudge: float
    sigma_offset: float                # [Å]
    log_likelihood: float
    average_pmax: float
    average_norm: float
    class_stack: str                   # name of the stack of class averages, as RELION is to find it
    class_prior: np.ndarray            # float64[K], sums to 1
    class_resolution: np.ndarray       # float64[K] [Å]
    accuracy_rotation: np.ndarray      # float64[K] [degrees]; NaN if unknown
    accuracy_translation: np.ndarray   # float64[K] [Å]; NaN if unknown
    ssnr: np.ndarray                   # float64[K, S]
    tau2: np.ndarray                   # float64[K, S]
    sigma2_noise: np.ndarray           # float64[G, S], per real component
    group_names: tuple[str, ...]       # G
    group_sizes: np.ndarray            # int[G], particles
    frc: np.ndarray | None = None      # float64[K, S], correlation of half-sets, where a job measures it


def write_data_star(path, table, rows, results, further=None):
    """Write the particles `rows` (int[n]) of a ParticleTable with their `results` (ParticleResults of n) as RELION 3.1.

    Columns that were read are carried along, those that the run determines are replaced, `further` columns {label:
    values[n]} are added, and the settings on the rows of a 3.0 file move to data_optics. Raises ValueError if rows and
    results differ in number, JobError if the disk refuses.
    """
    rows = np.asarray(rows, dtype=np.int64)
    _check_lengths(rows, results)
    columns = _data_columns(table, rows, results) | (further or {})
    write_star(path, {"optics": optics_columns(table), "particles": columns})


def write_long_data_star(path, table, found):
    """As `write_data_star`, of (rows, results) ROWS_WRITTEN at a time, however many there are."""
    columns = (_data_columns(table, rows, results) for rows, results in found)
    write_star(path, {"optics": optics_columns(table), "particles": columns})


def _data_columns(table, rows, results):
    """{label: values[n]} of the particles `rows`."""
    found = {
        "rlnOpticsGroup": _group_numbers(table, rows),
        "rlnClassNumber": np.asarray(results.class_number) + 1,
        "rlnAngleRot": np.zeros(len(rows)),
        "rlnAngleTilt": np.zeros(len(rows)),
        "rlnAnglePsi": wrapped(results.psi),
        "rlnOriginXAngst": results.origin[:, 1],
        "rlnOriginYAngst": results.origin[:, 0],
        "rlnNormCorrection": results.norm,
        "rlnLogLikeliContribution": results.log_likelihood,
        "rlnMaxValueProbDistribution": results.pmax,
        "rlnNrOfSignificantSamples": results.n_significant}
    return {**carried(table, rows), **found}


def write_skipped_star(path, table, rows, reasons):
    """Write the particles that were set aside as RELION 3.1, each with its reason (str[n]) in `vitreaSkipReason`."""
    rows = np.asarray(rows, dtype=np.int64)
    if len(reasons) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(reasons)} reasons")
    found = {"rlnOpticsGroup": _group_numbers(table, rows), "vitreaSkipReason": np.array(list(reasons), dtype=str)}
    write_star(path, {"optics": optics_columns(table), "particles": {**carried(table, rows), **found}})


def write_model_star(path, model):
    """Write a ModelResults as RELION's model.star: general values, classes, their spectra, and noise spectra."""
    blocks = {"model_general": _general(model), "model_classes": _classes(model)}
    shells = _shells(model)
    for k in range(len(model.class_prior)):
        blocks[f"model_class_{k + 1}"] = {
            **shells, "rlnSsnrMap": model.ssnr[k], "rlnReferenceTau2": model.tau2[k],
            **({} if model.frc is None else {"rlnFourierShellCorrelation": model.frc[k]})}
    n_groups = len(model.group_names)
    blocks["model_groups"] = {
        "rlnGroupNumber": np.arange(1, n_groups + 1), "rlnGroupName": np.array(model.group_names, dtype=str),
        "rlnGroupNrParticles": np.asarray(model.group_sizes), "rlnGroupScaleCorrection": np.ones(n_groups)}
    for g in range(n_groups):
        blocks[f"model_group_{g + 1}"] = {
            "rlnSpectralIndex": shells["rlnSpectralIndex"], "rlnResolution": shells["rlnResolution"],
            "rlnSigma2Noise": model.sigma2_noise[g]}
    write_star(path, blocks)


def optics_columns(table):
    """data_optics of a table: the groups' numbers, names and settings, and further columns as they were read.

    Voltage, spherical aberration and amplitude contrast stay away when the input had none (it was without CTF).
    """
    groups = table.optics
    columns = dict(table.optics_columns)
    columns |= {
        "rlnOpticsGroup": np.array([group.number for group in groups]),
        "rlnOpticsGroupName": np.array([group.name for group in groups]),
        "rlnImagePixelSize": np.array([group.pixel_size for group in groups]),
        "rlnImageSize": np.array([group.box_size for group in groups]),
        "rlnImageDimensionality": np.full(len(groups), 2)}
    for label in ("rlnDetectorPixelSize", "rlnMagnification", "rlnPixelSize"):
        columns.pop(label, None)   # said once, by rlnImagePixelSize
    order = [label for label in ("rlnOpticsGroup", "rlnOpticsGroupName") if label in columns]
    return {label: columns[label] for label in [*order, *(label for label in columns if label not in order)]}


def wrapped(psi):
    """Angles [degrees] brought into −180 ≤ psi < 180."""
    return (np.asarray(psi, dtype=np.float64) + 180.0) % 360.0 - 180.0


# ---- particles

def _check_lengths(rows, results):
    lengths = {name: len(values) for name, values in vars(results).items()}
    if set(lengths.values()) != {len(rows)}:
        raise ValueError(f"{len(rows)} rows, but results of {lengths}")


def _group_numbers(table, rows):
    return np.array([group.number for group in table.optics])[table.optics_index[rows]]


def carried(table, rows):
    """Columns as they were read, for these rows, without what belongs to data_optics or is counted in pixels."""
    dropped = (*OLD_ORIGINS, *PER_ROW_OPTICS) if table.star_version == "3.0" else OLD_ORIGINS
    columns = {label: column[rows] for label, column in table.columns.items()
               if label not in dropped and label != "rlnImageName"}
    return {"rlnImageName": _image_names(table, rows), **columns}


def _image_names(table, rows):
    stacks = table.stack_index[rows]
    names = [_name_from_here(name, stack) for name, stack in zip(table.stack_names, table.stacks)]
    if tuple(names) == table.stack_names and "rlnImageName" in table.columns:
        return table.columns["rlnImageName"][rows]
    return np.array([f"{section + 1:06d}@{names[stack]}"
                     for section, stack in zip(table.section[rows].tolist(), stacks.tolist())], dtype=str)


def _name_from_here(name, stack):
    """A name that leads to the absolute path `stack` from the working directory; `name` if it does."""
    return name if Path(os.path.normpath(Path.cwd() / name)) == stack else from_here(stack)


# ---- the model

def _general(model):
    return {
        "rlnReferenceDimensionality": 2, "rlnDataDimensionality": 2, "rlnOriginalImageSize": model.box_size,
        "rlnCurrentResolution": float(model.current_resolution), "rlnCurrentImageSize": model.current_size,
        "rlnPixelSize": float(model.pixel_size), "rlnNrClasses": len(model.class_prior), "rlnNrBodies": 1,
        "rlnNrGroups": len(model.group_names), "rlnTau2FudgeFactor": float(model.tau2_fudge),
        "rlnNormCorrectionAverage": float(model.average_norm), "rlnSigmaOffsetsAngst": float(model.sigma_offset),
        "rlnLogLikelihood": float(model.log_likelihood), "rlnAveragePmax": float(model.average_pmax)}


def _classes(model):
    known = {"nan": UNKNOWN_ANGSTROM, "posinf": UNKNOWN_ANGSTROM}
    n_classes = len(model.class_prior)
    return {
        "rlnReferenceImage": np.array([f"{k + 1:06d}@{model.class_stack}" for k in range(n_classes)]),
        "rlnClassDistribution": np.asarray(model.class_prior, dtype=np.float64),
        "rlnAccuracyRotations": np.nan_to_num(model.accuracy_rotation, **known),
        "rlnAccuracyTranslationsAngst": np.nan_to_num(model.accuracy_translation, **known),
        "rlnEstimatedResolution": np.nan_to_num(model.class_resolution, **known)}


def _shells(model):
    """Index, spatial frequency [1/Å] and resolution [Å] of the S shells; shell s is at s / (box · pixel size)."""
    index = np.arange(np.shape(model.ssnr)[1])
    frequency = index / (model.box_size * model.pixel_size)
    resolution = np.divide(1.0, frequency, out=np.full(len(index), UNKNOWN_ANGSTROM), where=index > 0)
    return {"rlnSpectralIndex": index, "rlnResolution": frequency, "rlnAngstromResolution": resolution}
