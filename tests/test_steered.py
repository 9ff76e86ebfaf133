"""Training that is steered by its freezing: reproducible, within its budget, and its probes see what they say."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_training import DIAMETER, QUICK, TINY, discs, labelled
from vitrea.engine.anneal import LEAST_BARRIER
from vitrea.engine.comm import alone
from vitrea.picker import pick_train, steered, training
from vitrea.picker.evaluate import count
from vitrea.picker.micrographs import Micrograph, Preparation
from vitrea.picker.options import PickTrainOptions
from vitrea.picker.pick import Picker
from vitrea.picker.steered import Course, _course_of, _state_of, _Trainer, last_probe, samplers_of, train_freeze_aware
from vitrea.picker.training import PART

RECIPE = replace(QUICK, steps=110, batch=32, outputs=1, optimizer="freeze_aware", rate=0.3)


def course(recipe=RECIPE, begun=None, comm=None, micrographs=(1, 2)):
    return list(train_freeze_aware([labelled(seed) for seed in micrographs], TINY, DIAMETER, recipe, seed=3,
                                   comm=comm or alone(), begun=begun))


@pytest.fixture(scope="module")
def states():
    return course()


def same(one, other):
    assert one.step == other.step
    for a, b in zip((one.parameters, one.statistics, *one.moments), (other.parameters, other.statistics,
                                                                     *other.moments)):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_it_learns_to_find_the_discs_of_another_micrograph(states):
    image, centres = discs(9)
    picker = Picker(TINY, states[-1].parameters, states[-1].statistics, Preparation(1.0, 40), distance=8.0, step=2)
    picks = picker.pick(Micrograph("m", image, 1.0))
    best = picks.score > 0.5
    assert count(np.stack([picks.y, picks.x], axis=1)[best], centres, 3.0).f() > 0.85


def test_all_phases_are_gone_through(states):
    probes = [last_probe(state) for state in states if last_probe(state)]
    assert len(probes) >= 1
    assert probes[0].words.startswith(f"probe at step {probes[0].step}   barrier ")
    courses = [_course_of(state) for state in states]
    assert {len(each.replicas) for each in courses} == {1, 2}
    assert courses[-1].averaged > 10
    average = courses[-2].average
    for name, values in states[-1].parameters.items():
        np.testing.assert_allclose(values, average[name], rtol=1e-5, atol=1e-7)   # the mean is what comes out


def test_replicas_part_between_probes_and_are_one_after_each(states):
    for state in states:
        found = _course_of(state)
        if len(found.replicas) == 2:
            one, other = (each["weights1"] for each in found.replicas)
            assert np.array_equal(one, other) == (last_probe(state) is not None)


def test_no_more_tiles_are_used_than_the_budget_has(monkeypatch):
    used = {"gradients": 0, "losses": 0.0}

    def counted(function, kind, worth):
        def counts(network, parameters, *rest):
            used[kind] += worth * PART
            return function(network, parameters, *rest)
        return counts

    monkeypatch.setattr(steered, "of_part", counted(steered.of_part, "gradients", 1))
    monkeypatch.setattr(steered, "forward", counted(steered.forward, "losses", steered.FORWARD))
    course(micrographs=range(1, 9))
    assert 0.9 * 110 * 32 < used["gradients"] + used["losses"] <= 110 * 32


@pytest.mark.parametrize("kind", ["hot", "probe", "anneal", "average"])
def test_a_training_that_goes_on_has_the_same_bits(states, kind):
    courses = [_course_of(state) for state in states[:-1]]
    chosen = {"hot": 7, "probe": next(k for k, state in enumerate(states) if last_probe(state)),
              "anneal": next(k for k, each in enumerate(courses) if len(each.replicas) == 1),
              "average": next(k for k, each in enumerate(courses) if each.averaged)}[kind]
    last = min(chosen + 12, len(states) - 1)
    again = train_freeze_aware([labelled(1), labelled(2)], TINY, DIAMETER, RECIPE, seed=3, comm=alone(),
                               begun=states[chosen])
    for expected in states[chosen + 1:last + 1]:
        same(next(again), expected)


@pytest.mark.mpi
def test_training_over_these_ranks_gives_the_bits_of_one(states, comm):
    for found in train_freeze_aware([labelled(1), labelled(2)], TINY, DIAMETER, RECIPE, seed=3, comm=comm):
        if last_probe(found):
            break
    same(found, next(state for state in states if last_probe(state)))


def trainer(micrographs=(1, 2)):
    samplers = samplers_of([labelled(seed) for seed in micrographs], TINY, DIAMETER, RECIPE, 3)
    return _Trainer(*samplers, TINY, RECIPE, 3, alone())


def test_a_probe_finds_no_barrier_where_replicas_are_one_and_takes_their_mean(states):
    found = trainer()._probed(replace(_course_of(states[0]), replicas=(states[40].parameters,) * 2))
    assert found.probes[-1].barrier == 0
    assert found.steering.quiet == 1
    for name, values in states[40].parameters.items():
        np.testing.assert_array_equal(found.replicas[0][name], values)


def test_with_a_barrier_the_better_replica_goes_on(states):
    own = states[-1].parameters
    other = {name: np.roll(values, 2, axis=0) if name.endswith("1") else values for name, values in own.items()}
    other["weights2"] = np.roll(own["weights2"], 2, axis=1)   # the same network, its maps in another order
    other["bias"] = own["bias"] + np.float32(2.0)             # and worse
    made = trainer()
    made._cooled = lambda parameters: parameters
    for replicas in ((own, other), (other, own)):
        found = made._probed(Course(replicas, {}, made.begin().steering))
        assert found.probes[-1].barrier > LEAST_BARRIER
        assert found.steering.quiet == 0
        for replica in found.replicas:
            np.testing.assert_array_equal(replica["weights1"], own["weights1"])


def test_micrographs_held_back_are_not_trained_on():
    few, many = trainer(), trainer(range(1, 10))
    assert few._guard is None
    assert len(many._guard.micrographs) == 1
    kept = {id(each.image) for each in many._sampler.micrographs}
    assert len(kept) == 8
    assert id(many._guard.micrographs[0].image) not in kept
    found = many._probed(many.begin()).probes[-1]
    assert 0 < found.held_back < 2
    assert "held back" in found.words


def test_a_course_comes_back_from_its_state(states):
    for state in (states[3], states[-2], states[-1]):
        same(_state_of(_course_of(state)), state)


def test_batches_that_replicas_cannot_share_are_refused():
    with pytest.raises(ValueError, match="batches of 24 tiles; expected a multiple of 16"):
        next(train_freeze_aware([labelled(1)], TINY, DIAMETER, replace(RECIPE, batch=24), seed=0, comm=alone()))
    assert training.PART * steered.REPLICAS == 16


def test_the_key_optimiser_steers_a_job(monkeypatch):
    lines, kept = [], []
    monkeypatch.setattr(pick_train, "PRESETS", {"vitrea": TINY})
    monkeypatch.setitem(pick_train.RECIPES, "freeze_aware", RECIPE)
    log = SimpleNamespace(line=lines.append, record=lambda *words, **values: None)
    trainings = SimpleNamespace(begun=lambda name, digest: (None, []), keep=lambda *course: kept.append(course))
    session = SimpleNamespace(log=log, trainings=trainings, stop=SimpleNamespace(agreed=lambda: False))
    options = PickTrainOptions(input=Path("mics"), output=Path("run"), coordinates=Path("labels"), diameter=100.0,
                               optimiser="freeze_aware", seed=3, steps=110)
    _, losses = pick_train._trained([labelled(1), labelled(2)], options, "training", session, comm=alone())
    assert len(losses) == 110   # a probe takes its steps of the budget
    assert sum(line.startswith("probe at step") for line in lines) == 2
    assert len(kept) < 110


def test_published_networks_are_trained_by_their_own_recipe():
    options = PickTrainOptions(input=Path("mics"), output=Path("run"), coordinates=Path("labels"), diameter=100.0,
                               network="deepem-64", optimiser="sgd")
    (keys, sentence), = options.conflicts()
    assert keys == ("optimiser", "network")
    assert sentence.startswith("deepem-64 is trained by its published recipe; expected optimiser with the network")
