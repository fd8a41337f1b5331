"""APOLLO. Written here: pytorch_optimizer's of that name (4.1.0) steps within the random subspace and not along the
gradient, as the paper does, and the authors' apollo-torch (1.0.3) is licensed for non-commercial use only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ftlab.modules.optimizers.combined import Combined, adamw
from ftlab.modules.optimizers.hidden import Groups, split

NORM_GROWTH = 1.01
"""The most by which a matrix's step may outgrow the one before it (Chen et al. 2024, arXiv 2410.01623)."""


class APOLLO(Combined):
    """The gradient, scaled as AdamW would scale it, which is learned of a random projection of the gradient (Zhu et
    al. 2024, arXiv 2412.05270).

    A matrix whose longer side is m keeps 2 m r + 1 numbers in place of AdamW's two for each element; the projection is
    drawn again from its seed in every step. That is for matrices of hidden layers with both sides above `rank`; all
    else is trained by AdamW.

    Args:
        params: Groups of parameters.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        betas: Decay of the running mean and of the running square of the gradient.
        eps: Added to the root of the running square.
        rank: Rows r of the random projection.
        update_proj_gap: Steps between new projections.
        scale: The step of a matrix is multiplied by its root: about what a low rank makes the scaling too small by.
        scale_type: One factor for each channel, a line along the shorter side, or one for the whole tensor.

    Raises:
        UserError: No matrix is that large.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        rank: int = 128,
        update_proj_gap: int = 200,
        scale: float = 32.0,
        scale_type: Literal["channel", "tensor"] = "channel",
    ) -> None:
        matrices, rest = split(params, rank, "APOLLO")
        options = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        projection = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "scale_type": scale_type}
        super().__init__([ScaledGradient(matrices, options | projection), *adamw(rest, **options)])


class ScaledGradient(Optimizer):
    """The part of APOLLO for matrices.

    Args:
        groups: Matrices, (rows, columns).
        options: The arguments of APOLLO, for groups that do not have their own.
    """

    def __init__(self, groups: Groups, options: dict[str, Any]) -> None:
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every matrix that has a gradient."""
        number = 0  # of the matrix, from 1: the seed of its projection
        for group in self.param_groups:
            for matrix in group["params"]:
                number += 1
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group, number)
        return None

    def _move(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        state, (beta1, beta2) = self.state[matrix], group["betas"]
        done = state.get("step", 0)
        period = done // group["update_proj_gap"]
        low = projected(gradient, group["rank"], number + (period << 32))
        if not state:
            state |= {"exp_avg": torch.zeros_like(low), "exp_avg_sq": torch.zeros_like(low)}
        state["step"] = done + 1
        state["exp_avg"].lerp_(low, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        as_adam = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        along = _short_side(matrix) if group["scale_type"] == "channel" else None
        factor = _norm(as_adam, along) / (_norm(low, along) + 1e-8)
        step = gradient * factor
        norm = torch.linalg.vector_norm(step)
        if "norm" in state:
            limit = (norm / (state["norm"] + 1e-8)).clamp(min=NORM_GROWTH) / NORM_GROWTH
            step, norm = step / limit, norm / limit
        state["norm"] = norm
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        matrix.sub_(step, alpha=group["lr"] * correction * math.sqrt(group["scale"]))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])


def projected(gradient: Tensor, rank: int, seed: int) -> Tensor:
    """The shorter side of `gradient` brought down to `rank` by normal numbers of variance 1 / rank."""
    rows, columns = gradient.shape
    generator = torch.Generator(gradient.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
        return numbers / math.sqrt(rank)

    return gradient @ normal(rank, columns).T if rows >= columns else normal(rows, rank).T @ gradient


def _short_side(matrix: Tensor) -> int:
    return 0 if matrix.shape[0] < matrix.shape[1] else 1


def _norm(values: Tensor, along: int | None) -> Tensor:
    return torch.linalg.vector_norm(values, dim=along, keepdim=along is not None)
