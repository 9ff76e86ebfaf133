"""Stacks: every mode, byte order and header that is met, images in the order asked for, and broken files told."""
import os
import resource
import shutil
import signal

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from vitrea.engine.errors import JobError
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import OPEN_FILES, StackReader, read_header, read_images, write_stack
from vitrea.engine.star import write_star
from vitrea.jobs.cli import main

RNG = np.random.default_rng(2)


def raw_stack(path, images, order="<", mode=2, extended=0, **header_fields):
    """An MRC file written by hand, without machine stamp or map word, as older programs leave them."""
    header = np.zeros(1, dtype=HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = images.shape
    header["mode"], header["nsymbt"] = mode, extended
    for name, value in header_fields.items():
        header[name] = value
    path.write_bytes(header.tobytes() + b"x" * extended + images.astype(images.dtype.newbyteorder(order)).tobytes())
    return path


def table_of(tmp_path, names, box_size=8):
    """A particle table of image names of stacks in tmp_path."""
    write_star(tmp_path / "p.star", {"": {"rlnImageName": np.array(names), "rlnPixelSize": np.full(len(names), 2.0)}})
    return read_particles(tmp_path / "p.star")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
@pytest.mark.parametrize("extended", [0, 1344])
def test_every_mode_byte_order_and_extended_header(tmp_path, order, mode, dtype, extended):
    images = RNG.integers(0, 100, (3, 7, 7)).astype(dtype)
    raw_stack(tmp_path / "s.mrcs", images, order, mode, extended)
    header = read_header(tmp_path / "s.mrcs")
    assert (header.n_images, header.box_size, header.mode, header.pixel_size) == (3, 7, mode, 0.0)
    read = read_images(table_of(tmp_path, ["3@s.mrcs", "1@s.mrcs"]), [0, 1])
    assert read.dtype == np.float32
    assert np.array_equal(read, images[[2, 0]].astype(np.float32))


def test_negative_values_of_the_integer_modes_and_large_unsigned_ones(tmp_path):
    for mode, values in ((0, np.array([-128, 127], "i1")), (1, np.array([-32768, 32767], "i2")),
                         (6, np.array([0, 65535], "u2"))):
        raw_stack(tmp_path / "s.mrcs", np.tile(values, 2).reshape(1, 2, 2), ">", mode)
        assert read_images(table_of(tmp_path, ["1@s.mrcs"]), [0])[0, 0].tolist() == values.tolist()


def test_bytes_of_imod_are_unsigned_unless_flagged(tmp_path):
    images = np.full((1, 4, 4), 200, "u1")
    for flags, value in ((0, 200.0), (1, -56.0)):
        path = raw_stack(tmp_path / "s.mrcs", images, mode=0)
        raw = bytearray(path.read_bytes())
        raw[152:160] = np.array([1146047817, flags], "<i4").tobytes()
        path.write_bytes(raw)
        assert read_images(table_of(tmp_path, ["1@s.mrcs"]), [0])[0, 0, 0] == value


def test_a_single_two_dimensional_image_is_a_stack_of_one(tmp_path):
    image = RNG.normal(size=(6, 6)).astype(np.float32)
    with mrcfile.new(tmp_path / "one.mrc", data=image) as mrc:
        mrc.voxel_size = 1.7
    assert read_header(tmp_path / "one.mrc").n_images == 1
    assert read_header(tmp_path / "one.mrc").pixel_size == pytest.approx(1.7)
    assert np.array_equal(read_images(table_of(tmp_path, ["one.mrc"]), [0])[0], image)


@pytest.mark.parametrize("box_size", [15, 16])
def test_what_is_written_is_read_back_and_is_a_stack_to_others(tmp_path, box_size):
    images = RNG.normal(size=(4, box_size, box_size)).astype(np.float32)
    write_stack(tmp_path / "s.mrcs", images, 1.34)
    with mrcfile.open(tmp_path / "s.mrcs") as mrc:   # strict: warns, and warnings are errors, on anything amiss
        assert mrc.is_image_stack()
        assert mrc.voxel_size.x == pytest.approx(1.34)
        assert np.array_equal(mrc.data, images)
        assert mrcfile.validate(tmp_path / "s.mrcs")
    assert read_header(tmp_path / "s.mrcs").pixel_size == pytest.approx(1.34)


def test_the_same_images_make_the_same_bytes(tmp_path):
    images = RNG.normal(size=(2, 5, 5))
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, images, 3.0)
    assert (tmp_path / "a.mrcs").read_bytes() == (tmp_path / "b.mrcs").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrcs", "b.mrcs"]
    with pytest.raises(ValueError, match=r"float32\[n, L, L\]"):
        write_stack(tmp_path / "c.mrcs", images[0], 3.0)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with pytest.raises(JobError, match=r"s.mrcs: could not be written \(.*\); expected a writable folder with"):
            write_stack(tmp_path / "s.mrcs", np.ones((40, 16, 16)), 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_rows_come_in_the_order_asked_for_from_many_stacks(tmp_path):
    n_stacks = OPEN_FILES + 6   # more than are held open at a time
    images = RNG.normal(size=(n_stacks, 3, 8, 8)).astype(np.float32)
    for i in range(n_stacks):
        write_stack(tmp_path / f"{i}.mrcs", images[i], 2.0)
    pairs = [(i, j) for j in range(3) for i in range(n_stacks)]
    table = table_of(tmp_path, [f"{j + 1:06d}@{i}.mrcs" for i, j in pairs])
    rows = np.concatenate([RNG.permutation(len(pairs)), [5, 5]])
    expected = np.stack([images[pairs[row]] for row in rows])
    with StackReader(table) as reader:
        assert np.array_equal(reader.read(rows), expected)
        assert reader.read(np.array([], dtype=int)).shape == (0, 8, 8)
    assert np.array_equal(read_images(table.take(rows), np.arange(len(rows))), expected)


def test_neighbours_are_read_in_one_piece(tmp_path, monkeypatch):
    write_stack(tmp_path / "s.mrcs", RNG.normal(size=(30, 4, 4)), 1.0)
    table = table_of(tmp_path, [f"{i}@s.mrcs" for i in range(1, 31)])
    pieces, plain = [], np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: pieces.append(k["count"]) or plain(*a, **k))
    read_images(table, np.r_[10:20, 5:10, 25])
    assert sorted(pieces) == [16, 15 * 16]


