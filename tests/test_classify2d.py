"""classify2d from the job file to the run folder: the same answer however it is computed, and the right one."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tests.running import write_job
from vitrea.engine.compare import compare
from vitrea.engine.log import read_records
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import read_star, write_star
from vitrea.jobs import cli
from vitrea.kernels.ctf import ctf

SMALL = {"n_classes": 4, "particle_diameter": 140, "max_iterations": 6}


@pytest.fixture
def classify(run_job):
    """`classify(stack, **keys)`: run a job in this process on one rank; the run folder."""
    return lambda particles, **keys: run_job("classify2d", input=particles, **(SMALL | keys))


def poses(folder):
    """{label: text[n]} of the columns that the run found."""
    particles = read_star(folder / "run_data.star")["particles"]
    return {label: column for label, column in particles.items() if label != "rlnImageName"}


# ---- the same answer

MIXED = SMALL | {"n_classes": 6, "algorithm": "minibatch", "minibatch_size": 100, "minibatch_iterations": 4,
                 "max_iterations": 4}


@pytest.fixture(scope="module")
def alone(stacks, tmp_path_factory):
    """The mixed stack classified on one rank and one thread: the folder that holds its `run`."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", str(mixed_job(folder, stacks))]) == 0
    return folder


def mixed_job(folder, stacks):
    return write_job(folder / "job.yaml", "classify2d", input=stacks / "mixed.star", output="run", **MIXED)


