"""Pipelines: stages that take what others made, what a rerun does again or leaves, mistakes with their line."""
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tests.running import same_files, wait_until
from vitrea.engine.errors import JobError
from vitrea.engine.log import read_records
from vitrea.engine.options import options_of
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.star import read_star
from vitrea.jobs import ledger
from vitrea.jobs.cli import main
from vitrea.jobs.jobfile import JOBS, read_job
from vitrea.jobs.ledger import Inputs
from vitrea.jobs.pipeline import example, read_pipeline
from vitrea.jobs.simulation import SimulateMicrographsOptions, SimulateParticlesOptions
from vitrea.picker.coordinates import write_coordinates
from vitrea.picker.simulate import MicrographSimulation, simulate_micrographs

RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")
FIRST = """\
job: pipeline
output: run
stages:
  - name: first
    job: classify2d
    ranks: 1
    input: sim/particles.star
    n_classes: 3
    particle_diameter: 150
    max_iterations: 2
    psi_step: 30
    max_resolution: 26
    offset_range: 0
"""
SECOND = """\
  - name: second
    job: classify2d
    input: ${first.particles}
    n_classes: 2
    particle_diameter: 150
    max_iterations: 3
    psi_step: 30
    max_resolution: 26
    offset_range: 0
"""
TWO = FIRST + SECOND


@pytest.fixture
def work(stacks, tmp_path, monkeypatch):
    """A working directory with a stack of its own and the pipeline of two classifications."""
    shutil.copytree(stacks / "plain", tmp_path / "sim")
    star = tmp_path / "sim" / "particles.star"
    star.write_text(star.read_text().replace(str(stacks / "plain"), "sim"))
    (tmp_path / "job.yaml").write_text(TWO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(folder=Path("run")):
    """[(stage, what was done about it)] of the last time a pipeline was run."""
    records = read_records(folder / "record.jsonl")
    begun = max(i for i, record in enumerate(records) if record["kind"] == "start")
    return [(record["stage"], record["state"]) for record in records[begun:]
            if record["kind"] == "stage" and record["state"] != "done"]


def why(stage, folder=Path("run")):
    return next(record["why"] for record in reversed(read_records(folder / "record.jsonl"))
                if record["kind"] == "stage" and record["stage"] == stage and "why" in record)


# ---- the file

def test_the_example_is_a_pipeline_and_prints_as_new(tmp_path, capsys):
    assert main(["new", "pipeline"]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    pipeline = read_pipeline(tmp_path / "job.yaml")
    assert [stage.job.type.name for stage in pipeline.stages] == ["pick-train", "pick", "extract", "classify2d"]
    assert pipeline.stages[1].job.options.model == Path("runs/first/train/model.npz")
    assert pipeline.wanted("extract") == [Path("runs/first/extract/particles.star")]


def test_the_example_names_every_product_of_every_kind():
    told = example()
    for job_type in JOBS.values():
        for product in job_type.products:
            assert any(job_type.name in line and product in line for line in told.splitlines()), (
                f"{job_type.name} makes {product}; tell it in jobs/templates/pipeline.yaml")


def test_keys_of_a_stage_are_set_by_its_name(work):
    pipeline = read_pipeline("job.yaml", ["second.n_classes=7", "output=elsewhere"])
    assert pipeline.stages[1].job.options.n_classes == 7
    assert pipeline.stages[1].job.options.input == Path("elsewhere/first/run_data.star")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("${first.particles}", "${frist.particles}",
     "job.yaml:16: ${frist.particles}: no earlier stage is called 'frist'; did you mean first?"),
    ("${first.particles}", "${second.particles}", "no earlier stage is called 'second'"),
    ("${first.particles}", "${first.partcles}",
     "job.yaml:16: ${first.partcles}: stage first makes no 'partcles'; did you mean particles?"),
    ("${first.particles}", "${first.x}", "expected one of ${first.folder}, ${first.particles}, ${first.classes}"),
    ("${first.particles}", "'${first.particles'", "job.yaml:16: '${first.particles' opens a reference that is not"),
    ("${first.particles}", "${first.model}",
     "job.yaml:16: ${first.model} is run_model.star, which is no input of a classify2d job; expected one like "
     "run_data.star or particles.star"),
    ("classify2d\n    input: ${first.particles}", "cluster\n    input: ${first.folder}",
     "job.yaml:16: ${first.folder} is a run folder, which is no input of a cluster job; expected one like"),
    ("classify2d\n    input: ${first.particles}\n    n_classes: 2", "select\n    input: ${first.particles}",
     "which is no input of a select job; expected the folder of a run; write ${first.folder}"),
    ("n_classes: 2", "follow: sim", "job.yaml:17: stage second follows a folder; expected stages whose input is there"),
    ("n_classes: 2", "n_clases: 2", "job.yaml:17: unknown key 'n_clases'; did you mean n_classes?"),
    ("n_classes: 2", "n_classes: many", "job.yaml:17: n_classes is 'many'; expected a whole number, at least 1"),
    ("    n_classes: 2\n", "", "job.yaml:14: key n_classes is missing; every classify2d job needs it"),
    ("name: second", "name: first", "job.yaml:14: another stage is called 'first', at job.yaml:4"),
    ("name: second", "name: ../x", "job.yaml:14: the stage's name is '../x'; expected a letter, then"),
    ("name: second", "name: earlier", "job.yaml:14: the stage's name is 'earlier'; expected"),
    ("name: second", "output: there", "job.yaml:14: stage classify2d has an output; expected none"),
    ("ranks: 1", "ranks: 0", "job.yaml:6: ranks is 0; expected a whole number, at least 1"),
    ("job: pipeline\n", "job: pipeline\nthreads: 2\n", "job.yaml:2: unknown key 'threads'; a pipeline has job, output"),
    ("output: run\n", "", "job.yaml: key output is missing; every pipeline needs it"),
    ("stages:", "stage:", "job.yaml:3: stage is a list of lists or keys"),
    ("    job: classify2d\n    input: ${", "    job: pipeline\n    input: ${", "job.yaml:15: this is a pipeline"),
    ("    job: classify2d\n    input: ${", "    input: ${", "job.yaml:14: key 'job' is missing"),
])
def test_a_mistake_is_a_sentence_with_its_line(work, old, new, words):
    assert old in TWO
    Path("job.yaml").write_text(TWO.replace(old, new, 1))
    with pytest.raises(JobError) as mistake:
        read_pipeline("job.yaml")
    assert words in str(mistake.value)


@pytest.mark.parametrize(("text", "words"), [
    ("third.n_classes=2", "--set third.n_classes=2: no stage is called 'third'; expected one of first, second"),
    ("n_classes=2", "--set n_classes=2: neither output nor a key of a stage was found; expected STAGE.key=value"),
    ("first.x=2", "--set first.x=2: unknown key 'x'"),
])
def test_a_mistake_in_set_is_a_sentence(work, text, words):
    with pytest.raises(JobError) as mistake:
        read_pipeline("job.yaml", [text])
    assert words in str(mistake.value)


# ---- running and running again

CUT = """\
job: pipeline
output: run
stages:
  - name: made
    job: simulate-micrographs
    n: 1
    pixel_size: 8
    diameter: 100
    particles: 6
    snr: 0.5
    views: 2
    size: [160, 160]
  - name: cut
    job: extract
    input: ${made.micrographs}
    coordinates: places
    box_size: 16
    diameter: 100
"""


def test_a_rerun_does_only_what_a_change_calls_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(CUT)
    Path("places").mkdir()
    write_coordinates(Path("places/mic_0001.star"), [40, 80.0], [40, 90.0], [0.5, 0.7])
    assert main(["check", "job.yaml"]) == 0
    told = capsys.readouterr().out
    assert "stage 1 of 2   made\njob.yaml   simulate-micrographs   into run/made\n1 at 8 Å/px" in told
    assert "stage 2 of 2   cut\nextract   into run/cut   after made" in told
    assert main(["run", "job.yaml"]) == 0
    assert states() == [("made", "begin"), ("cut", "begin")]
    assert read_job(Path("run/cut/job.yaml")).options.input == Path("run/made/micrographs.star")
    before = Path("run/cut/particles.star").read_bytes()

    assert main(["run", "job.yaml"]) == 0
    assert states() == [("made", "skip"), ("cut", "skip")]

    Path("job.yaml").write_text(CUT.replace("box_size: 16", "box_size: 20"))
    assert main(["run", "job.yaml"]) == 0
    assert states() == [("made", "skip"), ("cut", "begin")]
    assert why("cut") == "box_size was 16, is 20"
    assert Path("run/earlier/cut-1/particles.star").read_bytes() == before, "what was made is kept"

    # an input that is touched is the same, as are a key given its default and one of the machine
    Path("places/mic_0001.star").touch()
    assert main(["resume", "run", "--set", "made.seed=0", "made.threads=2"]) == 0
    assert states() == [("made", "skip"), ("cut", "skip")]
    write_coordinates(Path("places/mic_0001.star"), [40, 80.0], [40, 91.0], [0.5, 0.7])
    assert main(["resume", "run"]) == 0
    assert states() == [("made", "skip"), ("cut", "begin")]
    assert why("cut") == "places/mic_0001.star has changed"
    Path("run/made/micrographs.star").unlink()
    assert main(["resume", "run"]) == 0
    assert states()[0] == ("made", "begin")
    assert why("made") == "run/made/micrographs.star is gone"