def test_boxes_of_two_sizes_in_one_read_are_refused(tmp_path):
    for size in (8, 10):
        write_stack(tmp_path / f"{size}.mrcs", np.ones((1, size, size)), 2.0)
    table = table_of(tmp_path, ["1@8.mrcs", "1@10.mrcs"])
    assert read_images(table, [1]).shape == (1, 10, 10)
    with pytest.raises(ValueError, match=r"share one box size, not \[8, 10\]"):
        read_images(table, [0, 1])


def test_broken_files_are_told(tmp_path):
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((4, 8, 8)), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(JobError, match=r"s.mrcs: found 2,043 bytes; expected 2,048 for 4 images of 8 × 8 px; the stack"
                                       " is cut short, copy or extract it again"):
        read_header(path)
    for content in (b"", whole[:500], b"\x89PNG" + bytes(4000), bytes(4000)):
        path.write_bytes(content)
        with pytest.raises(JobError, match=r"s.mrcs: found no MRC header in its first 1024 bytes; expected an MRC"):
            read_header(path)
    with pytest.raises(JobError, match=r"none.mrcs: could not be read \(No such file"):
        read_header(tmp_path / "none.mrcs")
    raw_stack(path, np.ones((1, 4, 4), np.complex64), mode=4)
    with pytest.raises(JobError, match=r"found MRC mode 4; expected one of 0, 1, 2, 6, 12; convert the stack to"):
        read_header(path)


def test_a_stack_that_shrinks_or_goes_during_the_run_is_told_with_its_row(tmp_path):
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((4, 8, 8)), 1.0)
    table = table_of(tmp_path, [f"{i}@s.mrcs" for i in (4, 3, 2, 1)])
    path.write_bytes(path.read_bytes()[:1024 + 2 * 256 + 10])
    with pytest.raises(JobError, match=r"p.star row 4: .*s.mrcs ends within image 3; expected the stack as it was"):
        read_images(table, [0, 1, 2, 3])
    assert read_images(table, [2, 3]).shape == (2, 8, 8)
    path.unlink()
    with pytest.raises(JobError, match=r"p.star row 2: .*s.mrcs could not be read \(No such file"):
        read_images(table, [1])


@pytest.mark.parametrize(("name", "shape"), [("smallStack.mrcs", (4, 64)), ("sample.mrcs", (17, 200)),
                                             ("empiar_10076_7.mrc", (7, 320)), ("relion31.mrcs", (5, 256))])
def test_real_stacks(data, name, shape):
    header = read_header(data / "stacks_small" / name)
    assert (header.n_images, header.box_size) == shape


def test_real_images_are_normalised_as_relion_left_them(data):
    images = read_images(read_particles(data / "stacks_small" / "relion31.star"), np.arange(5))
    axis = np.arange(256) - 128
    outside = images[:, np.hypot(axis[:, None], axis) > 127]
    assert np.allclose(outside.mean(1), 0, atol=0.02)
    assert np.allclose(outside.std(1), 1, atol=0.02)


@pytest.mark.parametrize("harm", ["written to", "replaced", "removed", "touched"])
def test_a_stack_that_changes_while_it_is_read_is_noticed(tmp_path, harm):
    images = RNG.normal(size=(3, 8, 8)).astype(np.float32)
    for name in "ab":
        write_stack(tmp_path / f"{name}.mrcs", images, 2.0)
    path = tmp_path / "b.mrcs"
    with StackReader(table_of(tmp_path, [f"{i}@{tmp_path}/{name}.mrcs" for name in "ab" for i in (1, 2)])) as reader:
        reader.read([0, 1, 2])
        assert reader.changed() is None
        if harm == "written to":
            with path.open("r+b") as file:
                file.seek(1200)
                file.write(b"\0")
        elif harm == "replaced":
            before = path.stat()
            write_stack(path, images, 2.0)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            path.unlink() if harm == "removed" else path.touch()
        assert reader.changed().startswith(f"{path}: this stack has changed while it was read; expected particles that")


@pytest.mark.parametrize(("job", "name"), [("classify2d", "particles.star"), ("cluster", "truth.star")])
def test_a_run_on_a_stack_that_changes_while_it_is_read_is_refused(stacks, tmp_path, monkeypatch, capsys, job, name):
    shutil.copytree(stacks / "plain", tmp_path / "sim")
    (tmp_path / "job.yaml").write_text(f"job: {job}\ninput: {tmp_path}/sim/{name}\noutput: run\n"
                                       "n_classes: 3\nparticle_diameter: 150\n")
    monkeypatch.chdir(tmp_path)
    star = tmp_path / "sim" / name
    star.write_text(star.read_text().replace(str(stacks / "plain"), str(tmp_path / "sim")))
    read = StackReader.read

    def read_and_write(self, rows):
        found = read(self, rows)
        (tmp_path / "sim" / "particles.mrcs").touch()
        return found

    monkeypatch.setattr(StackReader, "read", read_and_write)
    assert main(["run", "job.yaml"]) == 2
    assert "particles.mrcs: this stack has changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
