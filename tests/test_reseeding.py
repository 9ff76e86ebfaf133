"""Which classes are replaced, whose members they get, and that the sums over these have the same bits on any ranks."""
from types import SimpleNamespace

import numpy as np

from vitrea.engine.classes import splits, summed
from vitrea.engine.comm import alone
from vitrea.engine.storage import Memory
from vitrea.kernels.polar import PolarGrid


def test_the_emptiest_class_gets_members_of_the_largest():
    share, counts = np.array([1.2, 0.1, 2.4, 0.3]), np.array([120, 10, 240, 30])
    assert splits(share, counts, support=0.2) == [(1, 2)]
    assert splits(share, counts, support=0.5) == [(1, 2)], "no class is left that is large enough to be split again"


def test_members_come_from_a_class_that_has_some_and_not_from_one_replaced_a_moment_ago():
    share, counts = np.array([7.8, 0.0, 0.1, 0.05, 0.02, 0.0, 0.01, 0.02]), np.array([800, 0, 0, 0, 0, 0, 0, 0])
    pairs = splits(share, counts, support=0.5)
    assert {new for new, _ in pairs} >= {1, 5, 6}
    assert {origin for _, origin in pairs} == {0}


def test_a_class_of_few_members_is_not_split():
    assert splits(np.array([2.0, 0.0]), np.array([19, 0]), support=0.5) == []
    assert splits(np.array([2.0, 0.0]), np.array([20, 0]), support=0.5) == [(1, 0)]


class Shard:
    """Particles `rows` of 40, whose coefficients and C² are drawn by their row."""

    def __init__(self, rows, grid):
        self.rows, self.grid, self.space = np.asarray(rows), grid, Memory()

    def __len__(self):
        return len(self.rows)

    def take(self, local):
        drawn = [np.random.default_rng(row).normal(size=(3, self.grid.size)) for row in self.rows[local]]
        ctf2 = np.abs([values[2, :self.grid.n_rings] for values in drawn])[:, None, :].astype(np.complex64)
        return SimpleNamespace(coefficients=np.array([values[0] + 1j * values[1] for values in drawn]), ctf2=ctf2)


def test_sums_over_members_have_the_same_bits_however_the_particles_are_spread():
    grid = PolarGrid(32, 8, 12.0)
    members = [np.arange(0, 33), np.array([1, 5, 39])]

    def of(rows):
        run = SimpleNamespace(passes=SimpleNamespace(shard=Shard(rows, grid), peak=np.full(grid.n_rings, 5.0)),
                              comm=alone())
        mine = [np.intersect1d(each, rows) for each in members]   # as a rank knows them
        return summed(run, mine, 33, grid, lambda kept, _: kept.coefficients)

    whole, first, second = of(np.arange(40)), of(np.arange(3)), of(np.arange(3, 40))
    for one, a, b in zip(whole, first, second):
        assert np.abs(one).max() > 1.0
        np.testing.assert_array_equal(one, a + b)
