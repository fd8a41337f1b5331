"""The bar of a training, from its first step to its last, or of a judging: on a terminal alone."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.progress import Progress

_AGAIN = 0.1
"""Seconds between two looks at how far it is: steps may be shorter."""


class TrainingBar(ProgressBar):
    """Steps of a training, whatever epochs they are in, with their rate, the time that is left, and the last losses.

    Lightning's bars begin anew in each epoch, which says nothing of the end; and they read from the device at every
    batch what they show, for which it would be waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._shown = True
        self._done = 0
        self._looked = 0.0
        self._judged = 0
        """Batches of this judging: those of losses, and those of answers."""
        self._validated: list[str] = []
        """The last validation's loss, in words, if there was one."""

    def disable(self) -> None:
        """As on all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """The opposite of `disable`."""
        self._shown = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._bar:  # not sooner: what is done before the first step may have a bar of its own
            self._open("training", "steps", float(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._looks():
            shown = trainer.progress_bar_metrics.items()
            learned = [f"{name} {value:.4g}" for name, value in shown if isinstance(value, int | float)]
            self._move_to(trainer.global_step, ", ".join([*learned, *self._validated]) or "training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judged = 0
        if trainer.state.fn != TrainerFn.FITTING:
            self._open("validating", "batches", sum(trainer.num_val_batches), 0)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._judged += 1
        if not self._looks():
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._move_to(trainer.global_step, f"validating {self._judged}/{sum(trainer.num_val_batches):.0f}")
        else:
            self._move_to(self._judged, "validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()
        elif self._bar and (loss := trainer.callback_metrics.get("val_loss")) is not None:
            self._validated = [f"val_loss {float(loss):.4g}"]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judged = 0
        self._open("testing", "batches", sum(trainer.num_test_batches), 0)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._judged += 1
        if self._looks():
            self._move_to(self._judged, "testing")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _looks(self) -> bool:
        """Whether it is time to look again."""
        now = time.monotonic()
        if not self._bar or now - self._looked < _AGAIN:
            return False
        self._looked = now
        return True

    def _open(self, what: str, unit: str, total: float, done: int) -> None:
        # loaders of data fork processes
        known = total if math.isfinite(total) else None
        self._bar = Progress(what, unit, known, done, forks=True, shown=self._shown, prints=True).__enter__()
        self._done, self._looked = done, time.monotonic()

    def _move_to(self, done: int, what: str) -> None:
        assert self._bar
        self._bar.say(what)
        self._bar.advance(done - self._done)
        self._done = done

    def _close(self) -> None:
        if self._bar:
            self._bar.__exit__()
        self._bar = None
