"""Life with other programs: STAR of RELION 3.0 and 3.1, cryoSPARC's .cs, EMAN's .box, and RELION opening a run."""
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.finished_runs import make_run
from vitrea.engine.cryosparc import PARTICLES, read_cs, records_of, tables_of
from vitrea.engine.errors import JobError
from vitrea.engine.finished import read_finished
from vitrea.engine.particles import read_particles
from vitrea.engine.relion_files import write_relion_files
from vitrea.engine.star import read_star, write_star
from vitrea.engine.starversions import as_3_0, read_tables
from vitrea.jobs.cli import main
from vitrea.jobs.jobfile import read_job
from vitrea.picker.coordinates import read_coordinates

SIZES = (12, 7, 0, 30)
WINDOW_SECONDS = 4   # relion_display shows its window within half of one
COMMAND = """`which relion_refine_mpi` --o Class2D/job012/run --i Extract/job009/particles.star
  --dont_combine_weights_via_disc --pool 30 --pad 2 --ctf --iter 25 --tau2_fudge 3 --particle_diameter 190 --K 60
  --flatten_solvent --zero_mask --oversampling 1 --psi_step 12 --offset_range 7 --offset_step 2 --norm --scale --j 4
  --gpu "" --random_seed 5 --ini_high 40 --pipeline_control Class2D/job012/ --odd_thing 3"""


def star_3_0(path, n=6):
    """A table of 3.0 with two microscopes settings; pixel size 2 Å and 4 Å."""
    odd = np.arange(n) % 2
    write_star(path, {"": {
        "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(n)], "rlnMicrographName": ["m.mrc"] * n,
        "rlnDefocusU": np.linspace(1e4, 2e4, n), "rlnDefocusV": np.linspace(1e4, 2e4, n) - 300,
        "rlnDefocusAngle": np.linspace(0, 90, n), "rlnVoltage": np.where(odd, 200.0, 300.0),
        "rlnSphericalAberration": np.full(n, 2.7), "rlnAmplitudeContrast": np.full(n, 0.1),
        "rlnDetectorPixelSize": np.full(n, 5.0), "rlnMagnification": np.where(odd, 12_500.0, 25_000.0),
        "rlnOriginX": np.arange(n) * 1.5, "rlnOriginY": -np.arange(n) * 0.5,
        "rlnAnglePsi": np.arange(n) * 10.0}}, version=None)
    return path


def floats(columns, label):
    return np.asarray(columns[label]).astype(float)


# ---- RELION's STAR files

def test_a_table_of_3_0_becomes_optics_groups_with_shifts_in_angstrom(tmp_path):
    tables = read_tables(star_3_0(tmp_path / "old.star"))
    assert floats(tables.optics, "rlnImagePixelSize").tolist() == [2.0, 4.0]
    assert floats(tables.optics, "rlnVoltage").tolist() == [300.0, 200.0]
    assert tables.particles["rlnOpticsGroup"].tolist() == ["1", "2"] * 3
    assert floats(tables.particles, "rlnOriginXAngst") == pytest.approx(np.arange(6) * 1.5 * [2, 4, 2, 4, 2, 4])
    assert "rlnOriginX" not in tables.particles
    assert "rlnVoltage" not in tables.particles


def test_there_and_back_is_the_same(tmp_path):
    old = star_3_0(tmp_path / "old.star")
    assert main(["convert", str(old), str(tmp_path / "new.star")]) == 0
    assert main(["convert", str(tmp_path / "new.star"), str(tmp_path / "again.star"), "--star", "3.0"]) == 0
    before, after = read_star(old)[""], read_star(tmp_path / "again.star")[""]
    pixel = [floats(each, "rlnDetectorPixelSize") * 1e4 / floats(each, "rlnMagnification") for each in (before, after)]
    assert pixel[0] == pytest.approx(pixel[1])
    assert "rlnOpticsGroup" not in after
    assert "# version" not in (tmp_path / "again.star").read_text(), "RELION would take it for 3.1"
    for label in set(before) - {"rlnDetectorPixelSize", "rlnMagnification"}:
        found, expected = after[label], before[label]
        same = found.tolist() == expected.tolist() or floats(after, label) == pytest.approx(floats(before, label))
        assert same, label


