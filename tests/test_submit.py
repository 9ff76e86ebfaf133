"""Batch scripts: what is asked of each scheduler, what reaches a shell, and who goes back into the queue."""
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pbs_grammar import PBS, TORQUE, mistakes
from vitrea.engine.errors import JobError
from vitrea.engine.log import RunLog
from vitrea.jobs import submit as submitting
from vitrea.jobs.cli import main
from vitrea.jobs.schedulers import BatchTemplate, Request, clock, job_name, script, seconds_of

HOSTILE = """it's "$(touch hacked)" `touch hacked`; touch hacked & | > hacked #\\ \n@name"""
JOB = """\
job: classify2d
input: sim/particles.star
output: {output}
n_classes: 3
particle_diameter: 150
cluster:
  scheduler: slurm
  nodes: 2
  ranks_per_node: 4
  threads: 2
"""
# A program of a scheduler that notes its words and the folder it was called in, and answers with a number.
PROGRAM = """\
#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd()]) + "\\n")
print({answers!r}.get(os.path.basename(sys.argv[0]), ""))
"""
ASKED = ("queue=cpu", "account=cryo", "memory=12.5")
ANSWERS = {"sbatch": "17", "qsub": "18.server", "squeue": "COMPLETED None", "qstat": "    job_state = F"}


