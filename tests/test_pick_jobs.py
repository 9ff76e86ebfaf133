"""pick-train, pick and extract as their user runs them: labels to a stack, on any number of ranks, after any end."""
import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tests.running import wait_until
from vitrea.engine.comm import alone
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import read_images
from vitrea.engine.star import read_star, write_star
from vitrea.jobs.cli import main
from vitrea.jobs.jobfile import read_job
from vitrea.picker import extract, labels, pick_job, pick_train
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.evaluate import Counts, count
from vitrea.picker.extract import cut_particles
from vitrea.picker.labels import LabelledMicrograph
from vitrea.picker.memory import PROCESS
from vitrea.picker.micrographs import Preparation, list_micrographs
from vitrea.picker.modelfile import read_model
from vitrea.picker.network import PRESETS
from vitrea.picker.training import DEFAULT, start
from vitrea.picker.trainings import Trainings, digest_of

PIXEL, DIAMETER, HEIGHT, WIDTH = 6.0, 150.0, 280, 340
TRAIN = ["job: pick-train", "input: mics/train*.mrc", "output: training", "coordinates: labels",
         f"diameter: {DIAMETER}", "steps: 45", "holdout: 0.4"]
PICK = ["job: pick", "input: mics/t*.mrc", "output: picked", "model: training/model.npz", "eman_box: 40",
        "cryolo_box: 41", "csv: true", "skip_limit: 0.5", "pictures: 1"]
EXTRACT = ["job: extract", "input: mics/t*.mrc", "output: particles", "coordinates: labels", "box_size: 40",
           "scaled_size: 24", f"diameter: {DIAMETER}"]


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
    stars = read_coordinates(work / "picked" / "coordinates" / "mics" / "test1.star")
    for suffix, error in ((".box", 0.5), (".cbox", 1e-4), (".csv", 0.006)):
        found = read_coordinates(work / "picked" / "coordinates" / "mics" / f"test1{suffix}")
        assert np.abs(found.places - stars.places).max() <= error
        if suffix != ".box":
            np.testing.assert_allclose(found.score, stars.score, atol=1e-6)
    selected = read_star(work / "picked" / "micrographs.star")["micrographs"]["rlnMicrographName"]
    assert selected.tolist() == index["rlnMicrographName"].tolist()
    assert main(["run", write_job(work, "extract.yaml", EXTRACT), "--set", "coordinates=picked/coordinates"]) == 0
    table = read_particles(work / "particles" / "particles.star")
    assert table.optics[0].pixel_size == pytest.approx(PIXEL * 40 / 24)
    images = read_images(table, np.arange(len(table)))
    assert images.shape == (len(table), 24, 24)
    middle, corner = images[:, 8:16, 8:16].mean(), images[:, :3, :3]
    assert middle > 1.5 * corner.std()   # bright particles
    assert abs(corner.mean()) < 0.2


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


# What is accepted hardly matters here, and a network of few steps is not sure of anything.
RECURSE = ["job: recurse", *TRAIN[1:-2], "steps: 3", "holdout: 0.4", "unlabelled: mics/test*.mrc", "accept: 0.001",
           "reject: 0", "rounds: 2"]
JOBS = {"train": [*TRAIN[:-2], "steps: 3", "holdout: 0"], "pick": PICK, "extract": EXTRACT, "recurse": RECURSE}
# Fewer decoys than a training that should learn has: they take longer to make than these few steps.
FEW = "from vitrea.picker import labels; labels.DECOY_AREA = 20\n"
SEVERAL = FEW + """import sys
from vitrea.jobs.cli import main
import resource
ended = max(main(["run", f"{job}.yaml", "--set", f"output={job}{sys.argv[1]}"]) for job in sys.argv[2:])
print("resident", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(ended)
"""


COMPARED = {"train": ["model.npz", "training.csv"], "pick": ["summary.csv", "mics/*"], "extract": ["mics/*.mrcs"],
            "recurse": ["model.npz", "rounds.csv", "round*/accepted/*"]}


