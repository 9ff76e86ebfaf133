"""cluster from the job file to the run folder: the same answer however it is computed, the right one, and mistakes."""
import dataclasses
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tests.running import RESUME, RUN, iterations, same_files, wait_until, write_job
from vitrea.engine import latent
from vitrea.engine.annealing import begin, begin_settled, fit
from vitrea.engine.cluster import make_lattice, schedule
from vitrea.engine.cluster_plan import plan_cluster
from vitrea.engine.comm import alone as own_communicator
from vitrea.engine.compare import compare
from vitrea.engine.log import read_records
from vitrea.engine.manifold import EmbeddedParticles, Expectation, Layout, Settings, assign, cut, hold_out
from vitrea.engine.options import ClusterOptions
from vitrea.engine.particles import read_particles
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.star import read_star, write_star
from vitrea.engine.starts import analyse, from_components, from_references
from vitrea.engine.trials import MERGED, WIDE, Trials
from vitrea.jobs import cli
from vitrea.kernels.embedding import HalfPlane, shell_power

SMALL = {"n_classes": 5, "particle_diameter": 140, "max_resolution": 14, "cooling": 0.6, "starts": 1,
         "max_iterations": 60}
RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs", "latent_map.png")


@pytest.fixture
def cluster(run_job):
    """`cluster(star, **keys)`: run a job in this process on one rank; the run folder."""
    return lambda particles, **keys: run_job("cluster", input=particles, **(SMALL | keys))


def particles_of(folder):
    return read_star(folder / "run_data.star")["particles"]


# ---- the same answer

@pytest.fixture(scope="module")
def alone(stacks, tmp_path_factory):
    """The mixed stack clustered on one rank and one thread: the folder that holds its `run`."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mixed_job(folder, stacks)
        assert cli.main(["run", "job.yaml"]) == 0
    return folder / "run"


def mixed_job(folder, stacks):
    keys = SMALL | {"max_resolution": 16, "starts": 2, "max_iterations": 25}
    return write_job(folder / "job.yaml", "cluster", input=stacks / "mixed-truth.star", output="run", **keys)


@pytest.mark.parametrize(("ranks", "threads", "storage"), [(2, 2, "scratch"), (4, 1, "memory")])
def test_ranks_threads_and_storage_do_not_change_a_bit(alone, stacks, launch, tmp_path, ranks, threads, storage):
    """Two optics groups of different box (one odd) and pixel, astigmatism in angular bins, held-out particles, junk."""
    mixed_job(tmp_path, stacks)
    ended = launch(ranks, *RUN, "--set", f"threads={threads}", "--set", f"storage={storage}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    same_files(tmp_path / "run", alone, RESULT_FILES)


SLOW = """\
import sys, time
from vitrea.engine import manifold, posed
from vitrea.engine.starts import analyse, from_components
from vitrea.jobs import cli
from vitrea.kernels.embedding import HalfPlane, shell_power
owner, name = {"reading": (posed._Loader, "load"), "iterating": (manifold, "expect")}[sys.argv[1]]
fast = getattr(owner, name)

def slow(*arguments, **named):
    time.sleep(0.1)
    return fast(*arguments, **named)

setattr(owner, name, slow)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.flaky(reruns=1)   # on a loaded machine a signal may come before its handler, or after the end
def test_a_run_that_was_ended_goes_on_to_the_same_result(begin, launch, alone, stacks, tmp_path):
    """On two ranks by SIGTERM in the first trial and by kill −9 in a later one, and finished on one."""
    mixed_job(tmp_path, stacks)
    (tmp_path / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    for command, number in ((RUN[2:], signal.SIGTERM), (RESUME[2:], signal.SIGKILL)):
        process = begin(2, "slow.py", "iterating", *command)
        wait_until(lambda at=2 if number == signal.SIGTERM else 28: iterations(run) >= at, process)
        os.kill(process.pid, number)
        told, _ = process.communicate(timeout=120)
        if number == signal.SIGTERM:
            assert process.returncode == 0, told
            assert "go on with 'vitrea resume run'" in told
    assert not (run / "run_data.star").exists()
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"resumed after it (2[89]|3\d) of \d\d", ended.stdout)
    same_files(run, alone, RESULT_FILES)


