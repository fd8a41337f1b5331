"""What processes tell each other at an optimiser step, in one collective."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, get_args

import torch
from torch import Tensor

from ftlab.modules.devices import distributed, summed_there
from ftlab.modules.nonfinite import Step

Wish = Literal["save", "stop"]
WISHES: tuple[Wish, ...] = get_args(Wish)


def agreed(step: Step, asked: Set[Wish], device: torch.device) -> tuple[Tensor, set[Wish]]:
    """Tells a step its targets over all processes; to be called by all of them, for whom the device is waited for.

    Args:
        step: Under way, with all its micro-batches.
        asked: What callbacks of this process want done at its end.
        device: Of this process.

    Returns:
        Its loss summed over all, (1,), still on the device; and what some process asked for.
    """
    loss = step.loss()
    if not distributed():
        step.global_targets = float(step.targets)
        return loss, set(asked)
    told = torch.tensor([step.targets, *(wish in asked for wish in WISHES)], dtype=torch.float64)
    told = summed_there(torch.cat([told.to(device), loss]))
    step.global_targets, *wishes = told[:-1].tolist()
    return told[-1:], {wish for wish, count in zip(WISHES, wishes, strict=True) if count}
