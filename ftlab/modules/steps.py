"""How many optimiser steps a training has, known before it begins."""

from __future__ import annotations

import math

import lightning.pytorch as pl

from ftlab.data import FinetuneData
from ftlab.data.stream_loader import streamed_steps
from ftlab.data.training import limited
from ftlab.errors import UserError


def data_parallel_size(trainer: pl.Trainer) -> int:
    """Processes that each take a part of a batch."""
    kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return kwargs.get("num_replicas", 1)


def batches_per_epoch(data: FinetuneData, trainer: pl.Trainer) -> int | None:
    """Batches that a process takes in an epoch; None of a stream, whose end nobody knows."""
    if data.streaming:
        return None
    return limited(data.train_batches_per_epoch(data_parallel_size(trainer)), trainer.limit_train_batches)


def steps_in(batches: int, trainer: pl.Trainer) -> int:
    """Optimiser steps that so many batches in a row make; the last is one though its window is not full."""
    return math.ceil(batches / trainer.accumulate_grad_batches)


def steps_left(batches: int, done: int, trainer: pl.Trainer) -> int:
    """Optimiser steps that an epoch of so many batches has left when some are done: the windows are the epoch's,
    wherever training goes on."""
    return steps_in(batches, trainer) - done // trainer.accumulate_grad_batches if done < batches else 0


def total_steps(data: FinetuneData, trainer: pl.Trainer, apart: int = 0) -> int:
    """Optimiser steps of a whole training.

    From the data's lengths: Lightning's own estimate would build the training loader, which starts its epoch anew.

    Args:
        data: What it trains on.
        trainer: Says when it ends.
        apart: More steps than the epochs alone tell, where some were begun with other batches.

    Raises:
        UserError: Nothing says when it ends.
    """
    per_epoch = batches_per_epoch(data, trainer)
    if per_epoch is None:
        return streamed_steps(trainer)
    steps = trainer.max_steps
    if trainer.max_epochs not in (None, -1):
        of_epochs = steps_in(per_epoch, trainer) * trainer.max_epochs + apart
        steps = of_epochs if steps == -1 else min(steps, of_epochs)
    if steps == -1:
        raise UserError("trainer: give max_steps or max_epochs, so that the schedule knows where training ends")
    return int(steps)
