"""Particles in one HDF5 file: the same images, jobs and results; damaged or stale files are refused with a sentence."""
import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest

from tests.running import same_files
from vitrea.engine.converted import read_converted, write_converted
from vitrea.engine.errors import JobError
from vitrea.engine.particles import read_particles
from vitrea.engine.stacks import read_images, write_stack
from vitrea.engine.star import read_star
from vitrea.jobs.cli import main

RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")


@pytest.fixture
def work(stacks, tmp_path, monkeypatch):
    """A folder with a copy of the stacks of two boxes and pixel sizes, whose STAR file is mixed.star."""
    shutil.copytree(stacks, tmp_path / "all")
    for star in (tmp_path / "all").rglob("*.star"):
        star.write_text(star.read_text().replace(str(stacks), str(tmp_path / "all")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_and_numbers_are_those_of_the_stacks(work, dtype):
    plain = read_particles("all/mixed.star")
    described = write_converted("p.h5", plain, dtype)
    found = read_particles("p.h5")
    for name in ("defocus_u", "defocus_angle", "origin", "psi", "optics_index", "row_number"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), name)
    assert found.optics == plain.optics
    assert found.columns["rlnImageName"][:].tolist() == plain.columns["rlnImageName"][:].tolist(), "for RELION"
    rows = np.flatnonzero(plain.optics_index == plain.optics_index[0])[::-3]
    images, stored = read_images(plain, rows), read_images(found, rows)
    np.testing.assert_array_equal(stored, images.astype(dtype).astype(np.float32))
    relative = np.sqrt(np.mean((stored - images) ** 2, axis=(1, 2))) / images.std(axis=(1, 2))
    assert relative.max() <= described["rounding"] < (1e-3 if dtype == "float16" else 1e-30)
    with h5py.File("p.h5") as file:   # and any other program reads it
        datasets = [file[each["name"]] for each in described["datasets"]]
        assert sum(len(each) for each in datasets) == len(plain)
        assert {str(each.dtype) for each in datasets} == {dtype}
        assert json.loads(bytes(file["description"][:])) == described
        assert bytes(file["star"][:]) == Path("all/mixed.star").read_bytes()


def test_it_says_what_it_is(work):
    table = read_particles("all/mixed.star")
    described = write_converted("p.h5", table)
    assert described["particles"] == len(table)
    assert {each["box_size"] for each in described["datasets"]} == {group.box_size for group in table.optics}
    for source, header in zip(described["sources"], table.headers):
        assert source["bytes"] == header.path.stat().st_size
        assert len(source["sha256"]) == 64
    assert sum(source["images"] for source in described["sources"]) == len(table)


def test_a_job_gives_the_same_bits_and_names_that_relion_finds(work, capsys):
    keys = ["n_classes=3", "particle_diameter=140", "max_iterations=2", "psi_step=20", "max_resolution=24",
            "offset_range=2"]
    Path("job.yaml").write_text("job: classify2d\ninput: all/mixed.star\noutput: plain\nn_classes: 1\n"
                                "particle_diameter: 1\n")
    assert main(["convert", "all/mixed.star", "p.h5"]) == 0
    assert f"p.h5   {len(read_particles('all/mixed.star')):,} particles   float32" in capsys.readouterr().out
    assert main(["run", "job.yaml", "--set", *keys]) == 0
    assert main(["run", "job.yaml", "--set", *keys, "input=p.h5", "output=converted"]) == 0
    same_files(Path("plain"), Path("converted"), RESULT_FILES)
    assert main(["convert", "all/mixed.star", "p.h5"]) == 2
    assert "p.h5: this file is there already" in capsys.readouterr().err
    # seen from elsewhere, and the stacks themselves gone
    shutil.rmtree("all")
    table = read_particles("p.h5")
    assert len(read_images(table, np.array([0, 0]))) == 2
    assert table.columns["rlnImageName"][0].endswith(".mrcs")
    assert read_star("converted/run_data.star")["particles"]["rlnImageName"][0] == table.columns["rlnImageName"][0]


def test_a_stack_that_has_changed_since_is_noticed(work):
    write_converted("p.h5", table := read_particles("all/mixed.star"))
    os.utime(table.stacks[0], (1, 1))
    with pytest.raises(JobError, match=r"p\.h5: .*\.mrcs has changed since it was converted; expected the same"):
        read_particles("p.h5")


def test_float16_is_refused_where_it_would_change_the_images(work):
    for number, (factor, offset) in enumerate(((1e6, 0.0), (1.0, 5000.0))):
        shutil.copytree("all/plain", f"far{number}")
        images = factor * mrcfile.read("all/plain/particles.mrcs") + offset
        write_stack(f"far{number}/particles.mrcs", images, 6.0)
        star = Path(f"far{number}/particles.star")
        star.write_text(star.read_text().replace("/all/plain/", f"/far{number}/"))
        with pytest.raises(JobError, match=r"row 1: float16 changes the image by \S+ of its standard deviation; exp"):
            write_converted("p.h5", read_particles(star), "float16")
        assert not list(work.glob("*p.h5*")), "nothing is left"
        write_converted(f"{number}.h5", read_particles(star))


def test_damage_is_a_sentence(work):
    write_converted("p.h5", read_particles("all/plain/particles.star"))
    good = Path("p.h5").read_bytes()
    place = read_converted("p.h5").description
    flipped = bytearray(good)
    for name, damaged, words in (
            ("head", b"x" + good[1:], "it does not begin like one"), ("cut", good[:-1], "damaged or cut short"),
            ("version", good.replace(b"particles 1 ", b"particles 2 ", 1), "its layout is of version 2, and this"),
            ("star", None, "its STAR file is damaged"), ("rows", None, "its list of images is damaged")):
        if damaged is None:
            flipped[:] = good
            flipped[place[name]["offset"] + 3] ^= 1
            damaged = bytes(flipped)
        Path("p.h5").write_bytes(damaged)
        with pytest.raises(JobError, match=f"p.h5: cannot be read as converted particles: .*{words}"):
            read_particles("p.h5")


@pytest.mark.parametrize("lacking", ["named", "sha256", "pixel_size", "offset", "sources", "rows"])
def test_a_description_that_lacks_something_is_a_sentence_though_its_seal_is_good(work, lacking):
    """Found by tests/robust/fuzz.py."""
    write_converted("p.h5", read_particles("all/plain/particles.star"))
    whole = Path("p.h5").read_bytes()
    described = json.dumps(read_converted("p.h5").description).replace(f'"{lacking}"', '"other"', 1).encode()
    seal = f"vitrea particles 1 {len(whole)} {len(described)} {hashlib.sha256(described).hexdigest()}\n"
    Path("p.h5").write_bytes(seal.encode().ljust(4096, b"\0") + whole[4096:] + described)
    with pytest.raises(JobError, match=f"cannot be read as converted particles: its description lacks '{lacking}'"):
        read_particles("p.h5")
