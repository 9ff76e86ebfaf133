"""Simulated micrographs: particles where the truth says, noise and CTF as asked for, the same for one seed."""
import dataclasses
import json

import numpy as np
import pytest

from vitrea.benchmarks.simulated import on_junk
from vitrea.engine.particles import read_particles
from vitrea.engine.star import read_star
from vitrea.jobs import cli
from vitrea.jobs.cli import main
from vitrea.kernels.ctf import ctf
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.micrographs import list_micrographs, read_micrograph
from vitrea.picker.scene import AGGREGATED, CLEAN, CUT, OVERLAPPING, draw_scene
from vitrea.picker.simulate import MicrographSimulation, _stem, _views, make_micrograph, number_of, scene_of

PIXEL, DIAMETER = 5.0, 120.0   # 24 px
NOTHING_ELSE = {"overlapping": 0, "aggregates": 0, "contamination": 0, "carbon": 0, "ice_gradient": 0}
NO_CTF = {"amplitude_contrast": 1.0, "defocus": (0.0, 0.0), "astigmatism": 0.0, "cs": 0.0}   # C = 1 everywhere


def simulation(**keys):
    given = {"n": 1, "pixel_size": PIXEL, "diameter": DIAMETER, "particles": 30, "snr": 0.5, "size": (600, 400)}
    return MicrographSimulation(**given | keys)


def test_particles_are_dark_and_where_the_truth_says():
    box = simulation().particle_simulation().box_size
    y, x = np.indices((box, box)) - box // 2
    dot = 500 * np.exp(-(y**2 + x**2) / (2 * 3.0**2)).astype(np.float32)
    image, scene, _ = make_micrograph(simulation(dose=1e6, **NOTHING_ELSE, **NO_CTF), dot[None], 0)
    assert image.shape == (400, 600)
    clean = scene.centres[scene.kind == CLEAN]
    assert len(clean) > 15
    for b, a in clean:
        rows, columns = np.arange(round(b) - 8, round(b) + 9), np.arange(round(a) - 8, round(a) + 9)
        depth = np.median(image) - image[np.ix_(rows, columns)]
        depth = np.where(depth > 0.3 * depth.max(), depth, 0)
        found = depth.sum(axis=1) @ rows / depth.sum(), depth.sum(axis=0) @ columns / depth.sum()
        assert found == pytest.approx((b, a), abs=0.25)


