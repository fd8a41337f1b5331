"""What an interrupted epoch has left for training that goes on with other batches or on other devices.

The place in the data is global, and the order a function of it: so no record is taken twice in an epoch, and none is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy

from ftlab.data.samplers import (
    BucketBatchSampler,
    IntArray,
    PackBatchSampler,
    ShuffledBatchSampler,
    TrainingBatchSampler,
    shuffled_places,
)
from ftlab.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a loader stands.

    Args:
        epoch: The one under way.
        batches: Batches of a rank that count as done in it.
        after: The state of the loader that began the epoch with other batches, where one did.
        begun: How many count as done by that one.
    """

    epoch: int
    batches: int = 0
    after: dict[str, Any] | None = None
    begun: int = 0

    @classmethod
    def of(cls, state: dict[str, Any]) -> Place:
        """The place in a loader's state."""
        return cls(*(state[field.name] for field in fields(cls)))

    def state(self) -> dict[str, Any]:
        """Its part of a loader's state."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def left(state: dict[str, Any], sampler: TrainingBatchSampler) -> IntArray:
    """The places of the epoch under way that were not handed out, in the order of their records.

    Args:
        state: Of a loader over the same records.
        sampler: Goes on; its order is that of the places.
    """
    place = Place.of(state)
    theirs = _alone(state, sampler)
    pool = None if place.after is None else left(place.after, theirs)  # in the order that they had
    whole = theirs if pool is None else theirs.over(pool)
    batches = whole.global_batches(place.epoch)
    taken = [row for number in range(min(place.batches - place.begun, len(whole))) for row in _flat(batches(number))]
    window = sampler.window if isinstance(sampler, ShuffledBatchSampler) else None
    order = shuffled_places(sampler.size, sampler.seed, place.epoch, window)
    outside = taken if pool is None else [*taken, *numpy.setdiff1d(order, pool).tolist()]
    return order[~numpy.isin(order, outside)]


def same_records(state: dict[str, Any], sampler: TrainingBatchSampler) -> bool:
    """Whether a state is of the records that the sampler goes through."""
    ours = sampler.identity()
    return all(state.get(name) == ours[name] for name in ("records", "data"))


def handed_over(
    state: dict[str, Any], sampler: TrainingBatchSampler, taken: int, over: bool = False
) -> tuple[dict[str, Any], int]:
    """The state from which the sampler's loader goes on, and how many of its batches count as done in that epoch.

    Of other records the epoch under way begins anew.

    Args:
        state: Of a loader with another seed, global batch or layout, or over other records.
        sampler: Goes on.
        taken: Batches that training takes of an epoch.
        over: Whether the epoch under way had come to its end.
    """
    epoch = state["epoch"]
    following = Place(epoch + 1).state() | sampler.identity(), taken
    if over:
        return following
    if not same_records(state, sampler):
        return Place(epoch).state() | sampler.identity(), 0
    remaining = len(sampler.over(left(state, sampler)))
    done = max(0, len(sampler) - remaining)
    if not remaining or done >= taken:
        return following
    return Place(epoch, done, state, done).state() | sampler.identity(), done


def _alone(state: dict[str, Any], sampler: TrainingBatchSampler) -> TrainingBatchSampler:
    """The sampler of a state, of places, as if all its ranks were one: its global batches are the same."""
    size, seed = sampler.size, state["seed"]
    if state["batching"] == "pad":
        alone = ShuffledBatchSampler(size, state["global_batch_size"], seed, window=state.get("window"))
        alone.lengths = sampler.lengths
        return alone
    assert sampler.lengths is not None
    if state["batching"] == "bucket":
        tokens, world = state.get("batch_tokens"), state.get("devices", 1)
        return BucketBatchSampler(sampler.lengths, state.get("global_batch_size"), tokens, seed, 0, world)
    return PackBatchSampler(sampler.lengths, state["capacity"], state["packs_of_a_global_batch"], seed)


def _flat(batch: list[Any]) -> list[int]:
    return [place for item in batch for place in (item if isinstance(item, list) else [item])]


def refuse_other_batches(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuses to go on with other batches.

    Args:
        theirs: What the batches depended on that were interrupted; it may hold more.
        ours: What these depend on.

    Raises:
        UserError: Some of it differs.
    """
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise other_batches(name.replace("_", " "), theirs.get(name), value)


def other_batches(what: str, theirs: Any, ours: Any) -> UserError:
    """The refusal of a resume whose batches would be others."""
    return UserError(
        f"the run to resume had {what} {theirs} and this one has {ours}, so it would train other batches: resume with "
        "the same data, seed, batch and devices, start another run (--run.name), or go on all the same (--run.resume "
        "force)"
    )