@pytest.fixture
def work(stacks, tmp_path, monkeypatch):
    """A working directory of a hostile name with a stack, job.yaml, no profile, and the MPI library MPICH."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    shutil.copytree(stacks / "plain", folder / "sim")
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("vitrea.engine.comm.library_vendor", lambda: "MPICH")
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs of schedulers that only note how they are called: a function that gives what was noted."""
    place, log = tmp_path / "bin", tmp_path / "called.jsonl"
    place.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "qsub", "qstat", "qdel", "qalter", "srun", "mpiexec"):
        (place / name).write_text(PROGRAM.format(python=sys.executable, log=str(log), answers=ANSWERS))
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def dry(capsys, *words):
    capsys.readouterr()
    assert main(["submit", "job.yaml", "--dry-run", *words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["submit", "job.yaml", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_a_submission_that_no_scheduler_takes_leaves_no_folder(work, programs, tmp_path, capsys):
    sbatch = tmp_path / "bin" / "sbatch"
    good = sbatch.read_text()
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: cpu' >&2; exit 1\n")
    assert "refused: invalid partition specified: cpu" in refused(capsys)
    assert not (work / "run").exists()
    (work / "run").mkdir()
    (work / "run" / "notes").write_text("mine")
    refused(capsys)
    assert [path.name for path in (work / "run").iterdir()] == ["notes"], "what was there stays"
    sbatch.write_text(good)
    assert main(["submit", "job.yaml"]) == 0


# ---- what is asked for

def test_slurm_is_asked_in_its_own_words(work, capsys):
    text = dry(capsys, "--cluster", *ASKED, "time=1-02:00:00", "directives=--qos=long")
    lines = text.splitlines()
    for words in ("--job-name=vitrea-run", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=2", "--mem=12500M",
                  "--time=1-02:00:00", "--partition=cpu", "--account=cryo", "--signal=B:USR1@120", "--requeue",
                  "--qos=long"):
        assert f"#SBATCH {words}" in lines
    assert "srun --cpus-per-task=2 --cpu-bind=cores --mpi=pmi2 " in text
    assert "export OMP_NUM_THREADS=2 " in text
    assert not (work / "run").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(("scheduler", "grammar", "words"), [
    ("pbs", PBS, ["-l select=2:ncpus=8:mpiprocs=4:ompthreads=2:mem=12500mb", "-l place=scatter"]),
    ("torque", TORQUE, ["-l nodes=2:ppn=8", "-l mem=25000mb"])])
def test_pbs_is_asked_in_words_that_qsub_takes(work, capsys, scheduler, grammar, words):
    text = dry(capsys, "--cluster", f"scheduler={scheduler}", *ASKED, "time=30:00:00")
    assert mistakes(text, grammar) == []
    for each in [*words, "-l walltime=30:00:00", "-q cpu", "-A cryo", "-N vitrea-run"]:
        assert f"#PBS {each}" in text.splitlines()
    assert "sleep 107880;" in text, "the signal comes from the script itself"
    assert "mpiexec -n 8 -bind-to core:2 " in text
    assert mistakes(text.replace("select=2:ncpus", "select=2:ncpus 1"), PBS) != []


@pytest.mark.parametrize(("name", "expected"), [
    ("first", "vitrea-first"), ("a long name of a run", "a-long-name-of"), ("../x;y", "vitrea-x-y"),
    ("'", "vitrea-job"), ("2026-11-22-betagal", "vitrea-2026-11")])
def test_names_are_such_as_every_scheduler_takes(name, expected):
    assert job_name(name) == expected


@pytest.mark.parametrize(("text", "seconds"), [("90", 5400), ("1:30", 90), ("4:00:00", 14400), ("1-00:00:10", 86410),
                                               ("2-12", 216000), ("1-1:30", 91800)])
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(clock(seconds, days=True)) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:99", "1:2:3:4", "-3", "1:00:00; rm", "1.5"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        seconds_of(text)


# ---- what reaches a shell

def test_hostile_names_of_files_reach_the_program_as_they_are(work, programs, capsys):
    """The script is run by bash itself, with a srun that notes its words."""
    output = "out '$(touch hacked)' `touch hacked`;touch hacked"
    (work / "job.yaml").write_text(JOB.format(output=json.dumps(output)))
    assert main(["submit", "job.yaml"]) == 0
    path, = (work / output / "submit").glob("*.sh")
    name, words, folder = programs()[-1]
    assert (name, words[-1], Path(folder)) == ("sbatch", path.name, path.parent), "no path is an option"
    subprocess.run(["bash", path], env=os.environ | {"SLURM_JOB_ID": "17"}, capture_output=True)
    name, words, folder = next(call for call in programs() if call[0] == "srun")
    assert words[-2:] == ["run", f"{output}/submit/job.yaml"]
    assert Path(folder) == work
    (work / output / "job.yaml").write_text("")
    subprocess.run(["bash", path], env=os.environ | {"SLURM_JOB_ID": "17"}, capture_output=True)
    name, words, folder = [call for call in programs() if call[0] == "srun"][-1]
    assert words[-2:] == ["resume", output]
    assert not list(work.rglob("hacked"))
    assert not list(path.parents[3].glob("hacked"))


@pytest.mark.parametrize("key", ["queue", "account"])
def test_a_directive_takes_no_hostile_value(work, capsys, key):
    for value in ("a b", "a\n#SBATCH --uid=0", "$(x)", "a'b", "-", ""):
        text = JOB.format(output="run") + f"  {key}: {json.dumps(value)}\n"
        (work / "job.yaml").write_text(text)
        if value in ("-", ""):
            continue
        assert f"{key} is" in refused(capsys, "--dry-run")


def test_lines_of_the_job_for_the_scheduler_stay_directives(work, capsys):
    text = dry(capsys, "--cluster", "directives=--qos=a\ntouch hacked\n\n--x=y")
    assert "#SBATCH touch hacked" in text
    assert not any(line.startswith("touch") for line in text.splitlines())


def test_modules_and_launcher_are_words(work, capsys):
    (work / "job.yaml").write_text(JOB.format(output="run") + "  modules: [mpich/5, 'a; touch hacked']\n"
                                   "  launcher: srun --mpi=pmi2 --export='A;B' -n {ranks}\n")
    text = dry(capsys)
    assert "module load mpich/5 'a; touch hacked'" in text.splitlines()
    assert "srun --mpi=pmi2 '--export=A;B' -n 8 " in text


@pytest.mark.parametrize(("lines", "words"), [
    ("  setup: rm -rf ~\n", "job.yaml:11: setup is shell, and job files are passed on; expected it in a profile only"),
    ("  template: x.sh\n", "job.yaml:11: template is shell"),
    ("  launcher: bash -c x\n", "job.yaml:11: launcher begins with 'bash'; expected one of srun, mpiexec, mpirun"),
    ("  launcher: srun 'x\n", "job.yaml:11: launcher begins with"),
    ("  launcher: srun --mpi=pmix\n", "'srun --mpi=pmix' was found, but MPICH is what mpi4py loads here; expected"),
    ("  profile: ../../x\n", "job.yaml:11: profile is '../../x'; expected the name of a file in"),
    ("  profile: none\n", "job.yaml:11: profile none is not there; expected "),
    ("  node: 3\n", "job.yaml:11: unknown key 'node'; did you mean nodes?"),
    ("  time: soon\n", "job.yaml:11: time is 'soon'; expected H:MM:SS"),
    ("  time: 2\n", "job.yaml:11: leave is 120 s, and time 2; expected a run that has time before it leaves"),
    ("threads: 3\n", "job.yaml: threads is 3 in the job, and 2 in its cluster section; expected one number"),
])
def test_a_mistake_in_the_section_is_a_sentence_with_its_line(work, capsys, lines, words):
    (work / "job.yaml").write_text(JOB.format(output="run") + lines)
    assert words in refused(capsys)


def test_without_section_or_profile_it_says_what_is_missing(work, capsys):
    (work / "job.yaml").write_text(JOB.format(output="run").partition("cluster:")[0])
    assert "there is no cluster section; expected one, or a profile of the site in " in refused(capsys)


def test_a_profile_of_the_site_stands_below_the_job(work, capsys, tmp_path):
    place = tmp_path / "config" / "vitrea"
    place.mkdir(parents=True)
    (place / "site.yaml").write_text("scheduler: slurm\nqueue: cpu\nnodes: 9\n"
                                     "setup: |\n  source /site/env\n  ulimit -c 0\n"
                                     f"template: {place / 'mine.sh'}\n")
    (place / "mine.sh").write_text("#!/bin/bash\n@directives\n# ours @@site\n@setup\ncd @folder\n@commands\n")
    lines = dry(capsys).splitlines()
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --partition=cpu" in lines
    assert lines[lines.index("# ours @site") + 1:][:2] == ["source /site/env", "ulimit -c 0"]
    (place / "mine.sh").write_text("#!/bin/bash\n@directives\n@commands\n")
    assert "mine.sh: @folder is not in the template" in refused(capsys)
    (place / "mine.sh").write_text("#!/bin/bash\n@directives\n@folder @commands @nodes\n")
    assert "mine.sh: 'nodes' is not a part of batch scripts" in refused(capsys)


def test_a_value_is_not_read_as_a_template(work):
    request = Request("n", 1, 1, 60, directives=["--comment=@folder$HOME"])
    assert "#SBATCH --comment=@folder$HOME" in script("slurm", request, "true @x", folder=Path("/x"))
    assert BatchTemplate("@a").substitute(a="@b $c") == "@b $c"


# ---- who goes back into the queue

def stopped(folder, reason="SIGUSR1"):
    with RunLog(folder, echo=False) as log:
        log.tell("stopped", reason=reason)


@pytest.fixture
def submitted(work, programs):
    """The run folder of a job that was submitted to PBS as 18.server, with one time left to go back."""
    assert main(["submit", "job.yaml", "--cluster", "scheduler=pbs", "requeues=1"]) == 0
    return work / "run"


def test_a_run_whose_time_was_over_is_submitted_again_but_not_for_ever(submitted, programs, capsys):
    stopped(submitted)
    assert main(["requeue", "run", "--job", "18.server", "--code", "0"]) == 0
    assert [name for name, _, folder in programs() if folder == str(submitted / "submit")] == ["qsub", "qsub"]
    assert "submitted again as 18.server; 0 times are left" in capsys.readouterr().out
    assert main(["requeue", "run", "--job", "18.server", "--code", "0"]) == 2
    assert "has gone back into the queue as often as it may" in capsys.readouterr().err


def test_a_job_that_waits_for_it_waits_for_the_new_one(submitted, programs, monkeypatch):
    submitting._note(submitted, number="19.server", after="18.server", scheduler="pbs", script="b.sh", requeues=1)
    monkeypatch.setattr(submitting.SCHEDULERS["pbs"], "submitted", lambda said: "20.server", raising=False)
    stopped(submitted)
    assert main(["requeue", "run", "--job", "18.server", "--code", "0"]) == 0
    assert programs()[-1][:2] == ["qalter", ["-W", "depend=afterok:20.server", "19.server"]]


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 0), (None, 3)])
def test_one_that_was_ended_or_failed_is_not(submitted, programs, reason, code):
    if reason:
        stopped(submitted, reason)
    before = len(programs())
    assert main(["requeue", "run", "--job", "18.server", "--code", str(code)]) == code
    assert not [call for call in programs()[before:] if call[0] == "qsub"]


