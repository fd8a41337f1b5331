"""Rungs by W&B's documentation, and who is stopped, by hand."""

from math import nan

import pytest

from ftlab.sweeps.hyperband import Hyperband


def test_rungs_are_those_of_wandbs_documentation() -> None:
    assert Hyperband.from_min(3).rungs[:4] == (3, 9, 27, 81)
    assert Hyperband.from_max(27, s=2).rungs == (3, 9)
    assert Hyperband.from_max(9, s=5).rungs == (1, 3)
    assert Hyperband.from_max(5, s=2, eta=2).rungs == (1, 2)


@pytest.mark.parametrize(
    ("own", "others", "stopped"),
    [
        ([9.0, 1.0, 1.0], [[2.0], [3.0]], True),  # it was at rung 3 before it was looked at: judged at rung 1, too
        ([5.0], [], False),  # nobody to compare with
        ([5.0, 5.0], [[1.0], [2.0]], True),  # the others have not come so far, but judged at rung 1
        ([2.0], [[1.0], [3.0]], False),  # the second of three: W&B's threshold is the value at place 3/3
        ([3.0], [[1.0], [2.0]], True),
        ([4.0], [[1.0], [2.0], [3.0], [5.0], [6.0]], True),  # place 6/3 is the third, 3.0
        ([2.5], [[1.0], [2.0], [3.0], [5.0], [6.0]], False),
        ([1.0, 1.0, 9.0], [[2.0, 2.0, 1.0], [3.0, 3.0, 2.0]], True),  # at rung 3, whatever it was at rung 1
        ([1.0, 9.0], [[2.0, 1.0], [3.0, 1.0]], False),  # not at a rung: the value at rung 1 counts
        ([nan], [[1.0], [2.0]], True),
        ([nan], [[nan], [nan]], False),  # none is better
        ([4.0], [[1.0], [nan], [3.0], [2.0], [nan]], True),  # the third is 3.0, wherever the diverged stand
        ([2.0], [[nan], [3.0], [nan], [1.0], [nan]], False),
    ],
)
def test_who_is_stopped(own: list[float], others: list[list[float]], stopped: bool) -> None:
    assert Hyperband((1, 3), eta=3).stops(own, others) is stopped


def test_strictly_only_the_best_third_goes_on() -> None:
    strict = Hyperband((1,), eta=3, strict=True)
    others = [[1.0], [2.0], [3.0], [5.0], [6.0]]
    assert [strict.stops([value], others) for value in (0.5, 1.5, 2.5)] == [False, False, True]


def test_a_rung_that_it_was_judged_at_stays_behind() -> None:
    others = [[1.0, 1.0, 4.0], [2.0, 2.0, 5.0]]
    hyperband = Hyperband((1, 3), eta=3)
    assert not hyperband.stops([9.0, 9.0, 3.0], others, seen=1)  # the best of three at rung 3
    assert hyperband.stops([9.0, 9.0, 3.0], others, seen=0)
