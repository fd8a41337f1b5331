"""The goals of speed and memory on a CPU, held against what the bench measured.

A goal is met or missed by the median of its ratios within turns. Whether the turns could tell is another question: they
could where the interval around the median (benching.interval) lies on one side of the goal.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benching import interval
from packed_against_padded import ORDERS

STEP = 100.0
"""Milliseconds of a step from which its overhead is told as a share."""
WORDS = 32_000
OURS = ("ftlab:pack", "ftlab:bucket", "ftlab")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A goal and what was measured.

    Args:
        name: Of what.
        part: Of the bench, that measured it.
        goal: Bound.
        most: Whether the bound is from above.
        values: One of each turn.
        unit: `%`, where values are shares; or what follows a number.
        exact: Whether one value is enough, because another turn would give the same.
        lacking: Why there are no values.
    """

    name: str
    part: str
    goal: float
    most: bool
    values: tuple[float, ...] = ()
    unit: str = ""
    exact: bool = False
    lacking: str = ""

    @property
    def met(self) -> bool | None:
        """By the median; None where it was not measured."""
        return self._holds(statistics.median(self.values)) if self.values else None

    @property
    def told(self) -> bool:
        """Whether the turns lie so far from the goal that others would say the same."""
        if self.exact:
            return True
        bounds = interval(list(self.values))
        return bounds is not None and self._holds(bounds[0]) == self._holds(bounds[1])

    @property
    def verdict(self) -> str:
        if self.met is None:
            return f"not measured: {self.lacking}"
        return ("met" if self.met else "**missed**") + (
            "" if self.told else " by the median, which these turns do not tell"
        )

    @property
    def measured(self) -> str:
        """Median, and the interval around it, or of fewer than five turns smallest to largest."""
        if not self.values:
            return ""
        middle = self._said(statistics.median(self.values))
        if len(set(self.values)) == 1:
            return middle
        low, high = interval(list(self.values)) or (min(self.values), max(self.values))
        return f"{middle} ({self._said(low)} to {self._said(high)})"

    @property
    def bound(self) -> str:
        return f"{'<=' if self.most else '>='} {self._said(self.goal)}"

    def _holds(self, value: float) -> bool:
        return value <= self.goal if self.most else value >= self.goal

    def _said(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.1%}"
        number = f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.2f}"
        return f"{number} {self.unit}".rstrip()


def judged(parts: dict[str, dict[str, Any]]) -> list[Target]:
    """All goals.

    Args:
        parts: Of the bench by name: `kind` (training, data, head, packing, checkpoints or start) and `figures`.
    """
    kinds: dict[str, list[tuple[str, Figures]]] = {}
    for name, part in parts.items():
        kinds.setdefault(part["kind"], []).append((name, part["figures"]))
    found = [target for name, figures in kinds.get("training", ()) for target in _of_training(name, figures)]
    if not any("defaults" in target.name for target in found):
        why = "it takes skewed rows and a tokenizer of 32,000 words (BENCH_DATA, BENCH_TOKENIZER)"
        found.append(Target("target tokens/s over peers at their defaults", "", 2.0, False, lacking=why))
    for kind, judge in {"data": _of_data, "packing": _of_packing, "head": _of_head, "start": _of_start}.items():
        found += [target for name, figures in kinds.get(kind, ()) for target in judge(name, figures)]
    for name, figures in kinds.get("checkpoints", ()):
        share = figures["bytes"] / figures["tensors"]
        found.append(Target("checkpoint of an adapter over its tensors' bytes", name, 1.05, True, (share,), exact=True))
    return found


