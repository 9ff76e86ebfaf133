"""What an iteration tells of particles that change class, and of ranks that wait."""
import numpy as np
import pytest

from vitrea.engine.classify2d import _largest_moves
from vitrea.engine.log import read_records


def test_the_largest_moves_come_first_and_staying_is_none():
    moved = np.array([[50, 3, 0], [7, 20, 1], [0, 0, 9]])
    assert _largest_moves(moved) == [[2, 1, 7], [1, 2, 3], [2, 3, 1]]
    assert _largest_moves(None) is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_moves_add_up_to_the_particles_that_changed(launch, stacks, tmp_path, ranks):
    lines = {"job": "classify2d", "input": stacks / "plain" / "particles.star", "output": "run", "n_classes": 4,
             "particle_diameter": 150, "max_iterations": 3}
    (tmp_path / "job.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    ran = launch(ranks, "-m", "vitrea.jobs", "run", "job.yaml")
    assert ran.returncode == 0, ran.stderr
    found = [record for record in read_records(tmp_path / "run" / "record.jsonl") if record["kind"] == "iteration"]
    assert found[0]["moves"] == [], "before the first iteration nobody had a class"
    for record in found[1:]:
        assert sum(count for *_, count in record["moves"]) == round(record["changed"] * record["seen"])
        assert all(old != new and 1 <= min(old, new) <= max(old, new) <= 4 for old, new, _ in record["moves"])
    assert all(0 < record["busy"] <= 1 for record in found)
    assert "relion_optimiser.star" in ran.stdout
    assert "report.html" in ran.stdout
    assert "could not be written" not in ran.stdout
