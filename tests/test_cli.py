"""The command line: what is typed, what is answered, and the exit code of every ending."""

import argparse
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.log import RunLog, read_records
from vitrea.engine.options import Classify2dOptions
from vitrea.jobs import cli
from vitrea.jobs.jobfile import JOBS, JobType

NEEDED = "job: probe\ninput: particles.star\noutput: runs/a\nn_classes: 5\nparticle_diameter: 180\n"


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A job `probe` whose runner is the attribute `.run`, and job.yaml for it in a working directory of its own."""
    module = ModuleType("probe_runner")
    module.run = lambda options, *, resume, comm: "done"
    monkeypatch.setitem(sys.modules, "probe_runner", module)
    monkeypatch.setitem(JOBS, "probe", JobType("probe", "a test", Classify2dOptions, "probe_runner:run",
                                                "vitrea.engine.plan:plan"))
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(NEEDED)
    Path("particles.star").write_text("")
    return module


def refused(capsys, *argv):
    """The one line on stderr of a command that ends with exit code 2."""
    try:
        code = cli.main(argv)
    except SystemExit as left:
        code = left.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrea: ")
    assert err.count("\n") == 1
    return err.removeprefix("vitrea: ").rstrip("\n")


def test_help_answers_at_once_and_names_every_command():
    command = [sys.executable, "-m", "vitrea.jobs", "--help"]
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - begin)
    for name in ("new", "check", "run", "resume", "threshold", "simulate", "compare", "watch", "--version"):
        assert re.search(rf"^ +{name} ", text, re.MULTILINE)
    assert min(seconds) < 1.0  # 0.2 s on an idle machine; numpy and numba alone take more than this limit


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert re.fullmatch(r"vitrea \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_every_command_has_an_example_that_parses():
    found = 0
    for parser in all_parsers(cli._parser()):
        for example in re.findall(r"^example:\n +(?:mpiexec -n \d+ )?vitrea (.*)$", parser.epilog or "", re.MULTILINE):
            cli._parser().parse_args(shlex.split(example.split(" > ")[0]))
            found += 1
    assert found == 18


def all_parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from all_parsers(below)


def test_new_prints_a_job_file(capsys):
    assert cli.main(["new", "classify2d"]) == 0
    assert "particle_diameter: 180 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the following arguments are required: COMMAND; see 'vitrea --help'"),
        (["new", "classify3d"], "invalid choice: 'classify3d'"),
        (["run"], "the following arguments are required: JOB.yaml; see 'vitrea run --help'"),
        (["check", "job.yaml", "--ranks", "0"], "'0' was found; expected a whole number, at least 1"),
        (["run", "none.yaml"], "none.yaml: there is no such file; expected a job file"),
        (["resume", "none"], "none: is not a folder; expected the folder of a run; start one with 'vitrea run"),
        (["resume", "."], ".: holds no job.yaml; expected the folder of a run"),
        (["watch", "none"], "none: is not a folder; expected the output folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *argv)


def test_other_ranks_leave_the_word_to_rank_0(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "3")
    assert cli.main(["watch", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == ""


def test_run_makes_the_folder_writes_the_resolved_job_and_gives_it_to_the_runner(probe, capsys):
    seen = []

    def run(options, *, resume, comm):
        seen.append((options, resume, comm.size))
        (options.output / "run_data.star").write_text("")
        return "done"

    probe.run = run
    assert cli.main(["run", "job.yaml", "--set", "seed=7"]) == 0
    ((options, resumed, size),) = seen
    assert (options.seed, options.output, resumed, size) == (7, Path("runs/a"), False, 1)
    assert "\nseed: 7\n" in Path("runs/a/job.yaml").read_text()
    assert "runs/a/run_data.star" in capsys.readouterr().out


def test_run_refuses_a_folder_that_holds_a_run(probe, capsys):
    assert cli.main(["run", "job.yaml"]) == 0
    capsys.readouterr()
    assert refused(capsys, "run", "job.yaml") == (
        "runs/a: this folder already holds a run (job.yaml); expected a new or empty one; "
        "go on with 'vitrea resume runs/a', or choose another output"
    )


def test_run_refuses_an_output_that_is_a_file_or_cannot_be_made(probe, capsys):
    Path("runs").write_text("")
    assert "runs/a: the run folder cannot be made: Not a directory; expected a place with write permission" in refused(
        capsys, "run", "job.yaml"
    )
    assert "runs: the output is a file; expected a folder" in refused(capsys, "run", "job.yaml", "--set", "output=runs")


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no /sys, where nobody, root included, can make a folder")
def test_run_refuses_an_output_without_permission(probe, capsys):
    told = refused(capsys, "run", "job.yaml", "--set", "output=/sys/vitrea")
    assert re.match(r"/sys/vitrea: the run folder cannot be made: (Permission|Operation not permitted|Read-only)", told)
    assert told.endswith("expected a place with write permission and free space; choose another output")


def test_a_mistake_met_before_the_first_checkpoint_leaves_nothing_behind(probe, capsys):
    def run(options, *, resume, comm):
        with RunLog(options.output, echo=False) as log:
            log.line("reading")
        raise JobError("particles.star: no particles; expected some; choose another file")

    probe.run = run
    assert refused(capsys, "run", "job.yaml").startswith("particles.star: no particles")
    assert not Path("runs/a").exists()
    probe.run = lambda options, *, resume, comm: "done"
    assert cli.main(["run", "job.yaml"]) == 0


def test_a_mistake_met_later_is_the_last_line_of_the_log(probe, capsys):
    def run(options, *, resume, comm):
        (options.output / "checkpoint.h5").write_text("")
        with RunLog(options.output, echo=False) as log:
            log.record("iteration", iteration=7)
        raise JobError("disk full")

    probe.run = run
    assert refused(capsys, "run", "job.yaml") == "disk full"
    assert "failed at it 7   rank 0 of 1 on " in Path("runs/a/run.out").read_text()
    assert [record["kind"] for record in read_records(Path("runs/a/record.jsonl"))] == ["iteration", "failed"]


def test_a_fault_of_the_program_shows_its_traceback_and_gives_exit_code_1(probe, capsys):
    def run(options, *, resume, comm):
        raise ZeroDivisionError("in the E step")

    probe.run = run
    assert cli.main(["run", "job.yaml"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "vitrea: failed on rank 0 of 1 on " in err
    assert "ZeroDivisionError: in the E step; this is a fault of the program" in err
    assert "ZeroDivisionError: in the E step" in Path("runs/a/run.out").read_text()


def test_an_interrupt_is_told_in_a_word(probe, capsys):
    def run(options, *, resume, comm):
        raise KeyboardInterrupt

    probe.run = run
    assert cli.main(["run", "job.yaml"]) == 130
    assert capsys.readouterr().err == "vitrea: interrupted\n"


def test_a_stopped_run_is_exit_code_0_and_says_how_to_go_on(probe, capsys):
    probe.run = lambda options, *, resume, comm: "stopped"
    assert cli.main(["run", "job.yaml"]) == 0
    assert capsys.readouterr().out == "stopped before the end; go on with 'vitrea resume runs/a'\n"


def test_resume_goes_on_from_the_checkpoint_or_the_start_wherever_the_folder_is_now(probe):
    seen = []

    def run(options, *, resume, comm):
        seen.append((resume, options.output, options.threads))
        return "stopped"

    probe.run = run
    cli.main(["run", "job.yaml"])
    cli.main(["resume", "runs/a"])  # killed before its first checkpoint
    Path("runs/a/checkpoint.h5").write_text("")
    Path("runs/a").rename("moved")
    cli.main(["resume", "moved", "--set", "threads=2"])
    assert seen[1:] == [(False, Path("runs/a"), 1), (True, Path("moved"), 2)]
    assert "\nthreads: 2\n" in Path("moved/job.yaml").read_text()


def test_resume_refuses_to_change_the_experiment(probe, capsys):
    cli.main(["run", "job.yaml"])
    capsys.readouterr()   # where the report is
    assert refused(capsys, "resume", "runs/a", "--set", "n_classes=9") == (
        "--set n_classes=9: n_classes cannot change within a run; expected one of follow_minutes, "
        "max_iterations, checkpoint_minutes, half_sets, threads, memory_limit, storage, staging, scratch; start a new "
        "run with another output"
    )


def test_resume_of_a_done_run_has_nothing_to_do(probe, capsys):
    cli.main(["run", "job.yaml"])
    capsys.readouterr()   # where the report is
    with RunLog(Path("runs/a"), echo=False) as log:
        log.record("done")
    probe.run = None
    assert cli.main(["resume", "runs/a"]) == 0
    assert capsys.readouterr().out == "runs/a: this run is done; nothing is left to resume\n"


def test_resume_from_another_folder_says_where_the_particles_are(probe, capsys, tmp_path, monkeypatch):
    cli.main(["run", "job.yaml"])
    capsys.readouterr()   # where the report is
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert refused(capsys, "resume", "../runs/a").endswith(
        f"the run was started in another folder; 'cd {tmp_path}' first"
    )


DRIVER = """\
import argparse, sys, time
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.jobs import cli, launcher
launcher.TOGETHER_SECONDS = 0.5
comm = world()

