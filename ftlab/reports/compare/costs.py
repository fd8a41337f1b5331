"""What runs cost: parameters, bytes, time, energy, money; how soon they were good; how far validation is behind."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ftlab.errors import UserError, one_line
from ftlab.reports.compare.groups import Group, JudgedRun
from ftlab.runs.checkpoint_files import step_of

_EVERY = 50
"""Steps between rows where a configuration does not say: Lightning's."""
_LAST_PART = 0.1
"""The share of the steps, at the end of training, whose training loss is taken for the last."""

Curve = list[dict[str, float]]
"""Rows of metrics.csv, without empty cells."""


@dataclass(frozen=True)
class Cost:
    """Of a method, means over its runs; None where it is not known of all of them.

    Args:
        parameters: That are trained.
        share: Of all parameters that the method holds.
        bytes: Of `model/`.
        peak_memory: Bytes, of tensors on a GPU, of the process on the CPU.
        steps: Optimiser steps.
        supervised_tokens: That were learned.
        total_tokens: That went through the network in training.
        tokens_per_second: Of all tokens, while training; None where nothing is trained.
        training_seconds: Spent in training steps.
        device_hours: From the start of the process to its end, times its devices.
        dollars: Device hours at the price given.
        joules: Used by the devices, where the run says it.
        seconds_to_quality: Of training until validation was first as good as asked; mean of the runs that were.
        reached: How many runs were as good.
        gap: Validation loss less training loss at the end, in nats a token.
    """

    parameters: float
    share: float
    bytes: float
    peak_memory: float
    steps: float | None
    supervised_tokens: float
    total_tokens: float
    tokens_per_second: float | None
    training_seconds: float
    device_hours: float | None
    dollars: float | None
    joules: float | None
    seconds_to_quality: float | None
    reached: int
    gap: float | None


def costs(groups: Sequence[Group], price: float | None, quality: float | None) -> tuple[list[Cost], float | None]:
    """Of each group, and the validation loss to which the time was taken.

    Args:
        groups: Methods.
        price: Dollars of one device for an hour.
        quality: Validation loss; by default the one that every run which was trained and judged meanwhile has come to.

    Raises:
        UserError: Curves are damaged.
    """
    curves = {id(run): curve(run) for group in groups for run in group.runs}
    if quality is None:
        best = [
            min(losses)
            for group in groups
            if group.trained
            for run in group.runs
            if (losses := [loss for _, loss in _judged(curves[id(run)]) if math.isfinite(loss)])
        ]
        quality = max(best, default=None)
    return [_cost(group, [curves[id(run)] for run in group.runs], price, quality) for group in groups], quality


def _cost(group: Group, curves: Sequence[Curve], price: float | None, quality: float | None) -> Cost:
    said = [run.record["cost"] for run in group.runs]

    def mean(name: str) -> float:
        return sum(each[name] for each in said) / len(said)

    trained = mean("training_seconds") > 0
    hours = _mean_of_all(device_hours(run) for run in group.runs)
    times = [
        None if quality is None else seconds_to(each, quality, run["training_seconds"])
        for each, run in zip(curves, said, strict=True)
    ]
    reached = [seconds for seconds in times if seconds is not None]
    return Cost(
        parameters=mean("trainable_parameters"),
        share=mean("trainable_parameters") / mean("parameters"),
        bytes=mean("model_bytes"),
        peak_memory=mean("peak_memory_bytes"),
        steps=_mean_of_all(_steps(run, rows) for run, rows in zip(group.runs, curves, strict=True)) if trained else 0.0,
        supervised_tokens=mean("supervised_tokens"),
        total_tokens=mean("total_tokens"),
        tokens_per_second=mean("total_tokens") / mean("training_seconds") if trained else None,
        training_seconds=mean("training_seconds"),
        device_hours=hours,
        dollars=None if price is None or hours is None else price * hours,
        joules=_mean_of_all(each.get("joules") for each in said),
        seconds_to_quality=sum(reached) / len(reached) if reached else None,
        reached=len(reached),
        gap=_mean_of_all(gap(each) for each in curves),
    )


