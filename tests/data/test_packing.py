"""Packing: no record lost, no pack too full, as few packs as first-fit decreasing; and packed equals padded."""

import random
from itertools import chain, permutations
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ftlab.attention import PACKED, mask_of
from ftlab.data.collators import Batch, PackCollator, PadCollator, Row
from ftlab.data.packing import Bins, best_fit, longest_first, waste
from ftlab.errors import UserError

CAPACITY = 40
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=120)


def packs(bins: Bins) -> list[list[int]]:
    return [bins[number].tolist() for number in range(len(bins))]


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Number of packs, by the textbook."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        for place, room in enumerate(rooms):
            if room >= length:
                rooms[place] -= length
                break
        else:
            rooms.append(capacity - length)
    return len(rooms)


def test_the_tightest_pack_is_taken() -> None:
    # 7 and 6 open packs with room for 3 and 4; 4 goes into the tighter one that has room, 3 into the other
    bins = best_fit(numpy.array([3, 6, 4, 7]), 10)
    assert packs(bins) == [[3, 0], [1, 2]]
    assert bins.rows.tolist() == [3, 0, 1, 2]
    assert bins.offsets.tolist() == [0, 2, 4]
    assert waste(numpy.array([3, 6, 4, 7]), bins, 10) == 0


def test_waste_is_the_share_of_empty_positions() -> None:
    lengths = numpy.array([6, 6, 3])
    assert waste(lengths, best_fit(lengths, 10), 10) == pytest.approx(5 / 20)


def test_equal_lengths_go_by_the_order() -> None:
    lengths = numpy.array([5, 5, 5, 5])
    assert packs(best_fit(lengths, 10)) == [[0, 1], [2, 3]]
    assert packs(best_fit(lengths, 10, numpy.array([2, 0, 3, 1]))) == [[2, 0], [3, 1]]
    assert longest_first(numpy.array([1, 5, 1]), numpy.array([2, 1, 0])).tolist() == [1, 2, 0]


def test_nothing_to_pack() -> None:
    bins = best_fit(numpy.array([], dtype=int), 10)
    assert (len(bins), waste(numpy.array([]), bins, 10)) == (0, 0.0)


def test_a_record_over_the_capacity_is_refused() -> None:
    with pytest.raises(UserError, match="a record of 11 tokens does not fit into a pack of 10; make packs as long"):
        best_fit(numpy.array([3, 11]), 10)


@given(LENGTHS, st.integers(0, 2**32))
def test_every_record_is_packed_once_under_the_capacity(lengths: list[int], seed: int) -> None:
    order = numpy.random.default_rng(seed).permutation(len(lengths))
    made = packs(best_fit(numpy.array(lengths, dtype=numpy.int32), CAPACITY, order))
    assert sorted(chain.from_iterable(made)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= CAPACITY for pack in made)


@given(LENGTHS, st.integers(0, 2**32))
def test_how_full_packs_are_depends_on_lengths_alone(lengths: list[int], seed: int) -> None:
    def sizes(order: numpy.ndarray) -> list[list[int]]:
        return [[lengths[index] for index in pack] for pack in packs(best_fit(numpy.array(lengths), CAPACITY, order))]

    assert sizes(numpy.arange(len(lengths))) == sizes(numpy.random.default_rng(seed).permutation(len(lengths)))


@given(LENGTHS)
def test_packs_are_few(lengths: list[int]) -> None:
    """Within the bound of best-fit decreasing, 11/9 of the fewest and 6/9 more (Dósa 2007)."""
    number = len(best_fit(numpy.array(lengths, dtype=int), CAPACITY))
    fewest = -(-sum(lengths) // CAPACITY)
    assert fewest <= number
    assert number <= 11 / 9 * first_fit_decreasing(lengths, CAPACITY) + 6 / 9


@settings(max_examples=30)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=6))
def test_few_records_are_packed_nearly_as_well_as_can_be(lengths: list[int]) -> None:
    def in_turn(row: tuple[int, ...]) -> int:
        number, room = 1, 10
        for length in row:
            if length > room:
                number, room = number + 1, 10
            room -= length
        return number

    best = min(in_turn(row) for row in permutations(lengths))
    assert len(best_fit(numpy.array(lengths), 10)) <= 11 / 9 * best + 6 / 9


def test_skewed_lengths_leave_little_room() -> None:
    lengths = numpy.random.default_rng(0).lognormal(4.8, 0.9, 5000).astype(int).clip(1, 1024)
    for capacity in (1024, 2048):
        bins = best_fit(lengths, capacity)
        assert waste(lengths, bins, capacity) < 0.02
        assert len(bins) <= first_fit_decreasing(lengths.tolist(), capacity)


# ------------------------------------------------------------------------------------------ packed equals padded


def network(kind: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 53, "initializer_range": 0.2, "attn_implementation": attention}
    if kind == "gpt2":
        dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common, **dropout)
        return GPT2LMHeadModel(config).train()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **sizes, **common)).train()


NETWORKS = pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED])
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def rows(number: int = 9) -> list[Row]:
    draw = random.Random(1)
    lengths = [draw.randint(2, 16) for _ in range(number)]
    return [
        Row([draw.randint(1, 52) for _ in range(length)], [(draw.randint(0, length - 1), length)]) for length in lengths
    ]


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    if model.config._attn_implementation == PACKED and "bounds" in batch:
        inputs["attention_mask"] = mask_of(batch["bounds"], torch.device("cpu"))
    return model(**inputs, use_cache=False).logits


def loss_and_gradients(model: PreTrainedModel, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    logits = logits_of(model, batch)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@NETWORKS
@KINDS
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_packed_loss_and_gradients_are_the_padded_ones(kind: str, attention: str, flat: bool, turned: bool) -> None:
    model, samples = network(kind, attention), rows()
    bins = best_fit(numpy.array([len(row.input_ids) for row in samples]), CAPACITY)
    assert len(bins) > 1
    packed = [[samples[index] for index in pack] for pack in packs(bins)]
    if turned:
        packed = [pack[::-1] for pack in packed[::-1]]
    batch = PackCollator(0, flat=flat)(packed)
    assert flat or batch["tokens"] < batch["input_ids"].numel()  # there is padding to be kept apart
    loss, gradients = loss_and_gradients(model, batch)
    padded = PadCollator(0)(samples)
    expected, expected_gradients = loss_and_gradients(model, padded)
    assert batch["target_tokens"] == padded["target_tokens"]
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-6, name  # a key's bias has no gradient but rounding


@NETWORKS
@KINDS
def test_a_sample_does_not_see_its_mates(kind: str, attention: str) -> None:
    model, samples = network(kind, attention).eval(), rows()
    start, length = len(samples[0].input_ids), len(samples[1].input_ids)
    other = Row([1 + token % 52 for token in samples[0].input_ids], [])

    @torch.no_grad()
    def of_the_second(first: Row, third: Row) -> Tensor:
        batch = PackCollator(0)([[first, samples[1], third], samples[4:6]])
        return logits_of(model, batch)[0, start : start + length]

    alone = logits_of(model, PadCollator(0)([samples[1]]))[0]
    packed = of_the_second(samples[0], samples[2])
    assert (packed - of_the_second(other, samples[3])).abs().max() <= (0.0 if attention == PACKED else 1e-6)
    assert (packed - alone).abs().max() <= 1e-5 * alone.abs().max()