def test_electrons_are_counted_and_the_signal_has_the_snr_asked_for():
    bare = simulation(particles=0, dose=40, **NOTHING_ELSE, **NO_CTF)
    image, scene, _ = make_micrograph(bare, _views(bare), 3)
    assert len(scene.centres) == 0
    usual = image[image < 2 * np.median(image)]   # without hot pixels
    assert usual.mean() == pytest.approx(40 * PIXEL**2, rel=0.01)
    assert usual.var() / usual.mean() == pytest.approx(1 + 0.35**2, rel=0.03)
    assert 0 < (image > 5 * np.median(image)).sum() <= 2
    full = simulation(particles=90, snr=2.0, size=(900, 900), **NOTHING_ELSE)
    image, scene, _ = make_micrograph(full, _views(full), 0)
    box = full.particle_simulation().box_size
    inside = np.zeros(image.shape, dtype=bool)
    for y, x in np.rint(scene.centres[scene.kind == CLEAN]).astype(int):
        inside[max(0, y - box // 2):y + box // 2, max(0, x - box // 2):x + box // 2] = True
    ordinary = image < 3 * np.median(image)
    signal = image[inside & ordinary].var() - image[~inside & ordinary].var()
    assert signal / image[ordinary].mean() == pytest.approx(2.0, rel=0.35)


def test_the_spectrum_of_ice_shows_the_ctf_of_the_star_file():
    sim = simulation(particles=0, size=(700, 700), seed=4, defocus=(22_000.0, 22_000.0), astigmatism=0.0,
                     **NOTHING_ELSE)
    power, views = 0, _views(sim)
    for number in range(4):
        image, _, optics = make_micrograph(sim, views, number)
        power = power + np.abs(np.fft.rfft2(np.minimum(image, 2 * np.median(image)) - image.mean())) ** 2
    assert optics.defocus_u == optics.defocus_v == 22_000
    frequency = np.hypot(np.fft.fftfreq(700, PIXEL)[:, None], np.fft.rfftfreq(700, PIXEL))
    shell = np.rint(frequency * 700 * PIXEL).astype(int).ravel()
    power = np.bincount(shell, power.ravel()) / np.bincount(shell)
    s = np.arange(len(power)) / (700 * PIXEL)
    expected = ctf(s, 0.0, defocus_u=22_000, defocus_v=22_000, defocus_angle=0, voltage=300, cs=2.7,
                   amplitude_contrast=0.1, phase_shift=0) / (1 + (40 * s) ** 2)
    part = slice(20, 300)
    assert np.corrcoef(power[part], expected[part] ** 2)[0, 1] > 0.95


def test_scenes_keep_clean_particles_apart_from_everything():
    kinds, shape, diameter = np.zeros(4, dtype=int), (500, 800), 30.0
    for seed in range(12):
        wanted = simulation(particles=60, overlapping=0.3, aggregates=1.5, contamination=3, carbon=1, size=(800, 500))
        scene = draw_scene(np.random.default_rng(seed), shape, diameter, wanted)
        kinds += np.bincount(scene.kind, minlength=4)
        clean = np.flatnonzero(scene.kind == CLEAN)
        y, x = scene.centres.T
        apart = np.hypot(y[:, None] - y, x[:, None] - x) + 1e9 * np.eye(len(y))
        assert apart[clean].min() >= 1.05 * diameter
        assert max(scene.carbon_depth(y, x)[clean].max(), scene.contamination_depth(y, x)[clean].max()) <= -15
        inside = np.min([y, x, shape[0] - 1 - y, shape[1] - 1 - x], axis=0)
        assert inside[clean].min() >= 15
        assert inside.min() > -15
        together = np.flatnonzero(scene.kind == OVERLAPPING)
        whole = together[inside[together] > 30]
        assert ((apart[whole].min(axis=1) >= 12) & (apart[whole].min(axis=1) <= 24)).all()
        covered = scene.carbon_depth(*np.mgrid[:500, :800]) > 0
        assert 0.005 < covered.mean() < 0.4
    assert kinds[CLEAN] > 200
    assert min(kinds[OVERLAPPING], kinds[AGGREGATED], kinds[CUT]) > 40


def test_a_scene_is_told_without_its_image_and_says_what_lies_on_junk():
    sim = simulation(carbon=1.0, contamination=6.0, seed=4)
    _, scene, _ = make_micrograph(sim, _views(sim), 1)
    again = scene_of(sim, number_of(_stem(1)))
    np.testing.assert_array_equal(again.centres, scene.centres)
    assert again.carbon == scene.carbon
    blob = scene.contamination[0, :2]
    clean = scene.centres[scene.kind == CLEAN]
    assert not on_junk(again, clean).any()
    angle, offset = scene.carbon
    beyond = (offset + 3) * np.array([np.sin(angle), np.cos(angle)])
    assert on_junk(again, np.array([blob, beyond, clean[0]])).tolist() == [True, True, False]


def test_carbon_and_contamination_are_darker_and_ice_is_uneven():
    sim = simulation(particles=0, carbon=1.0, contamination=0.0, aggregates=0, ice_gradient=0.0, seed=2)
    image, scene, _ = make_micrograph(sim, _views(sim), 0)
    depth = scene.carbon_depth(*np.indices(image.shape))
    assert image[depth > 5].mean() < 0.85 * image[depth < -5].mean()
    uneven = simulation(particles=0, ice_gradient=0.5, **{key: 0 for key in NOTHING_ELSE if key != "ice_gradient"})
    image, _, _ = make_micrograph(uneven, _views(uneven), 0)
    blocks = image[:400, :600].reshape(4, 100, 6, 100).mean(axis=(1, 3))
    assert 0.25 < np.ptp(blocks) / blocks.mean() < 1.2


WORDS = ("simulate micrographs --n 2 --size 300 240 --pixel-size 6 --diameter 130 --particles 12 --snr 1 --views 5 "
         "--aggregates 0.5").split()


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_and_the_threads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, "--out", "a"]) == 0
    said = capsys.readouterr().out
    assert "2 micrographs of 300 × 240 px   6 Å/px" in said
    assert main([*WORDS, "--out", "b", "--threads", "2", "--n", "3"]) == 0
    assert main([*WORDS, "--out", "c", "--seed", "1"]) == 0
    for path in sorted((tmp_path / "a").glob("*/*")):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    first = "micrographs/mic_0001.mrc"
    assert (tmp_path / "a" / first).read_bytes() != (tmp_path / "c" / first).read_bytes()
    listed = list_micrographs("a/micrographs.star")
    assert listed.pixel_sizes == (6.0, 6.0)
    assert listed.read(0).image.shape == (240, 300)
    assert read_micrograph("a/micrographs/mic_0002.mrc").pixel_size == 6.0
    assert 10_000 < float(listed.columns["rlnDefocusU"][0]) < 25_500
    n = len(read_coordinates("a/coordinates/mic_0001.star")) + len(read_coordinates("a/coordinates/mic_0002.star"))
    assert f"{n} particles of 130 Å" in said
    assert np.isfinite(read_coordinates("a/ignore/mic_0001.csv").radius).all()


