"""The callback by which the arm `ftlab` of training_arms.py looks at the clock; its configuration names it."""

from __future__ import annotations

import json
import os
from typing import Any

import lightning.pytorch as pl
from training_clock import Clock
from training_cost import Work


class Watch(pl.Callback):
    """Prints the figures after the last step, and ends the process: what comes then is not measured.

    Args:
        work: What is trained.
    """

    def __init__(self, work: Work) -> None:
        self.clock = Clock(work)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.clock.last = int(trainer.num_training_batches)

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.begins()

    def on_before_optimizer_step(self, trainer: Any, module: Any, *_: Any) -> None:
        self.clock.updates(module.parameters())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.clock.holds(batch["tokens"], batch["target_tokens"], batch["input_ids"].numel())
        if self.clock.ends(outputs["loss"] / batch["target_tokens"]):
            print(json.dumps(self.clock.figures()), flush=True)
            os._exit(0)
