"""Which records stand in which batch, and how they become tensors.

The order is a function of (seed, epoch, position) alone: not of the workers, of how the global batch is split over
ranks, or of any generator's state. Collators pad and count; nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy
import torch
from torch import LongTensor, Tensor
from torch.utils.data import Sampler

from ftlab.data.encoding import IGNORED, Example
from ftlab.errors import UserError


class Batch(TypedDict):
    """What a step trains on or measures; padded on the right.

    The counts are made on the CPU while the batch is put together, so that nobody waits for the device.
    """

    input_ids: LongTensor  # (batch, length)
    attention_mask: LongTensor  # (batch, length), 1 on real tokens
    labels: LongTensor  # (batch, length), -100 where nothing is learned; not shifted
    target_tokens: int  # labels that are predicted: those from the second position on
    tokens: int  # real tokens, padding not counted


class PromptBatch(TypedDict):
    """What generation starts from; padded on the left, so that all prompts end at the same place."""

    input_ids: LongTensor  # (batch, length)
    attention_mask: LongTensor  # (batch, length)
    indices: list[int]  # the prompts' places in FinetuneData.records


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids and the place of its record."""

    index: int
    input_ids: list[int]


@dataclass(frozen=True)
class PadCollator:
    """Examples to a Batch.

    Args:
        pad_id: Fills the rows up.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pads to the longest; the batch is in the order of `examples`."""
        rows = [example.input_ids for example in examples]
        labels = _pad([example.labels for example in examples], IGNORED)
        return Batch(
            input_ids=_pad(rows, self.pad_id),
            attention_mask=_pad([[1] * len(row) for row in rows], 0),
            labels=labels,
            target_tokens=int((labels[:, 1:] != IGNORED).sum()),
            tokens=sum(len(row) for row in rows),
        )


@dataclass(frozen=True)
class PromptCollator:
    """Prompts to a PromptBatch.

    Args:
        pad_id: Fills the rows up.
    """

    pad_id: int

    def __call__(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pads to the longest; the batch is in the order of `prompts`."""
        rows = [prompt.input_ids for prompt in prompts]
        return PromptBatch(
            input_ids=_pad(rows, self.pad_id, left=True),
            attention_mask=_pad([[1] * len(row) for row in rows], 0, left=True),
            indices=[prompt.index for prompt in prompts],
        )


def _pad(rows: Sequence[list[int]], value: int, left: bool = False) -> Any:
    """Rows of any lengths as one tensor, (batch, length)."""
    length = max(map(len, rows))
    padded: Tensor = torch.full((len(rows), length), value, dtype=torch.long)
    for place, row in enumerate(rows):
        span = slice(length - len(row), None) if left else slice(len(row))
        padded[place, span] = torch.tensor(row, dtype=torch.long)
    return padded


class ShuffledBatchSampler(Sampler[list[int]]):
    """Training batches: the k-th global batch is order[k*B*W : (k+1)*B*W], and rank r takes its [r::W].

    So W ranks of B records train what one rank of B*W records trains, batch for batch. The last global batch is short
    where the records do not go into it evenly; every rank still gets a part, unless it has fewer records than there
    are ranks: only these are left out for the epoch, so that all ranks take the same number of batches.

    Args:
        size: Number of records.
        batch_size: Records of one rank's batch (B).
        seed: Chooses the order, together with the epoch.
        rank: This process.
        world_size: Number of processes (W).
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> ShuffledBatchSampler:
        """Lightning looks here for the `set_epoch` to call."""
        return self

    @property
    def global_batch_size(self) -> int:
        """Records that all ranks take together in one batch."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next iterator goes through; one that is under way is left alone."""
        self.epoch = epoch

    def order(self, epoch: int) -> numpy.ndarray:
        """The epoch's permutation, (size,)."""
        return numpy.random.default_rng([self.seed, epoch]).permutation(self.size)

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.global_batch_size)
        return whole + (rest >= self.world_size)

    def __iter__(self) -> ShuffledBatches:
        return ShuffledBatches(self)


class ShuffledBatches(Iterator[list[int]]):
    """One epoch under way; its state is all that a resume in mid-epoch needs, and is the same on every rank."""

    def __init__(self, sampler: ShuffledBatchSampler) -> None:
        self._sampler = sampler
        self._start(sampler.epoch, 0)

    def _start(self, epoch: int, consumed: int) -> None:
        self._epoch = epoch
        self._consumed = consumed  # global batches handed out
        self._order = self._sampler.order(epoch)

    def __next__(self) -> list[int]:
        sampler = self._sampler
        if self._consumed >= len(sampler):
            raise StopIteration
        start = self._consumed * sampler.global_batch_size
        self._consumed += 1
        return self._order[start : start + sampler.global_batch_size][sampler.rank :: sampler.world_size].tolist()

    def state_dict(self) -> dict[str, int]:
        """Where the iterator stands, and what the order depends on."""
        return {"epoch": self._epoch, "batches": self._consumed, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken.

        Raises:
            UserError: The records, the seed or the global batch were others then.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"the run to resume had {name.replace('_', ' ')} {state[name]} and this one has {value}, "
                    "so it would train other batches; resume with the same data, seed, batch and devices"
                )
        epoch, batches = state["epoch"], state["batches"]
        if batches >= len(self._sampler):
            # Lightning does not ask for a new iterator after a checkpoint at the end of an epoch, and would skip the
            # next epoch over an exhausted one, or go through the last one's order again
            epoch, batches = epoch + 1, 0
        self._sampler.set_epoch(epoch)
        self._start(epoch, batches)

    def _identity(self) -> dict[str, int]:
        sampler = self._sampler
        return {"records": sampler.size, "seed": sampler.seed, "global_batch_size": sampler.global_batch_size}


class LengthBatchSampler(Sampler[list[int]]):
    """Evaluation batches: every record once on exactly one rank, those of like length together, longest first.

    Batches differ by at most one record in size and number `ceil(N / (B*W))` on every rank; only where there are fewer
    records than ranks, or B is 1, may a rank get one batch less.

    Args:
        lengths: Tokens of each record.
        batch_size: Most records of one rank's batch (B).
        rank: This process.
        world_size: Number of processes (W).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        # longest first: too little memory shows at once, not at the end
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        steps = -(-len(order) // (batch_size * world_size))
        shares = [part[rank::world_size].tolist() for part in numpy.array_split(order, steps)] if steps else []
        self._batches: list[list[int]] = [share for share in shares if share]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