@pytest.mark.skipif(not shutil.which("relion_convert_star"), reason="RELION is not installed")
def test_relion_converts_a_table_of_3_0_alike(tmp_path, stacks):
    old = tmp_path / "old.star"
    star_3_0(old)
    text = old.read_text().replace("@stack.mrcs", f"@{stacks / 'plain' / 'particles.mrcs'}")
    old.write_text(text)
    subprocess.run(["relion_convert_star", "--i", old, "--o", tmp_path / "theirs.star"], check=True,
                   capture_output=True, cwd=tmp_path)
    theirs, ours = read_star(tmp_path / "theirs.star"), read_tables(old)
    for label in ("rlnImagePixelSize", "rlnVoltage", "rlnImageSize", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        assert floats(ours.optics, label) == pytest.approx(floats(theirs["optics"], label)), label
    for label in ("rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU", "rlnAnglePsi", "rlnOpticsGroup"):
        assert floats(ours.particles, label) == pytest.approx(floats(theirs["particles"], label)), label


@pytest.mark.parametrize(("change", "words"), [
    (("_rlnImageName", "_other"), "found no table with _rlnImageName"),
    (("_rlnDetectorPixelSize", "_other"), "found no pixel size"),
])
def test_tables_that_cannot_be_converted_are_told(tmp_path, change, words):
    path = star_3_0(tmp_path / "old.star")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(JobError, match=words):
        read_tables(path)


def test_a_particle_of_no_optics_group_is_told(tmp_path):
    folder = make_run(tmp_path / "run", SIZES)
    text = (folder / "run_data.star").read_text()
    (folder / "run_data.star").write_text(text.replace("mic0.mrc            1", "mic0.mrc            9", 1))
    with pytest.raises(JobError, match="found particles of optics group 9, which data_optics has not"):
        read_tables(folder / "run_data.star")


# ---- cryoSPARC

def test_a_run_goes_to_cryosparc_and_back(tmp_path):
    folder = make_run(tmp_path / "run", SIZES)
    assert main(["convert", str(folder), str(tmp_path / "out.cs")]) == 0
    assert main(["convert", str(tmp_path / "out.cs"), str(tmp_path / "back.star")]) == 0
    before, after = read_star(folder / "run_data.star"), read_star(tmp_path / "back.star")
    assert after["particles"]["rlnImageName"].tolist() == before["particles"]["rlnImageName"].tolist()
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst",
                  "rlnClassNumber", "rlnMaxValueProbDistribution"):
        assert floats(after["particles"], label) == pytest.approx(floats(before["particles"], label), abs=2e-3), label
    for label in ("rlnVoltage", "rlnImagePixelSize", "rlnImageSize"):
        assert floats(after["optics"], label) == pytest.approx(floats(before["optics"], label))


def test_cryosparc_fields_have_their_units_and_types(tmp_path):
    folder = make_run(tmp_path / "run", SIZES)
    tables = read_tables(folder / "run_data.star")
    records = records_of(tables)
    run = read_finished(folder)
    assert records["blob/idx"].tolist() == list(range(49))
    assert records["alignments2D/class"].tolist() == run.class_number.tolist()
    assert records["alignments2D/pose"] == pytest.approx(np.deg2rad(run.numbers("rlnAnglePsi")), abs=1e-6)
    assert records["alignments2D/shift"][:, 0] * 4.0 == pytest.approx(run.numbers("rlnOriginXAngst"), abs=1e-5)
    assert records["ctf/df_angle_rad"] == pytest.approx(np.deg2rad(run.numbers("rlnDefocusAngle")), abs=1e-6)
    assert records["blob/shape"].tolist()[0] == [32, 32]
    assert records.dtype["uid"] == np.uint64
    assert len(set(records["uid"].tolist())) == 49
    assert not any(records.dtype[name].hasobject for name in records.dtype.names)


def test_class_averages_become_templates(tmp_path):
    folder = make_run(tmp_path / "run", SIZES)
    assert main(["convert", str(folder), str(tmp_path / "out.cs")]) == 0
    records = read_cs(tmp_path / "out_class_averages.cs")
    assert records["class2D/num_particles"].tolist() == list(SIZES)
    assert records["blob/res_A"][3] == pytest.approx(32 * 4 / 7, rel=1e-5)