def test_train_pick_and_extract_run_on_simulated_micrographs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, "--out", "sim", "--n", "6", "--carbon", "0.5", "--size", "340", "300"]) == 0
    names = read_star("sim/micrographs.star")
    jobs = {
        "train": "pick-train\ncoordinates: sim/coordinates\nignore: sim/ignore\ndiameter: 130\nsteps: 60\nholdout: 0.2",
        "picked": "pick\nmodel: train/model.npz\npictures: 2",
        "particles": "extract\ncoordinates: picked/coordinates\nbox_size: 40\ndiameter: 130"}
    for name, lines in jobs.items():
        (tmp_path / f"{name}.yaml").write_text(f"input: sim/micrographs.star\noutput: {name}\njob: {lines}\n")
        assert main(["run", f"{name}.yaml"]) == 0
    capsys.readouterr()
    assert main(["compare", "sim/coordinates", "picked", "--ignore", "sim/ignore", "--radius", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == []
    assert found["auprc"] > 0.75
    assert found["recall"] > 0.75
    assert len(list((tmp_path / "picked" / "pictures").glob("*.png"))) == 2
    assert (tmp_path / "train" / "training.png").exists()
    table = read_particles(tmp_path / "particles" / "particles.star")
    assert table.optics[0].voltage == 300
    known = set(np.round(names["micrographs"]["rlnDefocusU"].astype(float), 1))
    assert {round(value, 1) for value in table.defocus_u.tolist()} <= known


def test_the_defaults_in_the_help_are_those_of_the_simulation():
    parser = cli._parser()
    for name in ("simulate", "micrographs"):
        parser = next(action.choices for action in parser._actions if action.choices)[name]
    told = {action.dest: action.help.split("default ")[1].rstrip(")") for action in parser._actions
            if action.help and "default " in action.help and action.dest != "threads"}
    fields = {field.name: field.default for field in dataclasses.fields(MicrographSimulation)}
    assert {action.dest for action in parser._actions} - {"help", "out", "threads"} == set(fields)
    for name, words in told.items():
        default = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        assert tuple(map(float, words.split())) == default, name
    assert len(told) == 14


@pytest.mark.parametrize(
    ("change", "words"),
    [("--n 0", "n = 0; expected at least one micrograph"),
     ("--particles 900", "expected at most 58, 30 % of the area"),
     ("--diameter 30", "expected at least 8 px, 48 Å"),
     ("--size 40 300", "expected sides of at least two diameters, 43 px"),
     ("--carbon 1.5", "carbon = 1.5; expected a fraction from 0 to 1"),
     ("--snr 0", "snr = 0.0; expected a ratio above 0"),
     ("--out held", "held: this folder already holds simulated micrographs (micrographs.star)")],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "micrographs.star").touch()
    assert main([*WORDS, "--out", "x", *change.split()]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