def _of_training(part: str, figures: Figures) -> Iterator[Target]:
    work, arms = (
        figures["work"],
        {arm: told for arm, told in figures.items() if arm not in ("work", "repeats", "profile")},
    )

    def lacking(*names: str) -> str:
        refused = [f"{name} does not count: {arms[name]['refused']}" for name in names if "refused" in arms[name]]
        return "; ".join(refused)

    def paired(mine: str, other: str, what: str) -> tuple[float, ...]:
        if lacking(mine, other):
            return ()
        return tuple(a / b for a, b in zip(arms[mine]["turns"][what], arms[other]["turns"][what], strict=True))

    if {"bare", "ftlab"} <= arms.keys():
        why = lacking("bare", "ftlab")
        step = 0.0 if lacking("bare") else statistics.median(arms["bare"]["turns"]["ms"])
        if step >= STEP or lacking("bare"):
            more = tuple(ratio - 1 for ratio in paired("ftlab", "bare", "ms"))
            name = f"time over a bare loop, {step:.0f} ms a step"
            yield Target(name, part, 0.03, True, more, "%", lacking=why)
        else:
            both = zip(*(arms[arm]["turns"]["ms"] for arm in ("ftlab", "bare")), strict=True) if not why else ()
            name = f"time over a bare loop, {step:.0f} ms a step"
            yield Target(name, part, 1.0, True, tuple(mine - other for mine, other in both), "ms", lacking=why)
    for peer, named in (("hf", "HF Trainer and PEFT"), ("trl", "TRL")):
        if {peer, "ftlab"} <= arms.keys():
            why, values = lacking(peer, "ftlab"), paired("ftlab", peer, "tokens/s")
            yield Target(f"tokens/s over {named}, same padded batches", part, 1.0, False, values, lacking=why)
    ours = best(figures)
    if "trl:default" in arms and work["vocabulary"] >= WORDS and work["skewed"]:
        for peer, named in (("hf", "HF Trainer and PEFT"), ("trl:default", "TRL")):
            why = lacking(peer) if ours else "no arm of ftlab counts"
            values = paired(ours, peer, "targets/s") if ours and not why else ()
            name = f"target tokens/s over {named} at its defaults ({ours})"
            yield Target(name, part, 2.0, False, values, lacking=why)
    if "trl:pack" in arms:
        why = lacking("trl:pack") if ours else "no arm of ftlab counts"
        values = paired(ours, "trl:pack", "targets/s") if ours and not why else ()
        yield Target(f"target tokens/s over TRL packed ({ours})", part, 1.0, False, values, lacking=why)


def best(figures: Figures) -> str | None:
    """The arm of ftlab that learns most tokens a second, of those that count."""
    rates = {arm: figures[arm]["targets/s"][0] for arm in OURS if "targets/s" in figures.get(arm, ())}
    return max(rates, key=rates.__getitem__) if rates else None


def _of_data(part: str, figures: Figures) -> Iterator[Target]:
    for file, told in figures.items():
        turns, waste = told["turns"], told["waste"]
        goals = [
            ("rows/s over TRL", 1.0, False, turns["ftlab over TRL, rows/s"], ""),
            ("rows/s by two workers over one, tenfold", 1.7, False, turns["two workers over one, tenfold rows/s"], ""),
            ("a second start", 1.0, True, turns["second_start"], "s"),
        ]
        for name, goal, most, values, unit in goals:
            yield Target(f"preparation of {file}: {name}", part, goal, most, tuple(values), unit)
        memory = tuple(turns["peak memory, tenfold over once"])
        name = f"preparation of {file}: memory at ten times the rows over once"
        yield Target(name, part, 1.2, True, memory, exact=True)
        for layout, goal in (("packs of 1024", 0.02), ("packs of 2048", 0.02), ("batches of 8, bucket", 0.10)):
            yield Target(f"padding of {file}: {layout}", part, goal, True, (waste[layout],), "%", exact=True)


def _of_packing(part: str, figures: Figures) -> Iterator[Target]:
    for what in ("loss", "gradient"):
        most = max(figures[order][what] for order in ORDERS)
        yield Target(f"{what} of packs beside padded batches, fp32", part, 1e-5, True, (most,), exact=True)
    name = "change of a packed sample's logits when the others change"
    yield Target(name, part, 0.0, True, (figures["seen"],), exact=True)


def _of_head(part: str, figures: Figures) -> Iterator[Target]:
    for name, told in figures.items():
        rows, words, _, matrix, arm = name.split(" ", 4)
        if arm == "ftlab":
            what = f"extra memory of the head over all logits, {int(words):,} words, {rows} rows, {matrix} matrix"
            yield Target(what, part, 0.30, True, (told["memory"][0],), exact=True)


def _of_start(part: str, figures: Figures) -> Iterator[Target]:
    yield Target(
        "ftlab fit on the demo to its first step's end", part, 10.0, True, tuple(figures["ftlab"]["turns"]), "s"
    )


def table(targets: list[Target]) -> str:
    """In Markdown."""
    lines = ["| goal | | measured | | of part |", "|---|---|---|---|---|"]
    lines += [f"| {t.name} | {t.bound} | {t.measured} | {t.verdict} | {t.part} |" for t in targets]
    return "\n".join(lines)
