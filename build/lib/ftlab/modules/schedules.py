"""How the learning rate goes: a warm-up, then constant, cosine or linear."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ftlab.errors import UserError


class Schedule(ABC):
    """A factor on the optimiser's learning rate, as a function of the step.

    Args:
        warmup: Length of the linear warm-up: a share of all steps where below 1, a number of steps otherwise.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        if warmup < 0:
            raise UserError(f"schedule.warmup is {warmup}: give a share of all steps below 1, or a number of steps")
        self.warmup = warmup

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor at `progress`, which goes from 0 at the end of the warm-up to 1 at the end of training."""

    def factor(self, step: int, total: int) -> float:
        """The factor for optimiser step `step` (from 0) of `total`."""
        warmup = math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return (step + 1) / warmup
        return self.after_warmup(min(1.0, (step - warmup) / max(1, total - warmup)))

    def __call__(self, optimizer: Optimizer, total: int) -> LambdaLR:
        """The scheduler for `total` optimiser steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total))


class Constant(Schedule):
    """The full rate after the warm-up.

    Args:
        warmup: Length of the linear warm-up: a share of all steps where below 1, a number of steps otherwise.
    """

    def after_warmup(self, progress: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from the full rate down to `floor` (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Args:
        warmup: Length of the linear warm-up: a share of all steps where below 1, a number of steps otherwise.
        floor: The share of the full rate at which it ends.
    """

    def __init__(self, warmup: float = 0.03, floor: float = 0.0) -> None:
        super().__init__(warmup)
        self.floor = floor

    def after_warmup(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


class Linear(Schedule):
    """A straight line from the full rate down to `floor`.

    Args:
        warmup: Length of the linear warm-up: a share of all steps where below 1, a number of steps otherwise.
        floor: The share of the full rate at which it ends.
    """

    def __init__(self, warmup: float = 0.03, floor: float = 0.0) -> None:
        super().__init__(warmup)
        self.floor = floor

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress
