"""`vitrea bench scan`: the answer is checked before the clock, and the record says what was measured."""
import json

import numpy as np
import pytest

from vitrea.benchmarks import scan
from vitrea.benchmarks.kernels import WrongAnswerError
from vitrea.jobs.cli import main

SMALL = ["bench", "scan", "--side", "300", "--pixel-size", "2", "--diameter", "90", "--n", "2", "--quick"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_record_and_the_words(capsys, tmp_path):
    assert main(SMALL) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    assert record["check"] < 1e-5
    assert record["n"] == len(record["samples"]) == 2
    assert record["unit"] == "megapixel"
    assert record["units"] == pytest.approx(0.09)
    assert record["found"]["pixel_size_scanned"] == pytest.approx(90 * 1.5 / 48)
    assert record["found"]["speed_up"] > 1
    assert 0 < record["limit_ms"] < record["median"]
    for words in ("from file to coordinates", "box by box", "limit", "vitrea"):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["bench.jsonl"]


def test_a_wrong_scan_is_not_timed(monkeypatch, tmp_path):
    right = scan.scan_boxes
    monkeypatch.setattr(scan, "scan_boxes", lambda *args, **keys: right(*args, **keys) + np.float32(1e-3))
    with pytest.raises(WrongAnswerError, match="nothing was measured"):
        main(SMALL)
    assert not list(tmp_path.iterdir())


def test_an_unknown_network_is_told(capsys):
    assert main([*SMALL, "--network", "resnet"]) == 2
    assert "--network: resnet was found; expected one of vitrea, deepem-klh" in capsys.readouterr().err