def cs_files(folder):
    """Particles and passthrough as cryoSPARC lays them out: fields shared out, rows in another order."""
    uid = np.array([7, 3, 5], "u8")
    main_part = np.zeros(3, [("uid", "u8"), ("alignments2D/class", "u4"), ("alignments2D/pose", "f4"),
                             ("alignments2D/shift", "f4", (2,)), ("alignments2D/psize_A", "f4"),
                             ("blob/path", "S40"), ("blob/idx", "u4"), ("blob/shape", "u4", (2,)),
                             ("blob/psize_A", "f4")])
    main_part["uid"], main_part["alignments2D/class"], main_part["alignments2D/pose"] = uid, [0, 4, 2], [0.5, -1, 3]
    main_part["alignments2D/shift"], main_part["alignments2D/psize_A"] = [[1, 2], [0, -3], [4, 0]], 2.0
    main_part["blob/path"], main_part["blob/idx"] = b">J3/extract/mic.mrc", [0, 1, 2]
    main_part["blob/shape"], main_part["blob/psize_A"] = 64, 1.0
    more = np.zeros(3, [("uid", "u8"), ("ctf/df1_A", "f4"), ("ctf/accel_kv", "f4"), ("location/center_x_frac", "f4"),
                        ("location/center_y_frac", "f4"), ("location/micrograph_shape", "u4", (2,)),
                        ("location/micrograph_path", "S20")])
    more["uid"], more["ctf/df1_A"], more["ctf/accel_kv"] = [3, 5, 7], [1e4, 2e4, 3e4], 300
    more["location/center_x_frac"], more["location/center_y_frac"] = [0.1, 0.2, 0.5], [0.25, 0.5, 0.75]
    more["location/micrograph_shape"], more["location/micrograph_path"] = (1000, 2000), b"J1/mic.mrc"
    for name, records in (("p.cs", main_part), ("pass.cs", more)):
        with open(folder / name, "wb") as file:
            np.lib.format.write_array(file, records, allow_pickle=False)
    return [folder / "p.cs", folder / "pass.cs"]


def test_particles_and_passthrough_are_joined_by_uid(tmp_path):
    tables = tables_of(cs_files(tmp_path))
    found = tables.particles
    assert found["rlnImageName"].tolist() == [f"{i:06d}@J3/extract/mic.mrc" for i in (1, 2, 3)]
    assert found["rlnDefocusU"].tolist() == [3e4, 1e4, 2e4]
    assert found["rlnClassNumber"].tolist() == [1, 5, 3]
    assert found["rlnAnglePsi"] == pytest.approx(np.rad2deg([0.5, -1, 3]), rel=1e-6)
    assert found["rlnOriginXAngst"].tolist() == [2, 0, 8], "px of alignments2D/psize_A, not of the images"
    assert found["rlnCoordinateX"] == pytest.approx([1000, 200, 400])
    assert found["rlnCoordinateY"] == pytest.approx([750, 250, 500])
    assert tables_of(cs_files(tmp_path), invert_y=True).particles["rlnCoordinateY"] == pytest.approx([250, 750, 500])


