"""What training or judging is at: for the sentence that is said where something breaks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from ftlab.callbacks.checkpoints import is_fitting


class Whereabouts(pl.Callback):
    """Notes what is being done, and on a batch of which shape."""

    def __init__(self) -> None:
        self.doing = ""
        """Such as "training, at step 12"; nothing before the first batch."""
        self.shape: tuple[int, int] | None = None
        """Rows and tokens of each of the batch under way."""
        self.generates = False
        """Whether answers are being generated."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._note(f"training, at step {trainer.global_step + 1}", batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        after = f" after step {trainer.global_step}" if is_fitting(trainer) else ""
        self._note(f"validation{after}", batch)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self._note("test", batch)

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self._note("prediction", batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.doing, self.shape = "the saving of the model", None

    def _note(self, doing: str, batch: dict[str, Any]) -> None:
        self.generates = "labels" not in batch
        self.doing = f"{doing}, generating answers" if self.generates else doing
        rows, length = batch["input_ids"].shape
        self.shape = rows, length