def test_any_number_of_ranks_writes_the_same_bytes(work, launch, monkeypatch):
    monkeypatch.setattr(labels, "DECOY_AREA", 20, raising=False)
    for job, lines in JOBS.items():
        write_job(work, f"{job}.yaml", lines)
        assert main(["run", f"{job}.yaml", "--set", f"output={job}1"]) == 0
    for ranks, jobs in ((2, ("train", "pick", "extract")), (4, ("pick", "extract", "recurse"))):
        ended = launch(ranks, "-c", SEVERAL, str(ranks), *jobs, folder=work, seconds=240)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        resident = [1024 * int(line.split()[1]) for line in ended.stdout.splitlines() if line.startswith("resident")]
        assert len(resident) == ranks
        assert max(resident) < PROCESS, "what vitrea check announces besides the images"
        for job in jobs:
            paths = sorted(path for name in COMPARED[job] for path in (work / f"{job}1").rglob(name) if path.is_file())
            assert len(paths) >= {"train": 2, "pick": 13, "extract": 5, "recurse": 5}[job]
            for path in paths:
                other = work / f"{job}{ranks}" / path.relative_to(work / f"{job}1")
                assert other.read_bytes() == path.read_bytes(), path
        table, other = (read_star(work / f"extract{n}" / "particles.star")["particles"] for n in (1, ranks))
        for label in set(table) - {"rlnImageName"}:
            np.testing.assert_array_equal(other[label], table[label])


BEGIN_SLOWLY = FEW + """import sys
from vitrea.picker import progress, trainings
trainings.CHECKPOINT_SECONDS = progress.RECORD_SECONDS = 0.0
from vitrea.jobs.cli import main
main(["run", sys.argv[1]])
"""


RESUME = FEW + """import sys
from vitrea.jobs.cli import main
sys.exit(main(["resume", sys.argv[1]]))
"""


def test_a_training_that_is_killed_goes_on_to_the_same_bits_on_other_ranks(work, begin, launch, monkeypatch, capsys):
    monkeypatch.setattr(labels, "DECOY_AREA", 20, raising=False)
    write_job(work, "train.yaml", [*TRAIN[:-2], "steps: 8", "holdout: 0", "folds: 2"])
    assert main(["run", "train.yaml", "--set", "output=whole"]) == 0
    write_job(work, "killed.yaml", [*TRAIN[:2], "output: killed", *TRAIN[3:-2], "steps: 8", "holdout: 0", "folds: 2"])
    running, told = begin(0, "-c", BEGIN_SLOWLY, "killed.yaml", folder=work), work / "killed" / "run.out"
    # Within the second training: the first has ended, and must not be done again.
    wait_until(lambda: told.exists() and "network 1 of 2" in told.read_text(), running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert main(["watch", "--once", "killed"]) == 1
    assert "not running any more" in capsys.readouterr().out
    before = len(told.read_text().splitlines())
    ended = launch(2, "-c", RESUME, "killed", folder=work, seconds=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (work / "killed" / "model.npz").read_bytes() == (work / "whole" / "model.npz").read_bytes()
    assert "step 8/8   from the checkpoint" in "\n".join(told.read_text().splitlines()[before:])


def test_a_training_that_is_asked_to_stop_says_at_which_step(work, monkeypatch):
    monkeypatch.setattr(labels, "DECOY_AREA", 20, raising=False)
    answers = iter([False, False, True])
    monkeypatch.setattr(pick_train.StopRequest, "agreed", lambda stop: next(answers))
    write_job(work, "train.yaml", [*TRAIN[:2], "output: stopped", *TRAIN[3:-2], "steps: 8"])
    main(["run", "train.yaml"])
    assert "step 3/8   in the checkpoint" in (work / "stopped" / "run.out").read_text()
    assert (work / "stopped" / "checkpoint.h5").exists()
    assert not (work / "stopped" / "model.npz").exists()


def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    network, recipe = PRESETS["vitrea"], DEFAULT

    def digest(moved=0.0, seed=0):
        labelled = [LabelledMicrograph(np.zeros((70, 80), np.float32), np.ones((1, 2)) + moved)]
        return digest_of(labelled, network, 32.0, recipe, seed)

    one = digest()
    assert one == digest()
    assert one not in (digest(moved=1e-6), digest(seed=1))
    kept = Trainings(tmp_path, resume=False, comm=alone())
    state = start(network, 0)
    moments = tuple({name: values + more for name, values in state.parameters.items()} for more in (1, 2))
    state = replace(state, step=3, loss=0.5, moments=moments)
    kept.keep("all", one, state, [0.7, 0.6, 0.5])
    kept.write()
    again = Trainings(tmp_path, resume=True, comm=alone())
    assert again.begun("all", "another") == (None, [])
    found, losses = again.begun("all", one)
    assert (found.step, found.loss, losses) == (3, 0.5, [0.7, 0.6, 0.5])
    for name, values in state.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], values)
        np.testing.assert_array_equal(found.moments[1][name], state.moments[1][name])
    (tmp_path / "checkpoint.h5").write_bytes((tmp_path / "checkpoint.h5").read_bytes()[:-3])
    with pytest.raises(JobError, match="cannot be read as a checkpoint"):
        Trainings(tmp_path, resume=True, comm=alone())


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


