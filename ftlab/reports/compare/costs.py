"""What runs cost: parameters, bytes, time, energy, money; how soon they were good; how far validation is behind."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ftlab.reports.compare.curves import gap, losses, seconds_to
from ftlab.reports.compare.groups import Group, JudgedRun


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
    if quality is None:
        best = [
            min(known)
            for group in groups
            if group.trained
            for run in group.runs
            if (known := [loss for _, loss in losses(run.curve) if math.isfinite(loss)])
        ]
        quality = max(best, default=None)
    return [_cost(group, price, quality) for group in groups], quality


def _cost(group: Group, price: float | None, quality: float | None) -> Cost:
    said = [run.record["cost"] for run in group.runs]

    def mean(name: str) -> float:
        return sum(each[name] for each in said) / len(said)

    trained = mean("training_seconds") > 0
    hours = _mean_of_all(device_hours(run) for run in group.runs)
    times = [
        None if quality is None else seconds_to(run.curve, quality, run.record["cost"]["training_seconds"])
        for run in group.runs
    ]
    reached = [seconds for seconds in times if seconds is not None]
    return Cost(
        parameters=mean("trainable_parameters"),
        share=mean("trainable_parameters") / mean("parameters"),
        bytes=mean("model_bytes"),
        peak_memory=mean("peak_memory_bytes"),
        steps=_mean_of_all(_steps(run) for run in group.runs) if trained else 0.0,
        supervised_tokens=mean("supervised_tokens"),
        total_tokens=mean("total_tokens"),
        tokens_per_second=mean("total_tokens") / mean("training_seconds") if trained else None,
        training_seconds=mean("training_seconds"),
        device_hours=hours,
        dollars=None if price is None or hours is None else price * hours,
        joules=_mean_of_all(each.get("joules") for each in said),
        seconds_to_quality=sum(reached) / len(reached) if reached else None,
        reached=len(reached),
        gap=_mean_of_all(gap(run.curve) for run in group.runs),
    )


def _steps(run: JudgedRun) -> float | None:
    """That were taken; at least those of the last row, where nothing else tells."""
    if run.steps_taken is not None:
        return run.steps_taken
    return run.curve[-1].get("step") if run.curve else None


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
