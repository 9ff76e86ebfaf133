"""Experiments on networks: intervals that cover, the same bits on any ranks and after a break, claims that can fail."""
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from vitrea.engine.digits import DenseLandscape, Split
from vitrea.engine.dynamics_intervals import difference_interval, mean_interval, pair_interval, ratio_interval
from vitrea.engine.dynamics_networks import (
    CHILD,
    PARENT,
    Branches,
    Cell,
    Expected,
    Study,
    branch_claims,
    branching,
    noise_claims,
    noise_table,
    verdict,
)

CELLS = (Cell(0.1, 60), Cell(0.1, 5), Cell(0.1, 20, fresh=True))
BRANCHES = Branches((0.0, 4.0), 2, 3.0)


@pytest.fixture(scope="module")
def study():
    random = np.random.default_rng(0)
    centres, labels = random.normal(size=(3, 6)), np.tile(np.arange(3), 20)
    inputs, tests = (centres[labels] + 0.7 * random.normal(size=(60, 6)) for _ in range(2))
    return Study(DenseLandscape(Split(inputs, labels, tests, labels), (8,)), seed=1, learning_time=8.0,
                 losses=(0.09, 0.08))


class Rounds:
    """The laboratory's side of an experiment, stopped after some rounds, or going on from what another kept."""

    def __init__(self, comm, stop_after=None, kept=None):
        self.comm, self.round, self.kept = comm, 0, kept or {}
        self._left = stop_after

    def restored(self):
        return self.kept

    def plan(self, rounds):
        self.rounds = rounds

    def end_round(self, gather, words):
        self.round, self.kept = self.round + 1, {name: array.copy() for name, array in gather().items()}
        return self.round != self._left


def alone():
    from vitrea.engine.comm import alone

    return alone()


def text(rows):
    from vitrea.engine.dynamics import _plain

    return json.dumps(_plain(rows))


@pytest.fixture(scope="module")
def table(study):
    return noise_table(Rounds(alone()), study, CELLS, 4)


def test_students_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [mean_interval(random.normal(3.0, 2.0, 6)) for _ in range(2000)]
    assert np.mean([each.low < 3.0 < each.high for each in found]) == pytest.approx(0.95, abs=0.015)
    pairs = [difference_interval(random.normal(1, 3, 5), random.normal(0, 1, 9)) for _ in range(2000)]
    assert np.mean([each.low < 1 < each.high for each in pairs]) == pytest.approx(0.95, abs=0.02)
    ratios = [ratio_interval(np.exp(random.normal(1, 0.5, 8)), np.exp(random.normal(0, 0.5, 8))) for _ in range(500)]
    assert np.mean([each.low < np.e < each.high for each in ratios]) == pytest.approx(0.95, abs=0.03)


def test_the_error_over_pairs_knows_that_pairs_share_repeats():
    random = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(600):
        values = random.normal(size=8) ** 2
        found = pair_interval(np.abs(values[:, None] - values[None]))
        means.append(found.mean)
        errors.append(found.error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.25)
    naive = np.std(means) / np.sqrt(28)
    assert np.mean(errors) > 3 * naive
    assert pair_interval(np.ones((2, 2))).high == np.inf


def test_without_noise_repeats_are_one_and_with_noise_they_part(table):
    quiet, loud, own = (row for row in table if row["matched_loss"] == 0.08)
    assert quiet["distance"]["mean"] == 0
    assert quiet["jaccard"]["mean"] == 1
    assert quiet["largest_barrier"] == 0
    assert loud["distance"]["low"] > 0.05
    assert own["distance"]["mean"] > 3 * loud["distance"]["mean"]
    assert loud["noise_strength"] == 0.1 / 5
    for row in (quiet, loud, own):
        assert row["reached"] == 4
        assert all(0.0795 < loss <= 0.08 for loss in row["values"]["loss"])
        assert row["sharpness"]["mean"] > 0


def test_at_a_lower_matched_loss_ends_were_cooled_further(table):
    for high, low in zip(table[::2], table[1::2]):
        assert (high["matched_loss"], low["matched_loss"]) == (0.09, 0.08)
        assert (low["values"]["cooling_steps"] > high["values"]["cooling_steps"]).all()


@pytest.mark.mpi
def test_tables_have_the_same_bits_on_these_ranks_and_on_one(study, comm):
    assert text(noise_table(Rounds(comm), study, CELLS[:2], 3)) == text(
        noise_table(Rounds(alone()), study, CELLS[:2], 3))
    assert text(branching(Rounds(comm), study, CELLS[1:2], 2, BRANCHES)) == text(
        branching(Rounds(alone()), study, CELLS[1:2], 2, BRANCHES))


def test_a_table_goes_on_where_it_was_stopped(study, table):
    stopped = Rounds(alone(), stop_after=5)
    assert noise_table(stopped, study, CELLS, 4) is None
    assert stopped.kept["done"].sum() == 5
    again = Rounds(alone(), kept=stopped.kept)
    assert text(noise_table(again, study, CELLS, 4)) == text(table)
    assert again.round == 7   # of 12: what was done is not done again


