"""Run folders made up for tests: the files of a finished run, with classes of known kinds."""
import json

import numpy as np

from vitrea.engine.outputs import ModelResults, write_model_star
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import write_star

JOB = "job: classify2d\ninput: particles.star\noutput: {folder}\nn_classes: {n}\nparticle_diameter: 200\n"


def make_run(folder, sizes, box_size=32, pixel_size=4.0, averages=None, job=JOB, seed=0):
    """A run folder of classes with `sizes` particles each (class 1 first); averages float32[K, L, L], by default blobs
    of different widths. Particles are dealt to the classes in order."""
    random = np.random.default_rng(seed)
    n_classes, folder = len(sizes), folder
    folder.mkdir(parents=True, exist_ok=True)
    if averages is None:
        averages = np.stack([blob(box_size, 0.1 + 0.02 * (k % 10), random) for k in range(n_classes)])
    number = np.repeat(np.arange(1, n_classes + 1), sizes)
    n = len(number)
    write_star(folder / "run_data.star", {
        "optics": {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnImagePixelSize": [pixel_size],
                   "rlnImageSize": [box_size], "rlnImageDimensionality": [2], "rlnVoltage": [300.0],
                   "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1]},
        "particles": {"rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(n)],
                      "rlnMicrographName": [f"mic{i % 7}.mrc" for i in range(n)], "rlnOpticsGroup": [1] * n,
                      "rlnDefocusU": random.uniform(9000, 25000, n), "rlnDefocusV": random.uniform(9000, 25000, n),
                      "rlnDefocusAngle": random.uniform(0, 180, n), "rlnClassNumber": number,
                      "rlnAnglePsi": random.uniform(-180, 180, n), "rlnOriginXAngst": random.normal(0, 8, n),
                      "rlnOriginYAngst": random.normal(0, 8, n), "rlnNormCorrection": random.normal(1, 0.05, n),
                      "rlnMaxValueProbDistribution": random.uniform(0.3, 1, n)}})
    write_stack(folder / "run_classes.mrcs", averages, pixel_size)
    write_model_star(folder / "run_model.star", model(np.asarray(sizes), box_size, pixel_size))
    (folder / "job.yaml").write_text(job.format(folder=folder, n=n_classes))
    (folder / "run.out").write_text("0:00:00  classify2d\n0:01:00  done\n")
    records = [{"kind": "start", "elapsed": 0, "job": "classify2d", "ranks": 2, "version": "0", "input": "p.star"}]
    for i in range(1, 6):
        records.append({"kind": "iteration", "elapsed": i, "iteration": i, "of": 30, "stage": "full",
                        "log_likelihood": -1e6 + 1e4 * i, "resolution": 40.0 / i, "pmax": 0.1 * i, "changed": 1 / i,
                        "seconds": 2.0, "e_step": 1.0, "coarse": 0.3, "score": 0.3, "posterior": 0.1,
                        "accumulate": 0.2, "m_step": 0.4, "reduce": 0.2, "checkpoint": 0.1, "memory": 10**9,
                        "class_sizes": [int(size) for size in sizes],
                        "moves": [[1, 2, 10 * (6 - i)], [2, 1, 6 - i]] if n_classes > 1 else []})
    records.append({"kind": "done", "elapsed": 60, "classes": n_classes, "memory": 10**9})
    (folder / "record.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def blob(box_size, width, random, noise=0.05):
    """float32[L, L]: a round particle of a width [of the box], with some noise."""
    axis = (np.arange(box_size) - box_size // 2) / box_size
    image = np.exp(-0.5 * np.add.outer(axis**2, axis**2) / width**2)
    return (image + noise * random.normal(size=image.shape)).astype(np.float32)


def model(sizes, box_size, pixel_size):
    """The ModelResults of classes whose SSNR falls to 1 at the shell 4 + number modulo 8."""
    n_classes, shells = len(sizes), box_size // 2
    resolved = np.where(sizes > 0, 4 + np.arange(n_classes) % 8, 0)
    ssnr = np.clip(10.0 ** (resolved[:, None] - np.arange(shells)) * 1.001, 0, 100)
    with np.errstate(divide="ignore"):
        resolution = np.where(sizes > 0, box_size * pixel_size / resolved, 999.0)
    return ModelResults(
        box_size=box_size, pixel_size=pixel_size, current_size=box_size, current_resolution=10.0, tau2_fudge=2.0,
        sigma_offset=5.0, log_likelihood=-1e6, average_pmax=0.5, average_norm=1.0, class_stack="run_classes.mrcs",
        class_prior=sizes / sizes.sum(), class_resolution=resolution, accuracy_rotation=np.full(n_classes, 3.0),
        accuracy_translation=np.full(n_classes, 2.0), ssnr=ssnr, tau2=ssnr * 0.1,
        sigma2_noise=np.ones((1, shells)), group_names=("opticsGroup1",), group_sizes=np.array([sizes.sum()]))
