"""A comparison as one page of HTML that needs no other file and no network: tables, figures, answers side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from markupsafe import Markup

from ftlab.pages import filled
from ftlab.reports.compare.charts import SERIES, Chart, against, curves, lengths
from ftlab.reports.compare.comparison import Comparison
from ftlab.reports.compare.groups import Group
from ftlab.reports.compare.judged import answers
from ftlab.reports.compare.metric import Metric
from ftlab.reports.compare.series import COSTS, CURVES, bands, points
from ftlab.reports.compare.tables import Table, sentences, tables

MOST_RECORDS = 2000
"""That a page holds: of more, those on which methods differ the most."""

_TEMPLATE = Path(__file__).parent / "page.html.j2"
_SHOWN = ("memory", "time", "size")
"""Of COSTS."""


def page(
    comparison: Comparison,
    groups: Sequence[Group],
    title: str | None = None,
    words: Sequence[str] = (),
    more: Sequence[Table] = (),
) -> str:
    """The page.

    Args:
        comparison: What it shows.
        groups: Its methods with their runs, in the order of its rows.
        title: Its heading; by default the metric and how many methods there are.
        words: Sentences of the reader's own, above those of the comparison.
        more: Tables below those of the comparison.

    Raises:
        UserError: Curves or predictions of a run are damaged.
    """
    told = _answers(comparison, groups)
    charts = [*_costs(comparison), *_curves(groups), *_lengths(told)]
    return filled(
        _TEMPLATE,
        comparison=comparison,
        title=title,
        tables=[*tables(comparison), *more],
        sentences=[*words, *sentences(comparison)],
        charts=[(chart, Markup(chart.svg)) for chart in charts],
        series=range(1, SERIES + 1),
        answers=told,
        json=Markup(_in_a_script(told)),
        left_out=max(0, (comparison.records or 0) - len(told["records"])),
    )


def _in_a_script(value: Any) -> str:
    """JSON in which no text ends the element that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


# ---------------------------------------------------------------- figures


def _costs(comparison: Comparison) -> Iterator[Chart]:
    for name in _SHOWN:
        if found := points(comparison, name):
            yield against(name, found, COSTS[name][0], comparison.metric, comparison.lower_is_better)


def _curves(groups: Sequence[Group]) -> Iterator[Chart]:
    for name, label in CURVES.items():
        if found := bands(groups, name):
            yield curves(name, found, label)


def _lengths(told: Mapping[str, Any]) -> Iterator[Chart]:
    records = told["records"]
    if not records:
        return
    kinds = [("references", [len(record["references"][0].split()) for record in records])]
    for number, name in enumerate(told["methods"]):
        kinds.append((name, [len(record["answers"][number].split()) for record in records]))
    yield lengths(kinds)


# ---------------------------------------------------------------- answers


def _answers(comparison: Comparison, groups: Sequence[Group]) -> dict[str, Any]:
    """Of each record, what each method's first run answered, and its score, the mean over seeds."""
    metric = Metric.of_key(comparison.metric)
    names = [group.name for group in groups]
    found: dict[str, Any] = {
        "methods": names,
        "baseline": names.index(comparison.baseline),
        "metric": metric.name,
        "lower": comparison.lower_is_better,
        "records": [],
    }
    if not metric.of_texts:
        return found
    rows = [[answers(run, metric) for run in group.runs] for group in groups]
    scores = numpy.stack(
        [numpy.array([[row["scores"][metric.name] for row in run] for run in group]).mean(axis=0) for group in rows]
    )
    spread = scores.max(axis=0) - scores.min(axis=0)
    kept = sorted(numpy.argsort(-spread, kind="stable")[:MOST_RECORDS].tolist())
    found["records"] = [
        {
            "number": place + 1,
            "prompt": rows[0][0][place]["prompt"],
            "references": rows[0][0][place]["references"],
            "answers": [group[0][place]["prediction"] for group in rows],
            "scores": [round(float(score), 4) for score in scores[:, place]],
        }
        for place in kept
    ]
    return found