def test_branches_without_noise_meet_and_with_noise_are_children_of_their_own(study):
    quiet, loud = branching(Rounds(alone()), study, CELLS[:2], 2, BRANCHES)
    assert quiet["values"]["twin_barrier"].max() == 0
    assert quiet["twin_freezing_times"] == [0, 0]
    assert all(each["mean"] == 1 for each in quiet["twin_jaccard"])
    assert not np.array_equal(loud["values"]["continued_barrier"][0], loud["values"]["continued_barrier"][1])
    assert loud["times"] == BRANCHES.times
    paths = [next(study.path(CELLS[1], study.start(CELLS[1], 0), *key))
             for key in ((CHILD, 0, 0, 0), (CHILD, 0, 0, 1), (CHILD, 0, 1, 0), (CHILD, 1, 0, 0), (PARENT, 0))]
    assert len({state.tobytes() for state in paths}) == len(paths)


def rows_of(noises, overlaps, sharpness, accuracy):
    spread = 1 + 0.01 * np.arange(5)
    return [{"learning_rate": noise, "batch_size": 1, "own_starts": False, "noise_strength": noise,
             "values": {"jaccard": overlap * np.outer(spread, spread), "sharpness": sharp * spread,
                        "invariant_sharpness": sharp * spread, "accuracy": right * spread}}
            for noise, overlap, sharp, right in zip(noises, overlaps, sharpness, accuracy)]


EXPECTED = Expected(quiet=(1.0, 1), good=(4.0, 1), loud=(6.0, 1), early=(1.0, 1), late=(4.0, 1))


def test_claims_hold_and_fail():
    noises = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    as_said = rows_of(noises, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), (8, 7, 6, 2, 3, 4), (0.8, 0.8, 0.8, 0.9, 0.8, 0.7))
    found = {claim["name"]: claim for claim in noise_claims(as_said, EXPECTED)}
    assert set(found) == {"N1", "N2", "N3", "N5"}
    assert all(claim["holds"] for claim in found.values())
    assert found["N2"]["found"]["mean"] == pytest.approx(4)
    assert found["N3"]["found"]["mean"] == pytest.approx(0.1 * 1.02)
    otherwise = rows_of(noises, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (8, 7, 6, 6, 3, 4), (0.9, 0.8, 0.8, 0.9, 0.8, 0.9))
    found = noise_claims(otherwise, EXPECTED)
    assert not any(claim["holds"] for claim in found)
    assert verdict(found)[0] == "0 of 5 claims hold"
    assert noise_claims(as_said[1:3], EXPECTED) == []
    assert verdict([]) == ["nothing was claimed: the claims are about other learning rates and batch sizes"]


def test_a_valley_that_is_never_decided_is_later_than_any(study):
    def row(rate, times):
        return {"learning_rate": rate, "batch_size": 1, "twin_freezing_times": times, "continued_freezing_times": times}

    late = branch_claims([row(1.0, [0, 5, 5, np.inf]), row(4.0, [5, 10, np.inf, np.inf])], EXPECTED)
    assert [claim["found"]["mean"] for claim in late] == [0.75, 0.75]
    assert late[0]["holds"]
    assert not branch_claims([row(1.0, [5, 5, 5, 5]), row(4.0, [5, 10, 5, 0])], EXPECTED)[0]["holds"]


def write_patterns(folder, side=6, n=240):
    """Files named as MNIST's: a pattern for each digit, with noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(40, 215, (10, side, side))
    for prefix in ("train", "t10k"):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.clip(patterns[labels] + random.normal(0, 40, (n, side, side)), 0, 255).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


@pytest.mark.parametrize("experiment", ["digits_noise", "digits_branching"])
def test_an_experiment_on_digits_out_of_a_job_file(run_job, tmp_path, experiment):
    write_patterns(tmp_path)
    keys = {"branch_times": "[0, 2]", "horizon": 2} if experiment == "digits_branching" else {}
    folder = run_job("dynamics", experiment=experiment, input=tmp_path, per_class=3, hidden="[8]", repeats=2,
                     learning_rates="[0.1, 0.2]", batch_sizes="[5, 30]", learning_time=4, matched_losses="[0.3]",
                     **keys)
    result = json.loads((folder / "result.json").read_text())
    assert [(row["learning_rate"], row["batch_size"]) for row in result["rows"]] == [
        (0.1, 5), (0.1, 30), (0.2, 5), (0.2, 30)]
    assert result["verdict"] == ["nothing was claimed: the claims are about other learning rates and batch sizes"]
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_starts_are_compared_pair_by_pair(monkeypatch):
    from vitrea.engine import network_experiments
    from vitrea.engine.network_experiments import DIGITS_STARTS

    seen = []

    def start(options, cell, number):
        seen.append((cell.batch, number))
        hard = 0.1 * np.sin(number)   # what a start and its digits are worth, many times what noise is
        return {"hot": 0.8 + hard + 0.01 * (cell.batch == 20) + 1e-3 * np.cos(7 * number), "accuracy": [0.9 + hard]}

    monkeypatch.setattr(network_experiments, "_start", start)
    laboratory = Rounds(alone())
    laboratory.options = SimpleNamespace(learning_rates=None, batch_sizes=None, repeats=9, matched_losses=(0.01,))
    result = DIGITS_STARTS.measure(laboratory)
    assert seen == [(batch, number) for batch in (250, 20) for number in range(9)]
    hot, cooled = result["claims"]
    assert hot["holds"]
    assert hot["found"]["mean"] == pytest.approx(0.01)
    assert not cooled["holds"]