def test_the_same_made_again_changes_nothing_and_keys_that_may_change_within_a_run_go_on(work):
    """And the classes of the first are selected by a rule, for whom it may concern."""
    (work / "job.yaml").write_text(f"{TWO}  - job: select\n    input: ${{first.folder}}\n    particles: 80\n")
    assert main(["run", "job.yaml"]) == 0
    particles = {name: read_star(Path("run") / name)["particles"]["rlnClassNumber"].astype(int)
                 for name in ("first/run_data.star", "select/selected.star", "select/rejected.star")}
    sizes = np.bincount(particles["first/run_data.star"])
    assert (sizes[particles["select/selected.star"]] >= 80).all()
    assert 0 < len(particles["select/selected.star"]) < 240
    assert sum(map(len, particles.values())) == 2 * 240
    Path("run/first/run_data.star").unlink()
    assert main(["resume", "run", "--set", "second.max_iterations=4"]) == 0
    assert states() == [("first", "begin"), ("second", "go on"), ("select", "skip")]
    assert why("second") == "max_iterations was 3, is 4", "the particles of the first are the same"
    assert [record["iteration"] for record in read_records(Path("run/second/record.jsonl"))
            if record["kind"] == "iteration"] == [1, 2, 3, 4]


def test_what_a_stage_has_listed_and_is_deleted_is_noticed(work, capsys):
    (work / "job.yaml").write_text(FIRST)
    assert main(["run", "job.yaml"]) == 0
    stack = next((work / "sim").glob("particles*.mrcs"))
    stack.unlink()
    assert main(["resume", "run"]) == 2
    told = capsys.readouterr().err
    assert "stage first: sim/particles.star row 1: the image file" in told
    assert "does not exist" in told


def test_a_micrograph_that_is_listed_and_gone_is_called_so():
    before, now = ({"a.mrc": mark} for mark in ((5, 1, "x"), ledger.GONE))
    keys = {"n": "1"}
    assert Inputs(keys, now).changes(Inputs(keys, before)) == "a.mrc is gone"
    assert Inputs(keys, before).changes(Inputs(keys, now)) == "a.mrc has changed"
    assert Inputs(keys, {}).changes(Inputs(keys, before)) == "a.mrc is gone"


MEASURED = """\
job: pipeline
output: run
stages:
  - name: machine
    job: bench
    measure: polar
    words: --quick --n 1 --rings 8 --particles 8
  - job: dynamics
    experiment: cooling
"""


