"""The page of a bench: its record (bench_suite.py) in Markdown."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from bench_targets import judged, table
from benching import said
from packed_against_padded import COMPARED

TITLES = {"short": "The bench, short form", "long": "The bench, long form"}
LIMITS = {
    "short": """\
Five turns tell what lies beyond the smallest and the largest of them, with 94 % sureness, and nothing nearer. The same
training takes up to 1.5 times as long from one turn to the next on a shared machine; a ratio within a turn loses what
its two arms share of that, and no more. So a few per cent of a step, as the first goal asks for, are often not told.
Preparation and the head are of one turn: of their seconds no difference under a half is told; bytes and shares do not
change from turn to turn. `make bench-long` is for the rest.""",
    "long": """\
An interval around a median holds the true one with 93 to 96 % sureness, whatever the distribution (order statistics,
as in the sign test).""",
}
HOW = """\
Every arm is a process of its own; arms take turns, every second turn backwards; a ratio is of two arms of one turn.
Measured: the median, and the interval around it (of fewer than five turns, smallest to largest). A goal is met or
missed by the median; where the interval holds the goal, the turns do not tell."""


def page(record: dict[str, Any]) -> str:
    """All that a reader needs, in the order of what they ask first."""
    told, parts = record["machine"], record["parts"]
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    dates = sorted({part["date"] for part in parts.values()})
    commits = sorted({part["commit"] for part in parts.values()})
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    machine = (
        f"{told['processor']}, {told['cores']} cores, threads: {told['threads']}; {told['system']}; "
        f"Python {told['python']}; {versions}."
    )
    commands = dict.fromkeys(part["command"] for part in parts.values())
    lines = [f"# {TITLES[record['form']]}", "", *(f"    {command}" for command in commands), ""]
    lines.append(
        f"{fill(machine, 130)}\nOf {' and '.join(dates)}, commit {', '.join(commits)}; {minutes:.0f} minutes. "
        f"Written by scripts/bench_page.py; bench_{record['form']}.json has every turn."
    )
    lines += ["", "## Goals", "", HOW, "", table(judged(parts)), "", LIMITS[record["form"]]]
    for name, part in parts.items():
        lines += ["", f"## {name}", "", *SECTIONS[part["kind"]](part)]
    return "\n".join(lines) + "\n"


COLUMNS = (
    *("arm", "ms a step", "CPU ms", "tokens/s", "target tokens/s", "padding", "peak MB", "s to the first step"),
    "time of a token over the first arm's",
)


def _training(part: dict[str, Any]) -> list[str]:
    figures = part["figures"]
    work = figures["work"]
    lines = [
        f"{part['says'][0].upper()}{part['says'][1:]}, of {work['data']}: {work['steps']} steps, "
        f"{work['warm']} of them not counted;",
        f"rows of up to {work['length']} tokens, where packed {work['packs']} packs of {work['length']} a step; "
        f"vocabulary {work['vocabulary']:,}; {work['precision']};",
        f"{figures['repeats']} turns, {part['seconds']} s in all. Arms that count train the same records, "
        "and their losses agree.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
    ]
    for arm, told in figures.items():
        if arm in ("work", "repeats", "profile"):
            continue
        if "refused" in told:
            lines.append(f"| {arm} | does not count: {told['refused']} | | | | | | | |")
            continue
        over = next((value for name, value in told.items() if name.startswith("over ")), None)
        cells = [
            said(told[name], digits) for name, digits in (("ms", 1), ("CPU ms", 1), ("tokens/s", 0), ("targets/s", 0))
        ]
        memory = said([number / 1e6 for number in told["memory"]], 0)
        cells += [f"{told['padding']:.1%}", memory, said(told["first_step"], 1), said(over, 3) if over else ""]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    if "profile" in figures:
        arm, *profile = figures["profile"]
        lines += ["", f"A goal is missed; where the steps of `{arm}` go (`ftlab fit --profile`):", ""]
        lines += [f"    {line}" for line in profile]
    return lines


def _data(part: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for file, told in part["figures"].items():
        lines += [f"{file}, {told['rows']:,} rows.", "", "| arm | s |", "|---|---:|"]
        lines += [f"| {arm} | {said(value, 2)} |" for arm, value in told["seconds"].items()]
        lines += ["", "| ratio | |", "|---|---:|"]
        lines += [f"| {name} | {said(value, 2)} |" for name, value in told["ratios"].items()]
        lines += ["", "| padding of | |", "|---|---:|"]
        lines += [f"| {layout} | {share:.2%} |" for layout, share in told["waste"].items()]
    return lines


def _head(part: dict[str, Any]) -> list[str]:
    lines = ["| rows | words | width | matrix | arm | ms | over all logits | extra MB | over all logits |"]
    lines.append("|---:|---:|---:|---|---|---:|---:|---:|---:|")
    for name, told in part["figures"].items():
        cells = [*name.split(" ", 4), *map(said, told.values(), (0, 2, 0, 2))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _packing(part: dict[str, Any]) -> list[str]:
    told = part["figures"]
    lines = [f"{told['records']} records in {told['packs']} packs beside padded batches; relative difference:", ""]
    lines += ["| samples in packs | summed loss | gradient of all weights |", "|---|---:|---:|"]
    lines += [
        f"| {what} | {told[what]['loss']:.1e} | {told[what]['gradient']:.1e} |" for what in COMPARED if what in told
    ]
    replaced = f"With {told['replaced']:,} tokens of every second sample replaced, logits of the others change by "
    return [*lines, "", f"{replaced}{told['seen']}."]


def _checkpoints(part: dict[str, Any]) -> list[str]:
    told = part["figures"]
    return [f"LoRA r 16 of the network that ships: {told['bytes']:,} bytes, tensors {told['tensors']:,}."]


def _start(part: dict[str, Any]) -> list[str]:
    lines = ["| arm | s to the first step's end | CPU s | peak MB |", "|---|---:|---:|---:|"]
    for arm, told in part["figures"].items():
        lines.append(f"| {arm} | {' | '.join(said(told[name], 1) for name in ('wall', 'cpu', 'MB'))} |")
    return lines


SECTIONS = {
    **{"training": _training, "data": _data, "head": _head, "packing": _packing, "checkpoints": _checkpoints},
    "start": _start,
}
