"""What a user can get wrong about a classify2d job: one sentence with place and remedy, exit code 2, nothing left."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vitrea.engine.checkpoint import read_checkpoint, write_checkpoint
from vitrea.engine.star import read_star, write_star
from vitrea.jobs import cli

JOB = {"input": "given.star", "output": "out/run", "n_classes": 3, "particle_diameter": 140, "max_iterations": 2}
N = 200   # particles of given.star


def write_job(path, **keys):
    path.write_text("job: classify2d\n" + "".join(f"{name}: {value}\n" for name, value in keys.items()))
    return path


@pytest.fixture
def folder(stacks, tmp_path, monkeypatch):
    """A working directory with given.star, given.mrcs and job.yaml, all without a mistake."""
    monkeypatch.chdir(tmp_path)
    make_input(stacks, tmp_path)
    return tmp_path


def make_input(stacks, folder):
    blocks = read_star(stacks / "plain" / "particles.star")
    blocks["particles"] = {label: column[:N].copy() for label, column in blocks["particles"].items()}
    blocks["particles"]["rlnImageName"] = np.array([f"{i:06d}@given.mrcs" for i in range(1, N + 1)])
    write_star(folder / "given.star", blocks)
    shutil.copy(stacks / "plain" / "particles.mrcs", folder / "given.mrcs")
    write_job(folder / "job.yaml", **JOB)


def pixels(folder):
    """The images of given.mrcs as a writable map."""
    return np.memmap(folder / "given.mrcs", dtype="<f4", mode="r+", offset=1024, shape=(240, 32, 32))


def change_star(folder, change):
    blocks = read_star(folder / "given.star")
    change(blocks)
    write_star(folder / "given.star", blocks)


# ---- each mistake: how it is made, and the sentence

def no_star(folder):
    (folder / "given.star").unlink()


def no_stack(folder):
    (folder / "given.mrcs").unlink()


def cut_stack(folder):
    with open(folder / "given.mrcs", "r+b") as file:
        file.truncate(500_000)


def row_beyond(folder):
    change_star(folder, lambda blocks: blocks["particles"]["rlnImageName"].__setitem__(7, "000999@given.mrcs"))


def many_not_finite(folder):
    pixels(folder)[10:13, 5, 5] = np.nan


def many_constant(folder):
    pixels(folder)[:50] = 0.25


def other_box(folder):
    change_star(folder, lambda blocks: blocks["optics"].update(rlnImageSize=np.array(["64"])))


def no_rows(folder):
    lines = (folder / "given.star").read_text().splitlines(keepends=True)
    (folder / "given.star").write_text("".join(line for line in lines if "@given.mrcs" not in line))


def not_normalised(folder):
    images = pixels(folder)
    images[:] = 40 * images + 900


def keys(**changed):
    def change(folder):
        write_job(folder / "job.yaml", **(JOB | changed))
    return change


def output_below_a_file(folder):
    (folder / "out").write_text("")


MISTAKES = [
    (no_star, r"given\.star: .*(does not exist|No such file).*; expected .*; .*"),
    (no_stack, r"given\.star row 1: the image file 'given\.mrcs' does not exist \(looked in: .*\); expected .*; .*"),
    (cut_stack, r"given\.star row 1: .*given\.mrcs: found 500,000 bytes; expected 984,064 for 240 images of 32 "
     r"× 32 px; .*"),
    (row_beyond, r"given\.star row 8: 999@given\.mrcs, but given\.mrcs holds 240 images; expected .*; correct "
     r"the row .*"),
    (many_not_finite, r"given\.star row 11: 11@given\.mrcs has pixels that are not finite, and 2 more of 200 "
     r"images cannot be "
     r"used; expected at most 0\.01 of them \(skip_limit\); repair the stack or raise skip_limit"),
    (many_constant, r"given\.star row 1: 1@given\.mrcs all pixels have one value, and 49 more of 200 images .*"),
    (other_box, r"given\.star row 1: given\.mrcs has a box of 32 px, but _rlnImageSize of its optics group is "
     r"64; .*; .*"),
    (no_rows, r"given\.star:? .*(zero particles|found no).*; expected .*; .*"),
    (not_normalised, r"given\.star: \d+ of 200 particles are not normalised \(a background of mean 9\d\d and "
     r"standard deviation "
     r".*\); expected 0 and 1 .*; set 'normalise: always', or correct particle_diameter"),
    (keys(tau2_fuge=3), r"job\.yaml:7: unknown key 'tau2_fuge'; did you mean tau2_fudge\?"),
    (keys(n_classes=201), r"n_classes: 201 classes, but given\.star holds 200 particles; expected .*; lower "
     r"n_classes.*"),
    (keys(particle_diameter=192), r"particle_diameter: 192 Å, but the boxes of given\.star are 32 px of 6 Å, "
     r"192 Å wide; .*"),
    (keys(memory_limit=0.1), r"memory_limit: the run needs up to 0\.\d GB a rank with its particles in scratch, more "
     r"than the limit of 0\.1 GB; .*; use more ranks .*"),
    (keys(max_resolution=60),
     r"given\.star: a box of 32 px of 6 Å has 4 Fourier rings up to 60\.0 Å; expected at least 8; .*"),
    (output_below_a_file, r"out/run: the run folder cannot be made: Not a directory; expected .* write permission .*"),
    (keys(output="/proc/vitrea"), r"/proc/vitrea: the run folder cannot be made: .*; expected .* write permission .*"),
]
NAMES = ["no star", "no stack", "cut stack", "row beyond", "nan", "constant", "box", "no rows", "not normalised",
         "unknown key", "too many classes", "too wide", "memory", "too coarse", "below a file", "no permission"]


@pytest.mark.parametrize(("make", "sentence"), MISTAKES, ids=NAMES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder, capsys, make, sentence):
    make(folder)
    before = sorted(folder.rglob("*"))
    assert cli.main(["run", "job.yaml"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(f"vitrea: {sentence}\n", told), told
    assert sorted(folder.rglob("*")) == before


DRIVER = """\
import os, sys
from pathlib import Path
from vitrea.engine.comm import world
from vitrea.jobs import cli
comm = world()
home = Path.cwd()
for name in sys.argv[1:]:
    os.chdir(home / name)
    comm.barrier()
    code = cli.main(["run", "job.yaml"])
    codes = comm.allgather(code)
    if comm.rank == 0:
        print("ENDED", name, codes, "left" if Path("out").is_dir() else "nothing left", flush=True)
