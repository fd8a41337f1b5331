"""How training rows become the batches of a rank: from prepared rows at hand, or from a stream.

`Prepared` rows and streams differ in what is known beforehand; to FinetuneData both are a `Training`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ftlab.data.collators import Batch, PackCollator, PadCollator
from ftlab.data.layout import FLASH, Batching, Choice, choose, training_sampler
from ftlab.data.mixing import Mixing, Source, plan
from ftlab.data.samplers import TrainingBatchSampler
from ftlab.data.store import Rows
from ftlab.data.streaming import Stream, StreamLoader, in_windows, streamed_steps
from ftlab.errors import UserError


@dataclass(frozen=True)
class Layout:
    """What the user said about training batches; the fields are FinetuneData's of the same names."""

    batching: Batching
    batch_size: int
    batch_tokens: int | None
    shuffle_window: int | None
    seed: int
    pad_id: int


class Training(Protocol):
    """Training batches, wherever their rows come from."""

    @property
    def layout(self) -> Choice:
        """How rows are laid out in batches, and why."""

    def loader(self, rank: int, world_size: int, workers: int, trainer: pl.Trainer | None) -> Any:
        """This rank's batches; its state resumes in mid-epoch."""

    def identity(self, rank: int, world_size: int) -> dict[str, Any]:
        """All that the batches depend on: what a resume must find unchanged."""

    def batches(self) -> Iterator[Batch]:
        """Batches of one rank alone in the order of the first epoch."""

    def batches_per_epoch(self, world_size: int) -> int:
        """Batches that each rank takes in an epoch."""


@dataclass(frozen=True)
class RowTraining:
    """Training from prepared rows.

    Args:
        rows: The rows.
        name: What messages call the data.
        fingerprint: Of the data.
        options: What the user said.
        capacity: Tokens of a pack.
        sources: Where rows come from.
        mixing: In what proportion they are taken from several sources.
        attention: Attention kernel, as transformers names it; None is its default.
        device: cpu or cuda.
    """

    rows: Rows
    name: str
    fingerprint: str
    options: Layout
    capacity: int
    sources: Sequence[Source]
    mixing: Mixing
    attention: str | None
    device: str

    @cached_property
    def lengths(self) -> numpy.ndarray:
        """Tokens of the rows that an epoch takes."""
        return self.rows.lengths if self._plan is None else self.rows.lengths[self._plan]

    @cached_property
    def layout(self) -> Choice:
        """As asked for, or chosen by the lengths."""
        said = self.options
        if said.shuffle_window is not None:
            return in_windows(said.batching, said.batch_tokens, said.shuffle_window)
        return choose(
            said.batching,
            self.lengths,
            self.capacity,
            said.batch_size,
            said.batch_tokens,
            self.attention,
            self.device,
        )

    def loader(self, rank: int, world_size: int, workers: int, trainer: pl.Trainer | None) -> StatefulDataLoader:
        """Shuffled rows, one epoch at a time."""
        sampler = self._sampler(rank, world_size)
        if trainer:
            # resumed between epochs, Lightning makes the iterator first and names the epoch (this number) afterwards
            sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's own call
            return StatefulDataLoader(
                Items(self.rows),
                batch_sampler=sampler,
                collate_fn=self._collator,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                pin_memory=torch.cuda.is_available(),
            )

    def identity(self, rank: int, world_size: int) -> dict[str, Any]:
        """The sampler's, the data's fingerprint in it."""
        return self._sampler(rank, world_size).identity()

    def batches(self) -> Iterator[Batch]:
        """The first epoch's."""
        items, collate = Items(self.rows), self._collator
        for indices in self._sampler(0, 1):
            yield collate([items[index] for index in indices])

    def batches_per_epoch(self, world_size: int) -> int:
        """The same in every epoch."""
        return len(self._sampler(0, world_size))

    @property
    def _collator(self) -> PackCollator | PadCollator:
        if self.layout.kind == "pack":
            return PackCollator(self.options.pad_id, flat=self.attention in FLASH)
        return PadCollator(self.options.pad_id)

    @cached_property
    def _plan(self) -> numpy.ndarray | None:
        """Which rows an epoch takes, where sources are mixed; None where it is every row once."""
        if self.mixing.how == "concatenate" and all(source.epochs == 1 for source in self.sources):
            return None
        sizes = numpy.bincount(self.rows.origins, minlength=len(self.sources)).tolist()
        return plan(sizes, self.sources, self.mixing, self.options.seed)

    def _sampler(self, rank: int, world_size: int) -> TrainingBatchSampler:
        sampler = training_sampler(
            self.layout.kind,
            self.rows.lengths if self._plan is None else self.rows.lengths[self._plan],
            self.options.batch_size,
            self.options.batch_tokens,
            self.capacity,
            self.options.seed,
            rank,
            world_size,
            self._plan,
            self.options.shuffle_window,
            self.fingerprint,
        )
        if not len(sampler):
            raise UserError(
                f"data.path: {self.name} has {len(self.rows)} training rows, too few for {world_size} devices"
                f"{' once they are packed' if self.layout.kind == 'pack' else ''}; use fewer"
            )
        return sampler


@dataclass(frozen=True)
class StreamTraining:
    """Training from a stream.

    Args:
        stream: Where the rows come from.
        options: What the user said; `shuffle_window` is given.
    """

    stream: Stream
    options: Layout

    @cached_property
    def layout(self) -> Choice:
        """Padded, in windows."""
        return in_windows(self.options.batching, self.options.batch_tokens, self._window)

    def loader(self, rank: int, world_size: int, workers: int, trainer: pl.Trainer | None) -> StreamLoader:
        """All epochs in one, as many batches as training has; made by this process whatever `workers` says."""
        steps = streamed_steps(trainer)
        assert trainer is not None
        return self._loader(rank, world_size, steps * trainer.accumulate_grad_batches)

    def identity(self, rank: int, world_size: int) -> dict[str, Any]:
        """The loader's."""
        return self._loader(rank, world_size).identity()

    def batches(self) -> Iterator[Batch]:
        """The first epoch's, read for this alone."""
        yield from self._loader(0, 1).epoch(0)

    def batches_per_epoch(self, world_size: int) -> int:
        """Nobody knows.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "data.streaming: how many batches an epoch has nobody knows; give trainer.max_steps, or set it to false"
        )

    @property
    def _window(self) -> int:
        assert self.options.shuffle_window is not None
        return self.options.shuffle_window

    def _loader(self, rank: int, world_size: int, batches: int = 0) -> StreamLoader:
        said, collate = self.options, PadCollator(self.options.pad_id)
        return StreamLoader(self.stream, self._window, said.batch_size, collate, said.seed, rank, world_size, batches)


class Items(Dataset):
    """A sequence as torch's loaders want it typed; a pack of indices gives a pack of items."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int | list[int]) -> Any:
        return [self._items[place] for place in index] if isinstance(index, list) else self._items[index]


def default_workers() -> int:
    """None on a CPU, whose cores are busy training; on a GPU some, of those that this process may use."""
    return min(4, max(1, len(os.sched_getaffinity(0)) - 1)) if torch.cuda.is_available() else 0