@pytest.mark.parametrize(("ranks", "threads"), [(0, 2), (2, 1), (4, 1), (2, 2)])
def test_ranks_and_threads_do_not_change_a_bit(alone, stacks, launch, tmp_path, ranks, threads):
    """Two optics groups of different box (one odd) and pixel, astigmatism, mini-batches, norm correction."""
    ended = launch(ranks, "-m", "vitrea.jobs", "run", mixed_job(tmp_path, stacks), "--set", f"threads={threads}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    expected, found = alone / "run", tmp_path / "run"
    assert (found / "run_data.star").read_bytes() == (expected / "run_data.star").read_bytes()
    assert (found / "run_model.star").read_bytes() == (expected / "run_model.star").read_bytes()
    np.testing.assert_allclose(mrcfile.read(found / "run_classes.mrcs"), mrcfile.read(expected / "run_classes.mrcs"),
                               rtol=0, atol=1e-6)


def test_the_reference_of_that_test_is_worth_comparing_with(alone, stacks):
    """Norm factors differ, both stages ran, both groups are there, and the classes are the simulated views."""
    iterations = [record for record in read_records(alone / "run" / "record.jsonl") if record["kind"] == "iteration"]
    assert [(record["stage"], record["iteration"]) for record in iterations] == [
        *(("minibatch", i) for i in range(1, 5)), ("full", 1)]
    blocks = read_star(alone / "run" / "run_data.star")
    assert blocks["optics"]["rlnImageSize"].astype(int).tolist() == [36, 45]
    norm = blocks["particles"]["rlnNormCorrection"].astype(float)
    assert norm.std() > 0.001
    assert norm.mean() == pytest.approx(1.0, abs=0.05)
    found = compare(stacks / "mixed-truth.star", alone / "run" / "run_data.star")
    assert found.purity > 0.97


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides(classify, stacks, seed):
    first, again = (classify(stacks / "plain" / "particles.star", seed=seed, max_iterations=3) for _ in range(2))
    assert (first / "run_data.star").read_bytes() == (again / "run_data.star").read_bytes()
    if seed:
        other = classify(stacks / "plain" / "particles.star", seed=0, max_iterations=3)
        assert (first / "run_data.star").read_bytes() != (other / "run_data.star").read_bytes()


# ---- the right answer

def test_finds_the_views_and_the_poses(classify, stacks):
    folder = classify(stacks / "plain" / "particles.star", max_iterations=8)
    found = compare(stacks / "plain" / "truth.star", folder / "run_data.star")
    assert found.purity > 0.99
    assert found.views_found == 3
    assert found.angle_error_median < 1.5
    assert found.shift_error_median_px < 0.25
    for name in ("classes.png", "convergence.png", "run_model.star", "run.out", "checkpoint.h5", "job.yaml"):
        assert (folder / name).stat().st_size > 100


def test_one_class_holds_every_particle(classify, stacks):
    folder = classify(stacks / "plain" / "particles.star", n_classes=1, max_iterations=3)
    assert set(poses(folder)["rlnClassNumber"]) == {"1"}
    assert len(mrcfile.read(folder / "run_classes.mrcs").reshape(-1, 32, 32)) == 1


def test_ranks_without_particles_take_part(launch, stacks, tmp_path):
    """40 particles are one block: three of four ranks have nothing, and take part in every sum."""
    blocks = read_star(stacks / "plain" / "particles.star")
    write_star(tmp_path / "few.star", blocks | {"particles": {k: v[:40] for k, v in blocks["particles"].items()}})
    keys = SMALL | {"input": "few.star", "output": "run", "n_classes": 2, "max_iterations": 2}
    job = write_job(tmp_path / "job.yaml", "classify2d", **keys)
    ended = launch(4, "-m", "vitrea.jobs", "run", job)
    assert ended.returncode == 0, ended.stderr
    assert len(poses(tmp_path / "run")["rlnClassNumber"]) == 40


def test_origins_of_the_input_are_where_the_search_begins_and_part_of_the_result(classify, stacks, tmp_path):
    """Shifts of up to 7 px with a range of 2 px: found only because the origins given are within 1 px of the truth."""
    simulate_particles(ParticleSimulation(n=240, views=3, box_size=48, pixel_size=5.0, snr=0.3, seed=4, max_shift=7.0),
                       tmp_path / "far")
    blocks, truth = (read_star(tmp_path / "far" / f"{name}.star") for name in ("particles", "truth"))
    random = np.random.Generator(np.random.Philox(1))
    for axis in "XY":
        true = truth["particles"][f"rlnOrigin{axis}Angst"].astype(float)
        blocks["particles"][f"rlnOrigin{axis}Angst"] = (true + random.uniform(-5.0, 5.0, len(true))).astype(str)
    write_star(tmp_path / "given.star", blocks)
    folder = classify(tmp_path / "given.star", offset_range=2, offset_step=1, max_iterations=8)
    found = compare(tmp_path / "far" / "truth.star", folder / "run_data.star")
    assert found.purity > 0.97
    assert found.shift_error_median_px < 0.3


def test_inverted_particles_give_the_same_poses(classify, stacks, tmp_path):
    flipped = with_images(stacks / "plain" / "particles.star", tmp_path, lambda images, _: -images)
    plain = classify(stacks / "plain" / "particles.star", max_iterations=3)
    inverted = classify(flipped, invert_contrast="true", max_iterations=3)
    for label, column in poses(plain).items():
        np.testing.assert_array_equal(poses(inverted)[label], column, err_msg=label)


@pytest.mark.parametrize("choice", ["phase_flipped", "intact_first_peak", "none"])
def test_each_treatment_of_the_ctf_finds_the_views_of_particles_that_need_it(classify, stacks, tmp_path, choice):
    change = {"phase_flipped": flip_phases, "intact_first_peak": lambda images, _: images, "none": flip_phases}[choice]
    particles = with_images(stacks / "plain" / "particles.star", tmp_path, change)
    found = compare_by_row(stacks / "plain" / "truth.star", classify(particles, ctf=choice), tmp_path)
    assert found.purity > 0.97


def test_flipped_phases_taken_for_plain_ones_are_noticed(classify, stacks, tmp_path):
    """The test above would fail if `phase_flipped` were the same as `full`: the likelihood is clearly lower."""
    particles = with_images(stacks / "plain" / "particles.star", tmp_path, flip_phases)
    right, wrong = (classify(particles, ctf=choice) for choice in ("phase_flipped", "full"))
    likelihood = [read_records(folder / "record.jsonl")[-2]["log_likelihood"] for folder in (right, wrong)]
    assert likelihood[0] > likelihood[1] + 100


def test_particles_are_normalised_on_request(classify, stacks, tmp_path):
    """Grey values of a camera: a scale and a level of each particle's own, as far as float32 tells the same result."""
    def as_recorded(images, _):
        random = np.random.Generator(np.random.Philox(2))
        scale, level = random.uniform(20, 60, (2, len(images), 1, 1))
        return scale * images + level

    particles = with_images(stacks / "plain" / "particles.star", tmp_path, as_recorded)
    found = compare_by_row(stacks / "plain" / "truth.star", classify(particles, normalise="always"), tmp_path)
    assert found.purity > 0.99


def with_images(star, folder, change):
    """A copy of a STAR file and its one stack, the images being `change(images float64[n, L, L], particles)`."""
    blocks = read_star(star)
    names = blocks["particles"]["rlnImageName"]
    stack = Path(names[0].partition("@")[2])
    with mrcfile.open(stack) as mrc:
        images, pixel_size = mrc.data.astype(np.float64), float(mrc.voxel_size.x)
    write_stack(folder / "changed.mrcs", change(images, blocks["particles"]), pixel_size)
    names = np.array([f"{name.partition('@')[0]}@changed.mrcs" for name in names])
    write_star(folder / "changed.star", blocks | {"particles": blocks["particles"] | {"rlnImageName": names}})
    return folder / "changed.star"


def compare_by_row(truth, folder, place):
    """`compare` after the names of the changed stack have been put back."""
    blocks = read_star(folder / "run_data.star")
    blocks["particles"]["rlnImageName"] = read_star(truth)["particles"]["rlnImageName"]
    write_star(place / "named.star", blocks)
    return compare(truth, place / "named.star")


def flip_phases(images, particles):
    """Multiply the transforms by the sign of the CTF (300 kV, 2.7 mm, 0.1, 6 Å/px as simulated)."""
    size = images.shape[1]
    y, x = np.meshgrid(np.fft.fftfreq(size, 6.0), np.fft.fftfreq(size, 6.0), indexing="ij")
    column = {name: particles[label].astype(float)[:, None, None] for name, label in (
        ("defocus_u", "rlnDefocusU"), ("defocus_v", "rlnDefocusV"), ("defocus_angle", "rlnDefocusAngle"))}
    transfer = ctf(np.hypot(y, x), np.arctan2(y, x), voltage=300.0, cs=2.7, amplitude_contrast=0.1, **column)
    return np.fft.ifft2(np.fft.fft2(images) * np.sign(transfer)).real
