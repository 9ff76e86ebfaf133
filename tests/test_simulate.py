"""Simulation: projections against analysis, images against the convention and the CTF, and RELION's opinion."""
import errno
import gzip
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest

from vitrea.engine import simulate
from vitrea.engine.errors import JobError
from vitrea.engine.particles import read_particles
from vitrea.engine.poses import place
from vitrea.engine.simulate import (
    JUNK,
    ParticleSimulation,
    draw_truth,
    make_particles,
    noise_sd,
    render,
    simulate_particles,
    simulated_views,
)
from vitrea.engine.specimen import (
    Blobs,
    DensityMap,
    check_fits,
    euler_matrix,
    make_views,
    random_blobs,
    read_atoms,
    read_map,
    spread_directions,
)
from vitrea.engine.star import read_star
from vitrea.kernels.ctf import ctf

PIXEL_SIZE = 3.0
BOXES = [40, 41]


def some_blobs(sigma=2.0 * PIXEL_SIZE, n=5, seed=0):
    random = np.random.default_rng(seed)
    points = random.uniform(-6 * PIXEL_SIZE, 6 * PIXEL_SIZE, (n, 3))
    return Blobs(points, random.uniform(0.5, 2.0, n), np.full(n, sigma))


def analytic_view(blobs, rot, tilt, box_size):
    """Σ w exp(−|r − p|²/2σ²) / 2πσ² at the pixels, p the points in the frame of the image."""
    x, y, _ = euler_matrix(rot, tilt, 0.0) @ blobs.points.T
    axis = PIXEL_SIZE * (np.arange(box_size) - box_size // 2)
    columns = np.exp(-0.5 * ((axis - x[:, None]) / blobs.sigmas[:, None]) ** 2)
    rows = np.exp(-0.5 * ((axis - y[:, None]) / blobs.sigmas[:, None]) ** 2)
    return np.einsum("n,ny,nx->yx", blobs.weights / (2 * np.pi * blobs.sigmas**2), rows, columns)


def as_map(blobs, n, voxel_size):
    axis = voxel_size * (np.arange(n) - n // 2)
    x, y, z = (np.exp(-0.5 * ((axis - points[:, None]) / blobs.sigmas[:, None]) ** 2) for points in blobs.points.T)
    heights = blobs.weights / (2 * np.pi * blobs.sigmas**2) ** 1.5
    return np.einsum("n,nz,ny,nx->zyx", heights, z, y, x).astype(np.float32)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def simulation(**changed):
    usual = {"n": 40, "views": 3, "box_size": 32, "pixel_size": 4.0, "snr": 0.5, "seed": 7}
    return ParticleSimulation(**usual | changed)


# ---- specimens and views

@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize(("rot", "tilt"), [(0.0, 0.0), (50.0, 0.0), (-20.0, 70.0), (130.0, 160.0)])
def test_a_view_of_blobs_is_their_analytic_projection(box_size, rot, tilt):
    blobs = some_blobs()
    expected = analytic_view(blobs, rot, tilt, box_size)
    np.testing.assert_allclose(make_views(blobs, [(rot, tilt)], box_size, PIXEL_SIZE)[0], expected,
                               atol=1e-4 * expected.max())


@pytest.mark.parametrize("box_size", BOXES)
@pytest.mark.parametrize(("n", "voxel_size"), [(40, 3.0), (45, 2.5), (80, 1.4)])
def test_a_view_of_a_map_is_the_analytic_projection_at_any_voxel_size(tmp_path, box_size, n, voxel_size):
    blobs = some_blobs()
    mrcfile.write(tmp_path / "map.mrc", as_map(blobs, n, voxel_size), voxel_size=voxel_size)
    expected = analytic_view(blobs, 35.0, 60.0, box_size)
    view = make_views(read_map(tmp_path / "map.mrc", PIXEL_SIZE), [(35.0, 60.0)], box_size, PIXEL_SIZE)[0]
    np.testing.assert_allclose(view, expected, atol=2e-3 * expected.max())


def test_a_map_with_permuted_axes_is_the_same_map(tmp_path):
    volume = as_map(some_blobs(), 40, 3.0)
    with mrcfile.new(tmp_path / "permuted.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(volume.transpose(2, 0, 1)))   # stored x, z, y from slow to fast
        mrc.voxel_size = 3.0
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = 1, 3, 2
    permuted = read_map(tmp_path / "permuted.mrc", PIXEL_SIZE).voxels
    assert permuted.shape == volume.shape
    assert correlation(permuted, volume) > 0.999999


def test_views_are_empty_from_nyquist_on():
    point = Blobs(np.zeros((1, 3)), np.ones(1), np.array([0.01]))
    power = np.abs(np.fft.fftshift(np.fft.fft2(make_views(point, [(0.0, 0.0)], 64, 1.0)[0])))
    axis = np.arange(64) - 32
    assert power[np.hypot(axis[:, None], axis) > 33].max() < 0.02 * power[32, 32]


def test_the_specimen_is_fixed_by_its_seed_and_fills_most_of_the_box():
    once, again, other = (random_blobs(64, 4.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once.points, again.points)
    assert not np.allclose(once.points, other.points)
    assert 0.5 < once.extent / (64 * 4.0) < 0.9


def test_views_of_the_specimen_differ_also_up_to_rotation_and_mirror():
    views, _ = simulated_views(simulation(views=6, box_size=40))
    angles = np.arange(0.0, 360.0, 6.0)
    for i in range(6):
        for j in range(i):
            turned = [place(views[j], angle, (0.0, 0.0)) for angle in angles]
            assert max(correlation(views[i], image) for image in turned) < 0.97


@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_directions_are_spread_over_the_sphere(n):
    rot, tilt = np.deg2rad(spread_directions(n, 3)).T
    vectors = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    apart = np.rad2deg(np.arccos(np.clip(vectors @ vectors.T, -1, 1))) + 360.0 * np.eye(n)
    ideal = np.rad2deg(np.sqrt(8.0 * np.pi / (np.sqrt(3.0) * n)))   # of a triangular lattice of n points on the sphere
    assert apart.min() > 0.6 * min(ideal, 180.0)


# ---- particles

@pytest.mark.parametrize("box_size", [32, 33])
def test_an_image_without_ctf_is_the_placed_view(box_size):
    sim = simulation(box_size=box_size, ctf=False)
    views, _ = simulated_views(sim)
    truth = draw_truth(sim, np.arange(6))
    for i, image in enumerate(render(views, truth, sim)):
        expected = place(views[truth.view[i]], truth.psi[i], truth.origin[i])
        np.testing.assert_allclose(image, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("box_size", [64, 63])
def test_the_ctf_multiplies_the_transform_with_its_astigmatism(box_size):
    sim = simulation(box_size=box_size, astigmatism=4000.0, defocus=(6000.0, 9000.0), phase_shift=40.0)
    views = make_views(some_blobs(12.0, seed=2), [(0.0, 0.0)] * 3, box_size, sim.pixel_size)
    truth = draw_truth(sim, np.arange(4))
    frequency = np.fft.fftfreq(box_size, sim.pixel_size)
    ky, kx = np.meshgrid(frequency, frequency, indexing="ij")
    for i, image in enumerate(render(views, truth, sim)):
        contrast = ctf(np.hypot(ky, kx), np.arctan2(ky, kx), defocus_u=truth.defocus_u[i], defocus_v=truth.defocus_v[i],
                       defocus_angle=truth.defocus_angle[i], voltage=300.0, cs=2.7, amplitude_contrast=0.1,
                       phase_shift=40.0)
        placed = place(views[truth.view[i]], truth.psi[i], truth.origin[i])
        expected = np.fft.ifft2(contrast * np.fft.fft2(placed)).real
        assert correlation(image, expected) > 0.999


def test_a_particle_is_the_same_whatever_the_number_of_particles():
    few, many = simulation(n=5, junk=0.4), simulation(n=700, junk=0.4)
    views, _ = simulated_views(few)
    np.testing.assert_array_equal(simulated_views(many)[0], views)
    rows = np.array([2, 3, 4])
    small, large = (make_particles(views, draw_truth(sim, np.arange(sim.n)).take(rows), rows, sim)
                    for sim in (few, many))
    np.testing.assert_array_equal(small, large)
    together = make_particles(views, draw_truth(many, np.arange(700)), np.arange(700), many)[rows]
    np.testing.assert_allclose(together, small, atol=1e-4)


def test_another_seed_is_another_stack():
    one, two = (draw_truth(simulation(seed=seed), np.arange(40)) for seed in (1, 2))
    assert not np.any(one.psi == two.psi)


def test_every_hand_of_particles_shows_every_view_once():
    view = draw_truth(simulation(n=60, views=5), np.arange(60)).view.reshape(12, 5)
    np.testing.assert_array_equal(np.sort(view, axis=1), np.tile(np.arange(5), (12, 1)))
    assert len(np.unique(view, axis=0)) > 6


def test_poses_and_defoci_fill_their_ranges():
    sim = simulation(n=2000, max_shift=3.0, defocus=(10000.0, 25000.0), astigmatism=600.0)
    truth = draw_truth(sim, np.arange(2000))
    assert np.abs(truth.origin).max() == pytest.approx(3.0, abs=0.02)
    assert (truth.psi.min(), truth.psi.max()) == pytest.approx((-180.0, 180.0), abs=1.0)
    mean = 0.5 * (truth.defocus_u + truth.defocus_v)
    assert (mean.min(), mean.max()) == pytest.approx((10000.0, 25000.0), abs=50.0)
    assert (truth.defocus_u - truth.defocus_v).min() >= 0.0
    assert (truth.defocus_u - truth.defocus_v).max() == pytest.approx(600.0, abs=5.0)


@pytest.mark.parametrize("snr", [0.03, 1.0])
def test_snr_is_the_variance_of_the_filtered_signal_over_that_of_the_noise(snr):
    sim = simulation(n=300, snr=snr, views=4)
    views, _ = simulated_views(sim)
    views = views / noise_sd(views, sim)
    truth, rows = draw_truth(sim, np.arange(300)), np.arange(300)
    signal = render(views, truth, sim)
    assert np.var(signal, axis=(1, 2)).mean() == pytest.approx(snr, rel=0.05)
    if snr < 0.1:   # the noise hides the signal's part of the background's sd
        noise = make_particles(views, truth, rows, sim) - signal
        assert np.var(noise) == pytest.approx(1.0, rel=0.02)


def test_particles_are_normalised_as_relion_does(tmp_path):
    simulate_particles(simulation(n=20, snr=2.0), tmp_path)
    images = mrcfile.read(tmp_path / "particles.mrcs")
    axis = np.arange(32) - 16
    background = images[:, np.hypot(axis[:, None], axis) > 12]
    np.testing.assert_allclose(background.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(background.std(axis=1), 1.0, atol=1e-5)
    assert images[:, 12:20, 12:20].mean() > 0.2   # white particles, in spite of the CTF


def test_junk_is_of_three_kinds_in_equal_parts():
    sim = simulation(n=3000, junk=0.3)
    counts = np.bincount(draw_truth(sim, np.arange(3000)).junk, minlength=4)
    assert JUNK == ("none", "noise", "off_centre", "neighbour")
    np.testing.assert_allclose(counts, [2100, 300, 300, 300], atol=60)


def test_junk_images_are_what_they_are_called():
    sim = simulation(n=300, junk=1.0, ctf=False)
    views, _ = simulated_views(sim)
    truth = draw_truth(sim, np.arange(300))
    signal = render(views, truth, sim)
    power = np.square(signal).sum(axis=(1, 2))
    assert not np.any(signal[truth.junk == JUNK.index("noise")])
    distance = np.linalg.norm(truth.origin[truth.junk == JUNK.index("off_centre")], axis=1) / sim.box_size
    assert distance.min() >= 0.3
    assert distance.max() <= 0.5
    assert power[truth.junk == JUNK.index("neighbour")].mean() > 1.2 * np.square(views).sum(axis=(1, 2)).mean()


# ---- files

def test_the_files_of_a_simulation_agree_with_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sim = simulation(n=50, junk=0.3, box_size=33)
    calls = []
    simulate_particles(sim, "stack", progress=lambda done, n: calls.append((done, n)))
    assert calls == [(50, 50)]
    assert sorted(path.name for path in (tmp_path / "stack").iterdir()) == [
        "particles.mrcs", "particles.star", "truth.star", "views.mrcs"]
    particles, truth = (read_star(f"stack/{name}.star") for name in ("particles", "truth"))
    assert particles["optics"]["rlnImagePixelSize"].astype(float) == [4.0]
    assert particles["particles"]["rlnImageName"][11] == "000012@stack/particles.mrcs"
    assert "rlnClassNumber" not in particles["particles"]
    for label, column in particles["particles"].items():
        np.testing.assert_array_equal(column, truth["particles"][label])
    classes, junk = truth["particles"]["rlnClassNumber"].astype(int), truth["particles"]["vitreaJunk"]
    assert set(junk) == set(JUNK)
    np.testing.assert_array_equal(classes == 0, junk != "none")
    assert set(classes) == {0, 1, 2, 3}
    with mrcfile.open("stack/particles.mrcs") as mrc:
        assert mrc.is_image_stack()
        assert mrc.data.shape == (50, 33, 33)
        assert mrc.voxel_size.x == pytest.approx(4.0)
        assert mrcfile.validate("stack/particles.mrcs")


def test_the_truth_file_leads_from_the_particles_back_to_the_views(tmp_path):
    sim = simulation(n=60, snr=50.0, ctf=False, max_shift=2.0)
    simulate_particles(sim, tmp_path)
    truth = read_star(tmp_path / "truth.star")["particles"]
    views = mrcfile.read(tmp_path / "views.mrcs")
    for i, image in enumerate(mrcfile.read(tmp_path / "particles.mrcs")[:20]):
        origin = [float(truth[f"rlnOrigin{axis}Angst"][i]) / sim.pixel_size for axis in "YX"]
        view = views[int(truth["rlnClassNumber"][i]) - 1]
        assert correlation(image, place(view, float(truth["rlnAnglePsi"][i]), origin)) > 0.97


def test_a_failure_leaves_no_half_written_stack(tmp_path):
    def fail(done, n):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        simulate_particles(simulation(), tmp_path, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(simulate.os, "posix_fallocate", full)
    with pytest.raises(JobError, match=r"particles.mrcs: could not be written \(No space left on device\)"):
        simulate_particles(simulation(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_stack_larger_than_a_batch_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "BATCH_PIXELS", 16 * 32 * 32)
    simulate_particles(simulation(), tmp_path)
    assert mrcfile.read(tmp_path / "particles.mrcs").std(axis=(1, 2)).min() > 0.5


# ---- atomic models

PDB = """\
ATOM      1  N   ALA A   1      10.000  20.000  30.000  1.00 10.00           N
ATOM      2  CA  ALA A   1      11.500  20.000  30.000  1.00 10.00           C
ATOM      3  C   ALA A   1      12.000  21.500  30.500  0.50 10.00           C
HETATM    4  O   HOH A   2      90.000  90.000  90.000  1.00 10.00           O
END
"""


@pytest.mark.parametrize("packed", [False, True])
def test_atoms_are_read_centred_and_weighted_without_waters(tmp_path, packed):
    path = tmp_path / ("model.pdb.gz" if packed else "model.pdb")
    path.write_bytes(gzip.compress(PDB.encode()) if packed else PDB.encode())
    atoms = read_atoms(path)
    np.testing.assert_array_equal(atoms.weights, [7.0, 6.0, 3.0])
    np.testing.assert_allclose(atoms.weights @ atoms.points, 0.0, atol=1e-9)
    np.testing.assert_allclose(atoms.points[1] - atoms.points[0], [1.5, 0.0, 0.0], atol=1e-6)


def test_a_model_gives_views_whose_sum_is_its_atomic_numbers(tmp_path):
    (tmp_path / "model.pdb").write_text(PDB)
    views = make_views(read_atoms(tmp_path / "model.pdb"), [(10.0, 20.0)], 32, 1.0)
    assert views.sum() == pytest.approx(16.0, rel=1e-3)


# ---- mistakes

@pytest.mark.parametrize(("changed", "words"), [
    ({"n": 0}, "simulate: found n = 0; expected at least one particle; change n"),
    ({"views": 0}, "simulate: found views = 0; expected at least one view; change views"),
    ({"box_size": 8}, "simulate: found box = 8; expected at least 16 px; change box"),
    ({"pixel_size": -1.0}, "simulate: found pixel_size = -1.0; expected a number of Å above 0; change pixel_size"),
    ({"snr": 0.0}, "simulate: found snr = 0.0; expected a ratio above 0; change snr"),
    ({"seed": -1}, "simulate: found seed = -1; expected a whole number from 0; change seed"),
    ({"max_shift": 9.0}, "simulate: found max_shift = 9.0; expected 0 to a quarter of the box; change max_shift"),
    ({"junk": 1.5}, "simulate: found junk = 1.5; expected a fraction from 0 to 1; change junk"),
    ({"defocus": (2.0, 1.0)}, "simulate: found defocus = (2.0, 1.0); expected the lesser value first; change defocus"),
    ({"map_path": "a", "model_path": "b"},
     "simulate: found map and model = both; expected one of them at most; change map and model"),
])
def test_senseless_values_are_refused_in_a_sentence(changed, words):
    with pytest.raises(JobError) as error:
        simulation(**changed)
    assert str(error.value) == words


def test_a_missing_map_and_a_missing_model_are_named(tmp_path):
    with pytest.raises(JobError, match=r"no.mrc: could not be read as an MRC map \(.*\); expected a 3D density"):
        simulate_particles(simulation(map_path=tmp_path / "no.mrc"), tmp_path)
    with pytest.raises(JobError, match=r"no.pdb: could not be read as an atomic model \(.*\); expected .pdb or .cif"):
        simulate_particles(simulation(model_path=tmp_path / "no.pdb"), tmp_path)


@pytest.mark.parametrize("name", ["text.pdb", "text.cif", "text.pdb.gz"])
def test_a_file_that_is_no_model_is_refused(tmp_path, name):
    (tmp_path / name).write_text("these are not atoms\n")
    with pytest.raises(JobError, match=r"could not be read as an atomic model|found no atoms; expected a .pdb or .cif"):
        read_atoms(tmp_path / name)


def written_map(path, voxels, voxel_size):
    mrcfile.write(path, voxels.astype(np.float32), voxel_size=voxel_size)
    return path


@pytest.mark.parametrize(("voxels", "voxel_size", "words"), [
    (np.ones((8, 8)), 2.0, r"found an array of shape \(8, 8\) and type float32; expected a real 3D density"),
    (np.ones((8, 8, 8)), 0.0, r"found a voxel size of 0 × 0 × 0 Å in the header; expected cubic voxels"),
    (np.ones((8, 8, 8)), (1.0, 1.0, 2.0), r"found a voxel size of 1 × 1 × 2 Å in the header; expected cubic voxels"),
    (np.ones((8, 8, 8)), 2.0, r"found the same value in all voxels; expected a density map"),
])
def test_a_file_that_is_no_usable_map_is_refused(tmp_path, voxels, voxel_size, words):
    with pytest.raises(JobError, match=words):
        read_map(written_map(tmp_path / "map.mrc", voxels, voxel_size), 2.0)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_a_map_that_is_not_finite_is_refused(tmp_path):
    voxels = np.ones((8, 8, 8))
    voxels[3, 3, 3] = np.nan
    with pytest.raises(JobError, match="found voxels that are not finite; expected a density map; repair the map"):
        read_map(written_map(tmp_path / "map.mrc", voxels, 2.0), 2.0)


def test_a_specimen_larger_than_the_box_is_refused():
    views = make_views(some_blobs(), [(0.0, 0.0)], 12, 2.0)
    with pytest.raises(JobError, match=r"big.mrc: found \d+ % of a view's power outside a box of 12 px at 2 Å/px; "
                                       "expected a specimen that fits; take a larger --box or --pixel-size"):
        check_fits(views, 2.0, "big.mrc")


def test_an_output_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"file/stack: could not be made \(Not a directory\); expected a writable place"):
        simulate_particles(simulation(), tmp_path / "file" / "stack")


# ---- RELION's opinion, where it is installed

def relion(program, *arguments, folder):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([program, *map(str, arguments)], cwd=folder, check=True, capture_output=True, timeout=60)


def test_relion_brings_simulated_particles_back_to_their_views(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate_particles(simulation(n=90, snr=1.0, ctf=False), ".")
    relion("relion_stack_create", "--i", "truth.star", "--o", "aligned", "--apply_transformation", folder=tmp_path)
    aligned = mrcfile.read("aligned.mrcs")
    classes = read_star("truth.star")["particles"]["rlnClassNumber"].astype(int)
    for number, view in enumerate(mrcfile.read("views.mrcs"), 1):
        assert correlation(aligned[classes == number].mean(axis=0), view) > 0.97


def test_relion_projects_the_same_astigmatic_particles_from_the_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blobs = some_blobs(sigma=5.0)
    sim = simulation(n=12, box_size=48, pixel_size=PIXEL_SIZE, snr=1e4, astigmatism=4000.0,
                     defocus=(8000.0, 12000.0), map_path="map.mrc")
    mrcfile.write("map.mrc", as_map(blobs, 48, PIXEL_SIZE), voxel_size=PIXEL_SIZE)
    simulate_particles(sim, ".")
    relion("relion_project", "--i", "map.mrc", "--o", "projected", "--ang", "truth.star", "--ctf", "--angpix",
           PIXEL_SIZE, folder=tmp_path)
    for ours, theirs in zip(mrcfile.read("particles.mrcs"), mrcfile.read("projected.mrcs"), strict=True):
        assert correlation(ours, theirs) > 0.98


def test_a_density_map_object_is_projected_as_it_is():
    blobs = some_blobs()
    view = make_views(DensityMap(as_map(blobs, 40, 3.0), 3.0), [(0.0, 0.0)], 40, 3.0)[0]
    assert correlation(view, analytic_view(blobs, 0.0, 0.0, 40)) > 0.99999


def test_stacks_and_threads_do_not_change_the_particles(tmp_path, monkeypatch):
    """Batches are cut small, so that several threads find work and the images of a view lie in several of them."""
    monkeypatch.setattr(simulate, "BATCH_PIXELS", 3 * 32**2)
    for name, stack_size, threads in (("one", None, 1), ("many", 15, 3)):
        simulate_particles(simulation(stack_size=stack_size), tmp_path / name, threads=threads)
    many = [mrcfile.read(tmp_path / "many" / f"particles_{i:04d}.mrcs") for i in (1, 2, 3)]
    assert [len(images) for images in many] == [15, 15, 10]
    # the interpolation of a view's images, done together, rounds differently by who is among them
    np.testing.assert_allclose(np.concatenate(many), mrcfile.read(tmp_path / "one" / "particles.mrcs"), atol=1e-5)
    table = read_particles(tmp_path / "many" / "particles.star")
    np.testing.assert_array_equal(table.stack_index, np.repeat([0, 1, 2], [15, 15, 10]))
    np.testing.assert_array_equal(table.section, np.r_[:15, :15, :10])


def test_motion_turns_an_arm_and_leaves_the_rest(tmp_path):
    """Views of a motion differ little from their neighbours, more from afar, and all are seen from one direction."""
    sim = ParticleSimulation(n=10, views=7, box_size=48, pixel_size=4.0, snr=1.0, seed=2, motion=90.0)
    views, directions = simulated_views(sim)
    np.testing.assert_array_equal(directions, np.broadcast_to(directions[0], directions.shape))
    apart = np.array([[np.sum((a - b) ** 2) for b in views] for a in views])
    assert np.all(np.diff(apart[0][:5]) > 0)
    assert apart[0, 1] < 0.5 * apart[0, 6]
    still = np.var(views, axis=0) < 0.01 * np.var(views, axis=0).max()
    assert np.sum(views[0][still] ** 2) > 0.2 * np.sum(views[0] ** 2), "two thirds of the specimen do not move"


def test_motion_is_of_the_built_in_specimen(tmp_path):
    with pytest.raises(JobError, match="found motion = a map or model; expected the built-in specimen"):
        ParticleSimulation(n=1, views=2, box_size=32, pixel_size=4.0, snr=1.0, motion=30.0, map_path=tmp_path / "x.mrc")
