"""report.html: complete in itself, what it says of classes and of the course of a run, and how large it gets."""
import base64
import hashlib
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.finished_runs import JOB, make_run
from vitrea.engine.errors import JobError
from vitrea.engine.finished import read_finished
from vitrea.jobs.cli import main
from vitrea.jobs.report import write_report
from vitrea.jobs.report_classes import histograms
from vitrea.jobs.report_course import iterations, timing_plots

SIZES = (40, 7, 0, 90)


class Elements(html.parser.HTMLParser):
    """(name, attributes) of every start tag."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", SIZES)


def page_of(text):
    return json.loads(re.search(r'<script id="page" type="application/json">(.*?)</script>', text, re.S)[1])


def text_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_loads_nothing(folder):
    text = text_of(folder)
    for tag, attributes in Elements(text).found:
        for name in ("src", "href", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], "the policy forbids inline handlers"
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_names_the_style_and_the_script_by_their_digests(folder):
    text = text_of(folder)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'" in policy
    for content in (re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)[1] for tag in ("style", "script")):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_classes_are_in_order_with_their_figures(folder):
    classes = page_of(text_of(folder))["classes"]
    assert [one["number"] for one in classes] == [4, 1, 2, 3]
    assert [one["size"] for one in classes] == [90, 40, 7, 0]
    run = read_finished(folder)
    assert classes[0]["resolution"] == pytest.approx(32 * 4.0 / 7)
    assert classes[3]["resolution"] is None
    psi = run.numbers("rlnAnglePsi")[run.class_number == 3]
    assert dict(classes[0]["facts"])["median in-plane angle"] == f"{np.median(psi):.0f}°"
    assert sum(classes[0]["histograms"]["defocus"]) == 90
    assert classes[0]["frc"] == pytest.approx(run.ssnr[3] / (run.ssnr[3] + 2), abs=1e-3)


def test_tiles_are_the_class_averages_in_grey(folder):
    text = text_of(folder)
    sources = [a["src"] for tag, a in Elements(text).found if tag == "img" and a["src"].startswith("data:image/png")]
    assert len(sources) == len(SIZES)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))), dtype=float)
    average = read_finished(folder).averages[3]
    assert np.corrcoef(pixels.ravel(), average.ravel())[0, 1] > 0.99


def test_histograms_count_by_class():
    number, values = np.array([0, 0, 2, 2, 2]), np.array([0.5, 3.5, -9.0, 1.5, 99.0])
    assert histograms(number, 3, values, np.arange(5.0)).tolist() == [[1, 0, 0, 1], [0] * 4, [1, 1, 0, 1]]


def test_a_name_cannot_put_anything_into_the_page(tmp_path):
    bad = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>'
    folder = make_run(tmp_path / "run", SIZES)
    with (folder / "run.out").open("a") as file:
        file.write(bad + "\n")
    (folder / "record.jsonl").write_text(json.dumps({"kind": "start", "input": bad}) + "\n" + json.dumps(
        {"kind": "failed", "message": bad}) + "\n")
    found = Elements(text_of(folder)).found
    assert len([tag for tag, _ in found if tag == "script"]) == 2
    assert not [a for _, a in found if a.get("src") == "x"]


def test_a_thousand_classes_stay_under_15_megabytes(tmp_path):
    random = np.random.default_rng(0)
    some = random.normal(size=(20, 128, 128)).astype(np.float32)   # noise: nothing is harder to compress
    folder = make_run(tmp_path / "run", [20] * 1000, 128, 2.0, some[np.arange(1000) % 20])
    path = write_report(folder)
    assert 4e6 < path.stat().st_size < 15e6
    assert len(page_of(path.read_text())["classes"]) == 1000


@pytest.mark.parametrize(("change", "words"), [
    ({"records": "failed"}, "The run failed: disk full"),
    ({"records": "stopped"}, "The run was stopped (SIGUSR1)"),
    ({"lines": "max_iterations reached, not converged: 9 %"}, "ended at max_iterations"),
    ({"sizes": (90, 1, 1)}, "Class 1 holds 98 % of the particles"),
    ({"sizes": (3, 0, 2)}, "1 of 3 classes are empty"),
    ({"sizes": (3, 2)}, "2.5 particles in the mean"),
])
def test_warnings(tmp_path, change, words):
    folder = make_run(tmp_path / "run", change.get("sizes", SIZES))
    kind = change.get("records")
    if kind:
        with (folder / "record.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "message": "disk full", "reason": "SIGUSR1"}) + "\n")
    with (folder / "run.out").open("a") as file:
        file.write(change.get("lines", "") + "\n")
    warned = re.search(r'<ul class="warnings">(.*?)</ul>', text_of(folder), re.S)[1]
    assert words in html.unescape(warned)


def test_a_good_run_has_no_warning(tmp_path):
    assert 'class="warnings"' not in text_of(make_run(tmp_path / "run", (40, 50, 60)))


def test_iterations_done_again_count_once_and_full_passes_follow_the_batches():
    records = [{"kind": "iteration", "iteration": i, "stage": stage, "seconds": s} for i, stage, s in (
        (1, "minibatch", 1), (2, "minibatch", 2), (2, "minibatch", 3), (1, "full", 4))]
    assert [(one["at"], one["seconds"]) for one in iterations(records)] == [(1, 1), (2, 3), (3, 4)]


def test_phases_add_up_to_the_iteration(folder):
    from vitrea.engine.log import read_records

    areas = timing_plots(iterations(read_records(folder / "record.jsonl")))[0]["series"]
    assert sum(one["y"][0] for one in areas) == pytest.approx(2.0)


def test_latent_map_and_free_energy_of_a_cluster_run(tmp_path):
    job = JOB.replace("classify2d", "cluster") + "latent: plane\noutliers: false\n"
    folder = make_run(tmp_path / "run", (10, 20, 30, 40, 50, 60), job=job)
    text = (folder / "run_data.star").read_text()
    head, _, rows = text.rpartition("_rlnMaxValueProbDistribution #12 \n")
    rows = "".join(f"{row} 1.5\n" for row in rows.splitlines() if row.strip())
    (folder / "run_data.star").write_text(
        head + "_rlnMaxValueProbDistribution #12 \n_vitreaLatentCoordinate1 #13 \n" + rows)
    text = text_of(folder)
    assert 'data-columns="3"' in text
    rows = page_of(text)["plots"]["latent"][0]["series"]
    assert [len(row["y"]) for row in rows] == [3, 3]
    assert rows[0]["y"][0] == pytest.approx(-np.log(10 / 210), abs=1e-3)


def test_a_large_run_is_read_from_scratch_alike(folder, monkeypatch):
    before = read_finished(folder)
    monkeypatch.setattr("vitrea.engine.finished.LARGE", 0)
    after = read_finished(folder)
    assert after.numbers("rlnAnglePsi").tolist() == before.numbers("rlnAnglePsi").tolist()
    assert after.particles["rlnImageName"][3:5].tolist() == before.particles["rlnImageName"][3:5].tolist()
    assert page_of(text_of(folder))["classes"][0]["size"] == 90
    assert not list(folder.glob(".*")), "scratch files have no names"


def test_report_of_no_run_is_a_sentence(tmp_path, capsys):
    with pytest.raises(JobError, match=r"holds no job.yaml; expected the folder of a run"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path), "--radius", "3"]) == 2
    assert "no --labels were given" in capsys.readouterr().err


def test_files_that_do_not_belong_together_are_told(folder):
    path = folder / "run_data.star"
    path.write_text(re.sub(r"(?m)^(000001@(?:\S+\s+){6})1 ", r"\g<1>77 ", path.read_text()))
    with pytest.raises(JobError, match=r"class numbers up to 77 in run_data.star; expected files of one run"):
        read_finished(folder)


def test_a_job_without_classes_shows_what_it_measured(tmp_path):
    folder = make_run(tmp_path / "run", SIZES)
    for path in folder.glob("run_*"):
        path.unlink()
    (folder / "record.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (
        {"kind": "start", "elapsed": 0}, {"kind": "iteration", "iteration": 1, "seconds": 2.0, "elapsed": 2},
        {"kind": "scanned", "busy": [0.98, 0.5], "elapsed": 3}, {"kind": "done", "elapsed": 3})))
    Image.new("L", (8, 8)).save(folder / "result.png")
    text = text_of(folder)
    assert "98 %, 50 %" in text
    assert 'alt="What was measured"' in text
    assert "convergence" not in page_of(text)["plots"], "nothing converged: no empty plots"
    assert page_of(text)["plots"]["timing"][0]["series"][0]["y"] == [2.0]


def test_the_rounds_of_a_recursion_stand_in_a_table(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text("job: recurse\ninput: m/*.mrc\noutput: run\ncoordinates: labels\ndiameter: 180\n"
                                     "unlabelled: u/*.mrc\n")
    (folder / "rounds.csv").write_text("round,f\n0,0.81\n1,0.86\n")
    (folder / "record.jsonl").write_text('{"kind": "done", "rounds": 2, "f": 0.86, "elapsed": 9}\n')
    text = text_of(folder)
    assert "<td>0.86</td>" in text
