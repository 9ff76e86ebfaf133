"""`job: dynamics`: its keys, its runs, and that one seed has one result."""
import json

import pytest

from vitrea.engine.dynamics_options import COMMON, EXPERIMENTS, DynamicsOptions
from vitrea.engine.options import options_of
from vitrea.jobs import cli

SMALL = {"experiment": "phase_diagram", "learning_rates": "[0.05, 0.1]", "noise_strengths": "[0.01, 0.1]",
         "trajectories": 30, "iterations": 300, "seed": 7}


def test_every_experiment_takes_keys_that_there_are():
    for experiment in EXPERIMENTS.values():
        assert set(experiment.keys) <= set(options_of(DynamicsOptions)) - set(COMMON)


def test_a_phase_diagram_has_a_cell_for_every_pair(run_job):
    folder = run_job("dynamics", **SMALL)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    pairs = [(cell["learning_rate"], cell["noise_strength"]) for cell in result["cells"]]
    assert pairs == [(0.05, 0.01), (0.05, 0.1), (0.1, 0.01), (0.1, 0.1)]
    assert (result["seed"], result["trajectories"], result["iterations"]) == (7, 30, 300)
    for cell in result["cells"]:
        assert cell["p_flat"] * 30 == pytest.approx(round(cell["p_flat"] * 30))
        assert 0 <= cell["normalised_freezing_time"] <= 300 * cell["learning_rate"]
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")
    assert result["verdict"][0] in (folder / "run.out").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("experiment: phases\n", "job.yaml:2: experiment is 'phases'; expected one of phase_diagram"),
        ("experiment: phase_diagram\nsharp_minimum: 2\n", "job.yaml:3: the sharp valley is not nearer to the ridge "
                                                          "than the flat one; expected sharp_minimum below "),
        ("experiment: phase_diagram\nlearning_rates: [0.1, 0]\n", "job.yaml:3: learning_rates is 0; expected a list of "
                                                                  "numbers, above 0, or null (as the paper has them)"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(f"job: dynamics\n{line}output: run\n", encoding="utf-8")
    assert cli.main(["check", "job.yaml"]) == 2
    assert sentence in capsys.readouterr().err
