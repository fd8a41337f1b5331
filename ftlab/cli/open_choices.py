"""What a configuration leaves open until the device is known: `data.micro_batch`, the batch of an optimiser step in
pieces that it takes at once, and `model.gradient_checkpointing: auto`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ftlab.errors import UserError

if TYPE_CHECKING:
    from ftlab.modules.activations import GradientCheckpointing


def choose_checkpointing(config: Any, first_way: Callable[[], GradientCheckpointing]) -> None:
    """Puts what is computed again in the place of `auto`.

    Args:
        config: Of an experiment.
        first_way: Gives the fastest way with which a micro-batch fits.

    Raises:
        UserError: The micro-batch is not known.
    """
    if config.model.gradient_checkpointing != "auto":
        return
    if config.data.micro_batch == "auto":
        raise UserError(
            "model.gradient_checkpointing auto is for a micro-batch that is given, and data.micro_batch is auto, too: "
            "give one of the two"
        )
    config.model.gradient_checkpointing = first_way()
    config.data.micro_batch_memory = None


def split_batches(config: Any, largest: Callable[[], int]) -> None:
    """Puts `data.batch_size` and `trainer.accumulate_grad_batches` in the place of `data.micro_batch`; their product
    stays.

    Args:
        config: Of an experiment.
        largest: Gives the most rows that the device takes at once, for `auto`.

    Raises:
        UserError: The batch does not go evenly into such pieces, or is not counted in rows.
    """
    data, trainer = config.data, config.trainer
    wanted = data.micro_batch
    if data.micro_batch_memory is not None and wanted != "auto":
        raise UserError(
            "data.micro_batch_memory is what data.micro_batch auto, or model.gradient_checkpointing auto, may take: "
            "give one of these, too"
        )
    if wanted is None:
        return
    if data.batch_tokens is not None:
        raise UserError("data.micro_batch counts rows, and data.batch_tokens tokens: give one of the two")
    rows = data.batch_size * trainer.accumulate_grad_batches
    if wanted == "auto":
        wanted = evenly(rows, largest())
    elif wanted < 1 or rows % wanted:
        raise UserError(
            f"data.micro_batch is {wanted}, and an optimiser step has {rows} rows on a device (data.batch_size x "
            "trainer.accumulate_grad_batches): give a number that goes into it"
        )
    for name in ("val_check_interval", "limit_train_batches"):  # which Lightning counts in micro-batches
        count = trainer[name]
        if isinstance(count, int):
            if count * data.batch_size % wanted:
                raise UserError(
                    f"trainer.{name} is {count} micro-batches of {data.batch_size} rows, which is no number of such of "
                    f"{wanted}: give one that is, or a share of an epoch such as 0.5"
                )
            trainer[name] = count * data.batch_size // wanted
    data.micro_batch, data.micro_batch_memory, data.batch_size = None, None, wanted
    trainer.accumulate_grad_batches = rows // wanted


def evenly(rows: int, most: int) -> int:
    """The largest number up to `most` that goes into `rows`."""
    return max(size for size in range(1, min(most, rows) + 1) if rows % size == 0)
