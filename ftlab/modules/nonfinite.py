"""Optimiser steps whose loss or gradient is NaN or infinite: found before the optimiser sees them, and left out or
refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ftlab.errors import UserError
from ftlab.modules.devices import gathered

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


class Soundness:
    """The micro-batches of the optimiser step under way on this device, until it is known to have come to a number.

    Args:
        allowed: Steps that may be left out in a run.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.left_out: list[Nonfinite] = []
        """In this run, checkpoints and all: a part of them."""
        self.refused: Nonfinite | None = None
        """The one that ended training."""
        self._losses: list[Tensor] = []
        self._records: list[Sequence[str]] = []

    def add(self, loss: Tensor, records: Sequence[str]) -> None:
        """Adds a micro-batch: its summed loss, which nobody waits for, and its records."""
        self._losses.append(loss.detach())
        self._records.append(records)

    def loss(self) -> Tensor:
        """The step's summed loss on this device, (1,), still there."""
        return torch.stack(self._losses).sum().reshape(1)

    def pop(self) -> Iterator[Tensor]:
        """The losses of the micro-batches; a new step begins."""
        losses, self._losses, self._records = self._losses, [], []
        yield from losses

    def judge(self, step: int, loss: float, gradient_norm: float) -> None:
        """To be called by all processes alike, with what is the same for all.

        Raises:
            LeftOut: The step has come to no number, and may be left out.
            UserError: No more may be.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        found = Nonfinite(step, loss, gradient_norm, self._spoilt())
        list(self.pop())
        if len(self.left_out) < self.allowed:
            self.left_out.append(found)
            raise LeftOut
        self.refused = found
        after = f" after {self.allowed} that were left out" if self.allowed else ""
        raise UserError(
            f"training has diverged: {found}; training ends before this step{after}: look at these records, lower the "
            "optimiser's lr, raise schedule.warmup, or raise model.skip_nonfinite to leave such steps out"
        )

    def _spoilt(self) -> list[str]:
        finite = [bool(torch.isfinite(loss)) for loss in self._losses]
        parts = gathered(list(zip(finite, map(list, self._records), strict=True)))
        together = [batch for part in parts for batch in part]
        all_finite = all(finite for finite, _ in together)
        return [record for finite, records in together if all_finite or not finite for record in records]

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return [asdict(step) for step in self.left_out]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Goes on from what `state` gave."""
        self.left_out = [Nonfinite(**step) for step in state]


def _in_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
