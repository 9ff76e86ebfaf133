"""Which classes are replaced, and whose members they get."""
import numpy as np

from vitrea.engine.classes import splits


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
