"""Coordinate files: centres survive every format, on micrographs that are not square, and mistakes are told."""
import h5py
import numpy as np
import pytest

from vitrea.engine.errors import JobError
from vitrea.picker.coordinates import find_coordinates, read_coordinates, write_coordinates

HEIGHT, WIDTH = 512, 640


@pytest.fixture
def centres():
    random = np.random.default_rng(0)
    return random.random(30) * WIDTH, random.random(30) * HEIGHT, random.random(30)


@pytest.mark.parametrize(("suffix", "error"), [(".star", 1e-5), (".csv", 0.006), (".box", 0.5), (".cbox", 1e-4),
                                               (".json", 0.006)])
@pytest.mark.parametrize("box", [64, 65])
def test_centres_survive_every_format(tmp_path, centres, suffix, error, box):
    x, y, score = centres
    path = tmp_path / f"m{suffix}"
    write_coordinates(path, x, y, score, box=box)
    found = read_coordinates(path)
    assert np.abs(found.x - x).max() <= error
    assert np.abs(found.y - y).max() <= error
    assert found.y.max() < HEIGHT < found.x.max()   # neither swapped nor turned
    if suffix == ".box":
        assert np.isnan(found.score).all()
    else:
        np.testing.assert_allclose(found.score, score, atol=1e-6)
    write_coordinates(tmp_path / f"again{suffix}", found.x, found.y, score, box=box)
    np.testing.assert_array_equal(read_coordinates(tmp_path / f"again{suffix}").places, found.places)


def test_y_counted_upwards_twice_is_y_counted_downwards(tmp_path, centres):
    x, y, score = centres
    write_coordinates(tmp_path / "m.star", x, HEIGHT - 1 - y, score)
    found = read_coordinates(tmp_path / "m.star", upwards=HEIGHT)
    np.testing.assert_allclose(found.y, y, atol=1e-5)
    np.testing.assert_allclose(found.x, x, atol=1e-5)


def test_a_box_holds_corners_and_the_pixel_in_the_middle_is_the_centre(tmp_path):
    (tmp_path / "m.box").write_text("10 20 64 64\n10\t20\t65\t65\t-3\n")
    assert read_coordinates(tmp_path / "m.box").places.tolist() == [[52, 42], [52, 42]]
    write_coordinates(tmp_path / "n.box", np.array([42.0]), np.array([52.0]), np.array([1.0]), box=65)
    assert (tmp_path / "n.box").read_text() == "10\t20\t65\t65\n"


def test_boxes_of_cryolo_hold_lower_corners_with_fractions(tmp_path):
    (tmp_path / "m.cbox").write_text(
        "data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n_CoordinateX #1\n_CoordinateY #2\n"
        "_CoordinateZ #3\n_Width #4\n_Height #5\n_Confidence #6\n10.5 20 <NA> 65 64 0.25\n\ndata_cryolo_include\n\n"
        "loop_\n_slice_index #1\n")
    found = read_coordinates(tmp_path / "m.cbox")
    assert (found.x.tolist(), found.y.tolist(), found.score.tolist()) == ([43.0], [52.0], [0.25])
    (tmp_path / "old.cbox").write_text("10 20 64 64 0.3\n")
    with pytest.raises(JobError, match=r"old\.cbox"):
        read_coordinates(tmp_path / "old.cbox")


@pytest.mark.parametrize("suffix", [".star", ".box", ".csv", ".cbox", ".json"])
def test_no_centres_make_a_file_that_reads_as_none(tmp_path, suffix):
    empty = np.zeros(0)
    write_coordinates(tmp_path / f"m{suffix}", empty, empty, empty, box=10)
    if suffix != ".box":
        assert (tmp_path / f"m{suffix}").stat().st_size > 0
    assert len(read_coordinates(tmp_path / f"m{suffix}")) == 0


