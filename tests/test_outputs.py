"""The STAR files of a run folder: what they say, where their images are found, and that RELION opens them."""
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from vitrea.engine.outputs import (
    ModelResults,
    ParticleResults,
    wrapped,
    write_data_star,
    write_model_star,
    write_skipped_star,
)
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import read_images, write_stack
from vitrea.engine.star import read_star, write_star

RNG = np.random.default_rng(4)


def results_of(n):
    return ParticleResults(
        class_number=np.arange(n, dtype=np.int32) % 3, psi=np.linspace(-400, 400, n), origin=RNG.normal(size=(n, 2)),
        pmax=RNG.uniform(size=n), n_significant=np.arange(n, dtype=np.int32), log_likelihood=-1e6 * RNG.uniform(size=n),
        norm=np.ones(n))


def model_of(n_classes=3, shells=9, **changes):
    model = ModelResults(
        box_size=16, pixel_size=2.0, current_size=12, current_resolution=6.4, tau2_fudge=2.0, sigma_offset=3.0,
        log_likelihood=-1.5e7, average_pmax=0.3, average_norm=0.9, class_stack="run_classes.mrcs",
        class_prior=np.array([0.5, 0.3, 0.2]), class_resolution=np.array([6.4, 8.0, np.inf]),
        accuracy_rotation=np.array([2.0, np.nan, 3.0]), accuracy_translation=np.array([1.0, np.nan, 1.5]),
        ssnr=RNG.uniform(size=(n_classes, shells)), tau2=RNG.uniform(size=(n_classes, shells)) * 1e-6,
        sigma2_noise=RNG.uniform(size=(2, shells)), group_names=("a", "b"), group_sizes=np.array([10, 20]))
    return replace(model, **changes)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder, entered, with a stack of 3 in Extract/ and STAR files of both versions that name it."""
    (tmp_path / "Extract").mkdir()
    write_stack(tmp_path / "Extract" / "s.mrcs", RNG.normal(size=(3, 8, 8)), 2.0)
    names = np.array([f"{i}@Extract/s.mrcs" for i in (3, 1, 2)])
    common = {"rlnMicrographName": np.array(["a b.mrc", "c.mrc", "d.mrc"]), "rlnDefocusU": np.array([1e4, 2e4, 3e4])}
    old = {"rlnVoltage": np.array([300, 300, 200]), "rlnSphericalAberration": np.full(3, 2.7), "rlnOriginX": np.ones(3),
           "rlnAmplitudeContrast": np.full(3, 0.1), "rlnDetectorPixelSize": np.full(3, 5.0),
           "rlnMagnification": np.full(3, 25000), "rlnOriginY": np.ones(3), "rlnClassNumber": np.full(3, 9)}
    write_star(tmp_path / "old.star", {"": {"rlnImageName": names, **common, **old}})
    optics = {"rlnOpticsGroup": np.array([2]), "rlnOpticsGroupName": np.array(["two"]), "rlnVoltage": np.array([300.0]),
              "rlnSphericalAberration": np.array([2.7]), "rlnAmplitudeContrast": np.array([0.1]),
              "rlnImagePixelSize": np.array([2.0]), "rlnImageSize": np.array([8]), "rlnBeamTiltX": np.array([0.125])}
    write_star(tmp_path / "new.star", {"optics": optics, "particles": {
        "rlnImageName": names, "rlnOpticsGroup": np.full(3, 2), **common}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["old.star", "new.star"])
def test_results_stand_beside_the_columns_that_were_read(project, name):
    table, results = read_particles(name), results_of(2)
    write_data_star("run_data.star", table, [2, 0], results)
    particles = read_star("run_data.star")["particles"]
    assert particles["rlnImageName"].tolist() == ["2@Extract/s.mrcs", "3@Extract/s.mrcs"]
    assert particles["rlnMicrographName"].tolist() == ["d.mrc", "a b.mrc"]
    assert particles["rlnClassNumber"].tolist() == ["1", "2"]
    assert particles["rlnAnglePsi"].astype(float).tolist() == [-40, 40]
    assert particles["rlnAngleRot"].astype(float).tolist() == [0, 0]
    assert np.allclose(particles["rlnOriginXAngst"].astype(float), results.origin[:, 1], atol=1e-6)
    assert np.allclose(particles["rlnOriginYAngst"].astype(float), results.origin[:, 0], atol=1e-6)
    assert np.allclose(particles["rlnMaxValueProbDistribution"].astype(float), results.pmax, atol=1e-6)
    assert np.allclose(particles["rlnLogLikeliContribution"].astype(float), results.log_likelihood, rtol=1e-6)
    assert particles["rlnNrOfSignificantSamples"].tolist() == ["0", "1"]
    assert not {"rlnOriginX", "rlnOriginY", "rlnVoltage", "rlnMagnification", "rlnDetectorPixelSize"} & set(particles)


@pytest.mark.parametrize("name", ["old.star", "new.star"])
def test_what_is_written_is_the_same_particles_to_a_next_run(project, name):
    table, results = read_particles(name), results_of(3)
    write_data_star("run_data.star", table, np.arange(3), results)
    again = read_particles("run_data.star")
    assert again.star_version == "3.1"
    assert again.optics == table.optics
    assert again.optics_index.tolist() == table.optics_index.tolist()
    assert again.section.tolist() == table.section.tolist()
    assert again.defocus_u.tolist() == table.defocus_u.tolist()
    assert np.allclose(again.origin, results.origin, atol=1e-6)
    assert np.allclose(again.psi, wrapped(results.psi), atol=1e-6)


def test_further_optics_columns_are_carried(project):
    write_data_star("run_data.star", read_particles("new.star"), [0], results_of(1))
    optics = read_star("run_data.star")["optics"]
    assert optics["rlnBeamTiltX"].astype(float).tolist() == [0.125]
    assert optics["rlnOpticsGroupName"].tolist() == ["two"]


def test_image_names_lead_to_the_stack_from_the_working_directory(project, monkeypatch, tmp_path_factory):
    def first_name(star):
        write_data_star(project / "out.star", read_particles(star), [0], results_of(1))
        return read_star(project / "out.star")["particles"]["rlnImageName"][0]

    assert first_name(project / "old.star") == "3@Extract/s.mrcs"          # as written
    shutil.copy("old.star", "Extract/moved.star")
    monkeypatch.chdir(project.parent)
    assert first_name(project / "Extract" / "moved.star") == f"000003@{project.name}/Extract/s.mrcs"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert first_name(project / "old.star") == f"000003@{project}/Extract/s.mrcs"


def test_psi_is_wrapped():
    assert wrapped([-180, 180, 181, -540, 720, 0.5]).tolist() == [-180, -180, -179, -180, 0, 0.5]


def test_rows_and_results_must_agree(project):
    table = read_particles("new.star")
    with pytest.raises(ValueError, match="2 rows, but results of"):
        write_data_star("o.star", table, [0, 1], results_of(3))
    with pytest.raises(ValueError, match="2 rows but 1 reasons"):
        write_skipped_star("o.star", table, [0, 1], ["x"])


def test_skipped_images_are_listed_with_their_reason(project):
    write_skipped_star("skipped.star", read_particles("old.star"), [1], ["section 1 is not finite"])
    particles = read_star("skipped.star")["particles"]
    assert particles["vitreaSkipReason"].tolist() == ["section 1 is not finite"]
    assert particles["rlnImageName"].tolist() == ["1@Extract/s.mrcs"]
    write_skipped_star("skipped.star", read_particles("old.star"), [], [])
    assert len(read_star("skipped.star")["particles"]["rlnImageName"]) == 0


def test_a_file_without_ctf_stays_without_a_microscope(project):
    write_star("bare.star", {"": {"rlnImageName": np.array(["1@Extract/s.mrcs"])}})
    write_data_star("o.star", read_particles("bare.star"), [0], results_of(1))
    assert "rlnVoltage" not in read_star("o.star")["optics"]
    assert not read_particles("o.star").has_ctf


def test_the_model_says_what_it_was_given(tmp_path):
    model = model_of()
    write_model_star(tmp_path / "m.star", model)
    blocks = read_star(tmp_path / "m.star")
    assert list(blocks) == ["model_general", "model_classes", "model_class_1", "model_class_2", "model_class_3",
                            "model_groups", "model_group_1", "model_group_2"]
    assert blocks["model_general"]["rlnCurrentResolution"].tolist() == ["6.400000"]
    assert blocks["model_classes"]["rlnReferenceImage"][2] == "000003@run_classes.mrcs"
    assert blocks["model_classes"]["rlnEstimatedResolution"].astype(float).tolist() == [6.4, 8.0, 999.0]
    assert blocks["model_classes"]["rlnAccuracyRotations"].astype(float).tolist() == [2, 999, 3]
    spectrum = blocks["model_class_2"]
    assert np.allclose(spectrum["rlnReferenceTau2"].astype(float), model.tau2[1], rtol=1e-5)
    assert np.allclose(spectrum["rlnAngstromResolution"].astype(float)[1:], 32.0 / np.arange(1, 9), atol=1e-5)
    assert np.allclose(blocks["model_group_2"]["rlnSigma2Noise"].astype(float), model.sigma2_noise[1], atol=1e-6)


def relion(command, folder):
    if not shutil.which(command.split()[0]):
        pytest.skip(f"{command.split()[0]} is not installed")
    return subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", ["old.star", "new.star"])
def test_relion_selects_a_class_from_the_data_star(project, name):
    write_data_star("run_data.star", read_particles(name), np.arange(3), results_of(3))
    relion("relion_star_handler --i run_data.star --o two.star --select rlnClassNumber --minval 2 --maxval 2", project)
    blocks = read_star("two.star")
    assert blocks["particles"]["rlnImageName"].tolist() == ["1@Extract/s.mrcs"]
    assert blocks["particles"]["rlnMicrographName"].tolist() == ["c.mrc"]
    assert len(read_particles("two.star")) == 1


def test_relion_reads_the_images_that_the_data_star_names(project):
    write_data_star("run_data.star", read_particles("new.star"), np.arange(3), results_of(3))
    relion("relion_stack_create --i run_data.star --o again", project)
    ours, theirs = (read_images(read_particles(name), [0, 1, 2]) for name in ("new.star", "again.star"))
    assert np.allclose(ours, theirs, atol=1e-6)


def test_relion_opens_the_class_averages_and_their_model(project):
    write_stack("run_classes.mrcs", RNG.normal(size=(3, 16, 16)), 2.0)
    write_model_star("run_model.star", model_of())
    stated = relion("relion_image_handler --i run_classes.mrcs --stats", project).stdout
    assert stated.count("16 x 16 x 1 x 1") == 3
    assert stated.count("angpix = 2") == 3
    # relion_star_handler 3.1.3 selects from tables of particles and micrographs only; the table printer takes any.
    columns = "rlnReferenceImage rlnClassDistribution rlnEstimatedResolution"
    printed = relion(f"relion_star_printtable run_model.star data_model_classes {columns}", project).stdout
    assert printed.splitlines()[1].split() == ["000002@run_classes.mrcs", "0.300000", "8.000000"]
    printed = relion("relion_star_printtable run_model.star data_model_class_3 rlnSpectralIndex", project).stdout
    assert printed.split() == [str(shell) for shell in range(9)]
