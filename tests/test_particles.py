"""Particle tables: RELION 3.0 and 3.1 become the same numbers, and each mistake is told with file and row."""
import time

import numpy as np
import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.particles import OpticsGroup, read_particles
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import read_star, write_star

OLD = {"rlnImageName": "1@s.mrcs 2@s.mrcs 3@s.mrcs", "rlnVoltage": "300 300 200", "rlnSphericalAberration": "2.7 2.7 2",
       "rlnAmplitudeContrast": "0.1 0.1 0.07", "rlnDetectorPixelSize": "5 5 5", "rlnMagnification": "25000 25000 50000",
       "rlnDefocusU": "10000 11000 12000", "rlnDefocusV": "9000 10500 11900", "rlnDefocusAngle": "10 -20 45.5",
       "rlnPhaseShift": "0 90 0", "rlnCtfBfactor": "0 50 0", "rlnOriginX": "1 2 -3", "rlnOriginY": "0.5 0 4",
       "rlnAnglePsi": "10 -170 0"}
OPTICS = {"rlnOpticsGroup": "1 7", "rlnOpticsGroupName": "first second", "rlnVoltage": "300 200",
          "rlnSphericalAberration": "2.7 2", "rlnAmplitudeContrast": "0.1 0.07", "rlnImagePixelSize": "2 1",
          "rlnImageSize": "8 8", "rlnImageDimensionality": "2 2"}
NEW = {"rlnImageName": "1@s.mrcs 2@s.mrcs 3@s.mrcs", "rlnOpticsGroup": "1 1 7", "rlnDefocusU": "10000 11000 12000",
       "rlnDefocusV": "9000 10500 11900", "rlnDefocusAngle": "10 -20 45.5", "rlnPhaseShift": "0 90 0",
       "rlnCtfBfactor": "0 50 0", "rlnOriginXAngst": "2 4 -3", "rlnOriginYAngst": "1 0 4", "rlnAnglePsi": "10 -170 0"}


def columns(words, **changes):
    return {label: np.array(text.split()) for label, text in {**words, **changes}.items() if text is not None}


@pytest.fixture
def folder(tmp_path):
    write_stack(tmp_path / "s.mrcs", np.ones((3, 8, 8)), 1.5)
    write_stack(tmp_path / "ten.mrcs", np.ones((3, 10, 10)), 1.5)
    write_stack(tmp_path / "flat.mrcs", np.ones((3, 8, 10)), 1.5)
    write_stack(tmp_path / "nopixel.mrcs", np.ones((3, 8, 8)), 0.0)
    return tmp_path


def read_old(folder, **changes):
    write_star(folder / "p.star", {"": columns(OLD, **changes)})
    return read_particles(folder / "p.star")


def read_new(folder, optics=OPTICS, **changes):
    write_star(folder / "p.star", {"optics": columns(optics), "particles": columns(NEW, **changes)})
    return read_particles(folder / "p.star")


@pytest.mark.parametrize("read", [read_old, read_new])
def test_both_versions_give_the_same_numbers(folder, read):
    table = read(folder)
    assert len(table) == 3
    assert table.star_version == ("3.0" if read is read_old else "3.1")
    assert table.has_ctf
    assert table.stacks == (folder / "s.mrcs",)
    assert table.section.tolist() == [0, 1, 2]
    assert table.optics_index.tolist() == [0, 0, 1]
    assert [(g.voltage, g.cs, g.amplitude_contrast, g.pixel_size, g.box_size) for g in table.optics] == [
        (300.0, 2.7, 0.1, 2.0, 8), (200.0, 2.0, 0.07, 1.0, 8)]
    assert table.defocus_u.tolist() == [10000, 11000, 12000]
    assert table.defocus_v.tolist() == [9000, 10500, 11900]
    assert table.defocus_angle.tolist() == [10, -20, 45.5]
    assert table.phase_shift.tolist() == [0, 90, 0]
    assert table.bfactor.tolist() == [0, 50, 0]
    assert table.psi.tolist() == [10, -170, 0]
    assert table.origin.tolist() == [[1, 2], [0, 4], [4, -3]]   # (y, x) in Å: 3.0's pixels times 2 and 1 Å
    assert all(array.dtype == np.int32 for array in (table.section, table.stack_index, table.optics_index))


def test_optics_keep_their_numbers_and_names(folder):
    assert read_new(folder).optics[1] == OpticsGroup(7, "second", 200.0, 2.0, 0.07, 1.0, 8)


def test_without_defocus_there_is_no_ctf_and_no_microscope_is_needed(folder):
    write_star(folder / "p.star", {"": {"rlnImageName": np.array(["s.mrcs"])}})
    table = read_particles(folder / "p.star")
    assert not table.has_ctf
    assert table.optics == (OpticsGroup(1, "opticsGroup1", 0.0, 0.0, 0.0, 1.5, 8),)   # pixel size of the header
    assert table.origin.tolist() == [[0, 0]]
    assert table.psi.tolist() == [0]
    assert np.all(np.isfinite(table.defocus_u))


