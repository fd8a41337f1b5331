"""Batches of a stream, epoch after epoch, and how a training from one is counted and laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy

from ftlab.data.collators import Batch, Row
from ftlab.data.layout import Batching, Choice
from ftlab.data.remainder import other_batches, refuse_other_batches
from ftlab.data.samplers import share, shuffled_window
from ftlab.data.streaming import Stream
from ftlab.errors import UserError

WINDOW = 10_000
"""Rows that a stream shuffles together, where nothing else is asked for."""


class StreamLoader(Iterator[Batch]):
    """Batches of a stream, epoch after epoch, up to `batches` of them; its state resumes in mid-epoch.

    The last batch of an epoch is short, as in memory; gradients are accumulated across it. A resume reads the epoch
    again up to where it stood, and refuses to go on if other rows come.

    Args:
        stream: Where the rows come from.
        window: Rows that are held and shuffled together.
        batch_size: Rows of one rank's batch.
        collate: Rows to a batch; of an idle rank they are `Idle`.
        seed: Chooses the order, together with the epoch.
        rank: This process, which takes the rows [rank::world_size] of each global batch.
        world_size: Number of processes.
        batches: How many batches training takes of this rank: Lightning looks one ahead of loaders without a length.
    """

    def __init__(
        self,
        stream: Stream,
        window: int,
        batch_size: int,
        collate: Callable[[list[Row]], Batch],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches: int = 0,
    ) -> None:
        self._stream = stream
        self._window = window
        self._batch_size = batch_size
        self._collate = collate
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._batches = batches
        self._consumed = 0
        self._epoch = 0
        self._rows = 0  # taken of the epoch under way, by all ranks
        self._digest = ""  # of these
        self._iterator: Iterator[Batch] | None = None  # set to None by Lightning at the end, whatever has happened

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> StreamLoader:
        return self

    def __next__(self) -> Batch:
        if self._consumed >= self._batches:
            self._iterator = None  # neither the window nor processes are needed any more
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._from_here()
        return next(self._iterator)

    def epoch(self, number: int) -> Iterator[Batch]:
        """This rank's batches of one epoch, whatever the state."""
        for rows in self._cut(self._shuffled(number)):
            yield self._collate(share(rows, self._rank, self._world_size))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what its order depends on; the same on every rank."""
        place = {"epoch": self._epoch, "rows": self._rows, "digest": self._digest, "batches": self._consumed}
        return place | self.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            UserError: The data, the seed, the window or the global batch were others then.
        """
        refuse_other_batches(state, self.identity())
        self._epoch, self._rows, self._digest = state["epoch"], state["rows"], state["digest"]
        self._consumed = state["batches"]
        self._iterator = None

    def handed_over(self, state: dict[str, Any], batches: int) -> dict[str, Any]:
        """The state from which this loader goes on after another: in the same order with the next row, otherwise with
        the epoch's first.

        Args:
            state: Of the other.
            batches: How many of this one's count as done.
        """
        here = {"epoch": state["epoch"], "rows": 0, "digest": "", "batches": batches} | self.identity()
        same = all(state.get(name) == here[name] for name in ("batching", "seed", "data", "window"))
        return here | ({name: state[name] for name in ("rows", "digest")} if same else {})

    def identity(self) -> dict[str, int | str]:
        """All that the global batches depend on, beside the epoch."""
        return {
            "batching": "stream",
            "global_batch_size": self._batch_size * self._world_size,
            "seed": self._seed,
            "data": self._stream.key,
            "window": self._window,
        }

    def _from_here(self) -> Iterator[Batch]:
        while True:
            rows, digest = self._shuffled(self._epoch), blake2b(digest_size=16)
            skipped = 0
            for row in islice(rows, self._rows):
                _add(row, digest)
                skipped += 1
            if skipped < self._rows:
                raise other_batches("rows in an epoch", f"at least {self._rows}", skipped)
            if skipped and digest.hexdigest() != self._digest:
                raise other_batches("rows", self._digest, digest.hexdigest())
            for batch in self._cut(rows):
                for row in batch:
                    _add(row, digest)
                self._rows, self._digest = self._rows + len(batch), digest.hexdigest()
                self._consumed += 1
                yield self._collate(share(batch, self._rank, self._world_size))
            self._epoch, self._rows, self._digest = self._epoch + 1, 0, ""

    def _cut(self, rows: Iterator[Row]) -> Iterator[list[Row]]:
        """Into global batches; as in memory the last is short."""
        while batch := list(islice(rows, self._batch_size * self._world_size)):
            yield batch

    def _shuffled(self, epoch: int) -> Iterator[Row]:
        rows = self._stream.rows()
        number = 0
        while window := list(islice(rows, self._window)):
            yield from (window[place] for place in shuffled_window(len(window), self._seed, epoch, number))
            number += 1


def _add(row: Row, digest: Any) -> None:
    for side in (row, row.rejected):
        if side is not None:
            digest.update(numpy.asarray(side.input_ids).tobytes())
            digest.update(numpy.asarray(side.spans).tobytes())


def streamed_steps(trainer: pl.Trainer | None) -> int:
    """Optimiser steps of a training from a stream.

    Raises:
        UserError: Nothing but the number of epochs says when training ends.
    """
    if trainer is None or trainer.max_steps == -1:
        raise UserError("data.streaming: how many steps an epoch has nobody knows; give trainer.max_steps")
    if trainer.max_epochs not in (None, -1) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError(
            "data.streaming: epochs of a stream are not counted, it begins again until trainer.max_steps are done; "
            "leave trainer.max_epochs out"
        )
    return int(trainer.max_steps)


def in_windows(batching: Batching, batch_tokens: int | None, window: int) -> Choice:
    """The layout where rows are shuffled in windows.

    Raises:
        UserError: The layout asked for needs the lengths of a whole epoch.
    """
    if batching in ("bucket", "pack") or batch_tokens is not None:
        asked = f"data.batching {batching}" if batching in ("bucket", "pack") else "data.batch_tokens"
        raise UserError(
            f"{asked}: batches are made by the lengths of a whole epoch, of which data.streaming and "
            "data.shuffle_window hold only a part; set data.batching to pad and leave data.batch_tokens out, or leave "
            "these two out"
        )
    return Choice("pad", f"rows are shuffled in windows of {window}, and padded as they come")
