"""Optimisers that need a choice by device; every other is named in the YAML by its own class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW, Optimizer


class PagedAdamW(Optimizer):
    """AdamW with 8-bit states in paged memory on CUDA (Dettmers et al. 2022, 2023), torch's fused AdamW elsewhere.

    What is made is one of the two, by where the parameters are: bitsandbytes has no 8-bit states on the CPU. It is a
    class and no function, as the command line configures the arguments of classes only.

    Args:
        params: Groups of parameters.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        betas: Decay of the running mean and of the running square of the gradient.
    """

    def __new__(  # type: ignore[misc]
        cls,
        params: Iterable[Any],
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> Optimizer:
        groups = list(params)
        if groups[0]["params"][0].is_cuda:
            from bitsandbytes.optim import PagedAdamW8bit

            return PagedAdamW8bit(groups, lr=lr, weight_decay=weight_decay, betas=betas)
        return AdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas, fused=True)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        raise AssertionError("never called: __new__ returns another class's instance")
