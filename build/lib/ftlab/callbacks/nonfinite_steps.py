"""What became of optimiser steps whose loss or gradient was NaN or infinite, in a file of the run."""

from __future__ import annotations

import json
import sys
from typing import Any

import lightning.pytorch as pl

from ftlab.modules import FinetuneModule
from ftlab.runs import Run, write_atomically


class NonfiniteSteps(pl.Callback):
    """Writes `nonfinite.jsonl`: a line for each step that was left out, and for the one that ended training.

    A line has `step`, `loss` and `gradient_norm` ("nan", "inf" or a number), and `records`. The steps left out are in
    every checkpoint, and the file is written from there: where training goes on it says what that training has seen.

    Args:
        run: Where the file goes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._written = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FinetuneModule)
        left_out = pl_module.soundness.left_out
        if pl_module.soundness.refused:
            self._write(trainer, pl_module)
        elif len(left_out) != self._written:
            self._write(trainer, pl_module)
            if trainer.is_global_zero:
                print(f"ftlab: left out, {len(left_out)} so far: {left_out[-1]}", file=sys.stderr)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FinetuneModule)
        soundness = pl_module.soundness
        self._written = len(soundness.left_out)
        if not trainer.is_global_zero:
            return
        steps = [*soundness.left_out, *([soundness.refused] if soundness.refused else [])]
        if steps:
            lines = (json.dumps(step.row(), ensure_ascii=False) + "\n" for step in steps)
            write_atomically(self.run.nonfinite, "".join(lines))
        else:
            self.run.nonfinite.unlink(missing_ok=True)
