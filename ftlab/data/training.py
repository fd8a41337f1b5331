"""How training rows become the batches of a rank: from prepared rows at hand, or from a stream.

`Prepared` rows and streams differ in what is known beforehand; to FinetuneData both are a `Training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy

from ftlab.data.collators import Batch, PackCollator, PadCollator, for_training
from ftlab.data.layout import FLASH, Batching, Choice, choose, training_sampler
from ftlab.data.loader import Items, RowLoader
from ftlab.data.mixing import Mixing, Source, plan
from ftlab.data.remainder import handed_over
from ftlab.data.samplers import TrainingBatchSampler
from ftlab.data.store import Rows
from ftlab.data.stream_loader import StreamLoader, in_windows, streamed_steps
from ftlab.data.streaming import Stream
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

    def handed_over(
        self, state: dict[str, Any], world_size: int, trainer: pl.Trainer, steps: int, over: bool
    ) -> tuple[dict[str, Any], int]:
        """Where training goes on that began with other batches, data or devices.

        Args:
            state: Of the loader that was interrupted.
            world_size: Processes that go on.
            trainer: Says how much of an epoch is taken.
            steps: Optimiser steps that are done.
            over: Whether the epoch under way had come to its end.

        Returns:
            The state for the loaders that go on, and how many of their batches count as done in the epoch under way.
        """

    def batches(self) -> Iterator[Batch]:
        """Batches of one rank alone in the order of the first epoch."""

    def batches_per_epoch(self, world_size: int) -> int:
        """Batches that each rank takes in an epoch."""


@dataclass(frozen=True)
class RowTraining:
    """Training from prepared rows.

    Args:
        rows: The rows.
        fingerprint: Of the data.
        options: What the user said.
        capacity: Tokens of a pack.
        sources: Where rows come from.
        mixing: In what proportion they are taken from several sources.
        attention: Attention kernel, as transformers names it; None is its default.
        device: cpu or cuda.
    """

    rows: Rows
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

    def loader(self, rank: int, world_size: int, workers: int, trainer: pl.Trainer | None) -> RowLoader:
        """Shuffled rows, one epoch at a time."""
        sampler = self._sampler(rank, world_size)
        taken = limited(len(sampler), trainer.limit_train_batches) if trainer else None
        return RowLoader(self.rows, sampler, self._collate, workers, taken)

    def handed_over(
        self, state: dict[str, Any], world_size: int, trainer: pl.Trainer, steps: int, over: bool
    ) -> tuple[dict[str, Any], int]:
        """What is left of the epoch, laid out anew where it has to be."""
        sampler = self._sampler(0, world_size)
        if sampler.identity().items() <= state.items():
            return state, state["batches"]
        return handed_over(state, sampler, limited(len(sampler), trainer.limit_train_batches), over)

    def identity(self, rank: int, world_size: int) -> dict[str, Any]:
        """The sampler's, the data's fingerprint in it."""
        return self._sampler(rank, world_size).identity()

    def batches(self) -> Iterator[Batch]:
        """The first epoch's."""
        items, collate = Items(self.rows), self._collate
        for indices in self._sampler(0, 1):
            yield collate([items[index] for index in indices])

    def batches_per_epoch(self, world_size: int) -> int:
        """The same in every epoch."""
        return len(self._sampler(0, world_size))

    @property
    def _collate(self) -> Callable[[list[Any]], Batch]:
        pad = self.options.pad_id
        packed = self.layout.kind == "pack"
        return partial(for_training, PackCollator(pad, flat=self.attention in FLASH) if packed else PadCollator(pad))

    @cached_property
    def _plan(self) -> numpy.ndarray | None:
        """Which rows an epoch takes, where sources are mixed; None where it is every row once."""
        if self.mixing.how == "concatenate" and all(source.epochs == 1 for source in self.sources):
            return None
        sizes = numpy.bincount(self.rows.origins, minlength=len(self.sources)).tolist()
        return plan(sizes, self.sources, self.mixing, self.options.seed)

    def _sampler(self, rank: int, world_size: int) -> TrainingBatchSampler:
        return training_sampler(
            self.layout.kind,
            self.lengths,
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

    def handed_over(
        self, state: dict[str, Any], world_size: int, trainer: pl.Trainer, steps: int, over: bool
    ) -> tuple[dict[str, Any], int]:
        """The row after the last one that was taken, if the stream is the same."""
        batches = steps * trainer.accumulate_grad_batches
        return self._loader(0, world_size).handed_over(state, batches), batches

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
        said, collate = self.options, partial(for_training, PadCollator(self.options.pad_id))
        return StreamLoader(self.stream, self._window, said.batch_size, collate, said.seed, rank, world_size, batches)


def limited(batches: int, limit: int | float | None) -> int:
    """How many of an epoch's batches training takes, under `trainer.limit_train_batches`."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
