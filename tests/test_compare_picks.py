"""`vitrea compare` on picks: counts worked out by hand, every kind of file, and sentences for what does not fit."""
import json

import numpy as np
import pytest
from PIL import Image

from vitrea.engine.star import write_star
from vitrea.jobs.cli import main
from vitrea.picker.coordinates import write_coordinates
from vitrea.picker.results import candidates_path

X = {"a": [10.0, 60.0, 110.0], "b": [10.0, 60.0]}   # of the labels, all at y = 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """labels/ of three micrographs; picks/ of two: a has one of three and a false one, b both and a double."""
    monkeypatch.chdir(tmp_path)
    for stem, x in (*X.items(), ("c", [5.0])):
        save(f"labels/{stem}.star", x, np.ones(len(x)))
    save("picks/deep/a.star", [13.0, 200.0], [0.9, 0.8])
    save("picks/deep/b_autopick.star", [10.0, 60.0, 12.0], [0.7, 0.6, 0.3])
    write_star(tmp_path / "picks" / "autopick.star", {"coordinate_files": {   # RELION's index beside them
        "rlnMicrographName": ["a.mrc"], "rlnMicrographCoordinates": ["picks/deep/a.star"]}})
    return tmp_path


def save(path, x, score, y=20.0, box=None):
    from pathlib import Path

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_coordinates(Path(path), np.array(x), np.full(len(x), y), np.array(score), box=box)


