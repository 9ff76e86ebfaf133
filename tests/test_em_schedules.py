"""Noise and temperature of mini-batch EM, and the switch that children measure: what is promised, and the same bits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vitrea.engine import anneal, classify2d
from vitrea.engine.compare import compare
from vitrea.engine.latent_pictures import _series
from vitrea.engine.log import format_record, read_records
from vitrea.engine.minibatches import PROBE_SHARE, Schedule, schedule_of, step_size
from vitrea.engine.options import Classify2dOptions
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.jobs import cli

KEYS = {"job": "classify2d", "input": "stack/particles.star", "n_classes": 2, "particle_diameter": 140, "psi_step": 24,
        "offset_range": 0, "max_resolution": 24, "algorithm": "minibatch", "minibatch_size": 200, "ctf": "none",
        "minibatch_iterations": 60, "max_iterations": 2, "checkpoint_minutes": 0, "minibatch_step": 0.5,
        "schedule": "measured"}


def options_with(**keys):
    return Classify2dOptions(input="x", output="y", n_classes=20, particle_diameter=100.0, **keys)


def test_averaged_sums_keep_the_variance_that_the_noise_says():
    """α/(2 − α)/B is what is left of one particle's variance in a running average of means over B, of any length."""
    random, schedule = np.random.default_rng(0), Schedule(25, 0.3, 1.0, 60, 10_000)
    averaged = np.zeros(2000)
    for t in range(40):
        averaged += schedule.step_of(t) * (random.normal(size=(2000, 25)).mean(axis=1) - averaged)
    assert np.var(averaged) == pytest.approx(schedule.noise_of(39), rel=0.12)
    assert schedule.noise_of(39) == anneal.stationary_variance(0.3, 25)


def test_noise_and_temperature_are_two_knobs():
    falling, hot = Schedule(25, None, 1.0, 60, 10_000), Schedule(25, 0.3, 8.0, 60, 10_000)
    assert [falling.step_of(t) for t in (0, 9)] == [1.0, step_size(10.0)]
    assert {falling.temperature_of("minibatch", t) for t in range(60)} == {1.0}
    temperatures = [hot.temperature_of("minibatch", t) for t in range(60)]
    assert temperatures[0] == 8.0
    assert temperatures[10] == pytest.approx(4.0), "evenly in its logarithm"
    assert set(temperatures[30:]) == {1.0}
    assert hot.temperature_of("full", 0) == 1.0
    assert len({hot.step_of(t) for t in range(1, 60)}) == 1
    full = Schedule(0, None, 8.0, 60, 10_000)
    assert [full.temperature_of("full", t) for t in (0, 10)] == [8.0, 1.0]


