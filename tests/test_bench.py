"""vitrea bench: kernels are checked before they are measured, records say what they must, models add up.

No test looks at a time: only at what is computed, counted and said.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import pbs_grammar
from vitrea.benchmarks import kernels, scaling, study
from vitrea.benchmarks.changes import changes, noise
from vitrea.benchmarks.changes import told as changes_told
from vitrea.benchmarks.clocks import Clocks
from vitrea.benchmarks.estep import conjugated_templates, reference_posterior, reference_scores, search_work
from vitrea.benchmarks.kernels import WrongAnswerError
from vitrea.benchmarks.launching import launcher_words
from vitrea.benchmarks.machine import Limits, Work, triad
from vitrea.benchmarks.peers import found_peers
from vitrea.benchmarks.predict import Rates, gather_bytes, largest_share, predicted, row_seconds
from vitrea.benchmarks.progress import REWRITTEN, Progress
from vitrea.benchmarks.report import check_times, grouped, without_cores
from vitrea.benchmarks.specimens import Sizes, make_search_of, particles_of
from vitrea.benchmarks.startup import told as startup_told
from vitrea.benchmarks.study import Network, Study, read_study
from vitrea.benchmarks.suite import BENCHMARKS, QUICK, Effort, measure
from vitrea.benchmarks.suite import told as kernel_told
from vitrea.benchmarks.traffic import CountedComm, payload
from vitrea.engine import expectation
from vitrea.engine.errors import JobError
from vitrea.engine.shards import make_blocks
from vitrea.jobs.cli import main

TINY = {"classes": 4, "rotations": 96, "shifts": 5, "rings": 12, "particles": 6}
TINY_WORDS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"scan"}))   # which has sizes and tests of its own
def test_a_kernel_is_checked_and_its_record_is_whole(name):
    record = measure(name, Sizes(**TINY), Effort(n=2, **QUICK))
    assert record["check"] < 1e-2
    assert record["n"] == len(record["samples"]) == 2
    assert record["median"] == record[f"ms_per_{record['unit']}"] >= record["min"] > 0
    assert record["fraction_of_limit"] == pytest.approx(record["limit_ms"] / record["median"])
    assert record["limits"]["sgemm"] > 0
    assert record["limits"]["n_angles"] == 96
    assert {"commit", "versions", "cpu", "cores", "mpi", "load", "date"} <= record.keys()
    assert json.loads(json.dumps(record)) == record
    assert record["name"] in kernel_told(record)


@pytest.mark.parametrize(
    ("name", "function", "result"),
    [("product", "score_product", -1), ("angles", "fold_lines", -1), ("posterior", "sum_lines", -1),
     ("posterior", "weigh_lines", 4), ("accumulate", "accumulate_lines", -1), ("polar", "rings_to_table", -1)],
)
def test_a_wrong_kernel_is_not_measured(name, function, result, monkeypatch):
    right = getattr(kernels, function)

    def wrong(*arguments):
        right(*arguments)
        arguments[result][:] *= 1.01

    monkeypatch.setattr(kernels, function, wrong)
    with pytest.raises(WrongAnswerError, match=f"{name}: the kernel differs .* nothing was measured"):
        BENCHMARKS[name](Sizes(**TINY)).check()


@pytest.mark.parametrize("name", ["estep", "marginal"])
def test_a_wrong_e_step_is_not_measured(name, monkeypatch):
    benchmark = BENCHMARKS[name](Sizes(**TINY))
    right = benchmark.run

    def wrong():
        found = right()
        if name == "marginal":
            return found + np.linspace(0.0, 0.5, found.shape[1])
        found.log_likelihood += 0.5
        return found

    monkeypatch.setattr(benchmark, "run", wrong)
    with pytest.raises(WrongAnswerError):
        benchmark.check()


def test_the_twin_of_the_e_step_is_a_sum_over_turned_references():
    """Scores by definition: −½ |x − R_ψ a|² summed over the rings, without any transform, for the unshifted pose."""
    sizes = Sizes(**TINY)
    search, (particles, _) = make_search_of(sizes), particles_of(sizes)
    grid, templates = sizes.grid, search.fine
    middle = int(np.flatnonzero(~search.fine.level.shifts.any(axis=1))[0])
    image = particles.table.take(np.array([0]))[0].astype(np.complex128)
    reference = np.conj(conjugated_templates(templates, 2)[:, middle]).astype(np.complex128)
    scores = reference_scores(particles, 0, templates, 2)[middle]
    for j in (0, 7, 50):
        turned = reference * np.exp(-2j * np.pi * (j + 0.5) / 96 * grid.harmonic_of)
        residual = np.sum(grid.multiplicity * np.abs(image - turned) ** 2)
        empty = np.sum(grid.multiplicity * np.abs(image) ** 2)
        assert scores[j] - templates.log_prior[2, middle] == pytest.approx(0.5 * (empty - residual), abs=1e-2)


def test_the_work_of_an_e_step_is_counted_from_its_loops():
    sizes = Sizes(**TINY)
    products = sum(8 * 6 * width * 5 * 4 for width in np.diff(sizes.grid.offset))
    work = search_work(make_search_of(sizes), 6)
    assert work.product_flops == products
    assert work.transform_flops == pytest.approx(6 * 4 * 5 * 2.5 * 96 * np.log2(96))


def test_the_limit_of_the_adaptive_search_is_its_coarse_pass_and_the_classes_that_the_fine_level_must_search():
    benchmark = BENCHMARKS["adaptive"](Sizes(**{**TINY, "classes": 30, "particles": 12}))
    search = benchmark.search
    few = benchmark.fine_pairs
    assert 12 <= few < 12 * 30, "every particle has a class to search again, and not all have all"
    assert benchmark.found()["fine_classes"] == few / 12
    fine = search.fine.level
    extra = benchmark.work.product_flops - search_work(search, 12).product_flops
    assert extra == 8 * few * fine.n_shifts * fine.grid.size
    extra = benchmark.work.transform_flops - search_work(search, 12).transform_flops
    assert extra == pytest.approx(few * fine.n_shifts * 2.5 * fine.n_angles * np.log2(fine.n_angles))


def test_particles_are_found_in_their_class():
    """What is fed to the kernels has a posterior of a few poses around the truth."""
    sizes = Sizes(**TINY)
    particles, true = particles_of(sizes)
    by_class, _ = reference_posterior(particles, 0, make_search_of(sizes).fine)
    assert by_class.argmax() == true[0]


def test_the_limit_is_compute_or_memory_whichever_is_later():
    limits = Limits(sgemm=100.0, fftw=10.0, bandwidth=4.0, transforms=1.0, n_angles=8)
    assert limits.seconds(Work(product_flops=200.0, transform_flops=30.0, bytes=8.0)) == 5.0
    assert limits.seconds(Work(product_flops=200.0, bytes=16.0)) == 4.0


def test_the_triad_is_a_triad():
    b, c, out = np.arange(5.0, dtype=np.float32), np.ones(5, np.float32), np.zeros(5, np.float32)
    triad(b, c, np.float32(0.5), out)
    assert out.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [({"shifts": 20}, "--shifts: 20 points do not fill a disc; expected one of 1, 5, 9, 13, 21, "),
     ({"rotations": 100}, "--rotations: 100 angles are too few for 39 rings of a particle of 32 px radius; expected at "
                          "least 2..; use --rotations 240"),
     ({"rotations": 244}, "--rotations: no search has 244 angles; expected a multiple of 8 .*; use --rotations 256"),
     ({"rings": 39, "box": 64}, "--rings: 39 rings, but a box of 64 px has 32; expected no more; use --box 80"),
     ({"classes": 0}, "--classes: 0 was found; expected at least 1")],
)
def test_sizes_that_no_search_has_are_told(sizes, sentence):
    with pytest.raises(JobError, match=sentence):
        Sizes(**sizes)


def test_bench_estep_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert main(["bench", "estep", *TINY_WORDS, "--n", "2", "--quick", "--json", "--plot", "roof.png"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"ms_per_particle", "limit_ms", "fraction_of_limit", "n", "min", "median"} <= record.keys()
    assert sum(record["phases_ms"].values()) > 0
    assert record["clocks_missing"] == [], "benchmarks/clocks.py names functions that the engine no longer has"
    assert json.loads((tmp_path / "bench.jsonl").read_text()) == record
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "estep", "--shifts", "20"]) == 2
    assert "vitrea: --shifts: 20 points" in capsys.readouterr().err


def test_clocks_add_up_and_leave_no_trace(monkeypatch):
    """Time is counted once, for the innermost place; what is gone is named; the functions come back."""
    now = iter(range(100))
    module = SimpleNamespace(inner=lambda: None)
    module.outer = lambda: (module.inner(), module.inner())
    plain = module.outer
    monkeypatch.setitem(__import__("sys").modules, "clocked_module", module)
    table = {"out": ("clocked_module:outer",), "in": ("clocked_module:inner", "clocked_module:gone")}
    with Clocks(table, timer=lambda: next(now)) as clocks:
        module.outer()
    # ticks: outer 0, inner 1–2, inner 3–4, outer 5
    assert clocks.seconds == {"out": 3, "in": 2}
    assert clocks.calls == {"out": 1, "in": 2}
    assert clocks.missing == ["clocked_module:gone"]
    assert module.outer is plain


def test_the_seams_of_the_e_step_are_those_of_the_engine():
    from vitrea.benchmarks.clocks import E_STEP, RUN

    with Clocks(E_STEP, RUN) as clocks:
        assert clocks.missing == [], "benchmarks/clocks.py names functions that the engine no longer has"
    assert not hasattr(expectation.expect, "__wrapped__")


def test_a_counting_communicator_counts_what_it_passes_on(comm):
    counted = CountedComm(comm)
    total = np.zeros(3)
    counted.Allreduce(np.ones(3), total)
    counted.enter(1)
    assert counted.Dup().bcast({"a": np.zeros(5, np.float32)}, root=0)["a"].size == 5
    counted.Barrier()
    assert total.tolist() == [comm.size] * 3
    assert [call[:3] for call in counted.calls] == [("start", "Allreduce", 24), (1, "bcast", 21), (1, "Barrier", 0)]
    assert counted.rank == comm.rank


def test_payload_is_what_an_object_holds():
    assert payload((np.zeros(4), "abc", 7, None, b"xy", {"k": [1, 2]})) == 32 + 3 + 8 + 8 + 2 + 17
    assert payload(np.array(["ab", "c"], dtype=object)) == 3


def test_traffic_of_ranks_that_do_not_meet_is_refused():
    seen = [{"rank": rank, "calls": [["start", name, 8, 0.0]]} for rank, name in enumerate(("bcast", "gather"))]
    with pytest.raises(scaling.WrongTrafficError, match="rank 1 entered other collectives than rank 0"):
        scaling.traffic(seen)


def test_the_prediction_is_the_sum_its_docstring_writes():
    rates = Rates(t_particle=1e-3, m_step=0.5, rest=0.1, row=1e-6, sums=8_000_000, small=1)
    parts = predicted(rates, Network(latency=1e-6, bandwidth=1e9), 32_768, 64)
    assert parts["e_step"] == pytest.approx(512e-3)     # 64 blocks of 512, one a rank
    assert parts["rest"] == pytest.approx(0.1 + 0.032768)
    assert parts["allreduce"] == pytest.approx(2 * 6 * 2e-6 + 2 * 63 / 64 * 8e-3)
    assert parts["gather"] == pytest.approx(6e-6 + gather_bytes(32_768) / 1e9)
    one = predicted(rates, Network(), 32_768, 1)
    assert one["allreduce"] == one["gather"] == 0.0


@pytest.mark.parametrize("ranks", [1, 3, 64, 1000])
def test_the_largest_share_is_that_of_whole_blocks(ranks):
    sizes = [len(block.rows) for block in make_blocks(np.zeros(20_000, np.int32))]
    dealt = [sum(sizes[len(sizes) * rank // ranks:len(sizes) * (rank + 1) // ranks]) for rank in range(ranks)]
    assert sum(dealt) == 20_000
    assert largest_share(20_000, ranks) == max(dealt)


def test_a_checkpoint_row_takes_time_and_leaves_no_file(tmp_path):
    assert row_seconds(tmp_path, rows=1000) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_example_study_states_the_defaults():
    from dataclasses import replace

    found = read_study(study.EXAMPLE)
    assert replace(found, scheduler=Study().scheduler) == Study()
    assert (found.scheduler.time, found.scheduler.directives) == ("01:00:00", ())


def test_new_bench_prints_the_example(capsys):
    assert main(["new", "bench"]) == 0
    assert capsys.readouterr().out == study.example()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("layots: [[1, 1]]", "s.yaml: unknown key 'layots'; did you mean layouts?"),
     ("stack: {boxx: 3}", "s.yaml: stack: unknown key 'boxx'; did you mean box?"),
     ("job: {max_iteration: 3}", "s.yaml: job: unknown key 'max_iteration'; expected keys of classify2d; did you mean"),
     ("stack: 7", "s.yaml: stack: 7 was found; expected a group of keys"),
     ("repeats: many", "s.yaml: repeats: 'many' was found; expected a whole number"),
     ("network: {latency: fast}", "s.yaml: network: latency: 'fast' was found; expected a number"),
     ("classes: 20", r"s.yaml: classes: 20 was found; expected a list in \[ \]"),
     ("classes: '4'", r"s.yaml: classes: '4' was found; expected a list in \[ \]"),
     ("repeats: true", "s.yaml: repeats: true was found; expected a whole number"),
     ("job: {psi_step: 90}", r"s.yaml: job: psi_step is 90; expected a number \[degrees\], 0.5 to 45"),
     ("job: {n_classes: 4}", "s.yaml: job: n_classes is there; expected keys that the study does not set itself; use "
                             "classes"),
     ("layouts: [[2, 1]]", r"s.yaml: layouts: \[1, 1\] is not among them; expected it"),
     ("layouts: [[1, 1], [2]]", r"s.yaml: layouts: \[2\] was found; expected pairs \[ranks, threads\]"),
     ("strong: []\nweak: []", "s.yaml: strong and weak are both empty"),
     ("strong: [-4]", r"s.yaml: strong: \[-4\] was found; expected whole numbers above 0"),
     ("launcher: srun", "s.yaml: launcher: 'srun' was found; expected {ranks} in it"),
     ("- a\n- b", "s.yaml: no 'key: value' lines were found"),
     ("a: [", "s.yaml: not YAML")],
)
def test_mistakes_in_a_study_are_sentences(tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(text)
    with pytest.raises(JobError, match=sentence):
        read_study("s.yaml")
    with pytest.raises(JobError, match=r"none\.yaml: cannot be read"):
        read_study("none.yaml")


def test_a_folder_belongs_to_one_study(tmp_path, monkeypatch, capsys):
    """What decides the cases may not change under them; repeats, the network and the prediction may."""
    monkeypatch.chdir(tmp_path)
    text = "output: out\nstrong: [40]\nclasses: [2]\n"
    Path("s.yaml").write_text(text)
    assert main(["bench", "s.yaml", "--submit", "slurm"]) == 0
    Path("more.yaml").write_text(text + "repeats: 5\nnetwork: {latency: 1.0e-6}\npredict: {ranks: [128]}\n")
    assert main(["bench", "more.yaml", "--list"]) == 0
    Path("other.yaml").write_text(text.replace("[40]", "[80]") + "job: {psi_step: 12}\n")
    capsys.readouterr()
    for option in ("--list", "--prepare", "--report", "--case=0", "--submit=pbs"):
        assert main(["bench", "other.yaml", option]) == 2
        assert ("output: out holds the cases of another study (strong is [80] here and [40] there; job is {'psi_step': "
                "12} here and {'max_iterations': 6} there); expected the same study or a new folder"
                ) in capsys.readouterr().err


def test_weak_scaling_keeps_the_particles_a_core():
    cases = Study(strong=(100,), weak=(50,), layouts=((1, 1), (2, 2)), repeats=2).cases()
    assert [case.number for case in cases] == list(range(8))
    assert [case.particles for case in cases[:4]] == [100, 100, 50, 200]
    assert [case.repeat for case in cases] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("scheduler", ["slurm", "pbs", "torque"])
def test_array_scripts_run_every_case_once(tmp_path, monkeypatch, capsys, scheduler):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("output: out\nlayouts: [[1, 1], [64, 2]]\nclasses: [5, 7]\nstrong: [10, 20, 30]\n"
                              "scheduler: {directives: ['--partition=cpu'], setup: 'module load mpich'}\n")
    assert main(["bench", "s.yaml", "--submit", scheduler]) == 0
    folder = tmp_path / "out" / f"submit-{scheduler}"
    assert f"bash {folder / 'submit.sh'}" in capsys.readouterr().out
    submitted = (folder / "submit.sh").read_text()
    numbers = []
    for script in folder.glob("r*.sh"):
        text = script.read_text()
        assert script.name in submitted
        assert "module load mpich" in text
        assert "--partition=cpu" in text
        assert ("64" in text.replace(str(tmp_path), "")) == script.name.startswith("r64")
        numbers += _numbers(text)
    assert sorted(numbers) == [case.number for case in read_study("s.yaml").cases()]
    prepare = (folder / "prepare.sh").read_text()
    assert f"\n{sys.executable} -m vitrea.jobs bench s.yaml --prepare" in prepare, "whatever a job's PATH"
    for script in folder.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    for script in folder.glob("[pr]*.sh"):
        if scheduler == "slurm":
            _assert_slurm(script.read_text().splitlines())
        else:
            text = script.read_text().replace("#PBS --partition=cpu\n", "")
            assert pbs_grammar.mistakes(text, {"pbs": pbs_grammar.PBS, "torque": pbs_grammar.TORQUE}[scheduler]) == []


def _assert_slurm(lines):
    """Every directive stands before the first command, where sbatch looks for them."""
    comments = [line for line in lines[1:] if line.startswith("#SBATCH")]
    assert lines[:1 + len(comments)] == ["#!/bin/bash", *comments], "later ones are not looked at"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in comments)


def test_a_study_in_a_folder_of_any_name_is_submitted(tmp_path, monkeypatch, capsys):
    """No path is part of a directive: the scripts are handed in from their own folder."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("output: my 'study\n")
    assert main(["bench", "s.yaml", "--submit", "pbs"]) == 0
    (tmp_path / "qsub").write_text("#!/bin/sh\npwd >> ../called\n")
    (tmp_path / "qsub").chmod(0o755)
    script = tmp_path / "my 'study" / "submit-pbs" / "submit.sh"
    subprocess.run(["bash", script], check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert set((tmp_path / "my 'study" / "called").read_text().splitlines()) == {str(script.parent)}


def _numbers(text):
    """The cases that a script runs."""
    line = next((line for line in text.splitlines() if re.match("#SBATCH --array=|#PBS -[Jt]", line)), None)
    if line is None:
        return [int(text.split("--case ")[1])]
    words = line.split("=")[1] if "=" in line else line.split()[-1]
    if ":" not in words:
        return [int(word) for word in words.split(",")]
    span, step = words.split(":")
    first, last = map(int, span.split("-"))
    return list(range(first, last + 1, int(step)))


def test_times_are_checked_where_each_rank_has_a_core_and_the_source_of_the_rates_is_marked():
    def row(ranks, threads, particles, oversubscribed=False):
        record = {"e_step": 4.0, "m_step": 1.0, "reduce": 0.5, "iterations": 2}
        return {"layout": (ranks, threads), "particles": particles, "classes": 3, "seconds": 3.0, "record": record,
                "oversubscribed": oversubscribed}

    rates = Rates(t_particle=1e-3, m_step=0.5, rest=0.0, row=0.0, sums=0, small=0)
    rows = [row(1, 1, 2048), row(1, 1, 1024), row(2, 1, 2048), row(1, 2, 2048), row(8, 1, 2048, oversubscribed=True)]
    found = check_times(rows, {3: rates}, Network(latency=0.0))
    assert [(each["ranks"], each["particles"], each["source"]) for each in found] == [
        (1, 2048, True), (1, 1024, False), (2, 2048, False)]
    assert found[2]["predicted"]["seconds"] == pytest.approx(1.024 + 0.5 + gather_bytes(2048) / 1e10)
    assert found[2]["measured"] == {"seconds": 3.0, "e_step": 2.0, "m_step": 0.5, "reduce": 0.25}


def test_messages_of_layouts_without_cores_are_predicted_from_the_bytes_that_were_counted():
    rates = Rates(t_particle=1e-3, m_step=0.5, rest=0.0, row=0.0, sums=8_000_000, small=0)
    rows = [{"layout": layout, "particles": 4096, "classes": 3, "oversubscribed": layout[0] * layout[1] > 2}
            for layout in ((1, 1), (2, 1), (2, 2), (8, 1))]
    eight, = without_cores(Study(network=Network(latency=0.0, bandwidth=1e9)), rows, {3: rates})
    assert (eight["ranks"], eight["particles"]) == (8, 4096)
    messages = 2 * 7 / 8 * 8e-3 + gather_bytes(4096) / 1e9
    assert eight["communication"] == pytest.approx(messages / (0.512 + 0.5 + messages))


def test_startup_is_measured_in_fresh_processes_and_set_beside_its_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "startup", "--n", "1"]) == 0
    said = capsys.readouterr().out
    helped, began = (json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines())
    assert (helped["name"], began["name"]) == ("help", "first iteration")
    assert (helped["limit"], began["limit"]) == (300.0, 3000.0)
    assert 0 < helped["median"] < began["imports_median"] < began["median"]
    assert "limit 0.3 s" in said
    assert "limit 3.0 s" in said
    assert startup_told({**began, "median": 2999.0}).count("holds") == 1
    assert "OVER THE LIMIT" in startup_told({**began, "median": 3001.0})


