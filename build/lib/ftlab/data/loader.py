"""The training batches of a rank, epoch after epoch, and where it stands among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ftlab.data.collators import Batch
from ftlab.data.remainder import Place, left, refuse_other_batches
from ftlab.data.samplers import TrainingBatchSampler


class RowLoader:
    """Rows in the order of a sampler.

    Its state counts the batches that were handed out, whatever workers have made ahead: it is the same on every rank
    and for any number of workers.

    Args:
        rows: What the sampler's indices stand for.
        sampler: Whose epoch, set before, is the first.
        collate: Rows to a batch; of an idle rank they are `Idle`.
        workers: Processes that make batches ahead; with 0 this one makes them.
        taken: Batches that training takes of an epoch; by default all.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        sampler: TrainingBatchSampler,
        collate: Callable[[list[Any]], Batch],
        workers: int = 0,
        taken: int | None = None,
    ) -> None:
        self.sampler = sampler
        """Lightning looks here for the `set_epoch` to call."""
        self._rows = Items(rows)
        self._collate = collate
        self._workers = workers
        self._taken = len(sampler) if taken is None else taken
        self._place = Place(sampler.epoch)
        self._resumed = False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # not before the first batch is asked for: resumed between epochs, Lightning names the epoch after this
        if not self._resumed:
            self._place = Place(self.sampler.epoch)
        self._resumed = False
        place = self._place
        loader: DataLoader = DataLoader(
            self._rows,
            batch_sampler=self._epoch(place).batches(place.epoch, place.batches - place.begun),
            collate_fn=self._collate,
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for number, batch in enumerate(loader, start=place.batches + 1):
            self._place = replace(place, batches=number)
            yield batch

    def _epoch(self, place: Place) -> TrainingBatchSampler:
        return self.sampler if place.after is None else self.sampler.over(left(place.after, self.sampler))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, and what the order depends on."""
        return self._place.state() | self.sampler.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            UserError: The records, the seed, the global batch, or the way of making batches were others then.
        """
        refuse_other_batches(state, self.sampler.identity())
        place = Place.of(state)
        if place.batches >= min(self._taken, place.begun + len(self._epoch(place))):
            # Lightning does not ask for a new iterator after a checkpoint at the end of an epoch, and would skip the
            # next epoch over an exhausted one, or go through the last one's order again
            place = Place(place.epoch + 1)
        self.sampler.set_epoch(place.epoch)
        self._place, self._resumed = place, True


class Items(Dataset):
    """A sequence as torch's loaders want it typed; a pack of indices gives a pack of items."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int | list[int]) -> Any:
        return [self._items[place] for place in index] if isinstance(index, list) else self._items[index]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """A batch of them, as torch's loaders ask for it: of an idle rank it stays one."""
        return type(indices)(self[index] for index in indices)