def test_labelled_micrographs_that_cannot_be_used_are_told_and_left_out(work):
    options = read_job(Path(write_job(work, "train.yaml", TRAIN))).options
    (work / "mics" / "train2.mrc").write_bytes((work / "mics" / "train2.mrc").read_bytes()[:5000])
    with mrcfile.open(work / "mics" / "train3.mrc", mode="r+") as file:
        file.voxel_size = 13.0   # a particle of 11.5 px
    log = NullLog()
    log.told, log.line = [], lambda text: log.told.append(text)
    found = pick_train.load_labels(options, Preparation.of(PRESETS["vitrea"], DIAMETER), log, comm=alone())
    assert len(found) == 1
    assert len(log.told) == 3
    assert "3 coordinate files belong to none of the 3 micrographs" in log.told[0]
    assert "train2.mrc" in log.told[1]
    assert "cut short" in log.told[1]
    assert "train3.mrc: found pixels of 13 Å; expected at most 12.5 Å for a particle of 150 Å" in log.told[2]


def test_an_extraction_that_was_cut_short_goes_on_by_micrograph(work):
    options = read_job(Path(write_job(work, "extract.yaml", EXTRACT))).options
    options.output.mkdir()
    assert extract.run(options, resume=False, comm=alone()) == "done"
    expected = {path: path.read_bytes() for path in options.output.rglob("*.*") if path.suffix in (".mrcs", ".star")}
    stacks = {path: path.stat().st_mtime_ns for path in expected if path.suffix == ".mrcs"}
    manifest = options.output / "manifest-0.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    manifest.write_text("".join(lines[:3]) + lines[3][:20])
    lost = work / "particles" / "particles" / json.loads(lines[0])["micrograph"]
    lost.with_suffix(".mrcs").unlink()
    assert extract.run(options, resume=True, comm=alone()) == "done"
    assert {path: path.read_bytes() for path in expected} == expected
    kept = [json.loads(line)["particles"] > 0 for line in lines[1:3]]
    assert sum(path.stat().st_mtime_ns == at for path, at in stacks.items()) == sum(kept) >= 1


def test_another_model_or_key_scans_again_and_the_same_ones_do_not(work):
    options = read_job(Path(write_job(work, "pick.yaml", PICK))).options
    options = replace(options, input=Path("mics/test*.mrc"))
    options.output.mkdir()
    scanned = []
    for changed in (options, options, replace(options, min_distance=200.0)):
        assert pick_job.run(changed, resume=False, comm=alone()) == "done"
        scanned.append(len((work / "picked" / "manifest-0.jsonl").read_text().splitlines()))
    assert scanned == [3, 3, 6]
    with open(work / "picked" / "candidates" / "mics" / "test1.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 5
    assert min(float(row["nearest"]) for row in rows) >= 200
    assert {row["edge"] for row in rows} <= {"0", "1"}
    assert 0.5 < np.median([float(row["deviation"]) for row in rows]) < 2
    (work / "mics" / "test1.mrc").write_text("nothing")
    assert pick_job.run(replace(options, skip_limit=1.0), resume=False, comm=alone()) == "done"
    assert not list((work / "picked").rglob("test1.*")), "nothing of what it was is left"


def test_picks_where_the_micrograph_is_more_uneven_than_at_any_label_are_left_out_and_told(work, capsys):
    limit = read_model(work / "training" / "model.npz").picker.max_deviation
    assert 1.0 < limit < 2.0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with mrcfile.open(work / "mics" / "test3.mrc", mode="r+") as file:   # an empty one: a faint drop and a strong one
        for place, contrast in ((90, 16), (250, 70)):
            file.data[:] -= contrast / (1 + np.exp(np.hypot(y - 140, x - place) - DIAMETER / 2 / PIXEL))
    write_job(work, "pick.yaml", PICK)
    found = {}
    for name, words in (("even", []), ("all", ["max_deviation=100"])):
        assert main(["run", "pick.yaml", "--set", "input=mics/test3.mrc", f"output={name}", *words]) == 0
        found[name] = read_coordinates(work / name / "coordinates" / "mics" / "test3.star").places
        told = capsys.readouterr().out
        assert (f"left out   1 places above the model's threshold on 1 micrographs, whose surroundings are more than "
                f"{limit:.3g} times as uneven" in told) == (name == "even")
    near = {name: [np.hypot(*(places - [140, x]).T).min(initial=99) < 10 for x in (90, 250)]
            for name, places in found.items()}
    assert near == {"all": [True, True], "even": [True, False]}
    with open(work / "all" / "candidates" / "mics" / "test3.csv") as file:
        assert max(float(row["deviation"]) for row in csv.DictReader(file)) > limit


def test_picks_do_not_depend_on_what_was_scanned_before(work):
    options = read_job(Path(write_job(work, "pick.yaml", PICK))).options
    listed, model = list_micrographs(options.input), read_model(options.model)
    with mrcfile.open(work / "mics" / "test2.mrc") as file:
        other = file.data[40:240, 20:300].copy()   # of another shape, which needs another plan
    with mrcfile.new(work / "mics" / "train2.mrc", data=other, overwrite=True) as file:
        file.voxel_size = PIXEL
    found = []
    for order in ([0, 1, 4], [4, 0, 1], [1]):
        scan = pick_job.Scan(replace(options, output=work / f"order{len(found)}"), listed, model, "", 0)
        for number in order:
            scan.one(number)
        path = work / f"order{len(found)}" / "candidates" / Path(listed.names[1]).with_suffix(".csv")
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]


