"""Loaders for judging: every row for the loss, every prompt for generation, each on exactly one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader

from ftlab.data.collators import PadCollator, Prompt, PromptCollator
from ftlab.data.encoder import Encoder
from ftlab.data.records import Record
from ftlab.data.samplers import LengthBatchSampler
from ftlab.data.store import Rows
from ftlab.data.training import Items
from ftlab.data.workers import say_if_too_many
from ftlab.errors import UserError


@dataclass(frozen=True)
class Judging:
    """How evaluation is shared out.

    Args:
        batch_size: Records of a batch of one rank.
        workers: Processes that put batches together, beside the main one.
        rank: This process.
        world_size: Number of processes.
    """

    batch_size: int
    workers: int
    rank: int
    world_size: int

    def loader(self, items: Sequence[Any], lengths: ArrayLike, collate: Any) -> DataLoader:
        """This rank's share of the items, those of like length together.

        Raises:
            UserError: There are fewer items than processes, of which one would have none; raised in all of them.
        """
        if 0 < len(items) < self.world_size:
            raise UserError(
                f"{len(items)} records cannot be judged on {self.world_size} devices: take fewer of these "
                "(--trainer.devices 1), or more records (a larger split, data.validation_limit, data.test_limit)"
            )
        if self.rank == 0:
            say_if_too_many(self.workers)
        return DataLoader(
            Items(items),
            batch_sampler=LengthBatchSampler(lengths, self.batch_size, self.rank, self.world_size),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )


def rows_loader(encoder: Encoder, rows: Rows, judging: Judging) -> DataLoader:
    """Rows; batches are Batch."""
    return judging.loader(rows, rows.lengths, PadCollator(encoder.pad_id))


def prompts_loader(encoder: Encoder, records: Sequence[Record], room: int, judging: Judging) -> DataLoader:
    """The records' prompts, with `room` tokens left to generate; batches are PromptBatch."""
    ids = encoder.prompts_ids(records, room)
    prompts = [Prompt(index, row) for index, row in enumerate(ids)]
    return judging.loader(prompts, [len(row) for row in ids], PromptCollator(encoder.pad_id))