def begin():
    raise ZeroDivisionError("before it began")

def work():
    kind = sys.argv[1]
    if kind == "begin":
        launcher.on_rank_0(begin, comm=comm)
    if kind == "fault" and comm.rank == 1:
        raise ZeroDivisionError("on one rank")
    if kind == "alone" and comm.rank == 1:
        raise JobError("one rank's mistake")
    if kind == "all":
        raise JobError("the same mistake")
    comm.barrier()
    time.sleep(60 if kind == "alone" else 0)
    comm.barrier()
    return 0

def command(arguments):
    return launcher.end_together(work, lambda message, mistake: None, comm=comm)

parser = argparse.ArgumentParser()
parser.add_argument("kind")
parser.set_defaults(command=command)
cli._parser = lambda: parser
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("fine", 0, []),
        ("all", 2, ["vitrea: the same mistake"]),
        ("alone", 2, ["vitrea: rank 1 of 2 on ", ": one rank's mistake"]),
        ("fault", 1, ["Traceback", "failed on rank 1 of 2 on ", ": on one rank; this is a fault of the program"]),
        ("begin", 1, ["Traceback", "failed on rank 0 of 2 on ", ": before it began; this is a fault of the program"]),
    ],
)
def test_one_failing_rank_ends_the_job_and_mistakes_are_told_once(launch, tmp_path, kind, code, told):
    (tmp_path / "driver.py").write_text(DRIVER)
    begin = time.monotonic()
    ended = launch(2, "driver.py", kind, seconds=50)
    assert time.monotonic() - begin < 45
    assert ended.returncode == code, ended.stderr
    for words in told:
        assert ended.stderr.count(words) == 1, ended.stderr