def test_bad_micrographs_are_told_and_skipped_and_change_nothing_for_the_others(work, capsys):
    assert main(["run", write_job(work, "pick.yaml", PICK)]) == 0
    blank = np.full((HEIGHT, WIDTH), 5, np.float32)
    with mrcfile.new(work / "mics" / "tblank.mrc", data=blank) as file:
        file.voxel_size = PIXEL
    shutil.copy(work / "mics" / "test2.mrc", work / "mics" / "twide.mrc")
    with mrcfile.open(work / "mics" / "twide.mrc", mode="r+") as file:
        file.voxel_size = 1.3 * PIXEL
    (work / "mics" / "tshort.mrc").write_bytes((work / "mics" / "test1.mrc").read_bytes()[:9000])
    (work / "mics" / "ttext.mrc").write_text("nothing")
    capsys.readouterr()
    assert main(["run", "pick.yaml", "--set", "output=bad"]) == 0
    said = capsys.readouterr().out
    for words in ("tblank.mrc: every pixel is 5", "other pixel sizes   1 micrographs have others than the 6 Å/px",
                  "tshort.mrc", "ttext.mrc: found no MRC header", "3 skipped"):
        assert words in said
    for path in (work / "picked" / "coordinates").rglob("*.star"):
        assert (work / "bad" / path.relative_to(work / "picked")).read_bytes() == path.read_bytes()
    assert main(["run", "pick.yaml", "--set", "output=worse", "skip_limit=0.1"]) == 2
    assert "3 of 10 micrographs cannot be used" in capsys.readouterr().err


def test_the_threshold_is_the_given_one_or_follows_the_expected_number(work, capsys):
    write_job(work, "pick.yaml", PICK)
    numbers = []
    for words in ("threshold=0.06", "threshold=1", "expected_particles=8"):
        assert main(["run", "pick.yaml", "--set", f"output=out{len(numbers)}", words]) == 0
        told = capsys.readouterr().out
        assert ("doubtful   0.0 picks a micrograph, and 14.0 labels a micrograph" in told) == (words == "threshold=1")
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


