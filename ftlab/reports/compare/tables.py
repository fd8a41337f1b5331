"""A comparison as texts: tables of quality, of differences and of cost, and sentences; in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftlab.console import clock
from ftlab.evaluation.statistics import Interval
from ftlab.reports.compare.comparison import Comparison, Row, Versus, in_words

Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of cells; the first column names methods."""

    title: str
    header: Sequence[str]
    rows: Cells


def tables(comparison: Comparison) -> list[Table]:
    """Of quality, of differences and of cost, without columns of which nothing is known."""
    return [_quality(comparison), _difference(comparison), _cost(comparison)]


def sentences(comparison: Comparison) -> list[str]:
    """What the tables mean, in words."""
    told = [row.versus.sentence for row in comparison.rows if row.versus]
    if comparison.equal:
        told.append(f"equal for all methods that are trained: {', '.join(comparison.equal)}")
    return [*told, *comparison.notes, *how(comparison), *comparison.origin]


def how(comparison: Comparison) -> list[str]:
    """How numbers were got, as far as a reader of the table must know."""
    over = {_over(row) for row in comparison.rows} - {""}
    level, share = 1 - comparison.confidence, _share(comparison)
    others = len(comparison.rows) - 1
    said = [f"{share} intervals are over {', or '.join(sorted(over, reverse=True))}"] if over else []
    if comparison.records:
        draws = f"{comparison.records:,} records, {comparison.resamples:,} draws"
        said[-1:] = [f"{said[-1]} ({draws})"] if said else []
    number = (
        f"corrected for {others} comparisons (Holm), which intervals are not" if others > 1 else "of one comparison"
    )
    said.append(f"p is two-sided, {number}; methods are told apart at {level:.2g}")
    if any(row.forgetting_over_seeds for row in comparison.rows):
        said.append("intervals of forgetting are over seeds alone, on the documents of the set")
    if comparison.quality is not None:
        said.append(f"time to quality: training until val_loss was {comparison.quality:.4g} or less")
    return said


