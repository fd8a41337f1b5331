"""Muon for the matrices of hidden layers, AdamW for all else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ftlab.modules.optimizers.combined import Combined, adamw
from ftlab.modules.optimizers.hidden import split


class Muon(Combined):
    """torch's Muon: the momentum of a matrix, made orthogonal, is its step (Jordan et al. 2024).

    Embeddings, head, norms and biases are trained by AdamW. Both have one learning rate: a step of Muon is scaled to
    the size of AdamW's (`match_rms_adamw`; Liu et al. 2025, arXiv 2502.16982), so AdamW's rates go for it.

    Args:
        params: Groups of parameters.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Decay of the running mean of a matrix's gradient.
        betas: AdamW's decays.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        matrices, rest = split(params, 1, "Muon")
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        super().__init__([muon, *adamw(rest, lr=lr, weight_decay=weight_decay, betas=betas)])
