"""The curves of a run, as metrics.csv has them: how soon validation was good, how far it is behind training."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ftlab.errors import UserError, one_line

_EVERY = 50
"""Steps between rows where a configuration does not say: Lightning's."""
_LAST_PART = 0.1
"""The share of the steps, at the end of training, whose training loss is taken for the last."""

Curve = list[dict[str, float]]
"""Rows of metrics.csv, without empty cells."""


def read(path: Path, taken: int, every: int | None) -> Curve:
    """The rows, in the order of the steps; none where nothing was logged.

    Args:
        path: metrics.csv.
        taken: Optimiser steps of the run.
        every: Steps between rows; None where its configuration does not say.

    Raises:
        UserError: The file is damaged, or ends before training did.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): put it back as it was") from error
    _refuse_cut_short(path, rows, taken, every or _EVERY)
    return rows


def _refuse_cut_short(path: Path, rows: Curve, taken: int, every: int) -> None:
    """Of a file that ends between two lines nothing else shows it. A row is written every so many steps."""
    last = rows[-1].get("step", 0) if rows else 0
    if taken >= every and last <= taken - every:
        raise UserError(
            f"{path} ends at step {last:.0f}, and the run has taken {taken}: it was cut short; put it back as it was, "
            "or delete it, and compare without its curves"
        )


def seconds_to(rows: Curve, quality: float, training_seconds: float = 0.0) -> float | None:
    """Of training, until validation was first as good as `quality`; None where it never was, or nobody knows when.

    Rows tell tokens since the start, and how many a second since such a row before; validation does not count. Of steps
    after the last such row each is taken to last as long as those before it, and of steps before the first as those up
    to it; where there is none, as those of `training_seconds` in the mean.
    """
    good = next((row["step"] for row in rows if row.get("val_loss", math.inf) <= quality), None)
    if good is None:
        return None
    if good == 0:
        return 0.0
    seconds = tokens = step = each = 0.0
    for row in rows:
        if "total_tokens" not in row or not row.get("tokens_per_second", 0) > 0:
            continue
        passed = (row["total_tokens"] - tokens) / row["tokens_per_second"]
        last, each = each, passed / max(1.0, row["step"] - step)
        if row["step"] > good:
            each = last or each
            break
        seconds, tokens, step = seconds + passed, row["total_tokens"], row["step"]
    each = each or training_seconds / rows[-1]["step"]
    return seconds + (good - step) * each if each else None


def gap(rows: Curve) -> float | None:
    """The last validation loss less the mean training loss of the last tenth of the steps; None without one of them, or
    where one is no finite number."""
    judged = losses(rows)
    trained = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    if not judged or not trained:
        return None
    end = trained[-1][0]
    last = [loss for step, loss in trained if step > end * (1 - _LAST_PART)]
    found = judged[-1][1] - sum(last) / len(last)
    return found if math.isfinite(found) else None


def losses(rows: Curve) -> list[tuple[float, float]]:
    """Each validation's step and loss."""
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
