"""Proof that what a method leaves frozen stays as it was, to the byte."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn

from ftlab.errors import UserError
from ftlab.networks import fingerprint, frozen_tensors


class FrozenBase(pl.Callback):
    """Takes the digest of every frozen parameter when training starts, and compares it when training ends."""

    def __init__(self) -> None:
        self.digest = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.digest = frozen_digest(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if frozen_digest(pl_module) != self.digest:
            raise UserError(
                "the frozen base has changed in training: the method writes to weights that it does not train"
            )


def frozen_digest(network: nn.Module) -> str:
    """The fingerprint of what is not trained."""
    return fingerprint(frozen_tensors(network))
