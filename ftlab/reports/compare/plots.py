"""A comparison as figures for a report: score against memory, time and parameters, and the losses of training."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab.reports.compare.comparison import Comparison
from ftlab.reports.compare.groups import Group
from ftlab.reports.compare.series import COSTS, CURVES, bands, front, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = ("memory", "time", "parameters")
"""Of COSTS."""
_INCHES = (6.5, 3.5)
_MARKS, _LINES = "os^Dv", ("-", "--", ":", "-.")
"""For each ten colours another."""
FORMATS = ("pdf", "png")


def drawn(
    directory: Path, comparison: Comparison, groups: Sequence[Group], formats: Sequence[str] = FORMATS
) -> dict[Path, bytes]:
    """Each figure, by default as PDF and PNG, by the file in `directory` that is to hold it."""
    return {
        directory / f"{name}.{kind}": _bytes(figure, kind)
        for name, figure in figures(comparison, groups).items()
        for kind in formats
    }


def _bytes(figure: Figure, kind: str) -> bytes:
    """Without the time of drawing: the same comparison is the same file."""
    image = BytesIO()
    figure.savefig(image, format=kind, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else None)
    return image.getvalue()


def figures(comparison: Comparison, groups: Sequence[Group]) -> dict[str, Figure]:
    """By name: score_memory, score_time, score_parameters, train_loss, val_loss; without those that would be empty."""
    found = {f"score_{name}": _score_against(name, comparison) for name in _SHOWN}
    found |= {name: _losses(name, groups) for name in CURVES}
    return {name: figure for name, figure in found.items() if figure is not None}


def _figure(names: int) -> tuple[Figure, Any]:
    """With room for so many names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _INCHES
    figure = Figure(figsize=(width, max(height, 0.18 * names + 0.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _score_against(name: str, comparison: Comparison) -> Figure | None:
    """Scores with their intervals; the line is the Pareto front: nothing else is both better and cheaper."""
    found = points(comparison, name)
    if not found:
        return None
    figure, axes = _figure(len(found))
    for point in found:
        mark, color = _MARKS[point.number // 10 % len(_MARKS)], f"C{point.number % 10}"
        errors = point.reach if point.interval else None
        axes.errorbar(point.cost, point.score, errors, fmt=mark, capsize=3, color=color, label=point.name)
    edge = [(point.cost, point.score) for point in front(found, comparison.lower_is_better)]
    axes.plot(*zip(*edge, strict=True), color="grey", linewidth=1, zorder=0, drawstyle="steps-post")
    costs = [point.cost for point in found]
    if max(costs) > 20 * min(costs):
        axes.set_xscale("log")
    axes.set_xlabel(COSTS[name][0])
    axes.set_ylabel(comparison.metric)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _losses(name: str, groups: Sequence[Group]) -> Figure | None:
    """The mean over seeds at each step at which all have one; the band goes from the least to the greatest."""
    found = bands(groups, name)
    if not found:
        return None
    figure, axes = _figure(len(groups))
    for band in found:
        color, line = f"C{band.number % 10}", _LINES[band.number // 10 % len(_LINES)]
        axes.plot(band.steps, band.values.mean(axis=0), line, color=color, label=band.name)
        low, high = band.values.min(axis=0), band.values.max(axis=0)
        axes.fill_between(band.steps, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks(lambda loss, _: f"{loss:g}")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"{CURVES[name]}, nats a token")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure
