"""Where Lightning's loops stand when a checkpoint is written, and what it makes of that when training goes on.

It keeps this in counters of its own, of which it offers nothing: what is looked at here is private to it, and
tests/integration/test_resume.py stops training at every hook to see that it is still so.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether validation comes after the batch that ends now.

    Of a checkpoint that is written at the end of a batch, Lightning takes a validation that was to follow for done, and
    training that goes on from there leaves it out.
    """
    loop: Any = trainer.fit_loop
    epoch: Any = loop.epoch_loop
    return trainer.enable_validation and not epoch.val_loop.skip and epoch._should_check_val_fx(loop._data_fetcher)


def stop_between_steps(trainer: pl.Trainer, told: bool) -> bool:
    """Has training that is `told` to stop, such as by `trainer.max_time`, go on to the end of its accumulation window:
    gradients of half a window are in no checkpoint. Says whether it ends with the batch that ends now."""
    loop: Any = trainer.fit_loop
    trainer.should_stop = told and not loop._should_accumulate()
    return trainer.should_stop and loop._can_stop_early


def as_if_evaluation_began(checkpoint: dict[str, Any]) -> None:
    """Has a checkpoint that is written in the middle of a validation begin it anew: Lightning would go on after the
    batches that were judged, and what they came to is in no checkpoint."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    before = progress["total"]["completed"] - progress["current"]["completed"]
    progress["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["total"] = {"ready": before + 1, "started": before + 1, "processed": before, "completed": before}
    progress["is_last_batch"] = False


def begin_the_next_epoch(trainer: pl.Trainer) -> None:
    """Has training that goes on from the last batch of an epoch begin the next one as any other begins.

    Lightning counts the epoch that ended, and not the one that begins. It then takes a checkpoint at the end of such an
    epoch for one at its beginning: training from there goes through an order twice, and makes an epoch too many.
    """
    loop: Any = trainer.fit_loop
    progress = loop.epoch_progress.current
    if loop.restarted_mid_epoch and progress.processed == progress.ready:
        loop.reset_restart_stage()
