"""`vitrea threshold`: another threshold from the candidates alone, and the pictures and lists that go with it."""
import csv
import json
import shutil

import mrcfile
import numpy as np
import pytest

from vitrea.engine.star import read_star
from vitrea.jobs.cli import main
from vitrea.picker import results, rethreshold
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.results import candidates_path, coordinates_path, write_index, write_picks

PIXEL, SHAPE = 4.0, (120, 200)
NAMES = ["mics/a.mrc", "mics/b.mrc", "mics/c.mrc"]
SCORES = {"mics/a.mrc": [0.9, 0.8, 0.6, 0.3], "mics/b.mrc": [0.95, 0.7, 0.2], "mics/c.mrc": [0.1]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run at 0.65 of three micrographs and one that was skipped, as job pick leaves it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mics").mkdir()
    (tmp_path / "picked").mkdir()
    with open("picked/manifest-0.jsonl", "w") as file:
        for number, name in enumerate(NAMES):
            image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
            with mrcfile.new(name, data=image) as mrc:
                mrc.voxel_size = PIXEL
            n = len(SCORES[name])
            path = candidates_path("picked", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_coordinates(path, 20.0 + 40 * np.arange(n), np.full(n, 30.0), np.array(SCORES[name]))
            file.write(json.dumps({"micrograph": name, "rank": 0, "candidates": n, "pixel_size": PIXEL,
                                   "height": SHAPE[0], "mean": 100.0 + number, "deviation": 10.0}) + "\n")
        file.write(json.dumps({"micrograph": "mics/bad.mrc", "rank": 0, "problem": "mics/bad.mrc: blank"}) + "\n")
    (tmp_path / "picked" / "job.yaml").write_text(
        "job: pick\ninput: mics\noutput: elsewhere\nmodel: m.npz\neman_box: 20\n")
    listed = [*NAMES[:2], "mics/bad.mrc", NAMES[2]]
    for name in listed:
        write_picks("picked", name, 0.65, {".box": 20})
    write_index("picked", listed, results.read_manifests("picked"), (0.65, 60.0), 2)
    return tmp_path / "picked"


def numbers(run):
    return [len(read_coordinates(coordinates_path(run, name))) for name in NAMES]


def summary(run):
    with open(run / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_given_value_rewrites_every_file_and_tells_before_and_after(run, capsys):
    assert numbers(run) == [2, 2, 0]
    (run / "coordinates" / "mics" / "stale.star").touch()
    assert main(["threshold", "picked", "--value", "0.25"]) == 0
    assert numbers(run) == [4, 2, 0]
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == ["before after", "threshold 0.650 0.250", "picks, 3 micrographs 4 6", "picks a micrograph 1.3 2.0",
                    "pictures drawn anew 3", "changed", "mics/a.mrc 2 4"]
    assert [row["picks"] for row in summary(run)] == ["4", "2", "0", "0"]
    assert [row["micrograph"] for row in summary(run)][2] == "mics/bad.mrc"
    assert summary(run)[2]["problem"] == "mics/bad.mrc: blank"
    assert read_star(run / "autopick.star")["coordinate_files"]["rlnMicrographName"].tolist() == NAMES
    assert len(read_coordinates(run / "coordinates" / "mics" / "a.box")) == 4
    assert not (run / "coordinates" / "mics" / "stale.star").exists()
    assert json.loads((run / "threshold.json").read_text()) == {"threshold": 0.25, "diameter": 60.0}
    record = json.loads((run / "record.jsonl").read_text().splitlines()[-1])
    assert (record["kind"], record["picks"], record["skipped"]) == ("done", 6, 1)
    before = {path: path.read_bytes() for path in run.rglob("*.star")}
    assert main(["threshold", "picked", "--value", "0.9"]) == 0
    assert main(["threshold", "picked", "--value", "0.25"]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*.star")} == before


def test_an_expected_number_is_a_mean_over_the_micrographs_that_were_picked(run, capsys):
    assert main(["threshold", "picked", "--expected", "2"]) == 0
    assert sum(numbers(run)) == 6
    assert main(["threshold", "picked", "--expected", "100"]) == 2
    assert "--expected 100: the run has 2.667 candidates a micrograph" in capsys.readouterr().err
    assert sum(numbers(run)) == 6, "a slip of a digit takes no picks away"


@pytest.mark.parametrize("y_axis", ["down", "up"])
def test_labels_choose_the_threshold_of_the_largest_f(run, capsys, y_axis):
    (run.parent / "labels").mkdir()
    (run.parent / "ignore").mkdir()
    # The three best of a are particles, and the two best of b; the fourth of a lies in a disc that is ignored.
    for stem, n in (("a", 3), ("b", 2)):
        y = np.full(n, 31.0 if y_axis == "down" else SHAPE[0] - 1 - 31.0)
        write_coordinates(run.parent / "labels" / f"{stem}.star", 20.0 + 40 * np.arange(n), y, np.ones(n))
    disc = 30 if y_axis == "down" else SHAPE[0] - 1 - 30
    (run.parent / "ignore" / "a.csv").write_text(f"x,y,radius\n140,{disc},5\n")
    words = ["threshold", "picked", "--labels", "labels", "--radius", "10", "--y-axis", y_axis, "--ignore", "ignore"]
    assert main(words) == 0
    assert numbers(run) == [3, 2, 0]
    assert 0.3 < json.loads((run / "threshold.json").read_text())["threshold"] < 0.6
    said = capsys.readouterr().out
    assert "on 2 labelled micrographs" in said
    assert "recall 0.800 1.000" in " ".join(said.split())
    assert main([*words[:5], "3", *words[6:]]) == 2, "the labels are 4 Å away"
    assert "no pick lies within 3 Å of a label" in capsys.readouterr().err
    assert numbers(run) == [3, 2, 0]


def test_killed_while_it_writes_it_leaves_the_old_coordinates_or_the_new(run, monkeypatch):
    whole = rethreshold.write_picks

    def killed_at_the_second(folder, name, *given, **named):
        if name == NAMES[1]:
            raise KeyboardInterrupt
        whole(folder, name, *given, **named)

    monkeypatch.setattr(rethreshold, "write_picks", killed_at_the_second)
    assert main(["threshold", "picked", "--value", "0.25"]) == 130
    assert numbers(run) == [2, 2, 0]
    monkeypatch.setattr(rethreshold, "write_picks", whole)
    shutil.move(run / "coordinates", run / ".coordinates-old")   # killed between the two renames
    assert main(["threshold", "picked", "--value", "0.25"]) == 0
    assert numbers(run) == [4, 2, 0]
    assert sorted(path.name for path in run.glob(".coord*")) == []


def test_pictures_follow_the_threshold_and_need_the_micrographs(run):
    assert main(["threshold", "picked", "--value", "0.25"]) == 0
    first = [row for row in summary(run) if row["look_first"]]
    assert len(list((run / "pictures").iterdir())) == len(first) == 3
    assert (run / "picks.png").stat().st_size > 1000
    one = next(row for row in first if row["look_first"] == "1")
    assert (one["micrograph"], one["reason"]) == ("mics/c.mrc", "few picks: 0, the median is 2")
    shutil.rmtree("mics")
    assert main(["threshold", "picked", "--value", "0.5"]) == 0
    assert list((run / "pictures").iterdir()) == [], "none of another threshold is left"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["nowhere", "--value", "0.5"], "nowhere: is not a folder; expected the folder of a pick job"),
     (["picked", "--value", "1.5"], "--value 1.5: scores are from 0 to 1"),
     (["picked", "--expected", "0"], "--expected 0: expected a number of picks above 0"),
     (["picked", "--labels", "mics", "--radius", "10"], "mics: found no labels for the 3 micrographs of picked"),
     (["picked", "--labels", "mics", "--radius", "0"], "--radius 0: expected a distance in Å above 0"),
     (["picked", "--labels", "mics"], "--labels: no --radius was given"),
     (["unfinished", "--value", "0.5"], "unfinished: found no threshold.json that can be read"),
     (["trained", "--value", "0.5"], "trained: found a run of job pick-train; expected one of job pick")],
)
def test_mistakes_are_told_in_a_sentence(run, capsys, words, sentence):
    for folder, job in (("unfinished", "pick\nmodel: m.npz"), ("trained", "pick-train\ncoordinates: l\ndiameter: 60")):
        (run.parent / folder).mkdir()
        (run.parent / folder / "job.yaml").write_text(f"job: {job}\ninput: mics\noutput: o\n")
    assert main(["threshold", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert numbers(run) == [2, 2, 0]
