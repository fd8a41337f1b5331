"""The loader's state: training goes on with the next batch, whatever the workers; otherwise refused, or handed over."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.collators import Idle
from ftlab.data.loader import RowLoader
from ftlab.data.remainder import handed_over
from ftlab.data.samplers import (
    BucketBatchSampler,
    PackBatchSampler,
    ShuffledBatchSampler,
    TrainingBatchSampler,
    shuffled_places,
)
from ftlab.errors import UserError

Make = Callable[..., TrainingBatchSampler]

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)
FIXED = [random.Random(0).randint(1, 50) for _ in range(60)]


def shuffled(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    sampler = ShuffledBatchSampler(len(lengths), batch_size, **options)
    sampler.lengths = numpy.array(lengths)
    return sampler


def windowed(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return shuffled(lengths, batch_size, window=7, **options)


def bucket(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return BucketBatchSampler(lengths, batch_size, **options)


def bucket_by_tokens(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return BucketBatchSampler(lengths, batch_tokens=40 + 10 * batch_size, **options)


def pack(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return PackBatchSampler(lengths, 50, batch_size, **options)


MAKES = [shuffled, windowed, bucket, bucket_by_tokens, pack]
KINDS = pytest.mark.parametrize("make", MAKES)
BY_COUNT = pytest.mark.parametrize("make", [shuffled, windowed, bucket, pack])


def loader(sampler: TrainingBatchSampler, workers: int = 0) -> Any:
    """Its batches are the rows' numbers, packed or not."""
    return RowLoader(range(sampler.size), sampler, own, workers)  # type: ignore[arg-type]


def own(rows: list[Any]) -> list[Any]:
    """The rows of a rank, of which an idle one has none."""
    return [] if isinstance(rows, Idle) else list(rows)


def epoch_of(loader: Any, epoch: int) -> list[Any]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def flat(batches: Any) -> list[int]:
    return [place for batch in batches for item in batch for place in (item if isinstance(item, list) else [item])]


def stopped(loader: Any, epoch: int, batches: int) -> tuple[list[Any], dict[str, Any]]:
    """The first batches of an epoch, and the state after them, as a checkpoint has it."""
    loader.sampler.set_epoch(epoch)
    seen = list(islice(loader, batches))
    return seen, json.loads(json.dumps(loader.state_dict()))


@KINDS
@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.data())
def test_it_goes_on_where_it_stood(
    make: Make, lengths: list[int], batch_size: int, world: int, epoch: int, data: st.DataObject
) -> None:
    ranks = [loader(make(lengths, batch_size, seed=3, rank=rank, world_size=world)) for rank in range(world)]
    done = data.draw(st.integers(1, max(1, len(ranks[0]) - 1)))
    whole = [epoch_of(rank, epoch) for rank in ranks]
    states = [stopped(rank, epoch, done)[1] for rank in ranks]
    assert all(state == states[0] for state in states)  # rank 0's state is what Lightning gives every rank
    if done < len(ranks[0]):
        for rank, batches in enumerate(whole):
            resumed = loader(make(lengths, batch_size, seed=3, rank=rank, world_size=world))
            resumed.load_state_dict(states[0])
            assert list(resumed) == batches[done:]
            assert resumed.sampler.epoch == epoch
            assert epoch_of(resumed, epoch + 1) == epoch_of(ranks[rank], epoch + 1)


@KINDS
def test_a_state_from_the_end_of_an_epoch_starts_the_next(make: Make) -> None:
    _, state = stopped(loader(make(FIXED, 4, seed=3)), 0, 1000)
    resumed = loader(make(FIXED, 4, seed=3))
    resumed.load_state_dict(state)
    assert list(resumed) == epoch_of(loader(make(FIXED, 4, seed=3)), 1)
    assert resumed.sampler.epoch == 1


@pytest.mark.parametrize("make", [shuffled, pack])
@pytest.mark.parametrize(("workers", "later"), [(0, 2), (2, 0), (2, 1)])
def test_workers_make_no_difference(make: Make, workers: int, later: int) -> None:
    expected = epoch_of(loader(make(FIXED, 4, seed=7)), 2)
    seen, state = stopped(loader(make(FIXED, 4, seed=7), workers), 2, 3)  # workers are ahead by now
    resumed = loader(make(FIXED, 4, seed=7), later)
    resumed.load_state_dict(state)
    assert seen + list(resumed) == expected


@BY_COUNT
def test_other_devices_with_the_same_global_batch_go_on(make: Make) -> None:
    alone = loader(make(FIXED, 4, seed=3))
    _, state = stopped(alone, 0, 1)
    ranks = [loader(make(FIXED, 2, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    remaining = [sorted(batch) for batch in epoch_of(alone, 0)[1:]]
    assert [sorted(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)] == remaining


# ------------------------------------------------------------------------------------------------------- refused


def refused(before: TrainingBatchSampler, now: TrainingBatchSampler, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        loader(now).load_state_dict(loader(before).state_dict())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"size": 11}, "had records 10 and this one has 11"),
        ({"seed": 4}, "had seed 3 and this one has 4"),
        ({"batch_size": 2}, "had global batch size 4 and this one has 2"),
        ({"world_size": 2}, "had global batch size 4 and this one has 8"),
        ({"data": "b"}, "had data a and this one has b, so it would train other batches"),
        ({"rows": numpy.arange(10)}, r"had data a and this one has a\+"),
        ({"window": 5}, "had window None and this one has 5"),
    ],
)
def test_a_resume_that_would_train_other_batches_is_refused(other: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"size": 10, "batch_size": 4, "seed": 3, "data": "a"}
    refused(ShuffledBatchSampler(**arguments), ShuffledBatchSampler(**(arguments | other)), sentence)


