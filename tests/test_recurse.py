"""job: recurse: picks are sorted as asked, rounds end when they no longer help, and the best round's model is kept."""
import csv
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from vitrea.engine.comm import alone
from vitrea.jobs.cli import main
from vitrea.jobs.jobfile import read_job
from vitrea.picker import recurse
from vitrea.picker.coordinates import Coordinates, read_coordinates, write_coordinates
from vitrea.picker.evaluate import Counts, count
from vitrea.picker.modelfile import read_model
from vitrea.picker.recurse import Round, class_means
from vitrea.picker.results import candidates_path

SIMULATE = ("simulate micrographs --size 340 300 --pixel-size 6 --diameter 130 --particles 18 --snr 1.2 --views 5 "
            "--carbon 0.5 --aggregates 0")
JOB = """job: recurse
input: labelled/micrographs.star
output: out
coordinates: labelled/coordinates
ignore: labelled/ignore
unlabelled: more/micrographs.star
diameter: 130
holdout: 0.34
steps: 50
rounds: 2
n_classes: 3
accept: 0.6
"""


def places(y, x):
    return Coordinates(np.array(x, float), np.array(y, float), np.ones(len(x)), np.full(len(x), np.nan))


def test_a_pick_has_the_mean_probability_of_its_class():
    own = {"a": np.array([0.9, 0.5, 0.1]), "b": np.array([0.3]), "c": np.array([0.4])}
    particles = {"rlnAutopickFigureOfMerit": np.array(["0.9", "0.5", "0.3"]),
                 "rlnClassNumber": np.array(["1", "2", "2"]), "rlnMicrographName": np.array(["a", "a", "b"]),
                 "rlnCoordinateX": np.array(["10.1", "50.0", "7.0"]),
                 "rlnCoordinateY": np.array(["10.0", "50.2", "7.0"])}
    known = {"a": places([10, 50, 90], [10, 50, 90]), "b": places([7], [7])}
    found = class_means(own, particles, known.__getitem__)
    assert found["a"] == pytest.approx([0.9, 0.4, 0.1]), "the third was not classified"
    assert found["b"] == pytest.approx([0.4])
    assert found["c"] == pytest.approx([0.4])
    assert own["a"][1] == 0.5


def test_picks_are_accepted_left_open_or_background_and_a_person_has_the_last_word(tmp_path):
    picked = tmp_path / "round1" / "picked"
    with_manifest = []
    for name, score in (("m/a.mrc", [0.9, 0.85, 0.5, 0.1]), ("m/b.mrc", [0.6])):
        path = candidates_path(picked, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_coordinates(path, 50.0 * np.arange(1, len(score) + 1), np.full(len(score), 30.0), np.array(score))
        with_manifest.append(json.dumps({"micrograph": name, "pixel_size": 2.0}))
    (picked / "manifest-0.jsonl").write_text("\n".join(with_manifest) + "\n")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "a.csv").write_text("x,y\n103,32\n")
    options = SimpleNamespace(accept=0.8, reject=0.2, diameter=100.0, rejected=None)
    own = {name: read_coordinates(candidates_path(picked, name)).score for name in ("m/a.mrc", "m/b.mrc")}
    assert recurse._sorted(options, tmp_path / "round1", own) == (2, 1)
    assert read_coordinates(tmp_path / "round1" / "accepted" / "a.star").x.tolist() == [50, 100]
    unsure = read_coordinates(tmp_path / "round1" / "unsure" / "a.csv")
    assert (unsure.x.tolist(), unsure.radius.tolist()) == ([150], [13.5])
    assert sorted(path.name for path in (tmp_path / "round1" / "accepted").iterdir()) == ["a.star"]
    options.rejected = tmp_path / "no"
    assert recurse._sorted(options, tmp_path / "round1", own) == (1, 1)
    assert read_coordinates(tmp_path / "round1" / "accepted" / "a.star").x.tolist() == [50]


def test_rounds_go_on_only_while_f_rises():
    log = SimpleNamespace(line=lambda text: None)
    rounds = [Round(number, 0, 0, f, 0, 0, 0) for number, f in enumerate((0.8, 0.9, 0.9), 1)]
    assert [recurse._no_longer_rises(rounds[:n], log) for n in (1, 2, 3)] == [False, False, True]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder where recurse has run, sorting by scores."""
    folder, here = tmp_path_factory.mktemp("recursion"), os.getcwd()
    os.chdir(folder)
    try:
        for out, words in (("labelled", "--n 3"), ("more", "--n 3 --seed 5")):
            assert main(f"{SIMULATE} --out {out} {words}".split()) == 0
        (folder / "job.yaml").write_text(JOB)
        assert main(["run", "job.yaml"]) == 0
    finally:
        os.chdir(here)
    return folder


def test_a_round_learns_from_sorted_picks_and_the_best_model_is_kept(project):
    with open(project / "out" / "rounds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["1", "2"]
    assert int(rows[1]["labels"]) == int(rows[0]["labels"]) + int(rows[1]["accepted"])
    assert int(rows[1]["accepted"]) >= 10
    best = max(rows, key=lambda row: (float(row["f"]), -int(row["number"])))["number"]
    assert (project / "out" / "model.npz").read_bytes() == (project / "out" / f"round{best}" / "model.npz").read_bytes()
    assert read_model(project / "out" / "model.npz").record["labels"] == int(rows[int(best) - 1]["labels"])
    total = Counts(0, 0, 0)
    for path in (project / "out" / "round1" / "accepted").iterdir():
        truth, discs = (read_coordinates(project / "more" / part / f"{path.stem}{suffix}")
                        for part, suffix in (("coordinates", ".star"), ("ignore", ".csv")))
        total += count(read_coordinates(path).places, truth.places, 6.0, np.column_stack([discs.places, discs.radius]))
    assert total.precision > 0.8
    record = [json.loads(line) for line in (project / "out" / "record.jsonl").read_text().splitlines()]
    kinds = [each["kind"] for each in record if each["kind"] != "progress"]
    assert kinds == ["start", "judged", "judged", "done"]
    assert record[-1]["f"] == max(float(row["f"]) for row in rows)


def test_sorting_by_classes_gives_each_pick_the_word_of_its_class(project, monkeypatch):
    monkeypatch.chdir(project)
    options = read_job(project / "job.yaml").options
    folder = project / "out" / "round1"
    own = recurse._probabilities(options, folder)
    found = recurse._by_classes(options, folder, own, alone())
    assert set(found) == set(own)
    changed = np.concatenate([found[name][found[name] != own[name]] for name in own])
    assert len(changed) >= 10
    assert len(np.unique(changed)) <= 3
    sure = np.concatenate([own[name][own[name] >= options.reject] for name in own])
    assert sure.min() <= changed.min() <= changed.max() <= sure.max()


@pytest.mark.parametrize(
    ("change", "words"),
    [("holdout=0.1", "a holdout of 0.1 of 3 labelled micrographs holds none back"),
     ("accept=0.1", "reject is 0.2, more than accept of 0.1"),
     ("unlabelled=nowhere", "nowhere: found no micrographs"),
     ("sort=class", "did you mean")],
)
def test_mistakes_are_told_in_a_sentence(project, monkeypatch, capsys, change, words):
    monkeypatch.chdir(project)
    assert main(["run", "job.yaml", "--set", change, "output=other"]) == 2
    assert words in capsys.readouterr().err
