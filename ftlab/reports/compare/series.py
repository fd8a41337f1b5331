"""What figures of a comparison draw: scores against costs, the front of them, and curves over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from ftlab.evaluation.statistics import Array, Interval
from ftlab.reports.compare.comparison import Comparison, Row
from ftlab.reports.compare.groups import Group

CURVES = {"train_loss": "training loss", "val_loss": "validation loss"}
"""Of metrics.csv, and what they are called."""
COSTS: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "memory": ("peak memory, GB", lambda row: row.cost.peak_memory / 1e9),
    "time": ("training, s", lambda row: row.cost.training_seconds if row.trained else None),
    "size": ("on disk, MB", lambda row: row.cost.bytes / 1e6),
    "parameters": (
        "trained parameters, millions",
        lambda row: row.cost.parameters / 1e6 if row.cost.parameters else None,
    ),
}
"""By name the label of a cost, and what a method's is; None of a method that has no such cost."""


@dataclass(frozen=True)
class Point:
    """A method in the plane.

    Args:
        name: Of the method.
        number: Its place among all methods.
        cost: Such as seconds; less is better.
        score: What it came to.
        interval: Of the score, where known.
    """

    name: str
    number: int
    cost: float
    score: float
    interval: Interval | None

    @property
    def reach(self) -> tuple[list[float], list[float]]:
        """How far its interval goes below the score and above; matplotlib takes nothing below zero."""
        low, high = (self.interval.low, self.interval.high) if self.interval else (self.score, self.score)
        return [max(0.0, self.score - low)], [max(0.0, high - self.score)]


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
    """The curves of those methods that are trained and have one: of a single step there is none to draw.

    Args:
        groups: All methods.
        name: Column of metrics.csv.
    """
    found = []
    for number, group in enumerate(groups):
        runs = [{row["step"]: row[name] for row in run.curve if name in row} for run in group.runs]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if group.trained and len(steps) > 1:
            values = numpy.array([[run[step] for step in steps] for run in runs])
            found.append(Band(group.name, number, numpy.array(steps), values))
    return found


def points(comparison: Comparison, cost: str) -> list[Point]:
    """The methods that have such a cost; none where it is fewer than two, of which there is nothing to see.

    Args:
        comparison: Of all methods.
        cost: One of COSTS.
    """
    _, of = COSTS[cost]
    found = [
        Point(row.name, number, its, row.score.value, row.score.widest)
        for number, row in enumerate(comparison.rows)
        if (its := of(row)) is not None
    ]
    return found if len(found) > 1 else []


def front(found: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """The points that no other one beats, from the cheapest on.

    For what lies between the costs of two nothing better is to be had than the cheaper one: a line through them goes in
    steps.
    """
    return [found[number] for number in pareto([(each.cost, each.score) for each in found], lower_is_better)]


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
