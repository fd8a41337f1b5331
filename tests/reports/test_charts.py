"""Figures of the page: what they say in words, and what is drawn, without a browser."""

import re

import numpy
import pytest

from ftlab.evaluation.statistics import Interval
from ftlab.reports.compare.charts import Chart, against, curves
from ftlab.reports.compare.series import Band, Point

POINTS = (
    Point("dear", 0, 30.0, 60.0, Interval(58.5, 61.0)),
    Point("cheap", 1, 10.0, 40.0, None),
    Point("beaten", 2, 20.0, 39.0, Interval(38.0, 40.0)),
)


def front(chart: Chart) -> list[tuple[float, float]]:
    """The line's points as it is drawn, across from the left and down from the top."""
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--grid\); stroke-width: 1.5', chart.svg)
    numbers = [float(number) for number in re.findall(r"[-\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_scores_against_a_cost_in_words() -> None:
    chart = against("time", POINTS, "training, s", "test_rougeL", lower_is_better=False)
    assert chart.title == "test_rougeL against training, s"
    assert chart.says == (
        "dear 60 at 30; cheap 40 at 10; beaten 39 at 20. On the front, which no other beats in both: cheap, dear."
    )
    assert against("time", POINTS, "s", "test_loss", lower_is_better=True).says.endswith(": cheap, beaten.")


def test_the_front_is_drawn_in_steps_from_the_cheapest_on() -> None:
    first, corner, last = front(against("time", POINTS, "training, s", "test_rougeL", lower_is_better=False))
    assert corner == (last[0], first[1])  # as good as the cheap one up to where the dear one can be had
    assert last[0] > first[0]
    assert last[1] < first[1]  # which is up


def test_curves_in_words_are_means_over_seeds() -> None:
    steps = numpy.array([10.0, 20.0, 30.0])
    two = numpy.array([[3.0, 2.0, 1.0], [2.0, 2.0, 0.5]])
    chart = curves("val_loss", [Band("a", 0, steps, two), Band("b", 3, steps, two[:1])], "validation loss")
    assert chart.title == "validation loss while training"
    assert chart.says == ("a from 2.5 to 0.75; b from 3 to 1. Bands go from the least to the most of the seeds.")
    colors = set(re.findall(r"stroke: var\(--series-(\d)\)", chart.svg))
    assert colors == {"1", "4"}


@pytest.mark.parametrize(("low", "high"), [(60.0, 61.0), (60.5, 61.0)])
def test_an_interval_that_leaves_out_its_score_can_be_drawn(low: float, high: float) -> None:
    point = Point("a", 0, 1.0, 60.0, Interval(low, high))
    assert point.reach == ([0.0], [1.0])