def test_a_missing_defocus_v_means_no_astigmatism(folder):
    table = read_new(folder, rlnDefocusV=None, rlnDefocusAngle=None)
    assert np.array_equal(table.defocus_v, table.defocus_u)


def test_old_rows_of_different_boxes_become_different_groups(folder):
    table = read_old(folder, rlnImageName="1@s.mrcs 1@ten.mrcs 3@ten.mrcs")
    assert [group.box_size for group in table.optics] == [8, 10, 10]
    assert [group.voltage for group in table.optics] == [300, 300, 200]
    assert table.optics_index.tolist() == [0, 1, 2]


def test_taking_rows_keeps_their_numbers_in_the_file(folder):
    part = read_new(folder).take([2, 0])
    assert len(part) == 2
    assert part.row_number.tolist() == [3, 1]
    assert part.section.tolist() == [2, 0]
    assert part.columns["rlnDefocusU"].tolist() == ["12000", "10000"]
    assert part.origin.tolist() == [[4, -3], [1, 2]]
    assert len(part.take(np.array([True, False]))) == 1


def test_paths_are_resolved_as_relion_does_then_near_the_star_file(folder, monkeypatch):
    job = folder / "Extract" / "job001"
    job.mkdir(parents=True)
    for place, pixel in ((folder, 3.0), (job, 4.0)):
        write_stack(place / "near.mrcs", np.ones((1, 8, 8)), pixel)
    write_star(job / "p.star", {"": {"rlnImageName": np.array(["1@near.mrcs"])}})
    monkeypatch.chdir(folder)
    assert read_particles("Extract/job001/p.star").stacks == (folder / "near.mrcs",)   # the working directory first
    monkeypatch.chdir("/")
    assert read_particles(job / "p.star").stacks == (job / "near.mrcs",)
    assert read_particles(job / "p.star", input_root=folder).stacks == (folder / "near.mrcs",)
    (job / "near.mrcs").unlink()
    assert read_particles(job / "p.star").stacks == (folder / "near.mrcs",)            # a folder above the STAR file


def told(call, *args, **kwargs):
    with pytest.raises(JobError) as error:
        call(*args, **kwargs)
    return str(error.value).split("p.star", 1)[1]


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"rlnImageName": "1@s.mrcs 4@s.mrcs 3@s.mrcs"}, " row 2: 4@s.mrcs, but s.mrcs holds 3 images; expected a "
     "section of "
     "1 to 3; correct the row or extract the stack again"),
    ({"rlnImageName": "1@s.mrcs 0@s.mrcs 3@s.mrcs"}, " row 2: _rlnImageName is '0@s.mrcs'; expected a name like "
     "000012@stack.mrcs, counted from 1"),
    ({"rlnImageName": "1@s.mrcs 2@s.mrcs x@s.mrcs"}, " row 3: _rlnImageName is 'x@s.mrcs'; expected a name like"),
    ({"rlnImageName": "1@s.mrcs 99999999999999999999@s.mrcs 2@s.mrcs"}, " row 2: _rlnImageName is "
     "'99999999999999999999@"),
    ({"rlnImageName": None}, ": found no table with _rlnImageName; expected a particle STAR file of RELION 3.0 or 3.1"),
    ({"rlnImageName": "1@s.mrcs 1@gone.mrcs 2@gone.mrcs"}, " row 2: the image file 'gone.mrcs' does not exist "
     "(looked in: "),
    ({"rlnImageName": "1@s.mrcs 1@flat.mrcs 2@s.mrcs"}, " row 2: flat.mrcs has a box of 10 × 8 px; expected square "
     "boxes"),
    ({"rlnDefocusU": "1e4 nan 1e4"}, " row 2: _rlnDefocusU is 'nan'; expected a finite number; correct or remove the "
     "row"),
    ({"rlnDefocusV": "1e4 1e4 1e999"}, " row 3: _rlnDefocusV is '1e999'; expected a finite number"),
    ({"rlnDefocusAngle": "? 1 2"}, " row 1: _rlnDefocusAngle is '?'; expected a finite number"),
    ({"rlnVoltage": None}, ": found no _rlnVoltage among the columns; expected it in every particle file like this; "
     "add"),
    ({"rlnVoltage": "300 0 300"}, " row 2: _rlnVoltage is 0; expected kilovolts above 0"),
    ({"rlnMagnification": "1e4 1e4 0"}, " row 3: the pixel size from _rlnDetectorPixelSize is not positive; expected "
     "Å per"),
    ({"rlnImageSize": "8 8 12"}, " row 3: s.mrcs has a box of 8 px, but _rlnImageSize of its optics group is 12; "
     "expected "
     "the same box in both; correct _rlnImageSize or the stack"),
    ({"rlnImageName": "1@nopixel.mrcs 2@nopixel.mrcs 3@s.mrcs", "rlnMagnification": None}, " row 1: no pixel size in "
     "the "
     "STAR file, and 0 in the header of nopixel.mrcs; expected a pixel size in one of them; add _rlnImagePixelSize "
     "[Å/px] "
     "to each row"),
])
def test_mistakes_in_rows_are_told(folder, changes, sentence):
    assert told(read_old, folder, **changes).startswith(sentence)


