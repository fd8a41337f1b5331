"""When checkpoints are written: `last` on optimiser-step boundaries, `best` where the validation metric says so."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.callbacks.checkpoint_io import WholeCheckpointIO
from ftlab.callbacks.restarts import as_if_evaluation_began, begin_the_next_epoch, stop_between_steps, validation_is_due
from ftlab.errors import UserError
from ftlab.modules import FinetuneModule, FSDPStrategy
from ftlab.runs import CheckpointOptions, Run


class Checkpoints(Checkpoint):
    """Keeps the checkpoints of a run.

    Args:
        run: Where they go.
        options: When they are written, and which are kept.
    """

    def __init__(self, run: Run, options: CheckpointOptions | None = None) -> None:
        self.run = run
        self.options = options or CheckpointOptions()
        self.best: dict[int, dict[str, float]] = {}
        """The validation metrics of the best checkpoints by step, the best first."""
        self._io = WholeCheckpointIO(run.checkpoints, self.options.asynchronous)
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._stepped = 0
        self._due = False
        self._told_to_stop = False
        self._evaluating = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self._io
        if self.options.in_parts:
            if not isinstance(trainer.strategy, FSDPStrategy):
                raise UserError(
                    "run.checkpoints.in_parts: with trainer.strategy fsdp2 or fsdp alone have processes parts of what "
                    "is trained: leave it out"
                )
            trainer.strategy.saves_parts = True  # which fsdp refuses where it shards something else

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict["best"])
        self._io.best_steps = list(self.best)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._evaluating:
            as_if_evaluation_began(checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begin_the_next_epoch(trainer)
        # or a resumed run saves again in the middle of its first step
        self._saved_step = self._stepped = trainer.global_step
        self._saved_at = time.monotonic()
        self._told_to_stop = False
        if trainer.is_global_zero:
            self._io.go_on(trainer.global_step)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        minutes = self.options.every_n_minutes
        if minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes:
            assert isinstance(pl_module, FinetuneModule)
            pl_module.asked.add("save")  # clocks differ: what one process asks for all do

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FinetuneModule)
        step, every = trainer.global_step, self.options.every_n_steps
        self._told_to_stop |= trainer.should_stop
        stops = stop_between_steps(trainer, self._told_to_stop)
        if step == self._stepped:
            return
        self._stepped = step
        # not when the epoch has ended: where no validation ended it, Lightning goes on from it with a batch too many;
        # nor when training has: it has then counted as over an epoch in the midst of which it was told to stop
        ends = trainer.is_last_batch or step == trainer.max_steps or stops
        self._due = ends or (every is not None and step % every == 0) or "save" in pl_module.agreed
        # where validation is due too, after it: see `validation_is_due`
        if self._due and not validation_is_due(trainer):
            self.save_last(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluating = is_fitting(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._evaluating:
            return
        self._evaluating = False
        if self._takes_up(trainer):
            self._io.best_steps = list(self.best)
            trainer.save_checkpoint(self.run.best)
        if (self._due or trainer.should_stop) and trainer.global_step != self._saved_step:
            self.save_last(trainer)

    def _takes_up(self, trainer: pl.Trainer) -> bool:
        """Notes the value of this validation where it is among the best, and says whether it is."""
        by, step = self.options.best_by, trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if metrics and by not in metrics:
            raise UserError(f"run.checkpoints.best_by is {by}: validation gives {', '.join(metrics)}, name one")
        if not metrics or math.isnan(metrics[by]):
            return False
        sign = 1 if self.options.best_is == "lowest" else -1
        # of equal ones the first is the better
        ordered = sorted({**self.best, step: metrics}.items(), key=lambda item: (sign * item[1][by], item[0]))
        self.best = dict(ordered[: self.options.best])
        return step in self.best

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._io.wait()  # the best weights are read next
        if self.options.in_parts:  # of which the first process may still be writing its own
            trainer.strategy.barrier()

    def save_last(self, trainer: pl.Trainer) -> None:
        """Writes `last` now; to be called by all processes, where an optimiser step has ended."""
        self._saved_step, self._saved_at, self._due = trainer.global_step, time.monotonic(), False
        for logger in trainer.loggers:
            logger.save()  # a resume goes on from here: so must the curves
        trainer.save_checkpoint(self.run.last)

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        self._io.wait()


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether what goes on is a part of training: a validation in it, not the sanity check before it."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