"""


def test_two_ranks_agree_on_every_mistake_before_they_wait_for_each_other(stacks, launch, tmp_path):
    names = [name.replace(" ", "-") for name in NAMES]
    for name, (make, _) in zip(names, MISTAKES):
        (tmp_path / name).mkdir()
        make_input(stacks, tmp_path / name)
        make(tmp_path / name)
    (tmp_path / "driver.py").write_text(DRIVER)
    ended = launch(2, "driver.py", *names)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = [line for line in ended.stderr.splitlines() if line.startswith("vitrea: ")]
    assert len(told) == len(MISTAKES), ended.stderr
    for name, line, (_, sentence) in zip(names, told, MISTAKES):
        assert re.fullmatch(f"vitrea: {sentence}", line), line
        assert f"ENDED {name} [2, 2] nothing left" in ended.stdout
    assert "Traceback" not in ended.stderr


# ---- single bad images

@pytest.mark.parametrize("ranks", [0, 2])
def test_one_bad_image_is_set_aside_and_listed(folder, launch, ranks):
    pixels(folder)[122, 5, 5] = np.inf
    ended = launch(ranks, "-m", "vitrea.jobs", "run", "job.yaml")
    assert ended.returncode == 0, ended.stderr
    words = ("set aside 1 of 200 images, listed in out/run/skipped.star; the first: given.star row 123: 123@given.mrcs "
             "has pixels that are not finite")
    assert words in ended.stdout
    assert words in (folder / "out/run/run.out").read_text()
    skipped = read_star(folder / "out/run/skipped.star")["particles"]
    assert skipped["rlnImageName"].tolist() == ["000123@given.mrcs"]
    names = read_star(folder / "out/run/run_data.star")["particles"]["rlnImageName"]
    assert len(names) == N - 1
    assert "000123@given.mrcs" not in names


# ---- a stack that fails while it is read

def test_a_stack_that_shrinks_after_its_header_was_read(folder, monkeypatch, capsys):
    from vitrea.engine import classify2d

    announce = classify2d._announce

    def then_cut(*arguments):
        announce(*arguments)
        cut_stack(folder)

    monkeypatch.setattr(classify2d, "_announce", then_cut)
    assert cli.main(["run", "job.yaml"]) == 2
    told = capsys.readouterr().err
    sentence = (r"vitrea: given\.star row (\d+): .*given\.mrcs ends within image \1; expected the stack as it was when "
                r"the run started; restore it, then run or resume again\n")
    assert re.fullmatch(sentence, told), told
    assert not Path("out/run").exists()


# ---- full disk

LIMITED = """\
import resource, sys
from vitrea.engine.comm import world
from vitrea.jobs import cli
world()  # whose shared memory counts as files
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("ranks", "limit", "name", "kept"), [
    (0, 1000, "record.jsonl", False), (0, 15_000, "checkpoint.h5", False), (0, 40_000, "run_data.star", True),
    (2, 15_000, "checkpoint.h5", False)])