def test_simulate_and_compare_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = "simulate particles --out sim --n 12 --views 2 --box 32 --pixel-size 4 --snr 1 --seed 3 --max-shift 1"
    assert cli.main([*argv.split(), "--junk", "0", "--defocus", "12000", "15000"]) == 0
    out = capsys.readouterr().out
    assert "12 particles of 2 views   box 32 px   4 Å/px   SNR 1" in out
    for name in ("particles.star", "particles.mrcs", "truth.star", "views.mrcs"):
        assert Path("sim", name).exists()
        assert f"sim/{name} " in out
    assert cli.main(["compare", "sim/truth.star", "sim/truth.star", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["purity"], compared["ari"]) == (1.0, 1.0)
    assert cli.main(["compare", "sim/truth.star", "sim/truth.star"]) == 0
    assert capsys.readouterr().out.strip()


def test_simulate_does_not_replace_particles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = "simulate particles --out sim --n 4 --views 1 --box 32 --pixel-size 4 --snr 1 --stack-size 2".split()
    assert cli.main(argv) == 0
    assert "sim/particles*.mrcs " in capsys.readouterr().out, "two stacks are told by a pattern"
    before = {path: path.read_bytes() for path in Path("sim").iterdir()}
    assert refused(capsys, *argv, "--seed", "7") == (
        "sim: this folder already holds simulated particles (particles.star); expected a new or empty one; choose "
        "another --out, or remove the folder first")
    assert {path: path.read_bytes() for path in Path("sim").iterdir()} == before


def test_simulate_tells_a_mistake_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = "simulate particles --out sim --n 5 --views 2 --box 32 --pixel-size 4 --snr 0"
    assert "snr" in refused(capsys, *argv.split())


def test_the_defaults_in_the_help_of_simulate_are_those_of_the_simulation():
    from vitrea.engine.simulate import ParticleSimulation

    parser = next(each for each in all_parsers(cli._parser()) if each.prog == "vitrea simulate particles")
    told = {action.dest: action.help.split("default ")[1].rstrip(")") for action in parser._actions
            if action.help and "default " in action.help}
    fields = {field.name: field.default for field in dataclasses.fields(ParticleSimulation)}
    assert set(told) == {"seed", "max_shift", "junk", "defocus", "astigmatism", "phase_shift", "voltage", "cs",
                         "amplitude_contrast"}
    for name, words in told.items():
        default = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        assert tuple(map(float, words.split())) == default, name
    assert {action.dest for action in parser._actions} - {"help", "out", "threads"} == set(fields)


def test_check_tells_what_a_run_will_need_and_writes_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("vitrea.engine.plan")
    monkeypatch.chdir(tmp_path)
    cli.main("simulate particles --out sim --n 40 --views 2 --box 32 --pixel-size 4 --snr 1".split())
    Path("job.yaml").write_text(NEEDED.replace("probe", "classify2d").replace("particles.star", "sim/particles.star"))
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert cli.main(["check", "job.yaml", "--set", "particle_diameter=90", "--ranks", "4"]) == 0
    text = capsys.readouterr().out
    assert "particles   40 in sim/particles.star   10 a rank" in text
    assert "images      box 32 px   4 Å/px   1 optics group   300 kV" in text
    for words in (r"poses +[\d,]+ coarse, [\d,]+ fine", r"memory +[\d.]+ [MG]B a rank, [\d.]+ [MG]B on 4", "disk "):
        assert re.search(words, text)
    assert "doubtful" not in text
    assert sorted(Path().rglob("*")) == before


def test_check_tells_what_is_more_often_a_slip_and_the_wrong_input_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main("simulate particles --out sim --n 40 --views 2 --box 32 --pixel-size 4 --snr 1".split())
    Path("job.yaml").write_text(NEEDED.replace("probe", "classify2d").replace("particles.star", "sim/particles.star"))
    capsys.readouterr()
    assert cli.main(["check", "job.yaml", "--set", "particle_diameter=36", "n_classes=30"]) == 0
    text = capsys.readouterr().out
    assert "doubtful    n_classes: 30 for 40 particles are 1.3 particles a class; a hundred is usual\n" in text
    assert "doubtful    particle_diameter: 36 Å is 28 % of the box; 50 to 85 % is usual; is it in Å?\n" in text
    assert refused(capsys, "check", "job.yaml", "--set", "particle_diameter=9") == (
        "particle_diameter: 9 Å, but a pixel of sim/particles.star is 4 Å; expected at least 8 px, 32 Å; give the "
        "diameter in Å, or use finer pixels")
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.out").touch()
    assert "this folder already holds a run" in refused(capsys, "check", "job.yaml", "--set", "particle_diameter=90")
    assert refused(capsys, "check", "job.yaml", "--set", "input=none.star").startswith("none.star: ")


SWALLOWED = """
import ctypes, os, signal, sys, time
from types import SimpleNamespace
from vitrea.jobs import cli

signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell has its background ignore it

@ctypes.CFUNCTYPE(None)
def called_by_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)

def command(arguments):
    called_by_c()
    time.sleep(10)
    return 0

cli._parser = lambda: SimpleNamespace(parse_args=lambda argv: SimpleNamespace(command=command))
sys.exit(cli.main([]))
"""


def test_a_ctrl_c_while_c_calls_python_is_not_lost():
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "vitrea: interrupted\n")
    assert time.monotonic() - begun < 10
