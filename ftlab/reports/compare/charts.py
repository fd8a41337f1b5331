"""Figures of a comparison as SVG that stands in a page: its colours are the page's, in the light and in the dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy

from ftlab.reports.compare.series import Band, Point, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = 8
"""Colours that the page has."""
_MARKERS, _LINES = "os^Dv<>P", ("-", "--", "-.", ":")
_GRID = "#0000e0"


@dataclass(frozen=True)
class Chart:
    """A figure.

    Args:
        name: Of its kind, without spaces.
        title: What it shows.
        says: The same in words, for who does not see it.
        svg: The image.
    """

    name: str
    title: str
    says: str
    svg: str


def against(name: str, points: Sequence[Point], cost: str, score: str, lower_is_better: bool) -> Chart:
    """Scores with their intervals against a cost, and the front.

    Args:
        name: Of the chart.
        points: Methods.
        cost: Label with its unit.
        score: Label.
        lower_is_better: Of the score.
    """
    edge = front(points, lower_is_better)
    with _axes(cost, score) as (axes, svg):
        line: dict[str, Any] = {"color": _GRID, "linewidth": 1.5, "drawstyle": "steps-post", "zorder": 1}
        axes.plot([p.cost for p in edge], [p.score for p in edge], **line)
        for point in points:
            look: dict[str, Any] = {
                "color": _color(point.number),
                "marker": _MARKERS[point.number % len(_MARKERS)],
                "linestyle": "none",
            }
            axes.errorbar([point.cost], [point.score], yerr=point.reach, capsize=3, label=point.name, **look)
        _legend(axes)
    told = "; ".join(f"{point.name} {point.score:.4g} at {point.cost:.4g}" for point in points)
    said = f"{told}. On the front, which no other beats in both: {', '.join(point.name for point in edge)}."
    return Chart(name, f"{score} against {cost}", said, svg.getvalue())


def curves(name: str, bands: Sequence[Band], label: str) -> Chart:
    """Means over seeds, each in a band from the least to the most.

    Args:
        name: Of the chart.
        bands: Methods.
        label: What is drawn.
    """
    with _axes("optimiser step", label) as (axes, svg):
        for band in bands:
            mean = band.values.mean(axis=0)
            line = _LINES[band.number // SERIES % len(_LINES)]
            axes.plot(band.steps, mean, color=_color(band.number), linestyle=line, label=band.name)
            if len(band.values) > 1:
                low, high = band.values.min(axis=0), band.values.max(axis=0)
                axes.fill_between(band.steps, low, high, color=_color(band.number), alpha=0.2, linewidth=0)
        _legend(axes)
    ends = "; ".join(
        f"{band.name} from {band.values.mean(axis=0)[0]:.4g} to {band.values.mean(axis=0)[-1]:.4g}" for band in bands
    )
    return Chart(
        name, f"{label} while training", f"{ends}. Bands go from the least to the most of the seeds.", svg.getvalue()
    )


def lengths(words: Sequence[tuple[str, Sequence[int]]]) -> Chart:
    """How long answers are, in words: quartiles, and the 5th and 95th percentile.

    Args:
        words: A name and the lengths behind it, for the references and each method.
    """
    with _axes("words of an answer", "", height=0.9 + 0.32 * len(words)) as (axes, svg):
        for place, (_, counts) in enumerate(reversed(words)):
            low, first, middle, third, high = numpy.percentile(counts, [5, 25, 50, 75, 95])
            color = _GRID if place == len(words) - 1 else _color(len(words) - 2 - place)
            axes.plot([low, high], [place, place], color=color, linewidth=1.5)
            axes.plot([first, third], [place, place], color=color, linewidth=8, solid_capstyle="butt")
            axes.plot([middle], [place], color="black", marker="|", markersize=11)
        axes.set_yticks(range(len(words)), [name for name, _ in reversed(words)])
    told = "; ".join(f"{name} {numpy.median(counts):.0f}" for name, counts in words)
    return Chart("lengths", "lengths of answers", f"Median words: {told}.", svg.getvalue())


# ---------------------------------------------------------------- how they look


@contextmanager
def _axes(across: str, up: str, height: float = 3.4) -> Iterator[tuple[Axes, StringIO]]:
    """Axes to draw into, and what will hold the image then.

    The figure is as wide as a telephone, so that its letters are of the page's size there.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    image = StringIO()
    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{across} {up}",
        "font.size": 10,
        "font.family": "sans-serif",
    }
    with style.context(["default", options]):  # whatever else has drawn in this process
        figure = Figure(figsize=(5.0, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=_GRID, alpha=0.4, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        yield axes, image
        drawn = StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    image.write(_for_a_page(drawn.getvalue()))


def _legend(axes: Axes) -> None:
    count = len(axes.get_legend_handles_labels()[1])
    axes.figure.legend(loc="outside lower center", ncols=2 if count > 1 else 1, frameon=False)


def _color(number: int) -> str:
    return f"#0000f{number % SERIES + 1}"


def _for_a_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"#0000f(\d)", r"var(--series-\1)", svg)
    return svg.replace(_GRID, "var(--grid)").replace("#000000", "currentColor")
