"""What runs have forgotten: how much the loss on each retention set has risen, where all measured the same set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy

from ftlab.errors import UserError
from ftlab.evaluation import statistics
from ftlab.evaluation.statistics import Estimate, Sample
from ftlab.reports.compare.groups import Group, JudgedRun
from ftlab.reports.compare.metric import CHANGE, command, name_of_set, refuse_older

_ALIKE = 1e-3
"""Share by which losses of one base differ on two machines."""
_Documents = list[tuple[str, int]]
"""Of each document where it stands, and its tokens."""


def forgetting(groups: Sequence[Group], confidence: float) -> tuple[list[Mapping[str, Estimate]], list[str]]:
    """Of each group by set how much its loss has risen, in nats a token, over seeds; and what a reader must know.

    Args:
        groups: Methods. Of one a set is told that all its runs have.
        confidence: Of intervals.

    Raises:
        UserError: A run's retention/NAME.jsonl is damaged, or older than its last training.
    """
    found: list[dict[str, Estimate]] = [{} for _ in groups]
    notes = []
    keys = dict.fromkeys(key for group in groups for run in group.runs for key in run.scores if CHANGE.fullmatch(key))
    for key in keys:
        name = name_of_set(key)
        notes += lacking(key, groups)
        having = [group for group in groups if all(math.isfinite(run.scores.get(key, math.nan)) for run in group.runs)]
        if apart := other_documents(name, having):
            notes.append(f"forgetting {name} is left out: {apart}")
            continue
        notes += other_bases(name, having)
        for group, told in zip(groups, found, strict=True):
            if group in having:
                told[f"forgetting {name}"] = statistics.estimate(changes(key, group), confidence)
    return [*found], notes


def lacking(key: str, groups: Sequence[Group]) -> list[str]:
    """A sentence for each group of which a run has the set, but not all runs have a number of it."""
    said = []
    for group in groups:
        without = [run for run in group.runs if not math.isfinite(run.scores.get(key, math.nan))]
        if without and any(key in run.scores for run in group.runs):
            run, what = without[0], without[0].scores.get(key, "none")
            said.append(f"forgetting {name_of_set(key)} of {group.name} is left out: {run} has {what}")
    return said


def changes(key: str, group: Group) -> Sample:
    """A number a run, of which intervals and tests are over seeds alone."""
    return Sample(numpy.array([run.scores[key] for run in group.runs]), group.seeds, group.trained)


def other_documents(name: str, groups: Sequence[Group]) -> str:
    """In which documents of the set two runs differ, in words; nothing where they do not, as far as is known."""
    known = [
        (run, documents) for group in groups for run in group.runs if (documents := _documents(run, name)) is not None
    ]
    for run, mine in known[1:]:
        first, theirs = known[0]
        if len(mine) != len(theirs):
            return f"{first} measured it on {len(theirs)} documents and {run} on {len(mine)}"
        for number, (one, other) in enumerate(zip(theirs, mine, strict=True), 1):
            if one != other:
                return (
                    f"{first} and {run} measured it on other documents: document {number} is {one[0]} with {one[1]} "
                    f"tokens there and {other[0]} with {other[1]} here"
                )
    return ""


def _documents(run: JudgedRun, name: str) -> _Documents | None:
    path = run.run.retention(name)
    try:
        with path.open(encoding="utf-8") as lines:
            found = [(row["source"], row["tokens"]) for row in map(json.loads, lines)]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: ftlab test -c {run.run.config} writes it again") from error
    # fit writes it before it notes its end, and a fit without the set leaves both file and scores as they were
    began, again = run.record["sessions"][-1]["started"], command(run, f"retention_{name}_loss_change")
    refuse_older(path, began, "the beginning of the last session", f"{again} writes it again")
    return found


def other_bases(name: str, groups: Sequence[Group]) -> list[str]:
    """A sentence where bases came to other losses: rightly so in 4 bits, but other texts would show it, too."""
    key = f"retention_{name}_loss_before"
    losses = {group.name: [run.scores[key] for run in group.runs if key in run.scores] for group in groups}
    every = [loss for each in losses.values() for loss in each]
    if not every or max(every) - min(every) <= _ALIKE * max(every):
        return []
    said = ", ".join(f"{_range(each)} of {method}" for method, each in losses.items() if each)
    return [
        f"before training the loss on {name} was {said}: other bits, precision or device of the base, or other texts; "
        "forgetting is from there on"
    ]


def _range(losses: Sequence[float]) -> str:
    low, high = min(losses), max(losses)
    return f"{low:.4f}" if high - low <= _ALIKE * high else f"{low:.4f} to {high:.4f}"
