"""Images staged once per node: those of the stacks, read in large pieces, in one copy that leaves nothing behind."""
import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from tests.running import same_files
from vitrea.engine import classify2d, staging
from vitrea.engine.errors import JobError
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import read_images
from vitrea.engine.staging import StagedImages
from vitrea.jobs.cli import main

GOING_ON = SimpleNamespace(asked=lambda: False)
JOB = """\
job: classify2d
input: {stacks}/plain/particles.star
output: staged
n_classes: 3
particle_diameter: 150
max_iterations: 2
psi_step: 20
max_resolution: 26
staging: true
scratch: scratch
"""


def staged(table, rows, folder):
    return StagedImages(table, rows, folder, GOING_ON, comm=MPI.COMM_SELF)


def test_images_are_those_of_the_stacks_in_any_order(stacks, tmp_path):
    table = read_particles(stacks / "mixed.star")
    mine = np.random.default_rng(0).permutation(len(table))[:len(table) // 2]
    copy = staged(table, mine, tmp_path)
    assert not list(tmp_path.iterdir()), "the copy has no name"
    for group in range(len(table.optics)):
        rows = mine[table.optics_index[mine] == group]
        np.testing.assert_array_equal(copy.read(rows), read_images(table, rows))
    assert copy.total == sum(table.headers[stack].image_bytes for stack in table.stack_index[mine])
    assert copy.nodes == 1
    copy.close()


def test_stacks_are_read_in_large_pieces_and_images_of_others_are_not_read(stacks, tmp_path, monkeypatch):
    """All rows, however they are mixed: one piece a stack. Every second: as many pieces as images, and not a byte
    more."""
    table, read, taken = read_particles(stacks / "plain" / "particles.star"), os.preadv, []

    def noted(file, into, offset):
        taken.append(len(into[0]))
        return read(file, into, offset)

    monkeypatch.setattr(os, "preadv", noted)
    everything = np.random.default_rng(0).permutation(len(table))
    staged(table, everything, tmp_path).close()
    image = table.headers[0].image_bytes
    assert taken == [len(table) * image]
    taken.clear()
    staged(table, np.arange(0, len(table), 2), tmp_path).close()
    assert taken == [image] * (len(table) // 2)
    taken.clear()
    monkeypatch.setattr(staging, "PIECE", 10 * image)
    staged(table, everything, tmp_path).close()
    assert set(taken) == {10 * image}


def test_scratch_that_is_too_small_is_refused_before_anything_is_copied(stacks, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table = read_particles(stacks / "plain" / "particles.star")
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwritev", None)
    with pytest.raises(JobError, match=r"scratch: \S+ does not take the \S+ GB of images that a node keeps there \(No"):
        staged(table, np.arange(5), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stack_that_changes_or_ends_while_it_is_copied_is_noticed(stacks, tmp_path, monkeypatch):
    table, mark, calls = read_particles(stacks / "plain" / "particles.star"), staging.mark_of, []
    monkeypatch.setattr(staging, "mark_of", lambda path: (mark(path), calls.append(path), len(calls)))
    with pytest.raises(JobError, match="this stack has changed while it was copied; expected particles that stay"):
        staged(table, np.arange(5), tmp_path)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(JobError, match=r"row 1: \S+ could not be copied to scratch \(it ends at byte \d+\); expected"):
        staged(table, np.arange(5), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ranks_of_a_node_share_one_copy_and_the_result_is_the_same(stacks, launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB.format(stacks=stacks))
    (tmp_path / "scratch").mkdir()
    assert main(["run", "job.yaml", "--set", "output=plain", "staging=false"]) == 0
    ended = launch(2, "-m", "vitrea.jobs", "run", "job.yaml")
    assert ended.returncode == 0, ended.stderr
    size = read_particles(stacks / "plain" / "particles.star")
    assert "changed or gone" not in ended.stdout
    gigabytes = len(size) * size.headers[0].image_bytes / 1e9
    assert f"staged   {gigabytes:.3g} GB of images on 1 node, a copy each, in scratch" in ended.stdout
    same_files(tmp_path / "staged", tmp_path / "plain", ("run_data.star", "run_model.star", "run_classes.mrcs"))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_stack_that_changes_after_it_was_read_is_told(stacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stacks / "plain", tmp_path / "sim")
    star = tmp_path / "sim" / "particles.star"
    star.write_text(star.read_text().replace(str(stacks / "plain"), "sim"))
    job = JOB.replace("{stacks}/plain", "sim").replace("staging: true\nscratch: scratch\n", "")
    (tmp_path / "job.yaml").write_text(job)
    start = classify2d.start
    monkeypatch.setattr(classify2d, "start", lambda run: (os.utime(run.table.stacks[0], (1, 1)), start(run))[1])
    assert main(["run", "job.yaml"]) == 0
    told = (tmp_path / "staged" / "run.out").read_text()
    assert "particles.mrcs changed or gone since the run began; its results are of the images as they were" in told