def test_a_signal_while_particles_are_read(begin, launch, alone, stacks, tmp_path):
    mixed_job(tmp_path, stacks)
    (tmp_path / "slow.py").write_text(SLOW)
    process = begin(2, "slow.py", "reading", *RUN[2:])
    wait_until(lambda: (tmp_path / "run" / "record.jsonl").exists()
               and read_records(tmp_path / "run" / "record.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "stopped before the first iteration   SIGTERM" in told
    ended = launch(0, *RESUME)
    assert ended.returncode == 0, ended.stderr
    same_files(tmp_path / "run", alone, RESULT_FILES)


# ---- the right answer

def test_finds_the_views(cluster, stacks):
    folder = cluster(stacks / "plain" / "truth.star")
    found = compare(stacks / "plain" / "truth.star", folder / "run_data.star")
    assert found.purity > 0.98
    assert found.views_found == 3
    for name in (*RESULT_FILES, "classes.png", "convergence.png", "run.out", "checkpoint.h5", "job.yaml"):
        assert (folder / name).stat().st_size > 100


def test_the_files_agree_with_each_other(cluster, stacks):
    """Class averages: as many as classes, in grey values like the views' own; sizes, priors and columns fit."""
    folder = cluster(stacks / "plain" / "truth.star", n_classes=3)
    averages = mrcfile.read(folder / "run_classes.mrcs")
    assert averages.shape == (4, 32, 32)   # three, and the outliers'
    blocks, particles = read_star(folder / "run_model.star"), particles_of(folder)
    distribution = blocks["model_classes"]["rlnClassDistribution"].astype(float)
    assert distribution.sum() == pytest.approx(1.0, abs=1e-4)
    counts = np.bincount(particles["rlnClassNumber"].astype(int) - 1, minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), distribution, atol=0.06)
    coordinate = particles["vitreaLatentCoordinate1"].astype(float)
    own = particles["rlnClassNumber"].astype(int)
    sure = (particles["vitreaClassEntropy"].astype(float) < 0.01) & (own <= 3)
    np.testing.assert_allclose(coordinate[sure], own[sure], atol=0.01)
    assert sure.mean() > 0.9
    assert set(particles["rlnAnglePsi"]) == set(read_star(stacks / "plain" / "truth.star")["particles"]["rlnAnglePsi"])
    views = mrcfile.read(stacks / "plain" / "views.mrcs")
    best = [max(np.corrcoef(average.ravel(), view.ravel())[0, 1] for view in views)
            for average, count in zip(averages, counts) if count > 40]
    assert min(best) > 0.85
    assert float(blocks["model_class_1"]["rlnFourierShellCorrelation"][2]) > 0.5


def test_a_fit_of_amplitudes(cluster, stacks):
    """A class average is in the grey values of its particles: it has the views' amplitude, less what is regularised."""
    folder = cluster(stacks / "plain" / "truth.star", n_classes=3, outliers="false")
    averages, views = (mrcfile.read(path) for path in (folder / "run_classes.mrcs", stacks / "plain" / "views.mrcs"))
    assert len(averages) == 3
    for average in averages:
        view = max(views, key=lambda view, a=average: np.corrcoef(a.ravel(), view.ravel())[0, 1])
        view = view - view.mean()
        assert np.sum(average * view) / np.sum(view * view) == pytest.approx(0.9, abs=0.2)


@pytest.mark.parametrize(("latent", "n_classes", "axes"), [
    ("closed_chain", 5, 1), ("plane", 6, 2), ("volume", 8, 3), ("none", 4, 1)])
def test_every_latent_grid_finds_the_views(cluster, stacks, latent, n_classes, axes):
    folder = cluster(stacks / "plain" / "truth.star", latent=latent, n_classes=n_classes)
    assert compare(stacks / "plain" / "truth.star", folder / "run_data.star").purity > 0.97
    coordinates = [label for label in particles_of(folder) if label.startswith("vitreaLatentCoordinate")]
    assert len(coordinates) == axes
    assert (folder / "latent_map.png").exists()


def test_held_out_particles_choose_the_number_of_classes(cluster, stacks):
    folder = cluster(stacks / "plain" / "truth.star", n_classes="auto", outliers="false", starts=2)
    told = (folder / "run.out").read_text()
    assert re.findall(r"(\d+) classes, start (\d)", told)[-1] == ("3", "2")
    assert "3 classes, merged: no two of them are one" in told
    assert len(mrcfile.read(folder / "run_classes.mrcs")) == 3
    assert compare(stacks / "plain" / "truth.star", folder / "run_data.star").purity > 0.98


def test_of_several_starts_the_best_is_kept_and_what_was_tried_is_remembered():
    trials = Trials()
    for judgement in (-3.0, -1.0, -0.5, -2.0):
        trial = trials.next(7, 3, 3, 100, True)
        trials = Trials.from_arrays(trials.after(*trial, cooled(judgement)).arrays())
    assert (trials.sizes, trials.starts) == ((7, 7, 11, 7), (0, 1, WIDE, MERGED))
    assert trials.best.best_held_out == -1.0, "classes that are only there to be merged are not kept"
    assert trials.next(7, 3, 3, 100, True) is None
    assert Trials().next(7, 1, 3, 100, True) is None
    trials = Trials()
    for judgement in (-3.0, -1.0, -2.0):
        trials = trials.after(*trials.next(7, 3, 3, 100, False), cooled(judgement))
    assert (trials.starts, trials.next(7, 3, 3, 100, False)) == ((0, 1, 2), None)


def test_classes_to_be_merged_are_remembered_until_they_are():
    trials = Trials().after(7, 0, cooled(-1.0))
    trials = Trials.from_arrays(trials.after(11, WIDE, cooled(-0.5)).arrays())
    assert trials.wide.best_held_out == -0.5
    assert trials.best.best_held_out == -1.0
    trials = Trials.from_arrays(trials.after(7, MERGED, None).arrays())
    assert (trials.wide, trials.judged[-1], trials.best.best_held_out) == (None, -np.inf, -1.0)


def test_a_number_that_is_to_be_found_is_tried_with_other_starts_and_merged():
    trials = Trials()
    while (trial := trials.next(None, 2, 3, 100, True)) is not None:
        size = trial[0] or 9
        trials = trials.after(size, trial[1], cooled(-abs(size - 10.0) - max(trial[1], 0)))
    assert (trials.sizes[-3:], trials.starts[-2:]) == ((10, 10, 9), (1, MERGED))
    assert trials.sizes[trials.starts.index(1)] == 10
    assert trials.best.best_held_out == 0.0


def test_how_many_trials_are_left_is_known_or_guessed():
    trials, left = Trials(), []
    while (trial := trials.next(7, 4, 3, 100, True)) is not None:
        left.append(trials.left(7, 4, True))
        trials = trials.after(*trial, cooled(-1.0))
    assert left == [4, 3, 2, 1, 0]
    assert Trials().left(7, 1, True) == 0
    assert 8 < Trials().left(None, 4, True) < 16


def cooled(judgement):
    """A State at the end of its cooling."""
    state = begin_settled(from_references(latent.free(3), Layout(np.arange(4), np.arange(4)), np.eye(3, 4),
                                          np.ones(4)))
    return dataclasses.replace(state, best_held_out=judgement)


@pytest.mark.parametrize("seed", [1, 2])
def test_many_unrelated_classes_appear_although_their_mean_is_empty(seed):
    """Sixteen images that cancel in the mean, on a chain of sixteen. Were the evidence alone to find the prior while
    cooling, nodes that are alike would stay so for ever."""
    random, plane = np.random.default_rng(seed), HalfPlane(33, 10)
    y = random.normal(size=(16, plane.n_components)) * 6.0 / np.sqrt(plane.n_components)
    labels = random.integers(0, 16, 2400)
    t = (y - y.mean(axis=0))[labels] + random.normal(size=(2400, plane.n_components))
    rows, starting = cut(2400, rank=0, size=1, block=200)
    particles = EmbeddedParticles(t.astype(np.float32), np.ones((2400, plane.n_groups), np.float32),
                                  shell_power(t, plane.group, plane.shell), rows, starting, 2400,
                                  Layout(plane.group, plane.shell), hold_out(rows, 0.1, 0))
    options = ClusterOptions(input=Path("x"), output=Path("y"), n_classes=16, particle_diameter=1.0)
    lattice, comm = make_lattice(options), own_communicator()
    components, beta = analyse(particles, 4, comm=comm)
    state = begin(from_components(lattice, particles.layout, components, beta), float(components.eigenvalues[0]))
    state = fit(particles, state, Settings(), schedule(options, 2400), comm=comm)
    expectation = Expectation(particles, state.manifold)
    found = np.concatenate([assign(expectation, block).class_number for block in particles.blocks])
    assert sum(np.bincount(labels[found == k]).max() for k in np.unique(found)) / 2400 > 0.9


def test_astigmatism_that_is_not_turned_with_the_particle_would_be_noticed(cluster, tmp_path):
    """At strong astigmatism the held-out likelihood is clearly better with the defocus angles as they are."""
    simulate_particles(ParticleSimulation(n=300, views=2, box_size=48, pixel_size=4.0, snr=0.3, seed=3,
                                          astigmatism=6000.0, defocus=(6000.0, 9000.0)), tmp_path / "astigmatic")
    blocks = read_star(tmp_path / "astigmatic" / "truth.star")
    turned = blocks["particles"]["rlnDefocusAngle"].astype(float) - blocks["particles"]["rlnAnglePsi"].astype(float)
    write_star(tmp_path / "wrong.star", blocks | {"particles": blocks["particles"] | {
        "rlnDefocusAngle": turned.astype(str)}})
    judged = []
    for star in (tmp_path / "astigmatic" / "truth.star", tmp_path / "wrong.star"):
        folder = cluster(star, particle_diameter=150, max_resolution=9, n_classes=3)
        records = read_records(folder / "record.jsonl")
        judged.append(max(record["log_likelihood"] for record in records if record["kind"] == "iteration"))
    assert judged[0] > judged[1] + 1.0


# ---- what is said beforehand

def test_what_is_said_before_the_start_is_what_a_run_takes(stacks, launch, tmp_path):
    """Of the second run: the first one after a change of the kernels compiles them, which takes more."""
    for folder in ("first", "second"):
        keys = SMALL | {"n_classes": 40, "input": stacks / "mixed-truth.star", "output": folder, "max_iterations": 12}
        write_job(tmp_path / "job.yaml", "cluster", **keys)
        assert launch(0, *RUN).returncode == 0
    records = read_records(tmp_path / "second" / "record.jsonl")
    said = next(record["memory_per_rank"] for record in records if record["kind"] == "start")
    taken = next(record["memory"] for record in records if record["kind"] == "done")
    assert taken == pytest.approx(said, rel=0.2)


def test_a_particle_more_costs_what_is_kept_of_it(stacks):
    table = read_particles(stacks / "plain" / "truth.star")
    options = ClusterOptions(input=table.path, output=Path("run"), n_classes=5, particle_diameter=140.0,
                             max_resolution=14.0)
    twice = table.take(np.tile(np.arange(len(table)), 20))
    planned = plan_cluster(options, twice, 1)
    grown = planned.memory_per_rank_bytes - plan_cluster(options, twice.take(np.arange(len(table))), 1
                                                         ).memory_per_rank_bytes
    assert grown > 19 * len(table) * planned.components * 4
    assert grown < 19 * len(table) * (planned.components * 4 * 1.5 + 2500)


def test_in_scratch_memory_does_not_grow_with_the_components(stacks):
    """What a memory limit forbids is kept in scratch: of a particle more, only what is not its components is held."""
    table = read_particles(stacks / "plain" / "truth.star")
    options = ClusterOptions(input=table.path, output=Path("run"), n_classes=5, particle_diameter=140.0,
                             max_resolution=14.0)
    twice = table.take(np.tile(np.arange(len(table)), 20))
    planned = {place: plan_cluster(replace(options, storage=place), twice, 1) for place in ("memory", "scratch")}
    bytes_of_components = len(twice) * planned["memory"].components * 4
    assert planned["scratch"].scratch_per_rank_bytes == bytes_of_components
    assert planned["memory"].memory_per_rank_bytes - planned["scratch"].memory_per_rank_bytes == pytest.approx(
        bytes_of_components, abs=2)
    between = 0.5e-9 * sum(plan.memory_per_rank_bytes for plan in planned.values())
    assert plan_cluster(replace(options, memory_limit=between), twice, 1).storage == "scratch"
    assert plan_cluster(options, twice, 1, room=1e9 * between).storage == "scratch"
    assert plan_cluster(options, twice, 1).storage == "memory"


def test_check_and_watch_know_the_job(cluster, stacks, capsys, tmp_path):
    job = write_job(tmp_path / "check.yaml", "cluster", input=stacks / "plain" / "truth.star",
                    output=tmp_path / "other", **SMALL)
    assert cli.main(["check", str(job)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"components  \d+ of each particle, to 14\.8 Å", told)
    assert re.search(r"memory      0\.\d+ GB a rank", told)
    folder = cluster(stacks / "plain" / "truth.star", max_iterations=4)
    assert "max_iterations reached, not settled" in capsys.readouterr().out
    assert cli.main(["watch", str(folder), "--once"]) == 0
    told = capsys.readouterr().out
    assert "temperature" in told
    assert "held out" in told
    assert "iteration 4/4" in told


# ---- mistakes: one sentence, nothing left

def no_poses(folder):
    blocks = read_star(folder / "given.star")
    for label in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        del blocks["particles"][label]
    write_star(folder / "given.star", blocks)


def keys(**changed):
    def change(folder):
        write_job(folder / "job.yaml", "cluster", **({"input": "given.star", "output": "out/run"} | SMALL | changed))
    return change


def not_finite(folder):
    images = np.memmap(folder / "given.mrcs", dtype="<f4", mode="r+", offset=1024, shape=(240, 32, 32))
    images[10:20, 5, 5] = np.nan


MISTAKES = [
    (keys(n_classes="auto", held_out=0), r"job\.yaml:4: held-out particles choose between several runs, but none are "
     r"held out, .*; expected held_out above 0 and another start; .*"),
    (keys(n_classes="auto", latent="plane"), r"job\.yaml:4: the number of classes of a plane cannot be found; "
     r"expected .*"),
    (no_poses, r"given\.star: no alignments were found \(rlnAnglePsi and rlnOriginXAngst are missing or 0 in every "
     r"row\); expected the result of an alignment; run 'job: classify2d' first and give its run_data\.star"),
    (keys(n_classes=241), r"n_classes: 241 classes, but given\.star holds 240 particles; expected .*; lower .*"),
    (keys(particle_diameter=400), r"particle_diameter: 400 Å, but the boxes of given\.star are 32 px of 6 Å, 192 Å "
     r"wide; expected a diameter smaller than the box; .*"),
    (keys(max_resolution=60), r"given\.star: 3 Fourier shells between the box of 32 px and 60 Å; expected at least 6; "
     r".*"),
    (keys(n_classes=7, latent="plane"), r"job\.yaml:\d: 7 classes cannot be laid out on a plane; expected a product of "
     r"2 numbers of at least 2; write for example n_classes: 8"),
    (keys(n_classes=4, latent="closed_chain"), r"job\.yaml:\d: 4 classes cannot be laid out on a closed chain; .*"),
    (keys(memory_limit=0.15), r"memory_limit: the run needs up to 0\.\d GB a rank with its particles in "
     r"scratch, more than the limit of 0\.15 GB; .*"),
    (not_finite, r"given\.star row 11: 11@given\.mrcs has pixels that are not finite, and 9 more of 240 .*"),
]


@pytest.mark.parametrize(("change", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(stacks, tmp_path, monkeypatch, capsys, change, sentence):
    monkeypatch.chdir(tmp_path)
    blocks = read_star(stacks / "plain" / "truth.star")
    blocks["particles"]["rlnImageName"] = np.array([f"{i:06d}@given.mrcs" for i in range(1, 241)])
    write_star("given.star", blocks)
    shutil.copy(stacks / "plain" / "particles.mrcs", tmp_path / "given.mrcs")
    keys()(tmp_path)
    change(tmp_path)
    assert cli.main(["run", "job.yaml"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert re.fullmatch("vitrea: " + sentence, told[-1]), told
    assert not Path("out").exists()


def test_other_poses_in_a_resumed_run_are_refused(cluster, stacks, tmp_path, capsys):
    shutil.copy(stacks / "plain" / "truth.star", tmp_path / "posed.star")
    folder = cluster(tmp_path / "posed.star", max_iterations=3)
    blocks = read_star(tmp_path / "posed.star")
    blocks["particles"]["rlnAnglePsi"][0] = "12.5"
    write_star(tmp_path / "posed.star", blocks)
    assert cli.main(["resume", str(folder), "--set", "max_iterations=5"]) == 2
    assert re.search(r"checkpoint\.h5: psi was digest \w+ in the run, but is digest \w+ now; expected the job and "
                     "particles of the run", capsys.readouterr().err)
