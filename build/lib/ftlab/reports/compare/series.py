"""What figures of a comparison draw: the front of scores against costs, and curves over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ftlab.evaluation.statistics import Array
from ftlab.reports.compare.costs import curve
from ftlab.reports.compare.groups import Group

LOSSES = {"train_loss": "training loss", "val_loss": "validation loss"}
"""Of metrics.csv, and what they are called."""


@dataclass(frozen=True)
class Band:
    """A curve of a method.

    Args:
        name: Of the method.
        number: Its place among all methods.
        steps: At which every run has a value, (points,).
        values: (runs, points).
    """

    name: str
    number: int
    steps: Array
    values: Array


def bands(groups: Sequence[Group], name: str) -> list[Band]:
    """The curves of those methods that are trained and have one.

    Args:
        groups: All methods.
        name: Column of metrics.csv.
    """
    found = []
    for number, group in enumerate(groups):
        runs = [{row["step"]: row[name] for row in curve(run) if name in row} for run in group.runs]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if group.trained and steps:
            values = numpy.array([[run[step] for step in steps] for run in runs])
            found.append(Band(group.name, number, numpy.array(steps), values))
    return found


def pareto(points: Sequence[tuple[float, float]], lower_is_better: bool) -> list[int]:
    """Which points no other one beats, from the cheapest on.

    Args:
        points: Cost and score of each.
        lower_is_better: Of scores; of costs it always is.
    """
    sign = -1 if lower_is_better else 1
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -sign * points[n][1]))
    front: list[int] = []
    for number in order:
        if not front or sign * points[number][1] > sign * points[front[-1]][1]:
            front.append(number)
    return front
