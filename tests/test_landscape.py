"""The picker's network as a landscape: slopes and curvature of its loss, and what no scale of a normalised layer
changes."""
import json

import mrcfile
import numpy as np
import pytest

from tests.running import write_job
from vitrea.engine.valleys import cool, invariant_sharpness, sharpness
from vitrea.jobs.cli import main
from vitrea.picker.coordinates import write_coordinates
from vitrea.picker.labels import LabelledMicrograph
from vitrea.picker.landscape import PickerLandscape
from vitrea.picker.network import Layer, Network

SMALL = Network("small", 16, (Layer(5, 3, 2, normalised=True), Layer(3, 4, 2, normalised=True)))
RANDOM = np.random.default_rng


def dots(seed, n=16, side=160):
    random = np.random.default_rng(seed)
    cells = random.permutation(64)[:n]
    centres = np.stack([cells // 8, cells % 8], axis=1) * 19.0 + 12
    y, x = np.mgrid[:side, :side]
    image = random.normal(size=(side, side))
    for a, b in centres:
        image -= 2.0 / (1 + np.exp((np.hypot(y - a, x - b) - 5) * 2))
    return LabelledMicrograph(image.astype(np.float32), centres)


@pytest.fixture(scope="module")
def landscape():
    return PickerLandscape(SMALL, [dots(1), dots(2)], [dots(3)], 10.0, parts=3, tests=60, seed=0)


@pytest.fixture(scope="module")
def theta(landscape):
    return landscape.initial(RANDOM(4))


def test_the_gradient_is_that_of_the_loss(landscape, theta):
    loss, gradient = landscape.gradient(theta)
    assert loss == pytest.approx(landscape.loss(theta), rel=1e-6)
    direction = gradient / np.linalg.norm(gradient)
    rise = (landscape.loss(theta + 1e-3 * direction) - landscape.loss(theta - 1e-3 * direction)) / 2e-3
    assert rise == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_batches_of_parts_average_to_the_whole_gradient(landscape, theta):
    parts = [landscape.gradient(theta, np.array([k]))[1] for k in range(landscape.n_samples)]
    whole = landscape.gradient(theta)[1]
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, atol=1e-6 * np.abs(whole).max())
    assert np.linalg.norm(parts[0] - parts[1]) > 0.1 * np.linalg.norm(whole)   # they are noisy


def test_products_with_the_hessian_are_symmetric_linear_and_the_change_of_the_gradient():
    smooth = Network("smooth", 16, (Layer(5, 3, 2, "sigmoid"), Layer(3, 4, 2, "sigmoid")))
    landscape, random = PickerLandscape(smooth, [dots(1)], [dots(3)], 10.0, parts=2, tests=20, seed=0), RANDOM(5)
    theta = landscape.initial(random)
    one, other = random.normal(size=(2, landscape.n_parameters))
    of_one, of_other = (landscape.hessian_product(theta, vector) for vector in (one, other))
    assert other @ of_one == pytest.approx(one @ of_other, rel=1e-6)
    both = landscape.hessian_product(theta, 2 * one - other)
    np.testing.assert_allclose(both, 2 * of_one - of_other, atol=1e-6 * np.abs(both).max())
    step = 1e-1 / np.linalg.norm(one)
    slope = (landscape.gradient(theta + step * one)[1] - landscape.gradient(theta - step * one)[1]) / (2 * step)
    np.testing.assert_allclose(of_one, slope, atol=2e-3 * np.abs(slope).max())


def test_cooling_learns_to_tell_particles_of_another_micrograph(landscape, theta):
    end = cool(landscape, theta, 0.1, rate=0.2, most=300)
    assert end.loss <= 0.1
    assert end.accuracy > 0.85
    assert np.mean(landscape.wrong(theta)) > 0.35   # at the start it does not know


def test_the_scale_of_a_normalised_kernel_is_no_curvature(landscape, theta):
    end = cool(landscape, theta, 0.3, rate=0.2, most=200).theta
    scaled = end.copy()
    scaled[:SMALL.layers[0].maps * 25] *= 0.2   # the first kernels: what follows divides by their deviation
    assert landscape.loss(scaled) == pytest.approx(landscape.loss(end), rel=1e-3)
    assert sharpness(landscape, scaled)[0] > 2 * sharpness(landscape, end)[0]
    assert invariant_sharpness(landscape, scaled) == pytest.approx(invariant_sharpness(landscape, end), rel=0.05)


def write_dots(folder, names):
    """Micrographs of `dots` with pixels of 6 Å, and their coordinate files."""
    for seed, name in enumerate(names):
        made = dots(seed)
        with mrcfile.new(folder / f"{name}.mrc", data=made.image) as file:
            file.voxel_size = 6.0
        write_coordinates(folder / f"{name}.star", made.positives[:, 1], made.positives[:, 0], np.ones(16))


KEYS = {"experiment": "picker_branching", "diameter": 150, "branch_times": "[0]", "horizon": 0.2, "parts": 2,
        "tests": 20, "repeats": 1, "learning_rates": "[0.1]", "batch_sizes": "[1]", "matched_losses": "[0.6]"}


def test_branches_of_the_pickers_network_out_of_a_job_file(run_job, tmp_path):
    write_dots(tmp_path, "abc")
    folder = run_job("dynamics", input=tmp_path / "*.mrc", coordinates=tmp_path, **KEYS)
    row, = json.loads((folder / "result.json").read_text())["rows"]
    assert row["parents"] == 1
    assert len(row["twin_barrier"]) == 1
    assert (folder / "result.png").exists()


def test_an_experiment_on_the_picker_needs_micrographs_to_test_on(tmp_path, capsys):
    write_dots(tmp_path, "ab")
    job = write_job(tmp_path / "job.yaml", "dynamics", input=f"{tmp_path}/*.mrc", coordinates=tmp_path,
                    output=tmp_path / "run", **KEYS)
    assert main(["run", str(job)]) == 2
    assert "labels for 2 micrographs; expected at least 3, to train on some and test on" in capsys.readouterr().err
    assert main(["check", str(write_job(tmp_path / "job.yaml", "dynamics", output=tmp_path / "run", **KEYS))]) == 2
    assert "picker_branching needs input; expected input, coordinates and diameter" in capsys.readouterr().err
