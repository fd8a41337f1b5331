"""Samplers: the order's properties for any number of records, ranks and epochs."""

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ftlab.data.collators import Idle
from ftlab.data.samplers import (
    BucketBatchSampler,
    LengthBatchSampler,
    PackBatchSampler,
    ShuffledBatchSampler,
    TrainingBatchSampler,
    shuffled_window,
)
from ftlab.errors import UserError

SIZES = st.integers(1, 80)
SEEDS = st.integers(0, 2**32)
EPOCHS = st.integers(0, 5)
LENGTHS = st.lists(st.integers(1, 50), max_size=80)
FIXED = [random.Random(0).randint(1, 50) for _ in range(60)]

Make = Callable[..., TrainingBatchSampler]


def shuffled(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return ShuffledBatchSampler(len(lengths), batch_size, **options)


def windowed(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return ShuffledBatchSampler(len(lengths), batch_size, window=7, **options)


def bucket(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return BucketBatchSampler(lengths, batch_size, **options)


def bucket_by_tokens(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return BucketBatchSampler(lengths, batch_tokens=40 + 10 * batch_size, **options)


def pack(lengths: list[int], batch_size: int, **options: Any) -> TrainingBatchSampler:
    return PackBatchSampler(lengths, 50, batch_size, **options)


KINDS = pytest.mark.parametrize("make", [shuffled, windowed, bucket, bucket_by_tokens, pack])
BY_COUNT = pytest.mark.parametrize("make", [shuffled, windowed, bucket, pack])


def flat(batch: list[Any]) -> list[int]:
    """The records of a batch or of several, packed or not; none of an idle rank."""
    if isinstance(batch, Idle):
        return []
    return [index for item in batch for index in (flat(item) if isinstance(item, list) else [item])]


def epoch_of(sampler: TrainingBatchSampler, epoch: int) -> list[list[Any]]:
    sampler.set_epoch(epoch)
    return list(sampler)


# ------------------------------------------------------------------------------------------------- what all share


@KINDS
@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 9), SEEDS, EPOCHS)
def test_one_rank_trains_every_record_once(
    make: Make, lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    sampler = make(lengths, batch_size, seed=seed)
    batches = epoch_of(sampler, epoch)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert all(batches)


@KINDS
@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 6), SEEDS, EPOCHS)
def test_ranks_share_an_epoch(
    make: Make, lengths: list[int], batch_size: int, world: int, seed: int, epoch: int
) -> None:
    ranks = [make(lengths, batch_size, seed=seed, rank=rank, world_size=world) for rank in range(world)]
    each = [epoch_of(sampler, epoch) for sampler in ranks]
    assert {len(batches) for batches in each} == {len(ranks[0])}
    assert all(batch for batches in each for batch in batches)
    assert sorted(flat(each)) == list(range(len(lengths)))
    assert not any(isinstance(batch, Idle) for batches in each for batch in batches[:-1])


@BY_COUNT
@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 6), SEEDS, EPOCHS)
def test_ranks_share_each_global_batch(
    make: Make, lengths: list[int], batch_size: int, world: int, seed: int, epoch: int
) -> None:
    expected = epoch_of(make(lengths, batch_size * world, seed=seed), epoch)
    ranks = [make(lengths, batch_size, seed=seed, rank=rank, world_size=world) for rank in range(world)]
    each = [epoch_of(sampler, epoch) for sampler in ranks]
    for shares, together in zip(zip(*each, strict=True), expected, strict=True):
        assert all(1 <= len(share) <= batch_size for share in shares)
        assert sorted(flat(shares)) == sorted(flat(together))


@KINDS
@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 3), SEEDS)
def test_every_epoch_has_as_many_batches(
    make: Make, lengths: list[int], batch_size: int, world: int, seed: int
) -> None:
    sampler = make(lengths, batch_size, seed=seed, world_size=world)
    assert [len(epoch_of(sampler, epoch)) for epoch in range(4)] == [len(sampler)] * 4
    assert len(make(lengths[::-1], batch_size, seed=seed + 1, world_size=world)) == len(sampler)


@KINDS
@settings(max_examples=30)
@given(LENGTHS, SEEDS, EPOCHS)
def test_the_order_depends_on_seed_and_epoch_alone(make: Make, lengths: list[int], seed: int, epoch: int) -> None:
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    first = epoch_of(make(lengths, 4, seed=seed), epoch)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert epoch_of(make(lengths, 4, seed=seed), epoch) == first