def test_one_that_was_cancelled_is_not(submitted, programs, capsys):
    submitting.SCHEDULERS["pbs"].state_words("    job_state = R")
    assert main(["cancel", "run"]) == 0
    stopped(submitted)
    before = len(programs())
    assert main(["requeue", "run", "--job", "18.server", "--code", "0"]) == 0
    assert not [call for call in programs()[before:] if call[0] == "qsub"]
    assert "stopped, and not submitted again" in capsys.readouterr().out


def test_slurm_keeps_the_number_and_what_is_left_is_noted_before(work, programs):
    assert main(["submit", "job.yaml"]) == 0
    stopped(work / "run")
    assert main(["requeue", "run", "--job", "17", "--code", "0"]) == 0
    assert programs()[-1][:2] == ["scontrol", ["requeue", "17"]]
    assert submitting._jobs(work / "run")[-1]["requeues"] == 19


def test_a_run_that_left_is_submitted_again_by_its_folder(work, programs, capsys):
    assert main(["submit", "job.yaml", "--cluster", "time=2:00:00"]) == 0
    (work / "run" / "job.yaml").write_text((work / "run" / "submit" / "job.yaml").read_text())
    assert "already holds a run" in refused(capsys)
    assert main(["submit", "run", "--cluster", "nodes=1"]) == 0
    text = next((work / "run" / "submit").glob("*.sh")).read_text()
    assert "#SBATCH --nodes=1\n" in text
    assert "#SBATCH --time=02:00:00\n" in text, "the section is that of the first time"


