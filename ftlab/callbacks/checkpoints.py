"""When checkpoints are written: `last` on optimiser-step boundaries, `best` where the validation loss falls."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.runs import Run


class Checkpoints(Checkpoint):
    """Keeps two checkpoints of a run.

    Args:
        run: Where they go.
        every: Optimiser steps between writes of `last`; None writes it at the end of each epoch and of training only.
    """

    def __init__(self, run: Run, every: int | None = None) -> None:
        self.run = run
        self.every = every
        self.best_loss = math.inf
        self._saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step  # or a resumed run saves again in the middle of its first step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every and step % self.every == 0 and step != self._saved_step:
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or loss is None or not float(loss) < self.best_loss:  # so put, a NaN is never the best
            return
        self.best_loss = float(loss)
        trainer.save_checkpoint(self.run.best)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            logger.save()  # a resume goes on from here: so must the curves
        trainer.save_checkpoint(self.run.last)
