"""Which layout of batches suits the data: padded at random, in buckets of like length, or packed; and what each costs.

`auto` never changes how many records an optimiser step holds: where batches are of so many records (`batch_size`) it
chooses between pad and bucket, and packs only where they are of so many tokens (`batch_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import ArrayLike, NDArray

from ftlab.attention import PACKED
from ftlab.data.samplers import BucketBatchSampler, PackBatchSampler, ShuffledBatchSampler, TrainingBatchSampler
from ftlab.errors import UserError

Layout = Literal["pad", "bucket", "pack"]
Batching = Literal["auto", "pad", "bucket", "pack"]
IntArray = NDArray[numpy.integer]

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
VARLEN = (*FLASH, "flex_attention")
"""Attention that keeps packed samples apart without a mask of every pair of positions, on a GPU."""
LITTLE_WASTE = 0.05
"""Up to this share of padding records stay at random: buckets would save less than the runs' noise."""
FEW_BATCHES = 32
"""Below so many batches in an epoch buckets hold nearly the same records in every epoch."""
SAMPLE = 20_000
"""Records from which the choice is made; padding hardly depends on more of them."""


@dataclass(frozen=True)
class Choice:
    """A layout and one sentence with the figures that speak for it."""

    kind: Layout
    why: str


def choose(
    kind: Batching,
    lengths: ArrayLike,
    capacity: int,
    batch_size: int,
    batch_tokens: int | None,
    attention: str | None,
    device: str,
) -> Choice:
    """Settles `data.batching`.

    Args:
        kind: What was asked for; anything but auto is what it will be.
        lengths: Tokens of each training record.
        capacity: Most tokens of a pack.
        batch_size: Records of one rank's batch, where `batch_tokens` is not given.
        batch_tokens: Tokens of one rank's batch, or None.
        attention: Attention kernel, as transformers names it; None is its default.
        device: cpu or cuda.

    Raises:
        UserError: pad is asked for with `batch_tokens`, or a record fits into no batch.
    """
    if kind == "pad" and batch_tokens is not None:
        raise UserError(
            "data.batching pad makes batches of data.batch_size records; leave data.batch_tokens out, or set "
            "data.batching to bucket or pack"
        )
    if kind != "auto":
        return Choice(kind, f"data.batching asks for {kind}")
    lengths = numpy.asarray(lengths)
    sample = lengths[:: -(-len(lengths) // SAMPLE)] if len(lengths) else lengths
    bucket = padding_waste(sample, "bucket", batch_size, batch_tokens, capacity)
    if batch_tokens is not None:
        pack = padding_waste(sample, "pack", batch_size, batch_tokens, capacity)
        budget = f"of batches of {batch_tokens} tokens {pack:.1%} are padding when packed and {bucket:.1%} in buckets"
        if attention == PACKED or (device == "cuda" and attention in VARLEN):
            return Choice("pack", f"{budget}, and {attention} skips the other samples of a pack")
        keeps = f"{attention} on {device} keeps" if attention else "the default attention may keep"
        return Choice("bucket", f"{budget}, but {keeps} packed samples apart only by a mask of every pair of positions")
    pad = padding_waste(sample, "pad", batch_size, None, capacity)
    figures = f"{pad:.1%} of batches of {batch_size} random records"
    if pad <= LITTLE_WASTE:
        return Choice("pad", f"padding is only {figures}")
    if len(lengths) < FEW_BATCHES * batch_size:
        return Choice(
            "pad",
            f"padding is {figures}, but with only {len(lengths)} records, buckets would hold nearly the same ones in "
            "every epoch",
        )
    return Choice("bucket", f"padding is {figures}, and {bucket:.1%} when those of like length stand together")


def training_sampler(
    kind: Layout,
    lengths: ArrayLike,
    batch_size: int,
    batch_tokens: int | None,
    capacity: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    rows: IntArray | None = None,
    window: int | None = None,
    data: str = "",
) -> TrainingBatchSampler:
    """The sampler of a layout.

    A batch of one rank holds `batch_size` records, or packs; with `batch_tokens`, at most so many tokens: with pack,
    as many whole packs as go into it, or one that is shorter than `capacity`. `window` is pad's alone.

    Args:
        kind: The layout.
        lengths: Tokens of each of the epoch's records: of `rows` where these are given.
        batch_size: Records, or packs, of one rank's batch.
        batch_tokens: Tokens of one rank's batch; pad does not look at it.
        capacity: Most tokens of a pack.
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes.
        rows: The records that an epoch goes through (see TrainingBatchSampler).
        window: Shuffle within windows of so many places (see ShuffledBatchSampler).
        data: Fingerprint of the data.

    Raises:
        UserError: A record fits into no batch.
    """
    lengths = numpy.asarray(lengths)
    if kind == "pad":
        sampler = ShuffledBatchSampler(len(lengths), batch_size, seed, rank, world_size, rows, window, data)
        sampler.lengths = lengths  # for a run that goes on in another layout
        return sampler
    if kind == "bucket":
        size = batch_size if batch_tokens is None else None
        return BucketBatchSampler(lengths, size, batch_tokens, seed, rank, world_size, rows, data)
    packs = batch_size
    if batch_tokens is not None:
        capacity = min(capacity, batch_tokens)
        packs = batch_tokens // capacity
    return PackBatchSampler(lengths, capacity, packs, seed, rank, world_size, rows, data)


def padding_waste(
    lengths: ArrayLike, kind: Layout, batch_size: int, batch_tokens: int | None, capacity: int, seed: int = 0
) -> float:
    """Share of the positions of one rank's batches that are padding, over the first epoch.

    Raises:
        UserError: A record fits into no batch.
    """
    lengths = numpy.asarray(lengths)
    sampler = training_sampler(kind, lengths, batch_size, batch_tokens, capacity, seed)
    real = positions = 0
    for batch in sampler:
        tokens = numpy.array([lengths[pack].sum() for pack in batch]) if kind == "pack" else lengths[batch]
        real += int(tokens.sum())
        positions += len(tokens) * int(tokens.max())
    return 1 - real / positions if positions else 0.0