def test_a_file_that_cannot_grow_ends_in_a_sentence(folder, launch, ranks, limit, name, kept):
    """The system refuses to let any file grow beyond a limit, which programs meet as they meet a full disk."""
    (folder / "limited.py").write_text(LIMITED)
    ended = launch(ranks, "limited.py", limit, "run", "job.yaml")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    told = [line for line in ended.stderr.splitlines() if line.startswith("vitrea: ")]
    assert len(told) == 1, ended.stderr
    assert re.search(rf"out/run/{re.escape(name)}: (cannot be|could not be) written", told[0])
    assert "free space" in told[0]
    assert "Traceback" not in ended.stderr
    assert not list(Path("out").rglob(".*.tmp-*"))
    if not kept:
        assert not Path("out").exists()
        return
    assert not Path("out/run/run_data.star").exists()
    again = launch(0, "-m", "vitrea.jobs", "resume", "out/run")
    assert again.returncode == 0, again.stderr
    assert len(read_star(Path("out/run/run_data.star"))["particles"]["rlnImageName"]) == N


def test_a_full_disk(folder, launch):
    disk = folder / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)],
                                   capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted: not root, or no mount")
    try:
        ended = launch(0, "-m", "vitrea.jobs", "run", "job.yaml", "--set", "output=disk/run")
        assert ended.returncode == 2, ended.stderr
        assert re.fullmatch(r"vitrea: disk/run/\S+: could not be written \(No space left .*\); .*\n", ended.stderr)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- resuming what does not fit