@pytest.mark.parametrize(("optics", "changes", "sentence"), [
    ({}, {"rlnOpticsGroup": "1 1 3"}, " row 3: optics group 3 is not in data_optics; expected one of 1, 7; add the "
     "group or"),
    ({}, {"rlnOpticsGroup": "1 1.5 7"}, " row 2: _rlnOpticsGroup is '1.5'; expected a whole number"),
    ({}, {"rlnOpticsGroup": None}, ": found no _rlnOpticsGroup among the columns"),
    ({"rlnOpticsGroup": "1 1"}, {}, ": found an optics group twice in data_optics; expected each number once"),
    ({"rlnImageSize": "8 9"}, {}, " row 3: s.mrcs has a box of 8 px, but _rlnImageSize of its optics group is 9"),
    ({"rlnImageDimensionality": "2 3"}, {}, " data_optics row 2: _rlnImageDimensionality is not 2; expected "
     "two-dimensional"),
    ({"rlnVoltage": "300 abc"}, {}, " data_optics row 2: _rlnVoltage is 'abc'; expected a finite number"),
    ({"rlnVoltage": None}, {}, ": found no _rlnVoltage among the columns"),
    ({"rlnImageSize": None}, {"rlnImageName": "1@s.mrcs 2@ten.mrcs 3@s.mrcs"}, " row 2: optics group 1 has boxes of "
     "8 and "
     "10; expected one of the boxes in a group; give them different optics groups"),
    ({"rlnImagePixelSize": None}, {"rlnImageName": "1@s.mrcs 2@s.mrcs 3@nopixel.mrcs"}, " row 3: no pixel size in "
     "the STAR "
     "file, and 0 in the header of nopixel.mrcs; expected a pixel size in one of them; add _rlnImagePixelSize [Å/px] "
     "to "
     "data_optics"),
])
def test_mistakes_in_optics_are_told(folder, optics, changes, sentence):
    optics = {label: text for label, text in {**OPTICS, **optics}.items() if text is not None}
    assert told(read_new, folder, optics, **changes).startswith(sentence)


def test_zero_particles_missing_optics_and_broken_stacks_are_told(folder):
    (folder / "p.star").write_text("data_particles\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n")
    assert told(read_particles, folder / "p.star").startswith(": found zero particles; expected at least one row")
    write_star(folder / "p.star", {"particles": columns(NEW)})
    assert told(read_particles, folder / "p.star").startswith(": found _rlnOpticsGroup but no data_optics block")
    (folder / "s.mrcs").write_bytes((folder / "s.mrcs").read_bytes()[:-1])
    sentence = told(read_new, folder)
    assert sentence.startswith(" row 1: ")
    assert "s.mrcs: found 1,791 bytes; expected 1,792" in sentence


def test_all_places_that_were_searched_are_told(folder, monkeypatch):
    monkeypatch.chdir("/tmp")
    sentence = told(read_old, folder, rlnImageName="1@gone.mrcs 1@s.mrcs 1@s.mrcs")
    assert f"(looked in: /tmp, {folder}, {folder.parent}," in sentence
    assert sentence.endswith("start Vitrea in the folder where RELION was started")


def test_a_hundred_thousand_rows_take_seconds(folder):
    n = 100_000
    write_star(folder / "p.star", {"optics": columns(OPTICS), "particles": {
        "rlnImageName": np.array([f"{i % 3 + 1:06d}@s.mrcs" for i in range(n)]),
        "rlnOpticsGroup": np.arange(n) % 2 * 6 + 1,
        **{label: np.linspace(1e4, 2e4, n) for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")}}})
    start = time.process_time()
    table = read_particles(folder / "p.star")
    assert time.process_time() - start < 5
    assert table.section[:4].tolist() == [0, 1, 2, 0]
    assert table.optics_index[:3].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("name", "version", "pixel_size", "box", "n"), [
    ("empiar_10076_7.star", "3.0", 5e4 / 38168, 320, 7),
    ("sample_relion_data.star", "3.0", 5e4 / 37369.207031, 200, 17),
    ("relion31.star", "3.1", 2.806, 256, 5), ("relion31.v2.star", "3.1", 2.806, 256, 5)])
def test_real_files(data, name, version, pixel_size, box, n):
    path = data / "stacks_small" / name
    table = read_particles(path)
    assert (table.star_version, len(table), len(table.optics)) == (version, n, 1)
    assert table.optics[0].pixel_size == pytest.approx(pixel_size)
    assert table.optics[0].box_size == box
    column = next(c for c in read_star(path).values() if "rlnImageName" in c)["rlnDefocusU"]
    assert table.defocus_u.tolist() == [float(word) for word in column]
