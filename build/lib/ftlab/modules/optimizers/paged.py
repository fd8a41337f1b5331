"""8-bit AdamW in paged memory where there is any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW, Optimizer


class PagedAdamW(Optimizer):
    """On CUDA, AdamW with 8-bit states (Dettmers et al. 2022, arXiv 2110.02861) in paged memory (Dettmers et al. 2023,
    arXiv 2305.14314); elsewhere torch's fused AdamW.

    What is made is one of the two, by where the parameters are: on a CPU 8 bits cost many times the step
    (docs/how-to/optimizers.md). Tensors of fewer than 4,096 elements keep 32-bit states, as they do in bitsandbytes.
    It is a class and no function, as the command line configures the arguments of classes only.

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