def test_a_resume_with_another_layout_is_refused() -> None:
    refused(shuffled(FIXED, 4, seed=0), bucket(FIXED, 4), "had batching pad and this one has bucket")
    refused(bucket(FIXED, 4), bucket_by_tokens(FIXED, 4), "had batch tokens None and this one has 80")
    refused(bucket_by_tokens(FIXED, 4), bucket_by_tokens(FIXED, 4, world_size=2), "had devices 1 and this one has 2")
    refused(bucket(FIXED, 4), bucket([*FIXED[:-1], 7], 4), "had lengths")
    refused(pack(FIXED, 4), pack(FIXED, 2), "had packs of a global batch 4 and this one has 2")
    refused(PackBatchSampler(FIXED, 50, 4), PackBatchSampler(FIXED, 60, 4), "had capacity 50 and this one has 60")
    refused(pack(FIXED, 4), pack([*FIXED[:-1], 7], 4), "had lengths")


# --------------------------------------------------------------------------------------------------- handed over


def ranks_after(make: Make, world: int, state: dict[str, Any], lengths: list[int], batch_size: int) -> Iterator[Any]:
    """The loaders of all ranks that take over from `state`."""
    for rank in range(world):
        resumed = loader(make(lengths, batch_size, seed=3, rank=rank, world_size=world))
        resumed.load_state_dict(json.loads(json.dumps(handed_over(state, resumed.sampler, len(resumed))[0])))
        yield resumed


@settings(max_examples=200)
@given(
    LENGTHS,
    st.lists(st.tuples(st.sampled_from(MAKES), st.integers(1, 5), st.integers(1, 3)), min_size=2, max_size=4),
    st.integers(0, 3),
    st.data(),
)
def test_whoever_goes_on_no_record_comes_twice_and_none_is_missing(
    lengths: list[int], legs: list[tuple[Make, int, int]], epoch: int, data: st.DataObject
) -> None:
    """Each leg has a layout, a batch and a number of devices of its own, and stops somewhere but the last."""
    make, batch_size, world = legs[0]
    first = [loader(make(lengths, batch_size, seed=3, rank=rank, world_size=world)) for rank in range(world)]
    for rank in first:
        rank.sampler.set_epoch(epoch)
    seen: list[int] = []
    running: list[Any] = first
    for make, batch_size, world in legs[1:]:
        count = data.draw(st.integers(0, 6))
        parts = [list(islice(rank, count)) for rank in running]
        seen += flat(chain.from_iterable(parts))
        if not parts[0]:  # nothing was done: what Lightning would save is the state before
            return
        state = json.loads(json.dumps(running[0].state_dict()))
        running = list(ranks_after(make, world, state, lengths, batch_size))
        if running[0].state_dict()["epoch"] > epoch:
            break
    else:
        seen += flat(chain.from_iterable(list(rank) for rank in running))
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("world", [1, 2])
def test_padded_rows_go_on_in_the_order_that_they_had(world: int) -> None:
    seen, state = stopped(loader(shuffled(FIXED, 4, seed=3)), 2, 5)
    ranks = ranks_after(shuffled, world, state, FIXED, 3)
    shares = zip(*ranks, strict=True)
    rest = [[batch[place] for place in range(3) for batch in batches] for batches in islice(shares, 4)]
    order = shuffled_places(60, 3, 2).tolist()
    assert flat(seen) == order[:20]
    assert flat(rest) == order[20 : 20 + 12 * world]


def test_batches_that_count_as_done_are_those_that_the_rest_does_not_need() -> None:
    _, state = stopped(loader(shuffled(FIXED, 4, seed=3)), 0, 5)  # 40 of 60 rows are left
    for batch_size, total, rest in [(3, 20, 14), (10, 6, 4), (40, 2, 1)]:
        sampler = shuffled(FIXED, batch_size, seed=3)
        assert (len(sampler), handed_over(state, sampler, len(sampler))[1]) == (total, total - rest)


def test_other_records_begin_the_epoch_anew() -> None:
    _, state = stopped(loader(shuffled(FIXED, 4, seed=3)), 2, 5)
    sampler = shuffled(FIXED, 4, seed=3, data="other")
    there, done = handed_over(state, sampler, len(sampler))
    resumed = loader(sampler)
    resumed.load_state_dict(there)
    assert done == 0
    assert list(resumed) == epoch_of(loader(shuffled(FIXED, 4, seed=3)), 2)


def test_an_epoch_of_which_nothing_is_left_is_over() -> None:
    _, state = stopped(loader(shuffled(FIXED, 4, seed=3)), 2, 1000)
    there, done = handed_over(state, bucket(FIXED, 7, seed=3), 9)
    assert (there["epoch"], there["batches"], done) == (3, 0, 9)


def test_an_epoch_may_end_before_its_rows() -> None:
    whole = [*epoch_of(loader(shuffled(FIXED, 4, seed=3)), 0)[:5], *epoch_of(loader(shuffled(FIXED, 4, seed=3)), 1)]
    _, state = stopped(RowLoader(range(60), shuffled(FIXED, 4, seed=3), own, taken=5), 0, 5)  # type: ignore[arg-type]
    resumed: Any = RowLoader(range(60), shuffled(FIXED, 4, seed=3), own, taken=5)  # type: ignore[arg-type]
    resumed.load_state_dict(state)
    assert list(resumed) == whole[5:]