def test_the_script_passes_a_signal_on_until_the_run_has_left(work, programs, tmp_path):
    """With PBS's timer: the run is deaf for a while, as one that is just starting, and hears of it all the same."""
    (tmp_path / "bin" / "mpiexec").write_text(
        f"#!{sys.executable}\nimport signal, sys, time\ntime.sleep(3)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(bool(open('told', 'w')) + 4))\ntime.sleep(15)\n")
    assert main(["submit", "job.yaml", "--cluster", "scheduler=pbs", "time=0:00:11", "leave=10"]) == 0
    path, = (work / "run" / "submit").glob("*.sh")
    done = subprocess.run(["bash", path], env=os.environ | {"PBS_JOBID": "18.server"}, capture_output=True, timeout=30)
    assert (work / "told").exists()
    assert done.returncode == 5, "the exit code of the run is that of the job"


def test_a_scheduler_that_refuses_or_is_not_there_is_told(work, programs, tmp_path, capsys, monkeypatch):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    assert "sbatch --parsable vitrea-run.sh: refused: sbatch: error: invalid partition; expected" in refused(capsys)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch: there is no such program here" in refused(capsys)


def test_status_tells_both_sides(submitted, capsys, monkeypatch):
    stopped(submitted)
    capsys.readouterr()
    assert main(["status", "run"]) == 0
    told = capsys.readouterr().out
    assert "run   vitrea-run.sh   job 18.server   finished" in told
    assert "run: stopped before the first iteration   SIGUSR1" in told
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["status", "run"]) == 0
    assert "job 18.server   not asked, for there is no qstat here" in capsys.readouterr().out
    with pytest.raises(JobError, match="nothing was submitted for this folder"):
        submitting.status([Path("sim")])


def test_quoting_is_that_of_the_shell():
    said = subprocess.run(["bash", "-c", f"printf %s {shlex.quote(HOSTILE)}"], capture_output=True, text=True).stdout
    assert said == HOSTILE
