"""A trained picker in one file: a NumPy `.npz` without pickled objects, with a digest that is looked at first.

Entries: `header` (JSON, as bytes: format, network, preparation, diameter, distance, threshold, calibration of scores to
probabilities (null: none, nor in files of format 1), training record),
`parameter:<name>` float32, `statistic:<name>` float64, and `digest`, SHA-256 over names, types, shapes and bytes of
all others. The same model makes the same bytes.
"""
import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.picker.calibration import Calibration
from vitrea.picker.micrographs import Preparation
from vitrea.picker.network import Layer, Network
from vitrea.picker.pick import Picker

FORMAT = 2
PARAMETER, STATISTIC = "parameter:", "statistic:"


@dataclasses.dataclass(frozen=True)
class Model:
    """A Picker with what belongs to it: particle diameter [Å], threshold of the score, and a record of its training
    (plain JSON values)."""

    picker: Picker
    diameter: float
    threshold: float
    record: dict


def write_model(path, model):
    """Write a Model, whole or not at all."""
    picker = model.picker
    header = {
        "format": FORMAT, "network": dataclasses.asdict(picker.network),
        "preparation": dataclasses.asdict(picker.preparation), "distance": picker.distance,
        "max_deviation": picker.max_deviation,
        "diameter": model.diameter, "threshold": model.threshold, "record": model.record,
        "calibration": dataclasses.asdict(picker.calibration) if picker.calibration else None}
    arrays = {"header": np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)}
    arrays |= {PARAMETER + name: values for name, values in picker.parameters.items()}
    arrays |= {STATISTIC + name: values for name, values in picker.statistics.items()}
    with written_beside(path) as beside, open(beside, "wb") as file:
        np.savez(file, digest=_digest(arrays), **dict(sorted(arrays.items())))


def read_model(path):
    """Model of a file; JobError for a file that is missing, no model, damaged, or of a later format."""
    arrays = _arrays(Path(path))
    digest = arrays.pop("digest")
    if not np.array_equal(digest, _digest(arrays)):
        raise JobError(f"{path}: the digest does not agree with the content; expected a whole model file; "
                       "copy it again, or train again")
    header = json.loads(arrays.pop("header").tobytes())
    if header["format"] > FORMAT:
        raise JobError(f"{path}: found model format {header['format']}; expected at most {FORMAT}; "
                       "update Vitrea, or train again with this version")
    layers = tuple(Layer(**layer) for layer in header["network"].pop("layers"))
    network = Network(**header["network"], layers=layers)
    parameters = {name.removeprefix(PARAMETER): values for name, values in arrays.items() if name.startswith(PARAMETER)}
    statistics = {name.removeprefix(STATISTIC): values for name, values in arrays.items() if name.startswith(STATISTIC)}
    found = header.get("calibration")
    picker = Picker(network, parameters, statistics, Preparation(**header["preparation"]), header["distance"],
                    calibration=Calibration(**found) if found else None, max_deviation=header.get("max_deviation"))
    return Model(picker, header["diameter"], header["threshold"], header["record"])


def _arrays(path):
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise JobError(f"{path}: there is no such file; expected a model of job pick-train; check the path") from error
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        # The words of NumPy's errors are about pickles, which the user has never heard of.
        words = f" ({error.strerror})" if getattr(error, "strerror", None) else ""
        raise JobError(f"{path}: not a model file or damaged{words}; expected the model.npz of job pick-train; "
                       "check the path, or copy it again") from error
    if not {"header", "digest"} <= set(arrays):
        raise JobError(f"{path}: a NumPy file, but no model; expected the model.npz of job pick-train; check the path")
    return arrays


def _digest(arrays):
    """uint8[32]: SHA-256 over all arrays by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
        digest.update(values.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)