def test_measurements_and_experiments_are_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(MEASURED)
    assert main(["check", "job.yaml"]) == 0
    told = capsys.readouterr().out
    assert "measures    polar: pixels to angular harmonics" in told
    assert "stage 2 of 2   dynamics" in told
    assert main(["run", "job.yaml", "--stage", "machine"]) == 0
    record = json.loads(Path("run/machine/bench.jsonl").read_text())
    assert (record["name"], record["rings"]) == ("polar", 8)
    assert main(["run", "job.yaml", "--stage", "machine"]) == 0
    assert states() == [("machine", "skip")]
    Path("alone.yaml").write_text("job: bench\noutput: alone\nmeasure: polar\n"
                                  "words: --quick --n 1 --rings 8 --particles 8\n")
    capsys.readouterr()
    assert main(["run", "alone.yaml"]) == 0
    told = capsys.readouterr().out
    assert "alone/report.html" in told
    assert "classes" not in told, "there are none"
    for words, told in (("--n 1 --wings 2", "words: unrecognized arguments: --wings 2; expected what 'vitrea bench"),
                        ("--records x", "words: --records was found; expected neither of --records, --json"),
                        ("a 'b", "(No closing quotation); expected words as on a command line")):
        Path("job.yaml").write_text(MEASURED.replace("--quick --n 1 --rings 8 --particles 8", json.dumps(words)))
        assert main(["check", "job.yaml", "--set", "output=other"]) == 2
        assert told in capsys.readouterr().err


def test_a_pipeline_does_not_take_the_folder_of_another_run(work, capsys):
    Path("run").mkdir()
    (Path("run") / "run_data.star").write_text("")
    assert main(["run", "job.yaml"]) == 2
    assert "run: this folder already holds a run (run_data.star)" in capsys.readouterr().err


def test_check_tells_what_a_rerun_would_do(work, capsys):
    (work / "job.yaml").write_text(TWO)
    assert main(["run", "job.yaml"]) == 0
    held = sorted(Path("run").rglob("*"))
    capsys.readouterr()
    assert main(["check", "job.yaml"]) == 0
    assert capsys.readouterr().out.count("   done before\n") == 2
    assert main(["check", "job.yaml", "--set", "second.n_classes=4"]) == 0
    told = capsys.readouterr().out
    assert told.count("   done before\n") == 1
    assert "is done anew   n_classes was 2, is 4\n" in told
    assert main(["check", "job.yaml", "--set", "first.n_classes=2"]) == 0
    assert "classify2d   into run/second   after first\n" in capsys.readouterr().out
    assert sorted(Path("run").rglob("*")) == held
    Path("other").mkdir()
    Path("other/first").touch()
    assert main(["check", "job.yaml", "--set", "output=other"]) == 2
    assert "other/first: the output is a file; expected a folder" in capsys.readouterr().err
    assert main(["stability", "run"]) == 2
    assert "run: found a pipeline; expected one of job classify2d; give the folder of a" in capsys.readouterr().err


def test_a_mistake_of_a_stage_is_told_with_its_name_and_mended(work, capsys):
    Path("job.yaml").write_text(TWO.replace("particle_diameter: 150\n    max_iterations: 3",
                                            "particle_diameter: 900\n    max_iterations: 3"))
    assert main(["run", "job.yaml"]) == 2
    assert "vitrea: stage second: " in capsys.readouterr().err
    failed = read_records(Path("run/record.jsonl"))[-1]
    assert failed["kind"] == "failed"
    assert failed["message"].startswith("stage second: ")
    Path("job.yaml").write_text(TWO)
    assert main(["run", "job.yaml"]) == 0
    assert states() == [("first", "skip"), ("second", "begin")]