@pytest.mark.parametrize(("n", "n_classes", "size"), [(100_000, 100, 5000), (40_000, 50, 2500), (16_000, 20, 2000)])
def test_probes_cost_no_more_than_their_share(n, n_classes, size):
    options = SimpleNamespace(n_classes=n_classes, minibatch_step=0.5, start_temperature=1.0, minibatch_iterations=60,
                              schedule="measured")
    schedule = schedule_of(options, size, n)
    due = [t for t in range(60) if schedule.probe_is_due(t)]
    assert len(due) >= 2, "one must confirm the other"
    assert len(due) * schedule.probe_cost <= PROBE_SHARE * (60 * size + n)
    assert schedule.used_up(60 - len(due) * schedule.probe_cost // size, len(due) * schedule.probe_cost), \
        "probes are paid for by mini-batches"
    assert not schedule.probe_is_due(due[0], schedule.allowance - schedule.probe_cost + 1), "what was spent counts"
    options.schedule = "clock"
    assert not any(schedule_of(options, size, n).probe_is_due(t) for t in range(60))


def test_nothing_is_measured_while_the_posterior_is_hot():
    schedule = Schedule(25, 0.5, 4.0, 60, 10_000, probe=100, every=10)
    assert [t for t in range(60) if schedule.probe_is_due(t)] == [30, 40, 50]


def test_a_switch_rate_counts_particles_that_had_a_class():
    assert anneal.switch_rate(3, 12) == 0.25
    assert np.isnan(anneal.switch_rate(0, 0))


@pytest.mark.parametrize(("keys", "words"), [
    ({"schedule": "measured", "minibatch_step": None}, "schedule is measured, but the step of the mini-batches"),
    ({"schedule": "measured", "algorithm": "full"}, "schedule is measured, which belongs to mini-batches, but"),
    ({"start_temperature": 4, "max_iterations": 8}, "start_temperature falls to 1 in 10 full passes, but"),
])
def test_what_does_not_go_together_is_told(keys, words):
    assert [sentence for _, sentence in options_with(**keys).conflicts() if sentence.startswith(words)]
    assert not list(options_with(schedule="measured", minibatch_step=0.5, start_temperature=4).conflicts())


def test_a_probe_is_one_line():
    line, = format_record({"kind": "probe", "iteration": 24, "ari": 0.9712, "frozen": 1, "needed": 2})
    assert line == "probe after mb 24   ARI  0.971 of two continuations   frozen: 1 of 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two views that no noise can hide, and a run of them to its end."""
    place = tmp_path_factory.mktemp("schedules")
    simulate_particles(ParticleSimulation(n=600, views=2, box_size=32, pixel_size=6.0, snr=3.0, seed=1, ctf=False,
                                          max_shift=0.0), place / "stack")
    return place


def write_job(folder, output, **keys):
    text = "".join(f"{name}: {value}\n" for name, value in (KEYS | {"output": output} | keys).items())
    (folder / f"{output}.yaml").write_text(text)
    return f"{output}.yaml"


def told(folder, output):
    """Probes, and iterations without what differs from run to run."""
    found = read_records(folder / output / "record.jsonl")
    probes = [(each["iteration"], each["ari"], each["frozen"]) for each in found if each["kind"] == "probe"]
    names = ("stage", "iteration", "log_likelihood", "mobility", "noise", "temperature", "class_sizes")
    return probes, [json.dumps([each[name] for name in names]) for each in found if each["kind"] == "iteration"]


class Killed(BaseException):
    """As if by `kill -9`: nothing of ours sees it."""


def killed_at(monkeypatch, name, count):
    """A function of classify2d kills the run when it is called for the count-th time."""
    calls, real = iter(range(1, 1000)), getattr(classify2d, name)

    def deadly(*arguments):
        if next(calls) == count:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(classify2d, name, deadly)


def test_a_measured_switch_ends_the_batches_of_what_is_plain_to_see_on_any_ranks_and_after_kills(
        folder, launch, monkeypatch):
    """Two children agree at once: the second probe ends the mini-batches, long before the clock would."""
    monkeypatch.chdir(folder)
    assert cli.main(["run", write_job(folder, "one")]) == 0
    probes, iterations = told(folder, "one")
    assert [frozen for *_, frozen in probes] == [1, 2]
    stages = [json.loads(each)[0] for each in iterations]
    assert stages.count("minibatch") == probes[1][0] < KEYS["minibatch_iterations"]
    assert stages[-1] == "full"
    ended = launch(2, "-m", "vitrea.jobs", "run", write_job(folder, "two"), folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert told(folder, "two") == (probes, iterations)
    for name, count in (("_child", 2), ("iterate", probes[0][0] + 2)):
        output = f"{name}{count}"
        with monkeypatch.context() as patched:
            killed_at(patched, name, count)
            with pytest.raises(Killed):
                cli.main(["run", write_job(folder, output)])
        assert cli.main(["resume", output]) == 0
        assert sorted(set(told(folder, output)[1])) == sorted(set(iterations))
        for found in ("two", output):
            assert (folder / "one" / "run_data.star").read_bytes() == (folder / found / "run_data.star").read_bytes()


def test_a_measured_switch_that_costs_too_much_is_left_to_the_clock_and_the_log_says_so(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["run", write_job(folder, "dear", minibatch_iterations=6)]) == 0
    assert "the clock ends the mini-batches" in (folder / "dear" / "run.out").read_text()
    assert told(folder, "dear")[0] == []


def test_a_hot_run_cools_before_it_ends(folder, monkeypatch):
    """Full passes with a temperature: no end while the posterior is hot, and the classes of a cold run afterwards."""
    monkeypatch.chdir(folder)
    keys = {"algorithm": "full", "schedule": "clock", "minibatch_step": "null", "start_temperature": 2,
            "max_iterations": 14}
    assert cli.main(["run", write_job(folder, "hot", **keys)]) == 0
    found = [each for each in read_records(folder / "hot" / "record.jsonl") if each["kind"] == "iteration"]
    temperatures = [each["temperature"] for each in found]
    assert len(found) > 10
    assert temperatures[0] == 2.0
    assert temperatures == sorted(temperatures, reverse=True)
    assert set(temperatures[10:]) == {1.0}
    assert compare(folder / "stack" / "truth.star", folder / "hot" / "run_data.star").ari > 0.95


def test_starts_of_one_job_are_lines_of_their_own_in_the_picture_of_its_course():
    """Where the temperature rises another start begins: no line joins the two."""
    records = [{"iteration": i + 1, "temperature": t, "held_out": h}
               for i, (t, h) in enumerate([(9.0, -3.0), (7.0, None), (9.0, -5.0), (8.0, -4.0)])]
    x, y = _series(records, "held_out")
    assert x == (1, 3, 3, 4)
    assert np.array_equal(y, (-3.0, np.nan, -5.0, -4.0), equal_nan=True)