def _steps(run: JudgedRun, rows: Curve) -> float | None:
    """That were taken; at least those of the last row, where nothing else tells."""
    taken = steps_taken(run)
    return taken if taken is not None else rows[-1].get("step") if rows else None


def steps_taken(run: JudgedRun) -> int | None:
    """Optimiser steps, as the run says, or its last checkpoint; None where neither is there."""
    taken = run.record.get("steps_taken")
    return step_of(run.run.last.resolve()) if taken is None and run.run.last.is_file() else taken


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    known = list(values)
    there = [value for value in known if value is not None]
    return sum(there) / len(there) if there and len(there) == len(known) else None


def device_hours(run: JudgedRun) -> float | None:
    """From the start of its processes to their end, times their devices; None where one was killed, and nobody knows
    when."""
    sessions = run.record.get("sessions", [])
    if len(sessions) == 1:  # to the millisecond, where a session is told to the second
        return run.record["cost"]["seconds"] * _devices(sessions[0]) / 3600
    if not sessions or any("ended" not in session for session in sessions):
        return None
    return sum(_seconds(session) * _devices(session) for session in sessions) / 3600


def _devices(session: dict[str, Any]) -> int:
    return session.get("devices", {}).get("number", 1)


def _seconds(session: dict[str, Any]) -> float:
    begin, end = (datetime.datetime.fromisoformat(session[key]) for key in ("started", "ended"))
    return (end - begin).total_seconds()


def curve(run: JudgedRun) -> Curve:
    """The rows of metrics.csv, in the order of the steps; none where nothing was logged.

    Raises:
        UserError: The file is damaged, or ends before training did.
    """
    path = run.run.metrics
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): put it back as it was") from error
    _refuse_cut_short(run, rows)
    return rows


def _refuse_cut_short(run: JudgedRun, rows: Curve) -> None:
    """Of a file that ends between two lines nothing else shows it. A row is written every so many steps."""
    taken = steps_taken(run) or 0
    every = run.config.get("trainer.log_every_n_steps") or _EVERY
    last = rows[-1].get("step", 0) if rows else 0
    if taken >= every and last <= taken - every:
        raise UserError(
            f"{run.run.metrics} ends at step {last:.0f}, and the run has taken {taken}: it was cut short; put it back "
            "as it was, or delete it, and compare without its curves"
        )


def seconds_to(rows: Curve, quality: float, training_seconds: float = 0.0) -> float | None:
    """Of training, until validation was first as good as `quality`; None where it never was, or nobody knows when.

    Rows tell tokens since the start, and how many a second since such a row before; validation does not count. Of steps
    after the last such row each is taken to last as long as those before it, and of steps before the first as those up
    to it; where there is none, as those of `training_seconds` in the mean.
    """
    good = next((row["step"] for row in rows if row.get("val_loss", math.inf) <= quality), None)
    if not good:
        return good
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
    judged = _judged(rows)
    trained = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    if not judged or not trained:
        return None
    end = trained[-1][0]
    last = [loss for step, loss in trained if step > end * (1 - _LAST_PART)]
    found = judged[-1][1] - sum(last) / len(last)
    return found if math.isfinite(found) else None


def _judged(rows: Curve) -> list[tuple[float, float]]:
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]


EQUAL: dict[str, Callable[[Cost], float | None]] = {
    "steps": lambda cost: cost.steps,
    "tokens": lambda cost: cost.total_tokens,
    "training time": lambda cost: cost.training_seconds,
    "peak memory": lambda cost: cost.peak_memory,
}


def equal(groups: Sequence[Group], found: Sequence[Cost], within: float = 0.02) -> list[str]:
    """Of steps, tokens, time and memory those that are the same, within 2 %, for all methods that are trained."""
    trained = [cost for group, cost in zip(groups, found, strict=True) if group.trained]
    same = []
    for name, of in EQUAL.items():
        values = [of(cost) for cost in trained]
        known = [value for value in values if value]
        if len(known) == len(values) > 1 and max(known) <= min(known) * (1 + within):
            same.append(name)
    return same