def test_files_that_are_no_particles_of_cryosparc_are_told(tmp_path):
    first, second = cs_files(tmp_path)
    with pytest.raises(JobError, match="found no field 'blob/path'; expected the particles of a job"):
        tables_of([second])
    other = np.load(second)
    other["uid"] += 100
    with open(tmp_path / "other.cs", "wb") as file:
        np.lib.format.write_array(file, other)
    with pytest.raises(JobError, match=r"other.cs: particles of .*p.cs are not in it"):
        tables_of([first, tmp_path / "other.cs"])
    with open(tmp_path / "objects.cs", "wb") as file:
        np.lib.format.write_array(file, np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(JobError, match="without Python objects"):
        read_cs(tmp_path / "objects.cs")
    (tmp_path / "stream.cs").write_bytes(b"\x94CSDAT rest")
    with pytest.raises(JobError, match="found cryoSPARC's compressed format"):
        read_cs(tmp_path / "stream.cs")


def test_every_label_of_cryosparc_has_one_field():
    labels = [label for label, _ in PARTICLES.values()]
    assert len(labels) == len(set(labels))


# ---- coordinates

def test_boxes_of_eman_become_centres_and_back(tmp_path):
    (tmp_path / "mic.box").write_text("10\t20\t64\t64\n100\t200\t64\t64\n")
    assert main(["convert", str(tmp_path / "mic.box"), str(tmp_path / "mic.star")]) == 0
    found = read_coordinates(tmp_path / "mic.star")
    assert found.x.tolist() == [42, 132]
    assert found.y.tolist() == [52, 232]
    assert main(["convert", str(tmp_path / "mic.star"), str(tmp_path / "again.box"), "--box", "64"]) == 0
    assert (tmp_path / "again.box").read_text() == (tmp_path / "mic.box").read_text()


@pytest.mark.parametrize(("arguments", "words"), [
    (["mic.box", "out.box"], "--box is missing"),
    (["mic.box", "out.hdf"], "cannot be written as '.hdf'"),
    (["mic.box", "mic.box"], "is there already"),
    (["old.star", "mic.box", "out.star"], "a second input was given"),
    (["nothing.star", "out.star"], "could not be read"),
    (["old.star", "nowhere/out.star"], "there is no folder nowhere; expected one that is there"),
    (["p.h5", "out.star"], "give the STAR file that it was made of"),
    (["typo.h5", "out.star"], "typo.h5: could not be read (No such file"),
])
def test_what_cannot_be_converted_is_told(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mic.box").write_text("10\t20\t64\t64\n")
    star_3_0(tmp_path / "old.star")
    (tmp_path / "p.h5").touch()
    assert main(["convert", *arguments]) == 2
    assert words in capsys.readouterr().err


# ---- RELION on our runs

def test_relion_finds_everything_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "first", SIZES)
    from pathlib import Path

    write_relion_files(Path("runs/first"))
    optimiser = read_star("runs/first/relion_optimiser.star")["optimiser_general"]
    model = read_star(optimiser["rlnModelStarFile"][0])
    assert len(read_tables(optimiser["rlnExperimentalDataStarFile"][0])) == 49
    for name in model["model_classes"]["rlnReferenceImage"]:
        assert Path(name.partition("@")[2]).exists()
    assert {"rlnClassPriorOffsetX", "rlnClassPriorOffsetY"} <= set(model["model_classes"])
    assert {"rlnGoldStandardFsc", "rlnReferenceSigma2", "rlnFourierCompleteness"} <= set(model["model_class_1"])
    ssnr, tau2, sigma2 = (floats(model["model_class_1"], label) for label in (
        "rlnSsnrMap", "rlnReferenceTau2", "rlnReferenceSigma2"))
    assert tau2[2] / sigma2[2] == pytest.approx(ssnr[2], rel=1e-5)


@pytest.mark.skipif(not shutil.which("relion_star_printtable"), reason="RELION is not installed")
def test_relion_reads_the_files(tmp_path):
    folder = make_run(tmp_path / "first", SIZES)
    write_relion_files(folder)
    for name, block, label, expected in (
            ("relion_model.star", "data_model_classes", "rlnReferenceImage", "000004@"),
            ("relion_data.star", "data_particles", "rlnClassNumber", "4")):
        ran = subprocess.run(["relion_star_printtable", folder / name, block, label], capture_output=True, text=True,
                             check=True)
        assert expected in ran.stdout


@pytest.mark.skipif(not all(map(shutil.which, ("relion_display", "xvfb-run"))), reason="no RELION, or no xvfb-run")
@pytest.mark.parametrize(("stack", "opens"), [("run_classes.mrcs", True), ("nowhere.mrcs", False)])
def test_the_window_of_relions_subset_selection_opens_on_our_classes(tmp_path, monkeypatch, stack, opens):
    """It reads the model and every class average before it shows them; what it cannot read it ends with."""
    monkeypatch.chdir(tmp_path)   # the files name one another as seen from where the run was started
    make_run(Path("first"), SIZES)
    write_relion_files(Path("first"))
    model = Path("first/relion_model.star")
    model.write_text(model.read_text().replace("run_classes.mrcs", stack))
    command = ["xvfb-run", "-a", "relion_display", "--class", "--i", model, "--display", "rlnReferenceImage",
               "--allow_save", "--fn_parts", "particles.star"]
    with open("said.txt", "w") as said, subprocess.Popen(command, stdout=said, stderr=said,
                                                         start_new_session=True) as window:
        try:
            window.wait(WINDOW_SECONDS if opens else 60)
        except subprocess.TimeoutExpired:
            os.killpg(window.pid, signal.SIGTERM)
    told = Path("said.txt").read_text()
    assert ("ERROR" in told) != opens, told
    assert (window.returncode == -signal.SIGTERM) == opens, "still open, or ended by itself"


# ---- RELION's command

def test_a_command_of_relion_becomes_a_job(tmp_path, capsys):
    assert main(["from-relion", f"mpirun -n 5 {COMMAND}"]) == 0
    found = capsys.readouterr()
    (tmp_path / "job.yaml").write_text(found.out)
    options = read_job(tmp_path / "job.yaml").options
    assert str(options.input) == "Extract/job009/particles.star"
    assert str(options.output) == "Class2D/job012_vitrea"
    expected = {"n_classes": 60, "tau2_fudge": 3, "particle_diameter": 190, "max_iterations": 25, "psi_step": 12,
                "offset_range": 7, "offset_step": 2, "norm_correction": True, "threads": 4, "seed": 5, "ctf": "full"}
    assert {name: getattr(options, name) for name in expected} == expected
    assert "mpiexec -n 5 vitrea run" in found.err
    assert "--scale: has no counterpart" in found.err
    assert "--odd_thing: not known here" in found.err
    assert "--gpu: not needed" in found.err
    assert "--K" not in found.err


@pytest.mark.parametrize(("words", "key", "value"), [
    ("", "ctf", "none"), ("", "norm_correction", False), ("", "tau2_fudge", 1), ("--ctf", "ctf", "full"),
    ("--ctf --ctf_intact_first_peak", "ctf", "intact_first_peak"), ("--random_seed -1", "seed", 0),
    ("--ctf --ctf_phase_flipped", "ctf", "phase_flipped"), ("--grad --grad_ini_subset 200", "algorithm", "minibatch"),
    ("--iter 200", "max_iterations", 200), ("--grad --iter 200", "minibatch_iterations", 200),
    ("--grad --iter 200", "max_iterations", 30),
    ("--strict_highres_exp 12", "max_resolution", 12), ("--strict_highres_exp -1", "max_resolution", None),
    ("", "offset_range", 6), ("--dont_check_norm", "normalise", "never"),
])
def test_options_of_relion_mean_the_same_here(tmp_path, capsys, words, key, value):
    assert main(["from-relion", f"relion_refine --i p.star --o out --K 3 --particle_diameter 100 {words}"]) == 0
    found = capsys.readouterr()
    (tmp_path / "job.yaml").write_text(found.out)
    assert getattr(read_job(tmp_path / "job.yaml").options, key) == value
    assert ("full passes follow, at most max_iterations" in found.err) == ("--grad --iter" in words)


@pytest.mark.parametrize(("words", "told"), [
    ("relion_autopick --i a", "found no relion_refine"),
    ("relion_refine --i p.star --o x --K 2", "found no --particle_diameter"),
    ("relion_refine --continue x_optimiser.star", "found --continue"), ("", "no command was given"),
    ("relion_refine --i p --o x --K 1 --particle_diameter 9 --auto_refine", "there is no 3D here"),
])
def test_commands_that_are_no_2d_classification_are_told(capsys, words, told):
    assert main(["from-relion", words]) == 2
    assert told in capsys.readouterr().err


def test_3_0_is_read_by_the_engine_as_it_was(tmp_path, stacks):
    tables = read_tables(stacks / "plain" / "particles.star")
    write_star(tmp_path / "old.star", {"": as_3_0(tables)}, version=None)
    before, after = read_particles(stacks / "plain" / "particles.star"), read_particles(tmp_path / "old.star")
    assert after.star_version == "3.0"
    assert after.optics[0].pixel_size == pytest.approx(before.optics[0].pixel_size)
    assert after.columns["rlnDefocusU"].tolist() == before.columns["rlnDefocusU"].tolist()
