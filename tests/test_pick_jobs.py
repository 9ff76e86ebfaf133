"""pick-train, pick and extract as their user runs them: labels to a stack, on any number of ranks, after any end."""
import json
import os
import shutil
import signal
import time

import mrcfile
import numpy as np
import pytest

from vitrea.engine.comm import alone
from vitrea.engine.log import NullLog
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import read_images
from vitrea.engine.star import read_star, write_star
from vitrea.jobs.cli import main
from vitrea.picker import pick_train
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.evaluate import Counts, count
from vitrea.picker.extract import cut_particles
from vitrea.picker.modelfile import read_model

PIXEL, DIAMETER, HEIGHT, WIDTH = 6.0, 150.0, 280, 340
TRAIN = ["job: pick-train", "input: mics/train*.mrc", "output: training", "coordinates: labels",
         f"diameter: {DIAMETER}", "steps: 45", "holdout: 0.4"]
PICK = ["job: pick", "input: mics/t*.mrc", "output: picked", "model: training/model.npz", "eman_box: 40",
        "skip_limit: 0.5"]


def write_micrograph(folder, name, seed, n=14):
    random = np.random.default_rng(seed)
    cells = random.permutation(56)[:n]
    centres = np.stack([cells // 8, cells % 8], axis=1) * 40.0 + 20 + random.uniform(-5, 5, (n, 2))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = random.normal(100, 10, size=(HEIGHT, WIDTH))
    for a, b in centres:
        image -= 16 / (1 + np.exp(np.hypot(y - a, x - b) - DIAMETER / 2 / PIXEL))
    with mrcfile.new(folder / "mics" / f"{name}.mrc", data=image.astype(np.float32), overwrite=True) as file:
        file.voxel_size = PIXEL
    write_coordinates(folder / "labels" / f"{name}.star", centres[:, 1], centres[:, 0], np.ones(n))


def write_job(folder, name, lines):
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with micrographs, labels and a trained model."""
    folder = tmp_path_factory.mktemp("project")
    for each in ("mics", "labels"):
        (folder / each).mkdir()
    for i, name in enumerate(("train1", "train2", "train3", "test1", "test2")):
        write_micrograph(folder, name, i)
    write_micrograph(folder, "test3", 9, n=0)
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["run", write_job(folder, "train.yaml", TRAIN)]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def work(project, tmp_path, monkeypatch):
    """A copy of the project that a test may change."""
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def f1_of(folder, names):
    total = Counts(0, 0, 0)
    for name in names:
        picks = read_coordinates(folder / "coordinates" / "mics" / f"{name}.star").places
        total += count(picks, read_coordinates(folder.parent / "labels" / f"{name}.star").places, 6.0)
    return total.f()


def test_from_labels_to_a_stack_for_classification(work, capsys):
    record = [json.loads(line) for line in (work / "training" / "record.jsonl").read_text().splitlines()]
    assert record[-1]["kind"] == "done"
    assert record[-1]["judged_on"] == "micrographs held back"
    assert record[-1]["auprc"] > 0.85
    told = (work / "training" / "run.out").read_text()
    assert "scores are probabilities, learned on micrographs held back" in told or "all particles, or none" in told
    assert main(["check", write_job(work, "pick.yaml", PICK)]) == 0
    assert "micrographs 6 in mics/t*.mrc" in capsys.readouterr().out
    assert main(["run", "pick.yaml"]) == 0
    said = capsys.readouterr().out
    assert "on 6 micrographs, 0 skipped" in said
    assert "picked/autopick.star" in said
    assert f1_of(work / "picked", ["test1", "test2"]) > 0.85
    assert len(read_coordinates(work / "picked" / "coordinates" / "mics" / "test3.star")) <= 1
    index = read_star(work / "picked" / "autopick.star")["coordinate_files"]
    assert index["rlnMicrographName"].tolist()[0] == "mics/test1.mrc"
    boxes = read_coordinates(work / "picked" / "coordinates" / "mics" / "test1.box").places
    stars = read_coordinates(work / "picked" / "coordinates" / "mics" / "test1.star").places
    assert np.abs(boxes - stars).max() <= 0.5
    extract = ["job: extract", "input: mics/t*.mrc", "output: particles", "coordinates: picked/coordinates",
               "box_size: 40", "scaled_size: 24", f"diameter: {DIAMETER}"]
    assert main(["run", write_job(work, "extract.yaml", extract)]) == 0
    table = read_particles(work / "particles" / "particles.star")
    assert table.optics[0].pixel_size == pytest.approx(PIXEL * 40 / 24)
    images = read_images(table, np.arange(len(table)))
    assert images.shape == (len(table), 24, 24)
    middle, corner = images[:, 8:16, 8:16].mean(), images[:, :3, :3]
    assert middle > 1.5 * corner.std()   # bright particles
    assert abs(corner.mean()) < 0.1


def test_without_micrographs_held_back_the_judge_is_cross_validation_or_told_to_be_the_training(work):
    write_job(work, "train.yaml", [*TRAIN[:-2], "steps: 6", "holdout: 0"])
    judged = {}
    for folds in (0, 9):
        assert main(["run", "train.yaml", "--set", f"output=folds{folds}", f"folds={folds}"]) == 0
        judged[folds] = read_model(work / f"folds{folds}" / "model.npz").record
        told = (work / f"folds{folds}" / "run.out").read_text()
        assert told.count("cross-validation   network") == {0: 0, 9: 3}[folds]
    assert judged[0]["judged_on"] == "the micrographs trained on"
    assert judged[9]["judged_on"] == "all micrographs, each by a network that had not seen it"
    assert judged[9]["loss"] == judged[0]["loss"], "the network itself is trained on all"


def test_in_cross_validation_no_network_scores_what_it_was_trained_on(monkeypatch):
    monkeypatch.setattr(pick_train, "_trained", lambda training, *_, **__: (training, []))
    monkeypatch.setattr(pick_train, "_scored", lambda picker, each: (each, tuple(picker)))
    session = pick_train.Session(NullLog(), None, None)
    found = pick_train._cross_scored(list("abcde"), 2, None, session, comm=alone())
    assert [each for each, _ in found] == list("abcde")
    assert all(each not in seen and len(seen) in (2, 3) for each, seen in found)


def test_any_number_of_ranks_writes_the_same_bytes(work, launch):
    write_job(work, "pick.yaml", PICK)
    write_job(work, "train.yaml", [*TRAIN[:-2], "steps: 3", "holdout: 0"])
    for ranks in (1, 2, 3):
        for job in ("train", "pick"):
            words = ("-m", "vitrea.jobs", "run", f"{job}.yaml", "--set", f"output={job}{ranks}")
            ended = launch(ranks, *words, folder=work)
            assert ended.returncode == 0, ended.stdout + ended.stderr
    for ranks in (2, 3):
        assert (work / f"train{ranks}" / "model.npz").read_bytes() == (work / "train1" / "model.npz").read_bytes()
        for path in sorted((work / "pick1").rglob("mics/*")):
            other = work / f"pick{ranks}" / path.relative_to(work / "pick1")
            assert other.read_bytes() == path.read_bytes(), path
        assert (work / f"pick{ranks}" / "summary.csv").read_bytes() == (work / "pick1" / "summary.csv").read_bytes()


def test_a_run_that_is_killed_goes_on_by_micrograph(work, begin, launch):
    for i in range(12):
        shutil.copy(work / "mics" / "test1.mrc", work / "mics" / f"tx{i:02d}.mrc")
    write_job(work, "pick.yaml", PICK)
    running, manifest = begin(0, "-m", "vitrea.jobs", "run", "pick.yaml", folder=work), work / "picked/manifest-0.jsonl"
    until = time.monotonic() + 60
    while not (manifest.exists() and manifest.read_text().count("\n") >= 2):
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = manifest.read_text().count("\n")
    times = {path: path.stat().st_mtime_ns for path in (work / "picked" / "candidates").rglob("*.csv")}
    ended = launch(2, "-m", "vitrea.jobs", "resume", "picked", folder=work)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"18 micrographs, {done} done before" in ended.stdout
    listed = [json.loads(line)["micrograph"] for each in (work / "picked").glob("manifest-*.jsonl")
              for line in each.read_text().splitlines()]
    assert sorted(listed) == sorted(set(listed))   # nothing twice
    kept = [path for path, at in times.items() if path.stat().st_mtime_ns == at]
    assert len(kept) >= done
    assert main(["run", "pick.yaml", "--set", "output=whole"]) == 0
    for path in (work / "whole" / "coordinates").rglob("*.star"):
        assert (work / "picked" / path.relative_to(work / "whole")).read_bytes() == path.read_bytes()


def test_bad_micrographs_are_told_and_skipped_and_change_nothing_for_the_others(work, capsys):
    assert main(["run", write_job(work, "pick.yaml", PICK)]) == 0
    blank = np.full((HEIGHT, WIDTH), 5, np.float32)
    with mrcfile.new(work / "mics" / "tblank.mrc", data=blank) as file:
        file.voxel_size = PIXEL
    (work / "mics" / "tshort.mrc").write_bytes((work / "mics" / "test1.mrc").read_bytes()[:9000])
    (work / "mics" / "ttext.mrc").write_text("nothing")
    capsys.readouterr()
    assert main(["run", "pick.yaml", "--set", "output=bad"]) == 0
    said = capsys.readouterr().out
    for words in ("tblank.mrc: every pixel is 5", "tshort.mrc", "ttext.mrc: found no MRC header", "3 skipped"):
        assert words in said
    for path in (work / "picked" / "coordinates").rglob("*.star"):
        assert (work / "bad" / path.relative_to(work / "picked")).read_bytes() == path.read_bytes()
    assert main(["run", "pick.yaml", "--set", "output=worse", "skip_limit=0.1"]) == 2
    assert "3 of 9 micrographs cannot be used" in capsys.readouterr().err


def test_the_threshold_is_the_given_one_or_follows_the_expected_number(work):
    write_job(work, "pick.yaml", PICK)
    numbers = []
    for words in ("threshold=0.06", "threshold=1", "expected_particles=8"):
        assert main(["run", "pick.yaml", "--set", f"output=out{len(numbers)}", words]) == 0
        files = sorted((work / f"out{len(numbers)}" / "coordinates").rglob("*.star"))
        numbers.append(sum(len(read_coordinates(path)) for path in files))
    assert numbers[0] > numbers[2] == 6 * 8 > numbers[1]


def test_contrast_turned_round_is_turned_back(work):
    for path in (work / "mics").glob("test1.mrc"):
        with mrcfile.open(path, mode="r+") as file:
            file.data[:] = 500 - 2 * file.data
    write_job(work, "pick.yaml", [*PICK, "invert_contrast: true"])
    assert main(["run", "pick.yaml", "--set", "input=mics/test1.mrc"]) == 0
    assert f1_of(work / "picked", ["test1"]) > 0.85


def test_a_micrograph_star_gives_pixel_size_optics_and_ctf_to_the_particles(work):
    names = ["mics/test1.mrc", "mics/test2.mrc"]
    write_star(work / "micrographs.star", {
        "optics": {"rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["a", "b"], "rlnMicrographPixelSize": [3.0, 4.0],
                   "rlnVoltage": [200.0, 120.0], "rlnSphericalAberration": [2.0, 1.4],
                   "rlnAmplitudeContrast": [0.1, 0.07]},
        "micrographs": {"rlnMicrographName": names, "rlnOpticsGroup": [1, 2], "rlnDefocusU": [10000.0, 20000.0],
                        "rlnDefocusV": [9000.0, 19000.0], "rlnDefocusAngle": [30.0, 40.0]}})
    extract = ["job: extract", "input: micrographs.star", "output: particles", "coordinates: labels", "box_size: 32",
               "diameter: 90"]
    assert main(["run", write_job(work, "extract.yaml", extract)]) == 0
    table = read_particles(work / "particles" / "particles.star")
    assert [group.pixel_size for group in table.optics] == [3.0, 4.0]
    assert [group.voltage for group in table.optics] == [200.0, 120.0]
    assert sorted(set(table.defocus_u.tolist())) == [10000.0, 20000.0]
    # The centre of a particle is the middle of its box, less the origin.
    one = read_star(work / "particles" / "particles.star")["particles"]
    x, origin = float(one["rlnCoordinateX"][0]), float(one["rlnOriginXAngst"][0])
    assert origin == pytest.approx((round(x) - x) * 3.0, abs=1e-4)


def test_cutting_is_around_the_middle_and_keeps_the_background_at_one():
    image = np.random.default_rng(0).normal(50, 4, size=(90, 120))
    image[40, 70] -= 400
    cut = cut_particles(image, np.array([[40 - 16, 70 - 16]]), 32, 32, 10, True)[0]
    assert np.unravel_index(cut.argmax(), cut.shape) == (16, 16)
    small = cut_particles(image, np.array([[40 - 16, 70 - 16]]), 32, 16, 10, True)[0]
    assert np.unravel_index(small.argmax(), small.shape) == (8, 8)
    axis = np.arange(16) - 8
    outside = np.hypot(axis[:, None], axis) > 5
    assert small[outside].std() == pytest.approx(1, abs=1e-3)
    assert cut_particles(image, np.array([[24, 54]]), 32, 32, 10, False)[0].min() < -20


@pytest.mark.parametrize(
    ("job", "change", "words"),
    [("pick", "model=none.npz", "none.npz: there is no such file"),
     ("pick", "input=nowhere/*.mrc", "found no micrographs"),
     ("pick", "threshold=1.5", "threshold is 1.5"),
     ("train", "coordinates=mics", "found 0 labelled particles"),
     ("train", "network=vitrae", "did you mean vitrea?"),
     ("extract", "coordinates=mics", "found no particle whose box"),
     ("extract", "scaled_size=50", "scaled_size is 50 px, more than box_size of 40 px")],
)
def test_mistakes_are_told_in_a_sentence(work, capsys, job, change, words):
    extract = ["job: extract", "input: mics/t*.mrc", "output: particles", "coordinates: labels", "box_size: 40",
               "diameter: 100"]
    write_job(work, "job.yaml", {"pick": PICK, "train": TRAIN, "extract": extract}[job])
    assert main(["run", "job.yaml", "--set", change, "output=other"]) == 2
    assert words in capsys.readouterr().err
    assert not (work / "other" / "job.yaml").exists()
