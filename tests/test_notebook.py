"""Classification from Python: arrays in, arrays out, and the same as from the command line."""
import numpy as np
import pytest

from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.finished import read_finished
from vitrea.engine.notebook import Microscope, classify2d, cluster
from vitrea.engine.options import OptionError
from vitrea.engine.particles import read_particles
from vitrea.engine.poses import apply_pose
from vitrea.engine.stacks import read_images
from vitrea.engine.star import read_star


@pytest.fixture(scope="module")
def particles(stacks):
    """(images, defocus float[n, 3], true views) of the plain stack: 6 Å/px."""
    table = read_particles(stacks / "plain" / "particles.star")
    truth = read_star(stacks / "plain" / "truth.star")["particles"]
    defocus = np.stack([truth[label].astype(float) for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")], 1)
    return read_images(table, np.arange(len(table))), defocus, truth["rlnClassNumber"].astype(int)


@pytest.fixture(scope="module")
def found(particles, tmp_path_factory):
    images, defocus, _ = particles
    return classify2d(images, pixel_size=6.0, particle_diameter=150, n_classes=3, max_iterations=12,
                      microscope=Microscope(defocus), folder=tmp_path_factory.mktemp("notebook") / "kept")


def test_views_are_told_apart(found, particles):
    images, _, views = particles
    assert found.class_averages.shape == (3, *images.shape[1:])
    assert found.rows.tolist() == list(range(len(images)))
    assert found.sizes.sum() == len(images)
    assert adjusted_rand_index(views, found.class_number) > 0.8


def test_poses_bring_images_onto_their_class_average(found, particles):
    images, _, _ = particles
    members = np.flatnonzero(found.class_number == found.sizes.argmax())[:40]
    mean = np.mean([apply_pose(images[i], found.psi[i], found.origin[i]) for i in members], axis=0)
    average = found.class_averages[found.sizes.argmax()]
    assert np.corrcoef(mean.ravel(), average.ravel())[0, 1] > 0.6
    unaligned = images[members].mean(axis=0)
    assert np.corrcoef(unaligned.ravel(), average.ravel())[0, 1] < 0.5


def test_the_command_line_finds_the_same(found, particles, run_job, stacks):
    folder = run_job("classify2d", input=found.folder.parent / "particles.star", n_classes=3, particle_diameter=150,
                     max_iterations=12)
    run = read_finished(folder)
    assert run.class_number.tolist() == found.class_number.tolist()
    assert run.averages.tobytes() == found.class_averages.tobytes()


def test_cluster_goes_on_from_what_was_kept(found):
    sorted_out = cluster(found, particle_diameter=150, n_classes=4, outliers=False, max_iterations=20, starts=1)
    assert sorted_out.latent.shape == (240, 1)
    assert 1 <= sorted_out.latent.min() <= sorted_out.latent.max() <= 4
    assert len(sorted_out.class_averages) == 4


def test_what_does_not_fit_is_told(particles, tmp_path, capsys):
    images, defocus, _ = particles
    keys = {"pixel_size": 6.0, "particle_diameter": 150, "n_classes": 3}
    with pytest.raises(ValueError, match=r"images are float\[n, L, L\]"):
        classify2d(images[0], **keys)
    with pytest.raises(ValueError, match=r"defocus is float\[240\]"):
        classify2d(images, microscope=Microscope(defocus[:5]), **keys)
    with pytest.raises(OptionError, match="n_classes is 0; expected a whole number, at least 1"):
        classify2d(images[:20], **keys | {"n_classes": 0})
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="already holds a classification"):
        classify2d(images, folder=tmp_path, **keys)
    assert Microscope(defocus).voltage == 300
    assert capsys.readouterr().out == "", "quiet"
