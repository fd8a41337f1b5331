"""Noise on the input embeddings while a network is trained."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftlab.errors import UserError
from ftlab.modules import FinetuneModule


class NEFTune(pl.Callback):
    """Adds noise to the input embeddings in training (Jain et al. 2023, arXiv 2310.05914).

    To each number noise is added that is uniform in ±alpha / sqrt(L d): d is the width of the embedding and L the
    tokens of the record, so that it does not depend on the records that share its batch. Padding is not counted and
    gets none, as in the paper's training code (transformers counts it); in a pack each record counts for itself.
    Nothing is added in validation, in generation, or in a pass without gradients. The numbers come from torch's
    generator, whose state is in the checkpoint.

    Args:
        alpha: The paper uses 5, 10 and 15.
    """

    def __init__(self, alpha: float = 5.0) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(f"trainer.callbacks: NEFTune's alpha is {alpha}, and must be above 0; 5 is usual")
        self.alpha = alpha
        self._lengths: Tensor | None = None  # (batch, length): the tokens of each token's record, 0 in padding
        self._hooks: list[RemovableHandle] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Hooks into the network before its first step: a method may still run it at the start of training."""
        self._lengths = record_lengths(batch.get("attention_mask"), batch.get("position_ids"))
        if self._hooks:
            return
        assert isinstance(pl_module, FinetuneModule)
        network = pl_module.network
        assert network is not None
        embeddings: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
        self._hooks = [embeddings.register_forward_hook(self._add_noise)]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the network as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _add_noise(self, embeddings: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        if not (embeddings.training and torch.is_grad_enabled()):
            return None
        lengths = embedded.new_full(embedded.shape[:2], embedded.shape[1]) if self._lengths is None else self._lengths
        size = self.alpha / (lengths.clamp(min=1) * embedded.shape[-1]).float().sqrt() * (lengths > 0)
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * size.unsqueeze(-1).to(embedded.dtype)


def record_lengths(attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    """The number of tokens of each token's record, 0 in padding; None where each row is one record without padding.

    Args:
        attention_mask: 1 on real tokens, (batch, length).
        position_ids: From 0 in each record of a pack, (batch, length).

    Returns:
        (batch, length)
    """
    if position_ids is not None:
        record = (position_ids == 0).cumsum(1)
        counts = record.new_zeros(record.shape[0], record.shape[1] + 1)
        return counts.scatter_add_(1, record, torch.ones_like(record)).gather(1, record)
    if attention_mask is not None:
        return attention_mask * attention_mask.sum(1, keepdim=True)
    return None
