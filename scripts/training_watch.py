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
        self.tokens = self.targets = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.begins()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if self.clock.step >= self.clock.work.warm:
            self.tokens += batch["tokens"]
            self.targets += batch["target_tokens"]
        if self.clock.ends(outputs["loss"] / batch["target_tokens"], module.parameters()):
            print(json.dumps(self.clock.figures() | {"tokens": self.tokens, "targets": self.targets}), flush=True)
            os._exit(0)
