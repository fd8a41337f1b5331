"""The bar of a training, from its first step to its last, or of a judging: on a terminal alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.modules import FinetuneModule
from ftlab.progress import Progress


class TrainingBar(ProgressBar):
    """Steps of a training, whatever epochs they are in, with their rate, the time that is left, and the last losses.

    Lightning's bars begin anew in each epoch, which says nothing of the end; and they read from the device at every
    batch what they show, for which it would be waited for.

    A bar is opened by the first batch and not sooner, and this callback stands first, so that it is closed before the
    others end: what they do before and after may have a bar of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._shown = True
        self._done = 0
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

    # ---------------------------------------------------------------- training

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not self._bar:
            assert isinstance(pl_module, FinetuneModule)
            self._open("training", "steps", pl_module.total_steps(), trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._bar and self._bar.due():
            shown = trainer.progress_bar_metrics.items()
            learned = [f"{name} {value:.4g}" for name, value in shown if isinstance(value, int | float)]
            self._move_to(trainer.global_step, ", ".join([*learned, *self._validated]) or "training")

    def on_train_end(self, *_: Any) -> None:
        self._close()

    # ---------------------------------------------------------------- judging, in a training or by itself

    def on_validation_start(self, *_: Any) -> None:
        self._judged = 0

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin_judging("validating", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._judge_one("validating")
            return
        self._judged += 1
        if self._bar and self._bar.due():
            self._move_to(trainer.global_step, f"validating {self._judged}/{sum(trainer.num_val_batches)}")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()
        elif self._bar and (loss := trainer.callback_metrics.get("val_loss")) is not None:
            self._validated = [f"val_loss {float(loss):.4g}"]

    def on_test_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._begin_judging("testing", trainer.num_test_batches)

    def on_test_batch_end(self, *_: Any) -> None:
        self._judge_one("testing")

    def on_test_end(self, *_: Any) -> None:
        self._close()

    def on_predict_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._begin_judging("answering", trainer.num_predict_batches)

    def on_predict_batch_end(self, *_: Any) -> None:
        self._judge_one("answering")

    def on_predict_end(self, *_: Any) -> None:
        self._close()

    # ---------------------------------------------------------------- in any case

    def on_exception(self, *_: Any) -> None:
        self._close()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._close()

    def _begin_judging(self, what: str, batches: list[Any]) -> None:
        if not self._bar:
            self._judged = 0
            self._open(what, "batches", sum(batches), 0)

    def _judge_one(self, what: str) -> None:
        self._judged += 1
        if self._bar and self._bar.due():
            self._move_to(self._judged, what)

    def _open(self, what: str, unit: str, total: int, done: int) -> None:
        # loaders fork processes, and sentences are printed of steps that are left out, of stops and of the first step
        self._bar = Progress(what, unit, total, done, forks=True, shown=self._shown, prints=True)
        self._bar.open()
        self._done = done

    def _move_to(self, done: int, what: str) -> None:
        assert self._bar
        self._bar.say(what)
        self._bar.advance(done - self._done)
        self._done = done

    def _close(self) -> None:
        if self._bar:
            self._bar.close()
        self._bar = None
