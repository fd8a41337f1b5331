"""Two optimisers that everybody else takes for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from ftlab.modules.optimizers.hidden import Groups


class Combined(Optimizer):
    """Several optimisers, each over groups of its own: Lightning, schedules and checkpoints see one, with all groups.

    Args:
        parts: They share their groups and states with this one from here on.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Every part's step, after the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which makes new groups and states: the parts get these."""
        super().load_state_dict(state_dict)
        self._share()


def adamw(groups: Groups, **options: Any) -> list[Optimizer]:
    """AdamW for what a special optimiser leaves over; nothing where nothing is."""
    return [AdamW(groups, fused=True, **options)] if groups else []
