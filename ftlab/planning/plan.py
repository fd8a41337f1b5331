"""The answers: does it fit, how much would, how long it takes, and what it leaves on the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ftlab.modules.activations import WAYS, GradientCheckpointing
from ftlab.planning.devices import Device
from ftlab.planning.processes import Cost, ddp, fsdp, fsdp2
from ftlab.planning.rehearsal import Rehearsal, Step, rehearse

EFFICIENCY = 0.35
"""Of a device's peak that steps of some thousand tokens reach: an H200 0.36 (docs/results/gpu.md)."""

MOST_ROWS = 1024


@dataclass(frozen=True)
class Processes:
    """Over which a training goes.

    Args:
        count: How many there are.
        strategy: ddp, fsdp or fsdp2.
        accumulate: Micro-batches of an optimiser step.
    """

    count: int = 1
    strategy: str = "ddp"
    accumulate: int = 1

    def beside(self, rehearsal: Rehearsal) -> float:
        """Bytes that a process of them holds more than one alone, or less, at the peak of that one."""
        alone, mine = ddp(rehearsal.shape, 1), self.cost(rehearsal)
        share = mine.gradients / alone.gradients if alone.gradients else 1.0
        less = (1 - share) * (rehearsal.peak["gradients"] + rehearsal.peak["optimizer"])
        return mine.weights + mine.buffers - alone.weights - less

    def cost(self, rehearsal: Rehearsal) -> Cost:
        """Of each."""
        shape = rehearsal.shape
        if self.strategy == "fsdp":
            return fsdp(shape, self.count, self.accumulate)
        if self.strategy == "fsdp2":
            return fsdp2(shape, self.count, self.accumulate)
        return ddp(shape, self.count)


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Args:
        step: As it was asked for.
        rehearsal: Of it.
        device: It is planned for.
        processes: Over which it goes.
        largest: Rows of the largest micro-batch that fits; 0 where none does.
    """

    step: Step
    rehearsal: Rehearsal
    device: Device
    processes: Processes
    largest: int

    @property
    def memory(self) -> float:
        """Bytes of a device at the peak."""
        return self.rehearsal.memory + self.processes.beside(self.rehearsal)

    @property
    def fits(self) -> bool:
        return self.memory <= self.device.usable

    @property
    def seconds(self) -> float | None:
        """Of a micro-batch on one device; None where nobody knows how fast it is in that precision."""
        if self.device.operations is None or not self.step.precision.precision.startswith("bf16"):
            return None
        return self.rehearsal.operations / (EFFICIENCY * self.device.operations)

    @property
    def tokens_a_second(self) -> float | None:
        """Of all devices together, padding counted."""
        return None if self.seconds is None else self.step.batch.tokens * self.processes.count / self.seconds

    @property
    def checkpoint(self) -> int:
        """Bytes of one: what is trained, and the optimiser's state."""
        return self.rehearsal.trained_bytes + self.rehearsal.optimizer_bytes


def ways_on(gpu: bool) -> tuple[GradientCheckpointing, ...]:
    """From the fastest on: a CPU's activations are in the host's memory already."""
    return tuple(way for way in WAYS if gpu or way != "offloaded")


def memory_of(step: Step, processes: Processes) -> float:
    """Bytes that a step takes of a device at its peak.

    Raises:
        UserError: It cannot be rehearsed.
    """
    found = rehearse(step)
    return found.memory + processes.beside(found)


def plan(step: Step, device: Device, processes: Processes | None = None) -> Plan:
    """Rehearses a step, and finds the largest micro-batch that fits the device.

    Raises:
        UserError: It cannot be rehearsed.
    """
    processes = processes or Processes()

    asked = rehearse(step)

    def left(rows: int) -> float:
        """Bytes that are left, or lack."""
        batch = replace(step.batch, rows=rows)
        if batch == step.batch:
            return device.usable - asked.memory - processes.beside(asked)
        return device.usable - memory_of(replace(step, batch=batch, counted=False), processes)

    return Plan(step, asked, device, processes, largest_batch(left, step.batch.rows))


def largest_batch(left: Callable[[int], float], start: int = 1) -> int:
    """The largest number of rows for which `left` is not negative; 0 where one row is too many, and at most MOST_ROWS.

    Each row takes as much as the last, nearly: where two sizes say that there is no room for one more, it is not tried.

    Args:
        left: Bytes that are left with so many rows; falls as they grow.
        start: Where to begin.
    """
    seen = {start: left(start)}
    rows = min(2 * start, MOST_ROWS) if seen[start] >= 0 else max(start // 2, 1)
    while rows not in seen:
        seen[rows] = left(rows)
        first, second = sorted(seen, key=lambda tried: abs(seen[tried]))[:2]
        growth = (seen[first] - seen[second]) / (second - first)
        fits = max((tried for tried in seen if seen[tried] >= 0), default=0)
        too_many = min((tried for tried in seen if seen[tried] < 0), default=MOST_ROWS + 1)
        by_line = int(first + seen[first] // growth) if growth > 0 else MOST_ROWS
        rows = max(min(max(by_line, fits), too_many - 1), 1)  # that not one row fits is tried
    return max((tried for tried in seen if seen[tried] >= 0), default=0)
