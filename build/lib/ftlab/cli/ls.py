"""`ftlab ls`: the runs there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.facts_of_runs import STATES, RunFacts, clock, size
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.runs import Run
from ftlab.runs.finding import directories

_DESCRIPTION = f"""{VERBS["ls"]}.

Reads the runs' files alone. The score is rougeL of the test records, else another score of their answers, else the loss
on them, else the same of the validation records; --metric takes another. The date is that of the end, or of the last
start."""

_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "damaged": "red", "killed": "yellow"}


def _score(line: RunFacts, metric: str | None) -> float:
    found = line.score(metric)
    return found[1] if found else float("nan")


_KEYS: dict[str, Callable[[RunFacts, str | None], Any]] = {
    "run": lambda line, _: str(line.run.directory),
    "state": lambda line, _: STATES.index(line.state),
    "method": lambda line, _: line.method,
    "score": _score,
    "size": lambda line, _: line.bytes,
    "date": lambda line, _: line.date.timestamp() if line.date else 0.0,
}


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints a line for each run."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument(
        "places",
        nargs="*",
        default=["runs"],
        metavar="DIR | GLOB",
        help="runs, directories that hold some (an experiment's, a sweep's, the root of all), or patterns (default: "
        "runs)",
    )
    parser.add_argument("--sort", choices=list(_KEYS), default="date", help="by what; the last is the newest, largest")
    parser.add_argument("--reverse", action="store_true", help="the first is the newest, largest")
    parser.add_argument("--state", nargs="+", choices=list(STATES), default=[], help="only runs in one of these states")
    parser.add_argument("--metric", help="the score to show, such as val_loss")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parse(parser, arguments)
    lines = [line for line in _lines(options.places) if not options.state or line.state in options.state]
    ordered = _ordered(lines, options.sort, options.metric, options.reverse)
    if options.json:
        print(json.dumps([plain(line, options.metric) for line in ordered], indent=2))
    elif ordered:
        console = new_console(width=None if sys.stdout.isatty() else 200)  # a file has no width: 80 would fold paths
        console.print(_table(ordered, options.metric))
    else:
        print(f"ftlab: there are no runs{' in such a state' if options.state else ''}", file=sys.stderr)
    return 0


def _lines(places: Sequence[str]) -> list[RunFacts]:
    found: dict[Any, RunFacts] = {}
    for place in places:
        there = list(directories(place, depth=2))
        if not there and places != ["runs"]:
            raise UserError(
                f"no run matches {place}: give directories that hold a config.yaml, such as runs/EXPERIMENT/RUN, "
                "directories that hold some, or a pattern"
            )
        for directory in there:
            found.setdefault(directory.resolve(), RunFacts(Run(directory)))
    return list(found.values())


def _ordered(lines: list[RunFacts], key: str, metric: str | None, reverse: bool) -> list[RunFacts]:
    """In order; those of no score come last either way, and equals by their directories."""
    told = [(_KEYS[key](line, metric), line) for line in sorted(lines, key=lambda line: str(line.run.directory))]
    there = [(value, line) for value, line in told if value == value]  # NaN is not itself
    ordered = sorted(there, key=lambda each: each[0], reverse=reverse)
    return [line for _, line in [*ordered, *(each for each in told if each[0] != each[0])]]


def plain(line: RunFacts, metric: str | None) -> dict[str, Any]:
    """A run, for programs: sizes in bytes, dates as ISO 8601."""
    score = line.score(metric)
    return {
        "run": str(line.run.directory),
        "experiment": line.experiment,
        "name": line.run.directory.resolve().name,
        "state": line.state,
        "method": line.method,
        "metric": score[0] if score else None,
        "score": score[1] if score else None,
        "bytes": line.bytes,
        "date": line.date.isoformat() if line.date else None,
    }


def _table(lines: Sequence[RunFacts], metric: str | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("run", "state", "method", "score", "", "size", "date"):
        table.add_column(name, justify="right" if name in ("score", "size") else "left", overflow="fold")
    for line in lines:
        score = line.score(metric)
        table.add_row(
            Text(str(line.run.directory)),
            Text(line.state, style=_COLOURS.get(line.state, "")),
            Text(line.method),
            f"{score[1]:.4g}" if score else "",
            Text(score[0], style="dim") if score else "",
            size(line.bytes),
            clock(line.date),
        )
    return table
