"""Training batches from sets larger than disk or patience: read, cleaned and encoded while the network trains.

Rows come in the order of the sources and are shuffled within windows. The batches are those of prepared rows with the
same `shuffle_window`, to the token: the order of window w in epoch e is the same function of (seed, e, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ftlab.data.collators import Batch, PadCollator, Row
from ftlab.data.leaks import LeakIndex
from ftlab.data.preparation import Stages
from ftlab.data.samplers import shuffled_window
from ftlab.errors import UserError


class StreamLoader:
    """Endless batches, epoch after epoch, cut off after `batches`; its state resumes in mid-epoch.

    The last batch of an epoch is short, as in memory. Resuming reads the epoch again up to where it stood.

    Args:
        rows: Gives the rows of an epoch in the order of the sources.
        window: Rows that are held and shuffled together.
        batch_size: Rows of one rank's batch.
        collate: Rows to a batch.
        seed: Chooses the order, together with the epoch.
        rank: This process, which takes the rows [rank::world_size] of each global batch.
        world_size: Number of processes.
        batches: How many batches training takes of this rank: Lightning looks one ahead of loaders without a length.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[Row]],
        window: int,
        batch_size: int,
        collate: PadCollator,
        seed: int,
        rank: int,
        world_size: int,
        batches: int,
    ) -> None:
        self._rows = rows
        self._window = window
        self._batch_size = batch_size
        self._collate = collate
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._batches = batches
        self._consumed = 0
        self._epoch = 0
        self._of_epoch = 0  # batches consumed of the epoch under way

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        while self._consumed < self._batches:
            skip = self._of_epoch
            for number, rows in enumerate(self._global_batches(self._epoch)):
                if number < skip:
                    continue
                self._of_epoch = number + 1
                self._consumed += 1
                yield self._collate(rows[self._rank :: self._world_size])
                if self._consumed >= self._batches:
                    return
            if not self._of_epoch:
                raise UserError("data.streaming: the sources hold no rows to train on")
            self._epoch, self._of_epoch = self._epoch + 1, 0

    def _global_batches(self, epoch: int) -> Iterator[list[Row]]:
        size = self._batch_size * self._world_size
        batch: list[Row] = []
        for row in self._shuffled(epoch):
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
        if len(batch) >= self._world_size:  # as in memory: fewer rows than ranks are left out
            yield batch

    def _shuffled(self, epoch: int) -> Iterator[Row]:
        window: list[Row] = []
        number = 0
        for row in self._rows():
            window.append(row)
            if len(window) == self._window:
                yield from (window[place] for place in shuffled_window(len(window), self._seed, epoch, number))
                window, number = [], number + 1
        yield from (window[place] for place in shuffled_window(len(window), self._seed, epoch, number))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what its order depends on."""
        return {"epoch": self._epoch, "of_epoch": self._of_epoch, "consumed": self._consumed, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            UserError: The seed, the window or the global batch were others then.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"the run to resume had {name.replace('_', ' ')} {state.get(name)} and this one has {value}, "
                    "so it would train other batches; resume with the same seed, window, batch and devices"
                )
        self._epoch, self._of_epoch, self._consumed = state["epoch"], state["of_epoch"], state["consumed"]

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self._seed,
            "window": self._window,
            "global_batch_size": self._batch_size * self._world_size,
        }


def streamed(stages: Stages, origin: int, index: LeakIndex | None, workers: int) -> Iterator[Row]:
    """The training rows of one source, as a preparation would keep them.

    Args:
        stages: What each chunk goes through.
        origin: Number of the source.
        index: Evaluation records that training must not repeat; None compares nothing.
        workers: Processes that prepare.
    """
    yield from ()
