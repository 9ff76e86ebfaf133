"""A run as RELION's own programs expect one: optimiser, model and data STAR files that know of each other.

run_model.star names the stack of class averages relative to its folder, so that the folder can be moved. RELION looks
for files from the folder it is started in, wants more labels in a model than a classification determines, and finds the
particles of X_model.star in X_data.star. relion_model.star, relion_data.star and relion_optimiser.star are written for
the folder that the run was started in.
"""
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from vitrea.engine.files import written_beside
from vitrea.engine.finished import DATA_NAME, MODEL_NAME, STACK_NAME
from vitrea.engine.star import read_star, write_star

OPTIMISER, MODEL, DATA = "relion_optimiser.star", "relion_model.star", "relion_data.star"
# What RELION 3.1 asks for in a model that a two-dimensional classification without priors has no say in.
GENERAL = {"rlnPaddingFactor": 2.0, "rlnFourierSpaceInterpolator": 1, "rlnMinRadiusNnInterpolation": 10,
           "rlnIsHelix": 0, "rlnOrientationalPriorMode": 0, "rlnSigmaPriorRotAngle": 0.0,
           "rlnSigmaPriorTiltAngle": 0.0, "rlnSigmaPriorPsiAngle": 0.0, "rlnNrOpticsGroups": None}
CLASSES = {"rlnClassPriorOffsetX": 0.0, "rlnClassPriorOffsetY": 0.0, "rlnOverallFourierCompleteness": 1.0}
LARGEST = 1e10   # of a variance: where nothing is known of a shell


def write_relion_files(folder):
    """Write the three files into the folder of a finished run; JobError if it is none. Paths in them are those from
    the working directory."""
    folder = Path(folder)
    blocks = read_star(folder / MODEL_NAME)
    write_star(folder / MODEL, _model(blocks, folder))
    _second_name(folder / DATA_NAME, folder / DATA)
    write_star(folder / OPTIMISER, {"optimiser_general": {
        "rlnOutputRootName": str(folder / "relion"), "rlnModelStarFile": str(folder / MODEL),
        "rlnExperimentalDataStarFile": str(folder / DATA), "rlnCurrentIteration": 25, "rlnNumberOfIterations": 25,
        "rlnDoSplitRandomHalves": 0, "rlnDoCorrectCtf": 1, "rlnIsSGD": 0}})


def _model(blocks, folder):
    """The blocks of run_model.star with RELION's path of the stack and what else it asks for."""
    n_classes = len(blocks["model_classes"]["rlnClassDistribution"])
    found = {}
    for name, columns in blocks.items():
        if name == "model_general":
            columns = {label: values[0] for label, values in columns.items()}
            n_groups = columns["rlnNrGroups"]
            found[name] = columns | GENERAL | {"rlnNrOpticsGroups": n_groups}
        elif name == "model_classes":
            images = [f"{k + 1:06d}@{folder / STACK_NAME}" for k in range(n_classes)]
            found[name] = columns | {"rlnReferenceImage": images} | {
                label: np.full(n_classes, value) for label, value in CLASSES.items()}
        elif name.startswith("model_class_"):
            found[name] = _class_spectra(columns)
        else:
            found[name] = columns
            if name.startswith("model_group_"):   # RELION 4 and 5 keep noise by optics group, as we do
                found[name.replace("group", "optics_group")] = columns
    return found


def _class_spectra(columns):
    """Spectra of a class with those that RELION adds: σ² of the reference is τ² over its SSNR."""
    ssnr, tau2 = (columns[label].astype(np.float64) for label in ("rlnSsnrMap", "rlnReferenceTau2"))
    sigma2 = np.divide(tau2, ssnr, out=np.full(len(ssnr), LARGEST), where=ssnr > tau2 / LARGEST)
    halves = columns.get("rlnFourierShellCorrelation", np.zeros(len(ssnr)))
    return columns | {"rlnGoldStandardFsc": halves, "rlnFourierCompleteness": np.ones(len(ssnr)),
                      "rlnReferenceSigma2": sigma2}


def _second_name(path, name):
    """`name` for the same bytes: a link where the file system has them, else a copy."""
    with written_beside(name) as beside:
        with suppress(OSError):
            os.link(path, beside)
            return
        shutil.copyfile(path, beside)
