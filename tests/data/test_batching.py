"""Batching: padding by hand, and the order's properties for any number of records, ranks and epochs."""

import random
from itertools import chain

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from ftlab.data.batching import (
    LengthBatchSampler,
    PadCollator,
    Prompt,
    PromptCollator,
    ShuffledBatchSampler,
)
from ftlab.data.encoding import Example
from ftlab.errors import UserError

SIZES = st.integers(1, 80)
SEEDS = st.integers(0, 2**32)


def test_examples_are_padded_on_the_right_and_counted() -> None:
    # 9 is the pad and also a real token: masks go by position
    batch = PadCollator(pad_id=9)([Example([1, 2, 3, 9], [-100, -100, 3, 9]), Example([5, 6], [5, 6])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [5, 6, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 9], [5, 6, -100, -100]]
    assert {value.dtype for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.long}
    assert batch["target_tokens"] == 3  # 3 and 9, and 6: the label at position 0 is predicted from nothing
    assert batch["tokens"] == 6


def test_prompts_are_padded_on_the_left() -> None:
    batch = PromptCollator(pad_id=9)([Prompt(7, [1, 2, 3]), Prompt(4, [5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["indices"] == [7, 4]


@given(SIZES, st.integers(1, 9), SEEDS, st.integers(0, 5))
def test_one_rank_trains_every_record_once(size: int, batch_size: int, seed: int, epoch: int) -> None:
    sampler = ShuffledBatchSampler(size, batch_size, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(chain.from_iterable(batches)) == list(range(size))
    assert list(chain.from_iterable(batches)) == sampler.order(epoch).tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == len(sampler)


@given(SIZES, st.integers(1, 4), st.integers(1, 6), SEEDS, st.integers(0, 5))
def test_ranks_share_each_global_batch(size: int, batch_size: int, world: int, seed: int, epoch: int) -> None:
    alone = ShuffledBatchSampler(size, batch_size * world, seed)
    ranks = [ShuffledBatchSampler(size, batch_size, seed, rank, world) for rank in range(world)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(epoch)
    expected = [set(batch) for batch in alone if len(batch) >= world]  # fewer cannot be shared: left out
    each = [list(sampler) for sampler in ranks]
    assert {len(batches) for batches in each} == {len(expected)} == {len(ranks[0])}
    for shares, together in zip(zip(*each, strict=True), expected, strict=True):
        assert all(1 <= len(share) <= batch_size for share in shares)
        assert sum(map(len, shares)) == len(together)
        assert set().union(*shares) == together


@given(SIZES, SEEDS, st.integers(0, 5))
def test_the_order_depends_on_seed_and_epoch_alone(size: int, seed: int, epoch: int) -> None:
    sampler = ShuffledBatchSampler(size, 4, seed)
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    first = sampler.order(epoch).tolist()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert ShuffledBatchSampler(size, 4, seed).order(epoch).tolist() == first


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(ShuffledBatchSampler(50, 4, seed).order(epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.data())
def test_an_iterator_resumes_where_it_stood(
    size: int, batch_size: int, world: int, epoch: int, data: st.DataObject
) -> None:
    ranks = [ShuffledBatchSampler(size, batch_size, 3, rank, world) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    length = len(ranks[0])
    done = data.draw(st.integers(0, max(0, length - 1)))
    iterators = [iter(sampler) for sampler in ranks]
    for iterator in iterators:
        for _ in range(min(done, length)):
            next(iterator)
    states = [iterator.state_dict() for iterator in iterators]
    assert all(state == states[0] for state in states)  # rank 0's state is what Lightning gives every rank
    if length:
        for rank in range(world):
            fresh = ShuffledBatchSampler(size, batch_size, 3, rank, world)
            resumed = iter(fresh)
            resumed.load_state_dict(states[0])
            assert list(resumed) == list(iterators[rank])
            assert fresh.epoch == epoch


def test_a_state_from_the_end_of_an_epoch_starts_the_next() -> None:
    sampler = ShuffledBatchSampler(10, 4, 3)
    iterator = iter(sampler)
    list(iterator)
    fresh = ShuffledBatchSampler(10, 4, 3)
    resumed = iter(fresh)
    resumed.load_state_dict(iterator.state_dict())
    sampler.set_epoch(1)
    assert list(resumed) == list(sampler)
    assert fresh.epoch == 1


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"size": 11}, "had records 10 and this one has 11"),
        ({"seed": 4}, "had seed 3 and this one has 4"),
        ({"batch_size": 2}, "had global batch size 4 and this one has 2"),
        ({"world_size": 2}, "had global batch size 4 and this one has 8"),
    ],
)
def test_a_resume_that_would_train_other_batches_is_refused(other: dict[str, int], sentence: str) -> None:
    arguments = {"size": 10, "batch_size": 4, "seed": 3}
    state = iter(ShuffledBatchSampler(**arguments)).state_dict()
    with pytest.raises(UserError, match=sentence):
        iter(ShuffledBatchSampler(**(arguments | other))).load_state_dict(state)


def test_a_resume_on_other_devices_with_the_same_global_batch_goes_on() -> None:
    iterator = iter(ShuffledBatchSampler(20, 4, 3))
    next(iterator)
    ranks = [iter(ShuffledBatchSampler(20, 2, 3, rank, 2)) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(iterator.state_dict())
    assert [sorted(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)] == [
        sorted(batch) for batch in iterator
    ]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_in_mid_epoch(workers: int) -> None:
    def loader() -> StatefulDataLoader:
        sampler = ShuffledBatchSampler(23, 4, 7)
        sampler.set_epoch(2)
        return StatefulDataLoader(list(range(23)), batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]

    expected = [batch.tolist() for batch in loader()]
    interrupted = loader()
    batches = iter(interrupted)
    for _ in range(3):  # with workers, more have been drawn ahead by now
        next(batches)
    state = interrupted.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [batch.tolist() for batch in resumed] == expected[3:]


LENGTHS = st.lists(st.integers(1, 50), max_size=80)


@given(LENGTHS, st.integers(1, 6), st.integers(1, 5))
def test_evaluation_takes_every_record_once_on_one_rank(lengths: list[int], batch_size: int, world: int) -> None:
    each = [list(LengthBatchSampler(lengths, batch_size, rank, world)) for rank in range(world)]
    assert sorted(index for batches in each for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batches in each for batch in batches)
    if batch_size > 1 and len(lengths) >= world:
        assert {len(batches) for batches in each} == {-(-len(lengths) // (batch_size * world))}


@given(LENGTHS, st.integers(1, 6))
def test_evaluation_goes_from_long_to_short(lengths: list[int], batch_size: int) -> None:
    order = chain.from_iterable(LengthBatchSampler(lengths, batch_size))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)


def test_samplers_serve_loaders() -> None:
    items: list[int] = list(range(5))
    loader = DataLoader(items, batch_sampler=LengthBatchSampler([1, 5, 2, 4, 3], 2))  # type: ignore[arg-type]
    assert [batch.tolist() for batch in loader] == [[1, 3], [4, 2], [0]]
    assert len(loader) == 3
