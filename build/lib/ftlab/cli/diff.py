"""`ftlab diff RUN_A RUN_B`: in what two runs differ, and whether their results are the same."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from ftlab.cli import VERBS
from ftlab.cli.sentences import own_parser, parse
from ftlab.console import new_console
from ftlab.errors import UserError
from ftlab.runs import Run, identity
from ftlab.runs.files import read_json
from ftlab.runs.identity import differences, flat

_DESCRIPTION = f"""{VERBS["diff"]}.

Compares configuration, code, packages, fingerprints of network and data, seeds, machine, and results. The exit code is
0 whether or not they differ; with --exit-code it is 1 where they do in anything but names, places and what is listed
as without effect on results."""

_FACTS = {
    "code": "code",
    "ftlab": "ftlab",
    "packages": "packages",
    "fingerprints": "network, tokenizer and data",
    "seeds": "seeds",
    "hardware": "hardware",
    "environment": "environment",
}
_TEXT_OF_CODE = "code.diff"
_RESULTS = ("scores", "files of the model")
_ITS_NAME = ("run.root", "run.experiment", "run.name")
_LONGEST = 60
_MOST_LINES = 60
"""Printed of how two working trees differ."""
_MOST_COMPARED = 5000
"""Lines of a diff: difflib takes minutes for more."""


@dataclass(frozen=True)
class Section:
    """One kind of thing in which two runs can differ.

    Args:
        title: What it is.
        differing: Keys that differ, each with the value of either run.
        counts: Whether it makes them two different runs.
        unknown: The runs that do not say it.
        lines: More to be printed below.
    """

    title: str
    differing: Mapping[str, tuple[Any, Any]]
    counts: bool = True
    unknown: Sequence[Path] = ()
    lines: Sequence[str] = field(default=())


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints a table for each kind of thing that differs, and what is the same."""
    parser = own_parser(verb, _DESCRIPTION)
    parser.add_argument("run_a", type=Path, help="directory of a run")
    parser.add_argument("run_b", type=Path, help="directory of another")
    parser.add_argument(
        "--exit_code",
        "--exit-code",
        action="store_true",
        help="return 1 where they differ (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    options = parse(parser, arguments)
    runs = _run(options.run_a), _run(options.run_b)
    sections = list(compare(*runs))
    if options.json:
        print(json.dumps(_plain(runs, sections), indent=2, ensure_ascii=False, default=str))
    else:
        _print(runs, sections)
    return int(options.exit_code and any(section.counts and section.differing for section in sections))


def compare(a: Run, b: Run) -> Iterator[Section]:
    """Every kind of thing in which two runs can differ, whether or not they do."""
    configs = [yaml.safe_load(each.config.read_text(encoding="utf-8")) for each in (a, b)]
    effective = differences(*(identity(config) for config in configs))
    every = differences(*(flat(config) for config in configs))
    yield Section("configuration", effective)
    without = {key: values for key, values in every.items() if key not in effective and key not in _ITS_NAME}
    yield Section("configuration without effect on results", without, counts=False)
    records = a.record(), b.record()
    for key, title in _FACTS.items():
        said = [{key: record[key]} if key in record else None for record in records]
        unknown = [each.directory for each, facts in zip((a, b), said, strict=True) if facts is None]
        if unknown:
            yield Section(title, {}, unknown=unknown)
        else:
            mine, theirs = (flat(facts or {}) for facts in said)
            lines = _code_apart(mine.pop(_TEXT_OF_CODE, None), theirs.pop(_TEXT_OF_CODE, None))
            yield Section(title, differences(mine, theirs), lines=lines)
    scores = [read_json(each.scores) for each in (a, b)]
    digests = [record.get("model") or {} for record in records]
    for title, results in zip(_RESULTS, (scores, digests), strict=True):
        unknown = [each.directory for each, found in zip((a, b), results, strict=True) if not found]
        yield Section(title, differences(*results), unknown=unknown)


def _run(directory: Path) -> Run:
    found = Run(directory)
    if not found.config.is_file():
        raise UserError(f"there is no run at {directory}: it has no config.yaml; give the directory of a run")
    return found


def _code_apart(mine: str | None, theirs: str | None) -> list[str]:
    """In what the changes of two working trees differ, as a diff of diffs, cut to what can be read."""
    if mine == theirs or mine is None or theirs is None:
        return []
    changes = mine.splitlines(), theirs.splitlines()
    if max(map(len, changes)) > _MOST_COMPARED:
        return ["the changes are too long to be compared here: code.diff in provenance.json holds them"]
    lines = list(difflib.unified_diff(*changes, "A", "B", lineterm="", n=0))
    more = len(lines) - _MOST_LINES
    return lines[:_MOST_LINES] + ([f"and {more:,} more lines: see code.diff in provenance.json"] if more > 0 else [])


def _plain(runs: tuple[Run, Run], sections: Sequence[Section]) -> dict[str, Any]:
    """The same for programs: `same` is null where a run does not say it."""
    return {
        "runs": [str(each.directory) for each in runs],
        "sections": {
            section.title: {
                "same": None if section.unknown else not section.differing,
                "counts": section.counts,
                "differing": {key: list(values) for key, values in section.differing.items()},
                "unknown_of": list(map(str, section.unknown)),
            }
            for section in sections
        },
    }


def _print(runs: tuple[Run, Run], sections: Sequence[Section]) -> None:
    console = new_console()
    for letter, each in zip("AB", runs, strict=True):
        console.print(Text(f"{letter}  {each.directory}: {_told(each)}"))
    for section in sections:
        if section.differing:
            console.print()
            console.print(_table(section))
        for line in section.lines:
            console.print(Text(line), soft_wrap=True)
    same = [each.title for each in sections if not each.differing and not each.unknown]
    console.print()
    if same:
        console.print(Text(f"the same: {'; '.join(same)}"))
    for section in sections:
        if section.unknown:
            who = " and ".join(str(directory) for directory in section.unknown)
            console.print(Text(f"{section.title}: not known of {who}"))
    console.print(Text(_verdict(sections)))


def _told(each: Run) -> str:
    record = each.record()
    sessions = record.get("sessions", [])
    changed = [number for number, session in enumerate(sessions, 1) if session.get("differs")]
    told = f"{record.get('state', 'not begun')}, {len(sessions)} session{'' if len(sessions) == 1 else 's'}"
    return told + (f"; session {', '.join(map(str, changed))} not as the first" if changed else "")


def _table(section: Section) -> Table:
    table = Table(section.title, "A", "B", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for key, (a, b) in section.differing.items():
        table.add_row(Text(key), Text(_short(a)), Text(_short(b)))
    return table


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _verdict(sections: Sequence[Section]) -> str:
    """Whether the results are equal, in one sentence."""
    results = [section for section in sections if section.title in _RESULTS and not section.unknown]
    if not results:
        return "results: there are none to compare"
    said = [f"{section.title} {'differ' if section.differing else 'equal'}" for section in results]
    return f"results: {', '.join(said)}"
