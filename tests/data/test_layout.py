"""The choice of a layout, and what each costs in padding."""

from typing import Any

import numpy
import pytest

from ftlab.attention import PACKED
from ftlab.data.layout import Choice, choose, padding_waste, training_sampler
from ftlab.data.samplers import BucketBatchSampler, PackBatchSampler, ShuffledBatchSampler
from ftlab.errors import UserError

SKEWED = numpy.random.default_rng(0).lognormal(4.5, 0.9, 2000).astype(int).clip(1, 1024)
EVEN = numpy.random.default_rng(0).integers(98, 103, 2000)


def chosen(lengths: numpy.ndarray, **options: Any) -> Choice:
    arguments: dict[str, Any] = {"kind": "auto", "capacity": 1024, "batch_size": 8, "batch_tokens": None}
    return choose(lengths=lengths, **(arguments | {"attention": "sdpa", "device": "cpu"} | options))


def test_skewed_lengths_go_into_buckets() -> None:
    choice = chosen(SKEWED)
    assert choice.kind == "bucket"
    assert "of batches of 8 random records, and" in choice.why


def test_like_lengths_stay_at_random() -> None:
    choice = chosen(EVEN)
    assert choice.kind == "pad"
    assert choice.why.startswith("padding is only 1.")


def test_few_records_stay_at_random() -> None:
    choice = chosen(SKEWED[:200])
    assert choice.kind == "pad"
    assert "but with only 200 records" in choice.why


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tokens_are_packed_where_samples_are_computed_one_by_one(device: str) -> None:
    assert chosen(SKEWED, batch_tokens=4096, attention=PACKED, device=device).kind == "pack"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_tokens_are_packed_where_attention_skips_other_samples(attention: str) -> None:
    choice = chosen(SKEWED, batch_tokens=4096, attention=attention, device="cuda")
    assert choice.kind == "pack"
    assert choice.why.startswith("of batches of 4096 tokens 0.")
    assert choice.why.endswith(f"and {attention} skips the other samples of a pack")


@pytest.mark.parametrize(("attention", "device"), [("sdpa", "cuda"), (None, "cuda"), ("flex_attention", "cpu")])
def test_tokens_go_into_buckets_where_it_needs_a_mask(attention: str | None, device: str) -> None:
    choice = chosen(SKEWED, batch_tokens=4096, attention=attention, device=device)
    assert choice.kind == "bucket"
    assert "mask of every pair" in choice.why


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_never_packs_a_number_of_records(device: str) -> None:
    assert chosen(SKEWED, attention="flash_attention_2", device=device).kind == "bucket"


@pytest.mark.parametrize("kind", ["pad", "bucket", "pack"])
def test_what_is_asked_for_is_taken(kind: Any) -> None:
    assert chosen(EVEN, kind=kind) == Choice(kind, f"data.batching asks for {kind}")


def test_pad_has_no_batches_of_tokens() -> None:
    with pytest.raises(UserError, match=r"leave data\.batch_tokens out"):
        chosen(EVEN, kind="pad", batch_tokens=4096)


def test_waste_by_hand() -> None:
    lengths = [1, 3, 4, 4, 2, 2]  # 16 tokens
    assert padding_waste([5, 5, 5], "pad", 2, None, 8) == 0
    assert padding_waste(lengths, "pad", 6, None, 8) == pytest.approx(1 - 16 / 24)
    assert padding_waste(lengths, "bucket", 2, None, 8) == pytest.approx(1 - 16 / 18)  # 4 4, 3 2, 2 1
    assert padding_waste([1, 4, 1, 1, 4, 1], "bucket", 2, 4, 8) == 0  # 4, 4, and 1 1 1 1
    assert padding_waste(lengths, "pack", 2, None, 8) == 0  # 4 4, 3 2 2 1
    assert padding_waste(lengths, "pack", 4, None, 5) == pytest.approx(1 - 16 / 20)  # 4 1, 4, 3 2, 2
    assert padding_waste([], "pad", 2, None, 8) == 0


@pytest.mark.parametrize(
    ("kind", "tokens", "packs", "capacity"),
    [("pack", None, 3, 100), ("pack", 250, 2, 100), ("pack", 60, 1, 60)],
)
def test_packs_of_a_batch(kind: Any, tokens: int | None, packs: int, capacity: int) -> None:
    sampler = training_sampler(kind, [50, 60, 20], 3, tokens, 100, seed=0)
    assert isinstance(sampler, PackBatchSampler)
    assert (sampler.packs_per_batch, sampler.capacity) == (packs, capacity)


def test_every_layout_has_its_sampler() -> None:
    options: dict[str, Any] = {"seed": 5, "rank": 1, "world_size": 2, "rows": numpy.array([7, 8, 9]), "data": "d"}
    pad = training_sampler("pad", [1, 2, 3], 1, None, 8, window=2, **options)
    bucket = training_sampler("bucket", [1, 2, 3], 1, None, 8, **options)
    by_tokens = training_sampler("bucket", [1, 2, 3], 1, 8, 8, **options)
    pack = training_sampler("pack", [1, 2, 3], 1, None, 8, **options)
    assert isinstance(pad, ShuffledBatchSampler)
    assert pad.window == 2
    assert isinstance(bucket, BucketBatchSampler)
    assert (bucket.batch_size, bucket.batch_tokens) == (1, None)
    assert isinstance(by_tokens, BucketBatchSampler)
    assert (by_tokens.batch_size, by_tokens.batch_tokens) == (None, 8)
    for sampler in (pad, bucket, by_tokens, pack):
        assert (sampler.seed, sampler.rank, sampler.world_size) == (5, 1, 2)
        assert sampler.data.startswith("d+")
