"""What an optimiser step came to, known on the device at once, and on the host without a wait.

An optimiser of torch's that is fused is told on the device to leave weights and states as they are where the step came
to no number. So the step need not be looked at before it is taken; the host does so when the next one is due, and by
then the values have long arrived.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

_GUARDED = (Adam, AdamW, Adagrad, SGD)


class Outcome:
    """Loss and gradient norm of an optimiser step, on their way to the host.

    Args:
        loss: Summed over all devices, (1,).
        norm: Of the gradient before clipping, (), on the device.
    """

    def __init__(self, loss: Tensor, norm: Tensor) -> None:
        self._there = torch.cat([loss.to(norm.device), norm.reshape(1)])
        self._here = self._there.to("cpu", non_blocking=norm.is_cuda)  # into pinned memory
        self._arrived = torch.cuda.Event() if norm.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def unsound(self) -> Tensor:
        """1.0 where either is no number, else 0.0: (), on the device."""
        return 1 - self._there.isfinite().all().float()

    def read(self) -> tuple[float, float]:
        """Both; waits until they have arrived."""
        if self._arrived:
            self._arrived.synchronize()
        loss, norm = self._here.tolist()
        return loss, norm


def can_be_guarded(optimizer: Optimizer) -> bool:
    """Whether `guard` has this optimiser leave steps out.

    A subclass may take steps of its own. SGD that is told so at its first step takes what stands in memory for its
    momentum.
    """
    fused = all(group.get("fused") and not group.get("momentum") for group in optimizer.param_groups)
    return type(optimizer) in _GUARDED and fused


def guard(optimizer: Any, unsound: Tensor | None) -> None:
    """Has the next steps leave weights and states as they are where `unsound` is 1.0; None takes that back."""
    optimizer.found_inf = unsound  # as torch's gradient scaler does