def test_a_signal_stops_a_stage_and_any_number_of_ranks_goes_on_to_the_same_end(begin, launch, work):
    """The first stage has one rank of two; the result is that of one rank throughout."""
    (work / "whole.yaml").write_text(TWO.replace("output: run", "output: whole"))
    assert main(["run", "whole.yaml"]) == 0
    (work / "slow.py").write_text(SLOW)
    process = begin(2, "slow.py", "run", "job.yaml")
    wait_until(lambda: (work / "run" / "first" / "checkpoint.h5").exists(), process)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "go on with 'vitrea resume run'" in told
    assert read_records(work / "run" / "record.jsonl")[-1]["kind"] == "stopped"
    ended = launch(2, "-m", "vitrea.jobs", "resume", "run")
    assert ended.returncode == 0, ended.stderr
    assert states(work / "run") == [("first", "go on"), ("second", "begin")]
    assert "1 rank on 1 node" in (work / "run" / "first" / "run.out").read_text()
    assert "2 ranks on 1 node" in (work / "run" / "second" / "run.out").read_text()
    for stage in ("first", "second"):
        same_files(work / "run" / stage, work / "whole" / stage, RESULT_FILES)


SLOW = """\
import sys, time
from vitrea.engine import classify2d
from vitrea.jobs.cli import main

iterate = classify2d.iterate
classify2d.iterate = lambda run, state: (time.sleep(0.5), iterate(run, state))[1]
sys.exit(main(sys.argv[1:]))
"""


# ---- simulations as jobs

@pytest.mark.parametrize(("options", "simulation"), [(SimulateParticlesOptions, ParticleSimulation),
                                                     (SimulateMicrographsOptions, MicrographSimulation)])
def test_a_simulation_has_all_keys_of_vitrea_simulate_with_their_defaults(options, simulation):
    keys, known = options_of(options), {field.name: field.default for field in dataclasses.fields(simulation)}
    assert set(keys) - {"output", "threads"} == set(known)
    assert all(keys[name].default == default for name, default in known.items())


def test_a_simulation_is_that_of_vitrea_simulate(run_job, tmp_path):
    keys = {"n": 12, "views": 2, "box_size": 16, "pixel_size": 6.0, "snr": 0.3, "defocus": [9000, 9500], "seed": 3}
    folder = run_job("simulate-particles", **keys)
    simulate_particles(ParticleSimulation(**keys | {"defocus": (9000.0, 9500.0)}), tmp_path / "same")
    assert (mrcfile.read(folder / "particles.mrcs") == mrcfile.read(tmp_path / "same" / "particles.mrcs")).all()
    keys = {"n": 1, "pixel_size": 8.0, "diameter": 100.0, "particles": 4, "snr": 0.3, "views": 2, "size": [64, 80]}
    folder = run_job("simulate-micrographs", **keys)
    simulate_micrographs(MicrographSimulation(**keys | {"size": (64, 80)}), tmp_path / "micrographs")
    same_files(folder, tmp_path / "micrographs", ["coordinates/mic_0001.star"])
    assert all((folder / place).exists() for place in JOBS["simulate-micrographs"].products.values())


def test_a_mistake_in_a_simulation_is_told_before_it_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "job: simulate-particles\noutput: run\nn: 3\npixel_size: 6\nsnr: 1\nviews: 1\nbox_size: 32\n"
    for extra, words in (("defocus: [1, 2, 3]\n", "job.yaml:8: defocus has 3 numbers; expected two"),
                         ("defocus: 9000\n", "defocus has 1 number; expected two, the least and the largest; write"),
                         ("max_shift: 20\n", "max_shift"),
                         ("map_path: none.mrc\nmodel_path: x.pdb\n", "job.yaml:9: map")):
        Path("job.yaml").write_text(lines + extra)
        assert main(["check", "job.yaml"]) == 2
        assert words in capsys.readouterr().err


def test_a_selection_without_a_rule_is_refused(work, capsys):
    (work / "alone.yaml").write_text("job: select\ninput: sim\noutput: chosen\n")
    assert main(["run", "alone.yaml"]) == 2
    assert "chosen: job select has no rule; expected at least one of classes, resolution" in capsys.readouterr().err
    assert not (work / "chosen").exists()