@KINDS
def test_epochs_and_seeds_differ(make: Make) -> None:
    orders = {str(epoch_of(make(FIXED, 4, seed=seed), epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


@KINDS
def test_epochs_bring_other_mates_together(make: Make) -> None:
    lengths = [random.Random(0).choice(FIXED[:10]) for _ in range(60)]
    mates = [{frozenset(flat(batch)) for batch in epoch_of(make(lengths, 4, seed=0), epoch)} for epoch in (0, 1)]
    assert len(mates[0] & mates[1]) < len(mates[0]) / 2


@KINDS
@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 4), EPOCHS)
def test_a_plan_names_the_records(make: Make, lengths: list[int], batch_size: int, epoch: int) -> None:
    """With `rows`, the epoch is that over places, with the plan's records in them."""
    rows = numpy.random.default_rng(0).integers(0, 1000, len(lengths))
    places = epoch_of(make(lengths, batch_size, seed=1), epoch)
    records = epoch_of(make(lengths, batch_size, seed=1, rows=rows), epoch)
    assert flat(records) == rows[numpy.array(flat(places), dtype=int)].tolist()
    assert [len(batch) for batch in records] == [len(batch) for batch in places]


def test_a_plan_has_as_many_rows_as_places() -> None:
    with pytest.raises(ValueError, match="3 rows for 4 places"):
        ShuffledBatchSampler(4, 2, 0, rows=numpy.arange(3))


# ------------------------------------------------------------------------------------------------- each on its own


@given(SIZES, st.integers(1, 9), SEEDS, EPOCHS)
def test_pad_cuts_the_permutation_of_seed_and_epoch(size: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_of(ShuffledBatchSampler(size, batch_size, seed), epoch)
    assert list(chain.from_iterable(batches)) == numpy.random.default_rng([seed, epoch]).permutation(size).tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_windows_are_shuffled_one_by_one() -> None:
    order = ShuffledBatchSampler(10, 1, 5, window=4).order(2).tolist()
    assert order == [
        *shuffled_window(4, 5, 2, 0).tolist(),
        *(4 + shuffled_window(4, 5, 2, 1)).tolist(),
        *(8 + shuffled_window(2, 5, 2, 2)).tolist(),
    ]
    assert shuffled_window(4, 5, 2, 1).tolist() == numpy.random.default_rng([5, 2, 1]).permutation(4).tolist()


def padding(lengths: list[int], batches: list[list[int]]) -> float:
    positions = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / positions


def test_buckets_pad_little() -> None:
    lengths = numpy.random.default_rng(0).lognormal(4.5, 0.9, 4000).astype(int).clip(1, 1024).tolist()
    assert padding(lengths, list(ShuffledBatchSampler(4000, 8, 0))) > 0.4
    assert padding(lengths, list(BucketBatchSampler(lengths, 8))) < 0.05
    assert padding(lengths, list(BucketBatchSampler(lengths, batch_tokens=4096))) < 0.05


def test_the_last_batch_of_buckets_is_any_records() -> None:
    sampler = BucketBatchSampler(FIXED[:58], 8)
    batches = epoch_of(sampler, 1)
    assert [len(batch) for batch in batches] == [8] * 7 + [2]
    assert batches[-1] == numpy.random.default_rng([0, 1]).permutation(58)[-2:].tolist()


@settings(max_examples=50)
@given(LENGTHS, st.integers(50, 300), st.integers(1, 4), EPOCHS)
def test_buckets_stay_under_the_tokens(lengths: list[int], tokens: int, world: int, epoch: int) -> None:
    ranks = [BucketBatchSampler(lengths, batch_tokens=tokens, rank=r, world_size=world) for r in range(world)]
    each = [epoch_of(sampler, epoch) for sampler in ranks]
    for shares in zip(*each, strict=True):
        assert len({len(share) for share in shares}) == 1  # of the last batch some are idle, and as long as the others
        assert all(len(share) * max(lengths[index] for index in share) <= tokens for share in shares)


def test_a_record_over_the_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="batch_tokens is 49, but a record has 50 tokens"):
        BucketBatchSampler([3, 50], batch_tokens=49)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "batch_tokens": 100}])
def test_buckets_go_by_records_or_by_tokens(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give batch_size or batch_tokens"):
        BucketBatchSampler([1, 2], **options)


@settings(max_examples=50)
@given(LENGTHS, st.integers(50, 120), st.integers(1, 4), EPOCHS)
def test_packs_stay_under_the_capacity(lengths: list[int], capacity: int, packs: int, epoch: int) -> None:
    batches = epoch_of(PackBatchSampler(lengths, capacity, packs), epoch)
    assert all(len(batch) == packs for batch in batches[:-1])
    assert all(sum(lengths[index] for index in group) <= capacity for batch in batches for group in batch)


@given(LENGTHS, st.integers(1, 6), st.integers(1, 5))
def test_evaluation_takes_every_record_once_on_one_rank(lengths: list[int], batch_size: int, world: int) -> None:
    each = [list(LengthBatchSampler(lengths, batch_size, rank, world)) for rank in range(world)]
    assert sorted(index for batches in each for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batches in each for batch in batches)
    if batch_size > 1 and len(lengths) >= world:
        assert {len(batches) for batches in each} == {-(-len(lengths) // (batch_size * world))}
    assert all(each) or len(lengths) < world


@given(LENGTHS, st.integers(1, 6))
def test_evaluation_goes_from_long_to_short(lengths: list[int], batch_size: int) -> None:
    order = chain.from_iterable(LengthBatchSampler(lengths, batch_size))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)


def test_samplers_serve_loaders() -> None:
    items: Any = list(range(5))
    loader: DataLoader = DataLoader(items, batch_sampler=LengthBatchSampler([1, 5, 2, 4, 3], 2))
    assert [batch.tolist() for batch in loader] == [[1, 3], [4, 2], [0]]
    assert len(loader) == 3
