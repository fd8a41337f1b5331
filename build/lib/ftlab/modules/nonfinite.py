"""Optimiser steps whose loss or gradient is NaN or infinite: they change nothing, and are left out or refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ftlab.errors import UserError
from ftlab.modules.devices import gathered, summed
from ftlab.modules.outcomes import Outcome

NAMED = 20
"""Records that a sentence names at most."""


class LeftOut(Exception):  # noqa: N818  (no error: the step ends before the optimiser)
    """Leaves an optimiser step between its gradients and the optimiser, whatever optimiser it is."""


@dataclass(frozen=True)
class Nonfinite:
    """An optimiser step that came to no number.

    Args:
        step: Counted from 1.
        loss: Mean over the targets of the step, over all devices.
        gradient_norm: Before clipping.
        records: Those of the micro-batches whose own loss is no number; all of the step where each loss is one, and
            the gradient alone is not.
    """

    step: int
    loss: float
    gradient_norm: float
    records: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.records) - NAMED} more" if len(self.records) > NAMED else ""
        return (
            f"at step {self.step} the loss is {self.loss} and the gradient norm {self.gradient_norm}, on the records "
            f"{', '.join(self.records[:NAMED])}{more}"
        )

    def row(self) -> dict[str, Any]:
        """Its fields as JSON can hold them: what is no number as text."""
        return {name: _in_json(value) for name, value in asdict(self).items()}


class Step:
    """The micro-batches of an optimiser step on this device, and what the step came to on all."""

    def __init__(self) -> None:
        self.number = 0
        """Counted from 1; 0 while it is under way."""
        self.targets = 0
        """Target tokens on this device."""
        self.global_targets = 0.0
        """On all."""
        self.losses: list[Tensor] = []
        """Summed, of each micro-batch; still on the device."""
        self.records: list[Sequence[str]] = []
        self.outcome: Outcome | None = None

    def add(self, loss: Tensor, records: Sequence[str], targets: int) -> None:
        """Adds a micro-batch: its summed loss, which nobody waits for, its records, and its target tokens."""
        self.losses.append(loss.detach())
        self.records.append(records)
        self.targets += targets

    def loss(self) -> Tensor:
        """Its summed loss on this device, (1,), still there."""
        return torch.stack(self.losses).sum().reshape(1)

    def spoilt(self) -> list[str]:
        """Records of the micro-batches whose own loss is no number, or else of all; to be called by all processes."""
        finite = [bool(torch.isfinite(loss)) for loss in self.losses]
        parts = gathered(list(zip(finite, map(list, self.records), strict=True)))
        together = [batch for part in parts for batch in part]
        all_finite = all(finite for finite, _ in together)
        return [record for finite, records in together if all_finite or not finite for record in records]


class Soundness:
    """The optimiser steps of a run: which of them came to no number, and the sums of those that were taken.

    Args:
        allowed: Steps that may be left out in a run.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.left_out: list[Nonfinite] = []
        """In this run, checkpoints and all: a part of them."""
        self.refused: Nonfinite | None = None
        """The one that ended training."""
        self.loss: Tensor | float = 0.0
        """Summed since the last log, of steps that were taken."""
        self.targets = 0
        """Likewise."""
        self.gradient_norm: float | None = None
        """Of the last step; None where it was left out."""
        self._unsettled: Step | None = None

    def begin(self) -> None:
        """Forgets what a training that was broken off has left."""
        self._unsettled = None

    def later(self, step: Step) -> None:
        """Has a step, which the device is told to leave out where it came to no number, be judged by `settle`."""
        self._unsettled = step

    def settle(self) -> None:
        """Judges the step that is left, if any: before the next is taken, and before anything is kept or told.

        Raises:
            UserError: It came to no number, and no more may be left out; nothing has changed since before it.
        """
        step, self._unsettled = self._unsettled, None
        if step is not None:
            self.judge(step)

    def judge(self, step: Step) -> bool:
        """Whether a step is taken, and not left out; waits for what it came to. To be called by all processes.

        Raises:
            UserError: It came to no number, and no more may be left out.
        """
        assert step.outcome is not None
        loss, norm = step.outcome.read()
        loss /= max(1.0, step.global_targets)
        if math.isfinite(loss) and math.isfinite(norm):
            for part in step.losses:
                self.loss = self.loss + part
            self.targets += step.targets
            self.gradient_norm = norm
            return True
        found = Nonfinite(step.number, loss, norm, step.spoilt())
        self.gradient_norm = None
        if len(self.left_out) < self.allowed:
            self.left_out.append(found)
            return False
        self.refused = found
        after = f" after {self.allowed} that were left out" if self.allowed else ""
        raise UserError(
            f"training has diverged: {found}; training ends before this step{after}: look at these records, lower the "
            "optimiser's lr, raise schedule.warmup, or raise model.skip_nonfinite to leave such steps out"
        )

    def curves(self, device: torch.device) -> dict[str, float]:
        """Mean loss of the targets since the last call, on all devices, and the last step's norm; to be called by all.

        Args:
            device: Of this process.
        """
        sums = torch.tensor([float(self.loss), self.targets], dtype=torch.float64)
        loss_sum, targets = summed(sums, device).tolist()
        self.loss, self.targets = 0.0, 0
        found = {}
        if targets:  # none where all steps since then were left out
            found["train_loss"] = loss_sum / targets
        if self.gradient_norm is not None:
            found["grad_norm"] = self.gradient_norm
        return found

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return [asdict(step) for step in self.left_out]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Goes on from what `state` gave."""
        self.left_out = [Nonfinite(**step) for step in state]


def _in_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
