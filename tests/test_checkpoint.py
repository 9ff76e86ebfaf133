"""Checkpoints: the one before is kept until the next is proven, whatever goes wrong while that is written."""
import errno
import os

import numpy as np
import pytest

from vitrea.engine import checkpoint
from vitrea.engine.checkpoint import DAMAGED, EARLIER, NAME, mend, read_checkpoint, write_checkpoint
from vitrea.engine.errors import JobError


def write(folder, number):
    write_checkpoint(folder / NAME, {"a": np.full(1000, number)}, {"iteration": number})


def iteration_in(path):
    arrays, attributes = read_checkpoint(path, {})
    assert (arrays["a"] == attributes["iteration"]).all()
    return attributes["iteration"]


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def test_the_last_two_are_there(tmp_path):
    write(tmp_path, 1)
    assert not (tmp_path / EARLIER).exists()
    for number in (2, 3):
        write(tmp_path, number)
        assert iteration_in(tmp_path / NAME) == number
        assert iteration_in(tmp_path / EARLIER) == number - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([NAME, EARLIER])


@pytest.mark.parametrize("name", ["link", "replace", "fsync"])
def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch, name):
    write(tmp_path, 1)
    write(tmp_path, 2)

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        if name == "link":   # a file system without hard links does its best
            write(tmp_path, 3)
        else:
            with pytest.raises(JobError, match="could not be written"):
                write(tmp_path, 3)
    mend(tmp_path)
    assert iteration_in(tmp_path / NAME) == (3 if name == "link" else 2)


def test_what_does_not_come_back_as_it_was_written_takes_nobodys_place(tmp_path, monkeypatch):
    write(tmp_path, 1)
    real = checkpoint._write

    def bad_disk(beside, *rest):
        real(beside, *rest)
        with open(beside, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"x" * 50)

    monkeypatch.setattr(checkpoint, "_write", bad_disk)
    with pytest.raises(JobError, match="what was written did not come back from the disk"):
        write(tmp_path, 2)
    assert iteration_in(tmp_path / NAME) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_damaged_one_gives_way_to_the_one_before_and_is_kept(tmp_path):
    for folder in (tmp_path, tmp_path / "align"):   # deep2d has a second below
        folder.mkdir(exist_ok=True)
        write(folder, 1)
        write(folder, 2)
        cut(folder / NAME)
    assert mend(tmp_path) == [tmp_path / "align" / NAME, tmp_path / NAME]
    assert iteration_in(tmp_path / NAME) == iteration_in(tmp_path / "align" / NAME) == 1
    assert (tmp_path / DAMAGED).exists()
    assert mend(tmp_path) == []


def test_two_damaged_ones_are_left_as_they_are(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    cut(tmp_path / NAME)
    cut(tmp_path / EARLIER)
    assert mend(tmp_path) == []
    with pytest.raises(JobError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / NAME, {})