def test_a_micrograph_star_gives_pixel_size_optics_and_ctf_to_the_particles(work, capsys):
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
    # In one optics group the second micrograph is told and left out.
    blocks = read_star(work / "micrographs.star")
    blocks["micrographs"] |= {"rlnOpticsGroup": ["1", "1"], "rlnMicrographPixelSize": ["3.0", "4.0"]}
    write_star(work / "micrographs.star", blocks)
    assert main(["run", "extract.yaml", "--set", "output=odd"]) == 0
    assert set(read_star(work / "odd" / "particles.star")["particles"]["rlnMicrographName"]) == {names[1]}
    assert "test1.mrc: 3 Å/px after cropping; expected 4, as most of optics group 1" in capsys.readouterr().out
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
     ("pick", "model=train.yaml", "train.yaml: not a model file or damaged; expected the model.npz of job pick-train; "
                                  "check the path"),
     ("pick", "input=nowhere/*.mrc", "found no micrographs"),
     ("pick", "threshold=1.5", "threshold is 1.5"),
     ("train", "coordinates=mics", "found 0 labelled particles"),
     ("train", "network=vitrae", "did you mean vitrea?"),
     ("extract", "coordinates=mics", "mics: no coordinate file belongs to one of the 6 micrographs"),
     ("extract", "scaled_size=50", "scaled_size is 50 px, more than box_size of 40 px")],
)
def test_mistakes_are_told_in_a_sentence(work, capsys, job, change, words):
    write_job(work, "job.yaml", {"pick": PICK, "train": TRAIN, "extract": EXTRACT}[job])
    assert main(["run", "job.yaml", "--set", change, "output=other"]) == 2
    assert words in capsys.readouterr().err
    assert not (work / "other" / "job.yaml").exists()


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("job", "change", "words"),
    [("train", "ignore=nowhere", "nowhere: there is no such folder; expected the folder of coordinate files of ignore"),
     ("train", "coordinates=nowhere", "nowhere: there is no such folder"),
     ("train", "negatives=train.yaml", "train.yaml: is no folder"),
     ("train", "coordinates=mics", "found 0 labelled particles"),
     ("train", "diameter=20", "found pixels of 6 Å; expected at most 1.667 Å for a particle of 20 Å"),
     ("train", "diameter=3000", "280 × 340 px of 6 Å, which is narrower than a particle of 3000 Å"),
     ("extract", "coordinates=nowhere", "nowhere: there is no such folder"),
     ("extract", "coordinates=mics", "mics: no coordinate file belongs to one of the 6 micrographs"),
     ("extract", "box_size=300", "found no particle whose box of 300 px lies on one of the 6 micrographs"),
     ("extract", "diameter=250", "a particle of 250 Å (diameter) does not fit into a box of 40 px, which is 240 Å")],
)
def test_check_and_run_refuse_alike(work, capsys, command, job, change, words):
    write_job(work, "job.yaml", {"train": TRAIN, "extract": EXTRACT}[job])
    assert main([command, "job.yaml", "--set", change, "output=other"]) == 2
    assert words in capsys.readouterr().err


def test_coordinates_without_a_micrograph_are_told(work, capsys):
    shutil.copy(work / "labels" / "train1.star", work / "labels" / "train9.star")
    assert main(["check", write_job(work, "job.yaml", [*TRAIN[:2], "output: other", *TRAIN[3:]])]) == 0
    assert "4 coordinate files belong to none of the 3 micrographs; the first: labels/test1.star" in (
        capsys.readouterr().out)


def test_an_extraction_tells_what_has_no_coordinates_and_finds_files_by_name_below_the_folder(work, capsys):
    (work / "labels" / "deep").mkdir()
    for name in ("train1", "train2", "test1"):
        (work / "labels" / f"{name}.star").rename(work / "labels" / "deep" / f"{name}.star")
    (work / "labels" / "test2.star").unlink()
    shutil.copy(work / "labels" / "train3.star", work / "labels" / "other.star")
    job = write_job(work, "extract.yaml", EXTRACT)
    for command, told in (("check", "doubtful    "), ("run", "doubtful   ")):
        assert main([command, job]) == 0
        lines = capsys.readouterr().out
        assert f"{told}1 micrographs have no coordinates; the first: mics/test2.mrc" in lines
        assert f"{told}1 coordinate files belong to none of the 6 micrographs; the first: labels/other.star" in lines
    assert "6 micrographs, 5 with coordinates, 0 done before" in lines
    found = set(read_star(work / "particles" / "particles.star")["particles"]["rlnMicrographName"].tolist())
    assert found == {f"mics/{name}.mrc" for name in ("train1", "train2", "train3", "test1")}


def test_the_origin_says_where_cropping_brings_the_middle_of_an_odd_box(work):
    whole = np.zeros((90, 90), dtype=np.float32)
    y, x = np.mgrid[:90, :90]
    whole -= np.exp(-((y - 45) ** 2 + (x - 45) ** 2) / 32.0).astype(np.float32)
    small = cut_particles(whole, np.array([[45 - 20, 45 - 20]]), 41, 24, 10, True)[0]
    weight = small[4:21, 4:21] ** 2
    middle = 4 + (weight.sum(axis=1) * np.arange(17)).sum() / weight.sum()
    assert main(["run", write_job(work, "extract.yaml", EXTRACT), "--set", "box_size=41"]) == 0
    table = read_star(work / "particles" / "particles.star")["particles"]
    x = table["rlnCoordinateX"].astype(float)
    origin = table["rlnOriginXAngst"].astype(float) / (PIXEL * 41 / 24) + (x - np.rint(x)) * 24 / 41
    assert middle + origin == pytest.approx(np.full(len(x), 12.0), abs=0.02)


def test_a_job_none_of_whose_keys_may_change_says_so(work, capsys):
    assert main(["resume", "training", "--set", "steps=300"]) == 2
    assert ("--set steps=300: steps cannot change within a run; no key of this kind of job may change; start a new run"
            in capsys.readouterr().err)