def test_tables_of_other_programs_and_names(tmp_path):
    (tmp_path / "a.tsv").write_text("image_name\tx_coord\ty_coord\tscore\nm\t12\t34\t0.5\n")
    (tmp_path / "b.csv").write_text("x,y,radius\n1.5, 2.5, 30\n\n4,5,6\n")
    assert read_coordinates(tmp_path / "a.tsv").places.tolist() == [[34, 12]]
    assert read_coordinates(tmp_path / "b.csv").radius.tolist() == [30, 6]
    (tmp_path / "m_autopick.star").write_text("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n")
    assert find_coordinates(tmp_path, "m").name == "m_autopick.star"
    assert find_coordinates(tmp_path, "b").name == "b.csv"
    assert find_coordinates(tmp_path, "c") is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("m.star", "data_\n\nloop_\n_rlnImageName #1\n1@a\n", "found no _rlnCoordinateX"),
     ("m.box", "1 2 3 4\n5 6 seven 8\n", "m.box:2: found '5 6 seven 8'"),
     ("m.box", "1 2 3\n", "m.box:1: found '1 2 3'"),
     ("m.csv", "a,b\n1,2\n", "m.csv:1: found the columns 'a, b'"), ("m.csv", "", "found the columns ''"),
     ("m.csv", "x,y\n1,2\n3\n", "m.csv:3: found 1 values; expected 2"), ("m.csv", "x,y\n1,two\n", "y holds 'two'"),
     ("m.csv", "x,y\n1,2\n1,nan\n", "row 2: y is nan"), ("m.txt", "1 2", "coordinates end in '.txt'"),
     ("m.cbox", "data_\n\nloop_\n_rlnImageName #1\n1@a\n", "found no _CoordinateX"),
     ("m.json", "{", "found no JSON"), ("m.json", "[1]", "found no list called boxes"),
     ("m.json", '{"boxes": [[1, 2, "manual"], [1, "two"]]}', "box 2 is"),
     ("m.json", '{"boxes": [[1, NaN]]}', r"box 1 is at \(1, nan\)"), ("m.hdf", "no hdf", "found no images of EMAN2"),
     ("m.box", None, "could not be read")],
)
def test_mistakes_are_told_with_their_row(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(JobError, match=words):
        read_coordinates(tmp_path / name)


def eman_stack(path, places, sources):
    """A particle stack as EMAN2 writes it, without its images: what stands in its headers."""
    with h5py.File(path, "w") as file:
        for number, (place, source) in enumerate(zip(places, sources)):
            image = file.create_group(f"MDF/images/{number}")
            image.attrs["EMAN.ptcl_source_coord"] = np.array(place, np.float32)
            image.attrs["EMAN.ptcl_source_image"] = source


def test_particle_stacks_of_eman_tell_their_places_in_the_order_of_their_numbers(tmp_path):
    places = [(600.0 - i, 3.0 + i) for i in range(12)]   # image 10 stands between 1 and 2 in the file
    eman_stack(tmp_path / "mic_ptcls.hdf", places, ["mic.mrc"] * 12)
    assert find_coordinates(tmp_path, "mic").name == "mic_ptcls.hdf"
    found = read_coordinates(tmp_path / "mic_ptcls.hdf")
    assert list(zip(found.x, found.y)) == places
    assert np.isnan(found.score).all()


def test_stacks_of_several_micrographs_or_without_places_are_told(tmp_path):
    eman_stack(tmp_path / "two.hdf", [(1, 2), (3, 4)], ["a.mrc", "b.mrc"])
    with pytest.raises(JobError, match="particles of 2 micrographs"):
        read_coordinates(tmp_path / "two.hdf")
    eman_stack(tmp_path / "none.hdf", [(1, 2)], ["a.mrc"])
    with h5py.File(tmp_path / "none.hdf", "a") as file:
        del file["MDF/images/0"].attrs["EMAN.ptcl_source_coord"]
    with pytest.raises(JobError, match=r"image 0 has no EMAN\.ptcl_source_coord"):
        read_coordinates(tmp_path / "none.hdf")


def test_boxes_that_a_person_sets_in_eman_have_no_score(tmp_path):
    (tmp_path / "mic_info.json").write_text('{"boxes": [[10.5, 20, "manual"], [5, 6, "auto", 0.25]], "apix": 1.2}')
    found = read_coordinates(find_coordinates(tmp_path, "mic"))
    assert found.places.tolist() == [[20, 10.5], [6, 5]]
    np.testing.assert_array_equal(found.score, [np.nan, 0.25])