@pytest.fixture(scope="module")
def stopped(stacks, tmp_path_factory):
    """A run folder with a checkpoint and no results, and its input."""
    folder = tmp_path_factory.mktemp("stopped")
    make_input(stacks, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", "job.yaml"]) == 0
    (folder / "out/run/record.jsonl").unlink()
    (folder / "out/run/run_data.star").unlink()
    return folder


def cut_checkpoint(folder):
    content = (folder / "out/run/checkpoint.h5").read_bytes()
    (folder / "out/run/checkpoint.h5").write_bytes(content[:len(content) // 2])
    without_earlier(folder)


def damage_checkpoint(folder):
    content = bytearray((folder / "out/run/checkpoint.h5").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "out/run/checkpoint.h5").write_bytes(content)
    without_earlier(folder)


def without_earlier(folder):
    (folder / "out/run/checkpoint-earlier.h5").unlink(missing_ok=True)


def other_format(folder):
    path = folder / "out/run/checkpoint.h5"
    arrays, attributes = read_checkpoint(path, {})
    write_checkpoint(path, arrays, attributes | {"format": 99})


def other_particles(folder):
    change_star(folder, lambda blocks: blocks["particles"]["rlnDefocusU"].__setitem__(3, "9000.0"))


def fewer_particles(folder):
    change_star(folder, lambda blocks: blocks.update(
        particles={label: column[:150] for label, column in blocks["particles"].items()}))


def other_key(folder):
    path = folder / "out/run/job.yaml"
    path.write_text(re.sub(r"tau2_fudge: \S+", "tau2_fudge: 4", path.read_text()))


def other_pixels(folder):
    """Another extraction of the same particles: same names, same sizes."""
    images = pixels(folder)
    images[:] = images[::-1].copy()


def longer_stack(folder):
    with (folder / "given.mrcs").open("ab") as stack:
        stack.write(b"more")


CANNOT_READ = (r"out/run/checkpoint\.h5: cannot be read as a checkpoint \(it is damaged.*\); expected .*; "
               r"bring back a copy, or .*")
UNFIT = [
    (cut_checkpoint, CANNOT_READ),
    (damage_checkpoint, CANNOT_READ),
    (other_format, r"out/run/checkpoint\.h5: format was 99 in the run, but is 2 now; expected .*; .*"),
    (other_particles, r".*: the particles was 200 with digest \w+ in the run, but is 200 with digest \w+ now; "
     r".*; restore them.*"),
    (fewer_particles, r".*: the particles was 200 with digest \w+ in the run, but is 150 with digest \w+ now; "
     r".*; restore them.*"),
    (other_pixels, r"\S+\.mrcs: this stack holds other images than when the run started, under the same names "
     r"\(out/run/checkpoint\.h5\); expected the particles of the run; restore it, or start a new run .*"),
    (longer_stack, r"\S+\.mrcs: this stack holds [\d,]+ bytes, but [\d,]+ when the run started .*; restore it, .*"),
    (other_key, r".*: tau2_fudge was 2\.0 in the run, but is 4\.0 now; expected the job and particles of the run; .*"),
]


@pytest.mark.parametrize(("change", "sentence"), UNFIT, ids=[change.__name__ for change, _ in UNFIT])
def test_resume_refuses_what_does_not_fit_and_leaves_the_run(stopped, tmp_path, monkeypatch, capsys, change, sentence):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    change(tmp_path)
    kept = (tmp_path / "out/run/checkpoint.h5").read_bytes()
    assert cli.main(["resume", "out/run"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(f"vitrea: {sentence}\n", told), told
    assert (tmp_path / "out/run/checkpoint.h5").read_bytes() == kept


def test_a_stack_that_was_only_written_to_is_told_and_the_run_goes_on(stopped, tmp_path, monkeypatch, capsys):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["resume", "out/run"]) == 0
    assert "written to" not in capsys.readouterr().out, "a copy keeps the time of the last change"
    Path("out/run/record.jsonl").unlink()
    (tmp_path / "given.mrcs").touch()
    assert cli.main(["resume", "out/run"]) == 0
    assert re.search(r"\S+\.mrcs was written to since the run started; size and the images compared are the same\n",
                     capsys.readouterr().out)


# ---- the launcher

def test_a_launcher_of_another_mpi_is_refused(folder, launch):
    """What a singleton sees when mpiexec is not that of its MPI library: the launcher's variables, and a size of 1."""
    ended = launch(0, "-W", "ignore", "-m", "vitrea.jobs", "run", "job.yaml", OMPI_COMM_WORLD_SIZE="4")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("vitrea: MPI: the launcher started 4 ranks (OMPI_COMM_WORLD_SIZE), but each of them")
    assert "use the mpiexec" in ended.stderr
    assert not Path("out").exists()