def test_a_study_runs_counts_and_predicts(tmp_path, monkeypatch, capsys):
    """Two layouts of one small stack; the bytes that were counted are those that the model computes."""
    try:
        launcher_words(2)
    except JobError as missing:
        pytest.skip(str(missing))
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        "output: out\nstack: {views: 2, box: 32, pixel_size: 6.0, snr: 0.3}\nstrong: [130]\nweak: []\nclasses: [3]\n"
        "layouts: [[1, 1], [2, 1]]\nrepeats: 1\ncores: 1\njob: {max_iterations: 2, psi_step: 24, offset_range: 2}\n"
        "predict: {ranks: [64, 4096], particles: [100000]}\n")
    assert main(["bench", "s.yaml"]) == 0
    said = capsys.readouterr().out
    assert "Every size is what the model computes." in said
    assert "## Predicted, not measured" in said
    assert "No run but the source of the rates could be compared." in said, "two ranks on one core are no check"
    assert "| oversubscribed |" in said
    assert "if every rank had a core" in said
    assert (tmp_path / "out" / "scaling.md").read_text() in said
    assert {"scaling.png", "predicted.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    _assert_whole(records)
    assert main(["bench", "s.yaml", "--list"]) == 0
    assert capsys.readouterr().out.count("done") == 2


def _assert_whole(records):
    """What the records of a study hold, on one and on two ranks."""
    one, two = records
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["traffic"]["2"]["Allreduce"][3] == two["traffic"]["2"]["Allreduce"][3]
    assert one["log_likelihood"] == two["log_likelihood"]
    assert one["iterations"] == 2
    assert {"read", "transform", "score", "posterior", "accumulate", "reduce", "write"} <= one["phases"].keys()
    assert all(one["phases"][phase] > 0 for phase in ("read", "transform", "score", "posterior", "accumulate", "write"))
    assert one["clocks_missing"] == []
    row, = grouped(records).values()
    assert [each["oversubscribed"] for each in row] == [False, True], "two ranks on the one core that the study names"
    assert one["nodes"] == two["nodes"] == 1
    assert row[0]["speed_up"] == row[0]["efficiency"] == 1.0


def test_a_case_that_is_not_in_the_study_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("repeats: 1\n")
    assert main(["bench", "s.yaml", "--case", "99"]) == 2
    assert "--case 99: the study has cases 0 to 9; expected one of them; see --list" in capsys.readouterr().err
    assert main(["bench", "s.yaml", "--report"]) == 2
    assert "scaling: nothing has been measured yet" in capsys.readouterr().err


def test_bench_run_tells_speed_and_split(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "run", "--particles", "130", "--views", "2", "--box", "32", "--pixel-size", "6", "--snr",
                 "0.3", "--classes", "3", "--iterations", "2", "--set", "psi_step=24", "--set", "offset_range=2"]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "bench.jsonl").read_text())
    for words in ("poses / core·s", "particles·iterations / core·s", "read", "transform", "score", "posterior",
                  "accumulate", "reduce", "write", "purity"):
        assert words in said
    assert record["particle_iterations_per_core_second"] == pytest.approx(260 / record["iterating_seconds"])
    assert record["n"] == len(record["samples"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bench.jsonl"]


def test_a_peer_that_is_missing_is_left_out_with_a_line_and_only_mistyped_ones_are_a_mistake(capsys, monkeypatch):
    assert found_peers(["/nowhere/relion_refine=--cpu --grad", "sh=--j 2"]) == [(found_peers(["sh"])[0][0], "--j 2")]
    told = capsys.readouterr()
    assert "/nowhere/relion_refine is not installed and is left out" in told.err
    assert told.out == "", "stdout is for records"
    assert main(["bench", "peers", "--relion", "/no/such=--cpu"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vitrea: --relion: no program was found at /no/such; expected a relion_refine")
    assert told.count("\n") == 1
    monkeypatch.setenv("PATH", "/nowhere")
    assert found_peers(None) == [], "nobody asked for it by name"


# What stands in for a peer: it copies the result of Vitrea's run, and works a little after its first files are there.
PEER = """#!/bin/sh
[ "$1" = --version ] && { echo RELION version: 9.9; exit; }
while [ "$1" != --o ]; do shift; done
burn() { i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; }
burn; touch $2_it000_model.star; sleep 0.3; burn; burn
cp vitrea_*/run_data.star $2_it002_data.star; cp vitrea_*/run_classes.mrcs $2_it002_classes.mrcs
"""


def test_peers_are_set_beside_medians_of_ours_whole_and_by_iterations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("peer").write_text(PEER)
    Path("peer").chmod(0o755)
    words = ["bench", "peers", "--particles", "130", "--views", "2", "--box", "32", "--pixel-size", "6", "--snr", "0.3",
             "--classes", "2", "--iterations", "2", "--psi-step", "24", "--offset-range", "2", "--relion",
             f"{tmp_path / 'peer'}=--cpu"]
    assert main([*words, "--n", "2"]) == 0
    said = capsys.readouterr().out
    ours, theirs = (json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines())
    assert (ours["n"], len(ours["samples"]), theirs["n"]) == (2, 2, 1)
    assert ours["purity"] == theirs["purity"]
    assert (theirs["version"], theirs["flags"]) == ("9.9", "--cpu")
    for record in (ours, theirs):
        assert 0 < record["cpu_iterating"] < record["cpu_seconds"]
        assert 0 < record["wall_iterating"] < record["wall_seconds"]
    assert theirs["cpu_iterating"] > 0.5 * theirs["cpu_seconds"], "two parts of three come after the first files"
    last, run_as = said.splitlines()[-3].split("|"), said.splitlines()[-2]
    assert run_as.startswith(f"run as: {tmp_path / 'peer'} --i stack_n130")
    assert run_as.endswith("--j 1 --cpu")
    assert last[1].strip() == "relion 9.9 --cpu"
    for text, name in zip(last[2:], ("cpu_seconds", "cpu_iterating", "wall_seconds", "wall_iterating")):
        assert float(text) == pytest.approx(theirs[name] / ours[name], abs=0.06)


def test_a_benchmark_that_is_ended_leaves_no_program_and_no_folder(tmp_path):
    """SIGTERM to `vitrea bench` while a peer works: the peer and what it started are gone, the folder too."""
    (tmp_path / "peer").write_text('#!/bin/sh\n[ "$1" = --version ] && exit\n'
                                   f"sleep 600 & echo $! > {tmp_path}/child\nwait\n")
    (tmp_path / "peer").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "vitrea.jobs", "bench", "peers", "--particles", "20", "--views", "2", "--box",
               "32", "--pixel-size", "6", "--classes", "2", "--iterations", "1", "--psi-step", "45", "--offset-range",
               "0", "--relion", str(tmp_path / "peer")]
    told = tmp_path / "told"
    with told.open("w") as file:
        bench = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, stderr=file)
    try:
        child = tmp_path / "child"
        _wait(lambda: (child.exists() and child.read_text().strip()) or bench.poll() is not None)
        assert bench.poll() is None, told.read_text()
        assert list((tmp_path / "tmp").iterdir())
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 128 + signal.SIGTERM
    finally:
        bench.kill()
        bench.wait()
    assert list((tmp_path / "tmp").iterdir()) == []
    _wait(lambda: not Path("/proc", child.read_text().strip()).exists())


def _wait(holds, seconds=120):
    """Until holds(); fails after some seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_that_is_rewritten_on_a_terminal_and_a_line_a_step_elsewhere(terminal, capsys):
    out = io.StringIO()
    out.isatty = lambda: terminal
    progress = Progress(out)
    progress.step("estep: runs", 4)
    progress.done()
    progress.done()
    progress.result("found")
    progress.step("limits")
    assert capsys.readouterr().out == "found\n"
    told = out.getvalue()
    if not terminal:
        assert told == "0:00:00  estep: runs, 4 in all\n0:00:00  limits\n"
        return
    drawn = told.split(REWRITTEN)
    assert drawn[1:4] == ["0:00:00  estep: runs   0 of 4 done", "0:00:00  estep: runs   1 of 4 done, 0:00:00 left",
                          "0:00:00  estep: runs   2 of 4 done, 0:00:00 left"]
    assert drawn[4:] == ["", "0:00:00  limits"], "the line is taken away before a result is printed"
    assert "\n" not in told


def test_the_time_left_is_that_of_the_runs_to_come():
    progress = Progress(io.StringIO())
    progress.step("runs", 4)
    progress.done()
    assert progress.line(progress._step_begin + 100.0).endswith("1 of 4 done, 0:05:00 left")


def record_of(samples, **other):
    return {"benchmark": "kernel", "name": "estep", "classes": 4, "samples": samples, "limit_ms": 1.0, "commit": "a",
            "load": [0.1, 0.1, 0.1], "cores": 2, "fraction_of_limit": 0.5, **other}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [([1.0, 1.02, 0.99], [0.5, 0.51, 0.52], "faster"), ([1.0, 1.02, 0.99], [2.0, 2.1, 2.05], "SLOWER"),
     ([1.0, 1.5, 0.9], [1.2, 1.4, 1.1], "no change"), ([1.0], [3.0], "one sample")],
)
def test_a_change_is_what_exceeds_the_noise(before, after, verdict):
    found = changes([record_of(before)], [record_of(after, commit="b")])
    assert [each["verdict"] for each in found["measurements"]] == [verdict]
    assert found["measurements"][0]["ratio"] == pytest.approx(np.median(after) / np.median(before))
    assert verdict in changes_told(found)
    assert "commit: a → b" in changes_told(found)


def test_a_verdict_of_a_busy_machine_has_a_question_mark():
    found = changes([record_of([1.0, 1.01])], [record_of([2.0, 2.01], load=[3.0, 1.0, 1.0])])
    assert found["measurements"][0]["verdict"] == "SLOWER?"
    assert "the machine was busy (load 1.5 a core)" in changes_told(found)


def test_a_machine_that_changed_its_speed_is_noise():
    found = changes([record_of([1.0, 1.01])], [record_of([1.3, 1.31], limit_ms=1.4)])
    assert found["measurements"][0]["verdict"] == "no change"
    assert noise([1.0, 1.1], [1.0, 1.0]) == pytest.approx(0.1 / 1.05)


def test_other_sizes_are_not_compared_and_samples_of_one_size_are_pooled():
    found = changes([record_of([1.0]), record_of([1.02]), record_of([9.0, 9.0], classes=5)],
                    [record_of([1.0, 1.01], load=[4.0, 1.0, 1.0])])
    assert [(each["n_before"], each["n_after"]) for each in found["measurements"]] == [(2, 2)]
    assert found["only_before"] == ["kernel estep classes 5 (the other file has it with classes 4)"]
    assert "only in A: kernel estep classes 5" in changes_told(found)
    assert "the machine was busy (load 2.0 a core)" in changes_told(found)


def test_other_processors_are_compared_only_when_that_is_asked_for(tmp_path, capsys):
    for name, cpu in (("a", "EPYC"), ("b", "Xeon")):
        (tmp_path / name).write_text(json.dumps(record_of([1.0, 1.1], cpu=cpu)) + "\n")
    words = ["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(words) == 2
    assert "the records come from 2 kinds of processor (EPYC; Xeon); expected one" in capsys.readouterr().err
    assert main([*words, "--other-cpu"]) == 0
    assert "cpu: EPYC → Xeon" in capsys.readouterr().out


def test_parts_of_a_record_are_compared_each_for_itself_and_records_without_samples_are_named():
    def manifold(seconds):
        return {"benchmark": "manifold", "classes": 9, "load": [0.0, 0.0, 0.0], "commit": "a",
                "e_step": {"n": 2, "samples": [1.0, 1.01]}, "solve": {"n": 2, "samples": [seconds, 1.01 * seconds]}}

    found = changes([manifold(1.0), {"benchmark": "hinge", "rows": []}], [manifold(2.0)])
    assert [(each["name"], each["verdict"]) for each in found["measurements"]] == [
        ("manifold e_step", "no change"), ("manifold solve", "SLOWER")]
    assert found["measurements"][1]["after"] == pytest.approx(2010.0)
    assert "not compared, for they hold no repeated times: hinge" in changes_told(found)


def test_what_was_asked_for_is_compared_alike_and_what_came_out_does_not_matter():
    """Two programs with other flags, SNR or rings are not one measurement; purity, memory and version are no sizes."""
    def peer(samples, **other):
        return {"benchmark": "peers", "name": "relion", "flags": "", "snr": 0.1, "samples": samples, "views_found": 3,
                "version": "3.1.3", "purity": 0.9, **other}

    before = [peer([1.0, 1.1]), peer([2.0, 2.1], flags="--pad 1"), peer([3.0, 3.1], snr=0.03),
              record_of([1.0], rings=9), record_of([5.0], rings=20)]
    after = [peer([1.0, 1.1], views_found=4, version="5.0", purity=0.2), peer([4.0, 4.1], flags="--pad 1")]
    found = changes(before, after)
    assert [(each["before"], each["after"]) for each in found["measurements"]] == [
        (pytest.approx(1.05), pytest.approx(1.05)), (pytest.approx(2.05), pytest.approx(4.05))]
    assert "flags --pad 1" in changes_told(found)
    assert len(found["only_before"]) == 3


def test_files_without_records_are_told(tmp_path, capsys):
    (tmp_path / "text").write_text("no record\n")
    for name, words in (("text", "not a file of benchmark records"), ("none", "no benchmark records were found")):
        assert main(["bench", "compare", str(tmp_path / name), str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(("words", "told"), [
    (["run", "--set", "n_clases=3"], "--set: unknown key 'n_clases'; expected keys of classify2d; did you mean n_cl"),
    (["run", "--set", "psi_step=wide"], "--set: .*psi_step"),
    (["run", "--set", "foo"], "'foo' was found; expected KEY=VALUE"),
    (["run", "--keep", "file/stack"], "--keep: .*file/stack cannot be used.*choose another"),
    (["estep", "--records", "file/x.jsonl"], "--records: .*file cannot be used"),
    (["kernels", "--plot", "x.xyz"], "--plot: x.xyz was found; expected a name that ends in .png"),
])
def test_what_could_not_be_used_afterwards_is_told_before_anything_is_measured(words, told, tmp_path, monkeypatch,
                                                                               capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("vitrea.benchmarks.whole.make_stack", None)     # what comes first would fail
    monkeypatch.setattr("vitrea.benchmarks.suite.measure", None)
    try:
        code = main(["bench", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert re.search(told, capsys.readouterr().err)


def test_a_study_whose_folder_cannot_be_made_is_told_so(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "study.yaml").write_text(f"output: {tmp_path}/file/study\nstrong: [100]\n")
    assert main(["bench", str(tmp_path / "study.yaml")]) == 2
    assert "output: " in capsys.readouterr().err
