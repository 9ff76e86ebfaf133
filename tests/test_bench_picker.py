"""`vitrea bench picker` on a set made up here: what it trains on, what it scores, and what it says."""
import json

import numpy as np
import pytest
from PIL import Image

from vitrea.benchmarks import labels
from vitrea.benchmarks.picking import Choice, _splits
from vitrea.jobs.cli import main
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.micrographs import read_micrograph

PREPARE = '''\
"""Five micrographs with dark discs, as prepare.py would write them."""
import mrcfile
import numpy as np


def prepare(name, out):
    for part in ("micrographs", "coordinates", "ignore"):
        (out / name / part).mkdir(parents=True)
    for seed in range(5):
        random = np.random.default_rng(seed)
        cells = random.permutation(25)[:8]
        y0, x0 = cells // 5 * 40.0 + 20 + random.uniform(-4, 4, 8), cells % 5 * 40.0 + 20 + random.uniform(-4, 4, 8)
        y, x = np.mgrid[:200, :200]
        image = random.normal(100, 8, size=(200, 200))
        for a, b in zip(y0, x0):
            image -= 16 / (1 + np.exp(np.hypot(y - a, x - b) - 11))
        with mrcfile.new(out / name / "micrographs" / f"m{seed}.mrc", data=image.astype(np.float32)) as file:
            file.voxel_size = 6.0
        rows = "".join(f"{b} {a} particle\\n" for a, b in zip(y0[1:], x0[1:]))
        head = "data_\\n\\nloop_\\n_rlnCoordinateX #1\\n_rlnCoordinateY #2\\n_vitreaTruth #3\\n"
        (out / name / "coordinates" / f"m{seed}.star").write_text(head + rows)
        (out / name / "ignore" / f"m{seed}.csv").write_text(f"x,y,radius\\n{x0[0]},{y0[0]},25\\n")
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITREA_DATA", str(tmp_path))


def test_the_record_tells_f1_of_micrographs_that_were_not_trained_on(tmp_path, capsys):
    (tmp_path / "prepare.py").write_text(PREPARE)
    assert main(["bench", "picker", "--set", "apoferritin", "--steps", "40", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["runs"][0]["splits"][0]["tested"] == ["m3", "m4"]
    # A particle in a disc that is ignored counts for nothing: there are seven to be found on each micrograph.
    assert record["runs"][0]["splits"][0]["true"] + record["runs"][0]["splits"][0]["missed"] == 14
    assert record["f1"] > 0.8
    assert min(record["precision"], record["recall"]) > 0.6
    assert record["f1"] == pytest.approx(np.mean([split["f1"] for split in record["runs"][0]["splits"]]))
    assert record["train_cpu_seconds"] > record["pick_cpu_seconds"] > 0
    assert (tmp_path / "bench.jsonl").exists()


def test_picks_on_images_without_particles_are_counted_by_image_and_seed(tmp_path, capsys):
    (tmp_path / "prepare.py").write_text(PREPARE)
    y, x = np.mgrid[:140, :150]
    for number, folder in enumerate(("3none", "5ice", "4other")):
        (tmp_path / "quality" / folder).mkdir(parents=True)
        image = np.random.default_rng(number).normal(128, 20, size=(140, 150))
        if folder == "5ice":   # two discs such as the models learn: found ones show that a count is a count
            image -= sum(40 / (1 + np.exp(np.hypot(y - 70, x - centre) - 13)) for centre in (45, 105))
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(tmp_path / "quality" / folder / "a.png")
    assert main(["bench", "picker", "--set", "apoferritin", "--steps", "30", "--seeds", "0", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [run["splits"][0]["empty"]["3none a"] for run in record["runs"]] == [0, 0]
    assert max(run["splits"][0]["empty"]["5ice a"] for run in record["runs"]) in (1, 2)
    assert list(record["runs"][0]["splits"][0]["empty"]) == ["3none a", "5ice a"]
    assert record["seeds"] == [run["seed"] for run in record["runs"]] == [0, 1]
    assert record["f1"] == pytest.approx(np.mean([run["f1"] for run in record["runs"]]))   # the median of two
    assert record["runs"][0]["splits"] != record["runs"][1]["splits"]


def test_labels_are_as_many_as_asked_for_and_half_of_them_may_be_missing(tmp_path):
    exec(PREPARE, namespace := {})
    namespace["prepare"]("apoferritin", tmp_path)
    whole, pool = tmp_path / "apoferritin", ["m0", "m1", "m2"]
    expected = labels.take_labels(whole, tmp_path / "a", pool, (10, "complete", 0))
    (n, height), (more, rows) = taken(tmp_path / "a").values()
    assert (n, height) == (7, 200)
    assert 3 <= more <= 5
    assert rows < 200
    assert expected == (n + more) / 2
    assert 20 / 3 <= labels.take_labels(whole, tmp_path / "b", pool, (10, "half missing", 0)) <= 7
    found = taken(tmp_path / "b")
    assert sum(n for n, _ in found.values()) == 10
    assert list(found) == pool
    kept = [set(read_coordinates(tmp_path / folder / "coordinates" / "m0.star").x) for folder in "ab"]
    assert kept[1] < kept[0], "of a whole micrograph some labels are missing"
    assert labels.take_labels(whole, tmp_path / "c", pool, (11, "half missing", 0)) is None


def taken(folder):
    """{micrograph: (labels, height of its image)}, all labels inside the image."""
    found = {}
    for path in sorted((folder / "micrographs").iterdir()):
        places = read_coordinates(folder / "coordinates" / f"{path.stem}.star").places
        height = read_micrograph(path).image.shape[0]
        assert (places[:, 0] < height).all()
        found[path.stem] = (len(places), height)
    return found


def test_the_table_of_few_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labels, "POOL", {"apoferritin": 3, "klh": 4})
    (tmp_path / "prepare.py").write_text(PREPARE)
    assert labels.main(["--numbers", "14", "99", "--kinds", "complete", "--seeds", "0", "1", "--steps", "20"]) == 0
    told = capsys.readouterr()
    assert "complete with 99 labels needs; left out" in told.err
    assert told.out.startswith("| labels | 14 |\n|---|---|\n| complete | ")
    records = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert [(record["labels"], record["seed"], record["tested"]) for record in records] == [
        (14, 0, ["m3", "m4"]), (14, 1, ["m3", "m4"])]
    assert min(record["f1"] for record in records) > 0.5
    assert labels.main(["--from", "bench.jsonl", "--plot", "f1.png"]) == 0
    assert capsys.readouterr().out == told.out
    with Image.open("f1.png") as picture:
        assert picture.size == (720, 480)
    assert labels.main(["--from", "bench.jsonl", "--set", "klh"]) == 2
    assert "found no records of labels on klh" in capsys.readouterr().err


def test_all_but_one_in_turn():
    assert _splits(["a", "b", "c"], 0) == [(["b", "c"], ["a"]), (["a", "c"], ["b"]), (["a", "b"], ["c"])]
    assert _splits(["a", "b", "c"], 2) == [(["a", "b"], ["c"])]


def test_some_splits_of_all(tmp_path, capsys):
    splits = _splits(["a", "b", "c"], 0)
    assert Choice(numbers=[2, 0]).of(splits) == [(["a", "b"], ["c"]), (["b", "c"], ["a"])]
    assert Choice().of(splits) == splits
    assert Choice(inner=True).of([(["a", "b"], ["c", "d"])]) == [(["b"], ["a"]), (["a"], ["b"])]
    (tmp_path / "prepare.py").write_text(PREPARE)
    assert main(["bench", "picker", "--set", "apoferritin", "--splits", "1"]) == 2
    assert "--splits 1: the set has 1 split; expected a number from 0 to 0" in capsys.readouterr().err


def test_missing_data_are_told(tmp_path, capsys):
    assert main(["bench", "picker", "--set", "klh"]) == 2
    assert "found no prepare.py; expected the real micrographs; set VITREA_DATA" in capsys.readouterr().err
