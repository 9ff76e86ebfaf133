"""Topaz beside the picker, and what recursion gains, on a made-up set, with a Topaz that is made up as well."""
import json
import stat
import sys

import pytest

from tests.test_bench_picker import PREPARE
from vitrea.benchmarks import recursion, simulated, topaz

# It finds every labelled particle with certainty and a false one at odds below even, and tells what it was given.
TOPAZ = f'''#!{sys.executable}
import json, pathlib, shutil, sys
command, *rest = sys.argv[1:]
given = {{name: rest[i + 1] for i, name in enumerate(rest) if name.startswith("-")}}
files = [pathlib.Path(name) for name in rest if name.endswith(".mrc")]
if command == "--version":
    print("TOPAZ 9")
if command == "preprocess":
    pathlib.Path(given["-o"]).mkdir()
    for path in files:
        shutil.copy(path, given["-o"])
if command == "train":
    pathlib.Path(given["--save-prefix"] + "_epoch1.sav").touch()
    pathlib.Path("told.json").write_text(json.dumps([rest, pathlib.Path(given["--train-targets"]).read_text()]))
if command == "extract":
    rows = ["image_name\\tx_coord\\ty_coord\\tscore"]
    for path in files:
        star = path.parent.parent.parent / "coordinates" / f"{{path.stem}}.star"
        rows += ["\\t".join([path.stem, *line.split()[:2], "3.5"]) for line in star.read_text().splitlines()[6:]]
        rows += [f"{{path.stem}}\\t3\\t3\\t-1.5", f"{{path.stem}}\\t3\\t190\\t-2.5"]
    pathlib.Path(given["-o"]).write_text("\\n".join(rows))
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITREA_DATA", str(tmp_path))
    (tmp_path / "prepare.py").write_text(PREPARE)


def test_topaz_and_the_picker_here_are_told_side_by_side(tmp_path, capsys):
    program = tmp_path / "topaz"
    program.write_text(TOPAZ)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert topaz.main(["--executable", str(program), "--steps", "20", "--updates", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("topaz        1.000      1.000    1.000")
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    assert record["topaz"]["version"] == "TOPAZ 9"
    assert -1.5 < record["topaz"]["threshold"] < 3.5
    assert record["vitrea"]["tested"] == record["tested"] == ["m3", "m4"]
    assert record["vitrea"]["f1"] > 0.5
    arguments, targets = json.loads((tmp_path / "told.json").read_text())
    assert (arguments[arguments.index("-n") + 1], arguments[arguments.index("--epoch-size") + 1]) == ("7", "7")
    assert len(targets.splitlines()) == 1 + 3 * 7
    assert record["topaz"]["train_cpu_seconds"] > 0


def test_topaz_learns_from_labels_in_pixels_of_its_own_micrographs(tmp_path):
    exec(PREPARE, namespace := {})
    namespace["prepare"]("few", tmp_path)
    assert topaz._write_targets(tmp_path / "targets.txt", tmp_path / "few", ["m1"], 4) == 7
    truth, _ = topaz.places_and_discs(tmp_path / "few", "m1")
    name, x, y = (tmp_path / "targets.txt").read_text().splitlines()[1].split("\t")
    assert (name, int(x), int(y)) == ("m1", round(truth[0, 1] / 4), round(truth[0, 0] / 4))


def test_without_topaz_it_is_left_out_and_said(tmp_path, capsys):
    assert topaz.main(["--executable", "no-such-topaz", "--steps", "5"]) == 0
    told = capsys.readouterr()
    assert "no-such-topaz: found no such program; Topaz is left out" in told.err
    assert "topaz" not in told.out.replace("trained", "")


def test_a_topaz_that_fails_is_told(tmp_path):
    program = tmp_path / "topaz"
    program.write_text("#!/bin/sh\necho torch is missing >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(topaz.JobError, match="topaz preprocess: ended with 3: torch is missing; expected a working"):
        topaz.Runner(str(program))("preprocess")


def test_recursion_is_judged_on_micrographs_that_no_round_has_seen(tmp_path, monkeypatch, capsys):
    (tmp_path / "prepare.py").write_text(PREPARE.replace("range(5)", "range(8)"))
    monkeypatch.setattr(recursion, "TESTED", {"apoferritin": 2})
    assert recursion.main(["--labels", "6", "--seeds", "1", "--steps", "30"]) == 0
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    assert (record["labelled"], record["unlabelled"], record["tested"]) == (
        ["m0", "m1"], ["m2", "m3", "m4", "m5"], ["m6", "m7"])
    first, second = record["rounds"]
    assert int(first["labels"]) == 6
    assert int(second["labels"]) > 20
    assert second["tested"]["f1"] > 0.7
    assert second["tested"]["true"] + second["tested"]["missed"] == 14
    median = capsys.readouterr().out.splitlines()[-1]
    assert median == f"| median | {first['tested']['f1']:.3f} | {second['tested']['f1']:.3f} |"


def test_too_few_labels_for_recursion_are_told(tmp_path, capsys):
    assert recursion.main(["--labels", "60"]) == 2
    assert "m1 has fewer than 60 labels" in capsys.readouterr().err


def test_simulated_micrographs_blobs_and_noise(tmp_path, monkeypatch, capsys):
    for name, value in {"SIDE": 352, "PARTICLES": 20.0, "TRAINED": 2, "TESTED": 1, "NOISES": 1}.items():
        monkeypatch.setattr(simulated, name, value)
    assert simulated.main(["--snr", "1", "--seeds", "0", "--steps", "40"]) == 0
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    assert record["tested"] == ["mic_0003"]
    assert record["true"] + record["missed"] >= 8
    assert min(record["f1"], record["recall_at_f2"]) > 0.5
    assert 0.3 < record["blob_f1"] <= 1
    assert len(record["noise_picks"]) == 1
    assert 0 <= record["junk_share_at_f2"] < 0.5
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"| 1 | {record['f1']:.3f} | {record['blob_f1']:.3f} |")
