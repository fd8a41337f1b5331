"""What the network answers to some prompts while it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.errors import UserError
from ftlab.modules import FinetuneModule


class SampleAnswers(pl.Callback):
    """Answers the first validation prompts after each validation of a training.

    Args:
        count: Of prompts.
        tell: Is given, by the first process alone, rows of prompt, reference and prediction, and the optimiser step.
    """

    def __init__(self, count: int, tell: Callable[[list[list[str]], int], None]) -> None:
        self.count = count
        self.tell = tell

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises:
        UserError: The network is in shards, whose processes answer together in test alone, or nothing is asked.
        """
        assert isinstance(pl_module, FinetuneModule)
        if pl_module.data.has_split("validation") and not pl_module.data.records("validation"):
            raise UserError("wandb.samples: running text asks nothing that could be answered: set it to 0")
        if pl_module.sharded:
            raise UserError("wandb.samples: a network in shards answers in ftlab test alone: set it to 0")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FinetuneModule)
        records, batch = pl_module.data.sample_prompts(self.count)
        moved: dict[str, Any] = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.val_step_context():
            answers = dict(zip(batch["indices"], pl_module.answers(moved), strict=True))
        rows = [[r.prompt, r.references[0] if r.references else "", answers[n]] for n, r in enumerate(records)]
        self.tell(rows, trainer.global_step)
