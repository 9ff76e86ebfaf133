"""Stability of classes between two runs that agree, that differ, and that have nothing in common."""
import json
import re

import numpy as np
import pytest

from tests.finished_runs import make_run
from vitrea.engine.errors import JobError
from vitrea.engine.finished import read_finished
from vitrea.engine.stability import stability_of
from vitrea.engine.star import read_star
from vitrea.jobs.cli import main


def runs(tmp_path, sizes, others):
    """Two runs of the same particles, dealt to classes of `sizes` and of `others` in their order."""
    return [read_finished(make_run(tmp_path / name, dealt)) for name, dealt in (("one", sizes), ("two", others))]


def test_runs_that_agree_are_stable_whatever_their_classes_are_called(tmp_path):
    one, two = runs(tmp_path, (10, 20, 30), (10, 20, 0, 30))
    found = stability_of(one, two)
    assert found.classes.tolist() == [1, 1, 1]
    assert found.particles.tolist() == [1] * 60
    assert found.partner.tolist() == [0, 1, 3]
    assert found.ari == pytest.approx(1)


def test_a_class_that_falls_in_two_has_the_jaccard_of_its_parts(tmp_path):
    one, two = runs(tmp_path, (40, 60), (40, 15, 45))
    found = stability_of(one, two)
    assert found.classes == pytest.approx([1, (15 * 15 / 60 + 45 * 45 / 60) / 60])
    assert found.particles[40:55] == pytest.approx([0.25] * 15)
    assert found.particles[55:] == pytest.approx([0.75] * 45)
    assert found.partner.tolist() == [0, 2]


def test_runs_without_anything_in_common_are_as_stable_as_chance(tmp_path):
    one, two = runs(tmp_path, (3000, 5000, 2000), (4000, 6000))
    dealt = np.random.default_rng(0).permutation(two.class_number)
    two.class_number[:] = dealt
    found = stability_of(one, two)
    assert found.classes == pytest.approx(found.chance, abs=0.01)
    assert abs(found.ari) < 0.01
    assert found.chance.max() < 0.4


def test_empty_classes_and_particles_of_one_run_only(tmp_path):
    one, two = runs(tmp_path, (10, 0, 30), (10, 15))
    found = stability_of(one, two)
    assert len(found.rows) == 25
    assert np.isnan(found.classes[1])
    assert found.partner[1] == -1
    assert found.classes[2] == 1, "counted over the particles of both"


def test_other_particles_are_told(tmp_path):
    one, two = runs(tmp_path, (10,), (10,))
    path = two.folder / "run_data.star"
    path.write_text(path.read_text().replace("@stack.mrcs", "@other.mrcs"))
    with pytest.raises(JobError, match=r"none of the particles of .*one is in it"):
        stability_of(one, read_finished(two.folder))


def test_the_command_its_files_the_report_and_a_selection_by_it(tmp_path, capsys):
    one, two = runs(tmp_path, (40, 60, 30), (40, 15, 45, 30))
    assert main(["stability", str(one.folder), str(two.folder)]) == 0
    said = capsys.readouterr().out
    assert "130 particles in both" in said
    assert re.search(r"class 2 +60 particles +0\.625 ", said)
    blocks = read_star(one.folder / "stability.star")
    assert blocks["classes"]["vitreaPartner"].tolist() == ["1", "3", "4"]
    assert len(blocks["particles"]["vitreaStability"]) == 130
    assert main(["report", str(one.folder)]) == 0
    page = json.loads(re.search(r'id="page" type="application/json">(.*?)</script>',
                                (one.folder / "report.html").read_text(), re.S)[1])
    facts = {entry["number"]: dict(entry["facts"]) for entry in page["classes"]}
    assert facts[2]["stability between runs"].startswith("0.62")
    assert main(["select", str(one.folder), "--min-stability", "0.9"]) == 0
    assert "2 of 3 classes" in capsys.readouterr().out
    assert main(["select", str(two.folder), "--min-stability", "0.9"]) == 2
    assert "found neither stability.json nor half_sets.json" in capsys.readouterr().err