def markdown(comparison: Comparison, more: Sequence[Table] = ()) -> str:
    """The tables, of the comparison and others, and the sentences."""
    parts = []
    for table in (*tables(comparison), *more):
        header, *rows = [[_escaped(cell, "|") for cell in line] for line in (table.header, *table.rows)]
        rule = f"|---|{'---:|' * (len(header) - 1)}"
        parts.append("\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]))
    parts.append("\n".join(f"- {sentence}" for sentence in sentences(comparison)))
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """The tables as tabular environments, with booktabs' rules; the sentences as comments."""
    parts = ["\n".join(f"% {sentence}" for sentence in sentences(comparison))]
    for table in tables(comparison):
        header, *rows = [[_tex(cell) for cell in line] for line in (table.header, *table.rows)]
        lines = [
            f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            "\\toprule",
            f"{' & '.join(header)} \\\\",
            "\\midrule",
            *(f"{' & '.join(row)} \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def csv_text(comparison: Comparison) -> str:
    """A line a method, with every number in full."""
    lines = numbers(comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def json_text(comparison: Comparison) -> str:
    """All of it, every number in full."""
    return json.dumps(comparison.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def numbers(comparison: Comparison) -> list[dict[str, Any]]:
    """Of each method every number in full, by the same names for all; None where there is none."""
    lines = [_numbers(comparison, row) for row in comparison.rows]
    names = dict.fromkeys(name for line in lines for name in line)
    return [{name: line.get(name) for name in names} for line in lines]


def _quality(comparison: Comparison) -> Table:
    digits = 4 if comparison.lower_is_better else 2
    apart = _both_known(comparison)
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.name,
        "seeds": lambda row: str(len(row.seeds)) if row.drawn else "none",
        comparison.metric: lambda row: f"{row.score.value:.{digits}f}",
        f"{_share(comparison)} interval": lambda row: _range(row.score.widest, digits),
        "over seeds": lambda row: _range(row.score.over_seeds, digits) if apart else "",
        "over records": lambda row: _range(row.score.over_records, digits) if apart else "",
    }
    return _table("quality", columns, comparison.rows)


def _difference(comparison: Comparison) -> Table:
    digits = 4 if comparison.lower_is_better else 2
    apart = _both_known(comparison)
    columns: dict[str, Callable[[Row, Versus], str]] = {
        f"less {comparison.baseline}": lambda row, its: row.name,
        comparison.metric: lambda row, its: f"{its.difference.value:+.{digits}f}",
        f"{_share(comparison)} interval": lambda row, its: _range(its.difference.widest, digits, "+"),
        "p": lambda row, its: _p(its.p, comparison),
        "p, seeds": lambda row, its: _p(its.corrected.seeds, comparison) if apart else "",
        "p, records": lambda row, its: _p(its.corrected.randomisation, comparison) if apart else "",
        "p, bootstrap": lambda row, its: _p(its.corrected.bootstrap, comparison),
        "": lambda row, its: its.verdict if its.p is not None else "",
    }

    def beside(show: Callable[[Row, Versus], str]) -> Callable[[Row], str]:
        return lambda row: show(row, row.versus) if row.versus else ""

    told = {name: beside(show) for name, show in columns.items()}
    return _table("difference", told, [row for row in comparison.rows if row.versus])


def _both_known(comparison: Comparison) -> bool:
    """Whether seeds and records are told apart for some row: else either is all that is known."""
    return any(_over(row) == "seeds and records" for row in comparison.rows)


def _cost(comparison: Comparison) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.name,
        "trained": lambda row: f"{row.cost.parameters:,.0f}",
        "share": lambda row: f"{row.cost.share:.2%}",
        "on disk": lambda row: _bytes(row.cost.bytes),
        "peak memory": lambda row: _bytes(row.cost.peak_memory),
        "tokens/s": lambda row: _number(row.cost.tokens_per_second, ",.0f"),
        "training": lambda row: _clock(row.cost.training_seconds if row.trained else None),
        "to quality": lambda row: _to_quality(row),
        "energy": lambda row: _joules(row.cost.joules),
        "dollars": lambda row: _number(row.cost.dollars, ".4g"),
        "gap": lambda row: _number(row.cost.gap, "+.3f"),
        "chosen": lambda row: ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in row.tuned.items()),
        "of": lambda row: str(row.tried) if row.tuned and row.tried > 1 else "",
    }
    names = dict.fromkeys(name for row in comparison.rows for name in row.forgetting)
    for name in names:
        columns[name] = lambda row, name=name: _forgotten(row, name)  # type: ignore[misc]
    return _table("cost", columns, comparison.rows)


def _table(title: str, columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> Table:
    cells = {name: [show(row) for row in rows] for name, show in columns.items()}
    kept = [name for name, column in cells.items() if any(column)]
    return Table(title, [name.strip() for name in kept], list(zip(*(cells[name] for name in kept), strict=True)))


def _numbers(comparison: Comparison, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "method": row.name,
        "seeds": len(row.seeds) if row.drawn else 0,
        comparison.metric: row.score.value,
    }
    estimates = {"": row.score} | ({"difference_": row.versus.difference} if row.versus else {})
    if row.versus:
        line |= {"baseline": comparison.baseline, "difference": row.versus.difference.value}
    for prefix, estimate in estimates.items():
        for over in ("both", "records", "seeds"):
            interval = getattr(estimate, f"over_{over}")
            line[f"{prefix}low_over_{over}"] = interval.low if interval else None
            line[f"{prefix}high_over_{over}"] = interval.high if interval else None
    if row.versus:
        for name in ("both", "randomisation", "bootstrap", "seeds"):
            line[f"p_{name}"] = getattr(row.versus.tests, name)
            line[f"p_{name}_corrected"] = getattr(row.versus.corrected, name)
        line |= {"p": row.versus.p, "verdict": row.versus.verdict}
    line |= vars(row.cost)
    line |= {f"chosen_{key}": value for key, value in row.tuned.items()} | {"tried": row.tried}
    for name, value in row.forgetting.items():
        interval = row.forgetting_over_seeds.get(name)
        line |= {
            name: value,
            f"{name}_low_over_seeds": interval.low if interval else None,
            f"{name}_high_over_seeds": interval.high if interval else None,
        }
    return line


def _over(row: Row) -> str:
    """Over what the interval of a row is, in words."""
    score = row.score
    if not row.drawn:
        return "records alone of a method without seeds" if score.over_records else ""
    if score.over_both:
        return "seeds and records"
    return (
        "records alone where no other seed is known"
        if score.over_records
        else "seeds alone"
        if score.over_seeds
        else ""
    )


def _range(interval: Interval | None, digits: int, sign: str = "") -> str:
    return f"{interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f}" if interval else ""


def _p(value: float | None, comparison: Comparison) -> str:
    return "" if value is None else in_words(value, comparison.confidence)


def _share(comparison: Comparison) -> str:
    """The confidence of intervals: 99.9% is not 100%."""
    return f"{100 * comparison.confidence:g}%"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.2f} MB"


def _joules(value: float | None) -> str:
    return "" if value is None else f"{value / 3.6e6:.3g} kWh" if value >= 3.6e5 else f"{value:,.0f} J"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 600 else clock(seconds)


def _to_quality(row: Row) -> str:
    if not row.trained or (row.cost.gap is None and row.cost.seconds_to_quality is None):
        return ""
    if row.cost.reached == len(row.runs):
        return _clock(row.cost.seconds_to_quality)
    if not row.cost.reached:
        return "not reached"
    return f"{_clock(row.cost.seconds_to_quality)} ({row.cost.reached} of {len(row.runs)})"


def _forgotten(row: Row, name: str) -> str:
    interval = row.forgetting_over_seeds.get(name)
    apart = f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else ""
    return _number(row.forgetting.get(name), "+.3f") + apart


def _escaped(text: str, characters: str) -> str:
    return "".join(f"\\{letter}" if letter in characters else letter for letter in text)


_TEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _tex(text: str) -> str:
    told = "".join(_TEX.get(letter, letter) for letter in text)
    return f"${told}$" if told[:1] in "+-" and told[1:].replace(".", "").isdigit() else told