def compared(capsys, *words):
    assert main(["compare", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_counts_and_curve_worked_out_by_hand(folder, capsys):
    found = compared(capsys, "labels", "picks", "--radius", "5")
    assert [found[name] for name in ("particles", "picks", "true", "false", "missed")] == [5, 5, 3, 2, 2]
    assert found["precision"] == found["recall"] == found["f1"] == found["f2"] == pytest.approx(0.6)
    assert found["distance"] == 0.0
    assert found["left_out"] == ["c"]
    assert found["micrographs"] == [{"name": "a", "true": 1, "false": 1, "missed": 2},
                                    {"name": "b", "true": 2, "false": 1, "missed": 0}]
    assert found["curve"]["score"] == [0.9, 0.8, 0.7, 0.6, 0.3]
    assert found["curve"]["precision"] == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert found["auprc"] == pytest.approx(0.2 * (1 + 2 / 3 + 3 / 4))
    near = compared(capsys, "labels", "picks", "--radius", "2")
    assert (near["true"], near["missed"]) == (2, 3)
    assert main(["compare", "labels", "picks", "--radius", "5", "--curve", "pr.png"]) == 0
    said = capsys.readouterr().out
    for words in ("5 picks compared with 5 particles on 2 micrographs, within 5 px", "F1 0.6000",
                  "1 labelled micrographs without picks are left out: c", "  a   true 1   false 1   missed 2"):
        assert words in said
    with Image.open("pr.png") as picture:
        assert min(picture.size) > 300


def test_discs_take_picks_and_labels_out_of_the_count(folder, capsys):
    (folder / "ignore").mkdir()
    (folder / "ignore" / "a.csv").write_text("x,y,radius\n200,20,9\n110,25,8\n")
    found = compared(capsys, "labels", "picks", "--radius", "5", "--ignore", "ignore")
    assert [found[name] for name in ("true", "false", "missed")] == [3, 1, 1]


def test_the_folder_of_a_job_gives_counts_at_its_threshold_and_the_curve_of_all_candidates(folder, capsys):
    for name, (x, score) in {"mics/a.mrc": ([13.0, 200.0], [0.9, 0.8]),
                             "mics/b.mrc": ([10.0, 60.0, 12.0], [0.7, 0.6, 0.3])}.items():
        save(candidates_path("run", name), x, score)
    (folder / "run" / "threshold.json").write_text('{"threshold": 0.65, "diameter": 50.0}')
    found = compared(capsys, "labels", "run", "--radius", "5")
    assert [found[name] for name in ("true", "false", "missed", "threshold")] == [2, 1, 3, 0.65]
    assert len(found["curve"]["score"]) == 5
    other = compared(capsys, "run", "labels", "--radius", "5")
    assert [other[name] for name in ("true", "false", "missed")] == [2, 3, 1], "candidates below are none"


def test_every_format_and_one_star_file_of_all_particles_say_the_same(folder, capsys):
    expected = compared(capsys, "labels", "picks", "--radius", "5")
    save("boxes/a.box", [13, 200], [], box=20)
    save("boxes/b.box", [10, 60, 12], [], box=20)
    boxes = compared(capsys, "labels", "boxes", "--radius", "5")
    assert (boxes["auprc"], boxes["curve"]) == (None, None), "boxes have no scores"
    write_star("particles.star", {"particles": {
        "rlnMicrographName": ["mics/a.mrc"] * 2 + ["mics/b.mrc"] * 3, "rlnCoordinateX": [13.0, 200, 10, 60, 12],
        "rlnCoordinateY": [20.0] * 5, "rlnAutopickFigureOfMerit": [0.9, 0.8, 0.7, 0.6, 0.3],
        "rlnImageName": [f"{i}@s.mrcs" for i in range(1, 6)]}})
    gathered = compared(capsys, "labels", "particles.star", "--radius", "5")
    for name in ("true", "false", "missed", "micrographs"):
        assert boxes[name] == gathered[name] == expected[name]
    assert gathered["auprc"] == expected["auprc"]
    # Two files are compared whatever they are called.
    one = compared(capsys, "labels/a.star", "picks/deep/a.star", "--radius", "5")
    save("other.csv", [13.0, 200.0], [0.9, 0.8])
    assert compared(capsys, "labels/a.star", "other.csv", "--radius", "5") == one
    assert (one["true"], one["false"], one["missed"]) == (1, 1, 2)


def test_an_empty_file_is_a_micrograph_without_picks(folder, capsys):
    save("picks/c.star", [], [])
    found = compared(capsys, "labels", "picks", "--radius", "5")
    assert found["left_out"] == []
    assert found["missed"] == 3
    save("none/a.star", [], [])
    assert compared(capsys, "labels", "none", "--radius", "5")["f1"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["labels", "picks"], "--radius is missing"),
     (["labels", "picks", "--radius", "0"], "--radius 0: expected a distance in pixels above 0"),
     (["labels", "nowhere", "--radius", "5"], "nowhere: there is no such file or folder"),
     (["labels", "empty", "--radius", "5"], "empty: found no .star, .box, .cbox, .csv or .tsv file"),
     (["labels", "others", "--radius", "5"], "others: found picks for none of the 3 micrographs of labels"),
     (["labels", "unfinished", "--radius", "5"], "unfinished: found no threshold.json"),
     (["labels", "twice", "--radius", "5"], "one/a and two/a are both called a"),
     (["labels", "picks", "--radius", "5", "--ignore", "labels"], "the discs of a have no radius"),
     (["labels", "boxes", "--radius", "5", "--curve", "x.png"], "--curve: the picks have no scores"),
     (["truth.star", "truth.star", "--ignore", "labels"], "--ignore: truth.star holds classified particles")],
)
def test_mistakes_are_told_in_a_sentence(folder, capsys, words, sentence):
    (folder / "empty").mkdir()
    save("unfinished/candidates/a.csv", [1.0], [1.0])
    save("others/x.star", [1.0], [1.0])
    save("twice/one/a.star", [1.0], [1.0])
    save("twice/two/a.star", [1.0], [1.0])
    save("boxes/a.box", [13.0], [], box=20)
    write_star("truth.star", {"particles": {"rlnImageName": ["1@a.mrcs"], "rlnClassNumber": [1],
                                            "rlnCoordinateX": [1.0]}})
    assert main(["compare", *words]) == 2
    assert sentence in capsys.readouterr().err
