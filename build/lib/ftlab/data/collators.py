"""How rows become tensors: padded, packed, or as prompts. Collators lay out and count; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy
import torch
from numpy.typing import NDArray
from torch import LongTensor

from ftlab.data.examples import IGNORED

Ids = NDArray[numpy.integer] | Sequence[int]
Matrix = NDArray[numpy.int64]


class Batch(TypedDict):
    """What a step trains on or measures; padded on the right.

    A packed batch has `position_ids` and `bounds` in place of an `attention_mask`: networks find the samples by where
    positions restart, or are told where by `ftlab.attention`.
    The counts are made on the CPU while the batch is put together, so that nobody waits for the device.
    """

    input_ids: LongTensor  # (batch, length)
    labels: LongTensor  # (batch, length), -100 where nothing is learned; not shifted
    attention_mask: NotRequired[LongTensor]  # (batch, length), 1 on real tokens
    position_ids: NotRequired[LongTensor]  # (batch, length), from 0 in each sample, and in the padding at the end
    bounds: NotRequired[list[int]]  # where samples, and padding, of a pack begin in the flattened rows; and their end
    places: LongTensor  # (target_tokens,) in the flattened rows, from which a label is predicted: the one after it
    targets: LongTensor  # (target_tokens,) these labels
    target_tokens: int  # labels that are predicted: in each sample those from the second position on
    tokens: int  # real tokens, padding not counted
    samples: int  # records
    records: list[str]  # where each stands, to name it by


class PromptBatch(TypedDict):
    """What generation starts from; padded on the left, so that all prompts end at the same place."""

    input_ids: LongTensor  # (batch, length)
    attention_mask: LongTensor  # (batch, length)
    indices: list[int]  # the prompts' places in FinetuneData.records


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded record.

    Args:
        input_ids: Its tokens, (length,).
        spans: Places (start, end) of the tokens that are learned, `end` not among them; (spans, 2).
        rejected: The worse answer after the same prompt, for objectives that compare the two.
        source: Where the record stands, as dropped.jsonl and leaks.jsonl have it: `train.jsonl:17`.
    """

    input_ids: Ids
    spans: NDArray[numpy.integer] | Sequence[tuple[int, int]]
    rejected: Row | None = None
    source: str = ""

    @property
    def labels(self) -> Matrix:
        """The ids where they are learned, -100 elsewhere, (length,). Not shifted."""
        labels = numpy.full(len(self.input_ids), IGNORED, dtype=numpy.int64)
        for start, end in self.spans:
            labels[start:end] = self.input_ids[start:end]
        return labels


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's ids and the place of its record."""

    index: int
    input_ids: Ids


@dataclass(frozen=True)
class PadCollator:
    """Rows to a Batch, one row of the batch for each.

    Args:
        pad_id: Fills the rows up.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pads to the longest; the batch is in the order of `rows`."""
        shape = len(rows), max(len(row.input_ids) for row in rows)
        input_ids, labels = _filled(shape, self.pad_id), _filled(shape, IGNORED)
        attention_mask = _filled(shape, 0)
        for place, row in enumerate(rows):
            _lay(row, input_ids[place], labels[place], 0)
            attention_mask[place, : len(row.input_ids)] = 1
        places, targets = _targets(labels)
        return Batch(
            input_ids=_tensor(input_ids),
            labels=_tensor(labels),
            attention_mask=_tensor(attention_mask),
            places=places,
            targets=targets,
            target_tokens=len(targets),
            tokens=sum(len(row.input_ids) for row in rows),
            samples=len(rows),
            records=[row.source for row in rows],
        )


@dataclass(frozen=True)
class PackCollator:
    """Packs of rows to a Batch without an attention mask, one row of the batch for each pack.

    Positions restart with each sample, and in the padding at the end, so that it is a sample of its own which no real
    one sees. The first token of a sample is never a label: it would be predicted from the sample before.

    Args:
        pad_id: Fills the packs up.
        capacity: Length of every pack where batches must all have the same shape; by default the longest pack's.
        flat: Lay all packs end to end in one row, (1, length): flash attention finds samples in no other shape.
    """

    pad_id: int
    capacity: int | None = None
    flat: bool = False

    def __call__(self, packs: Sequence[Sequence[Row]]) -> Batch:
        """The batch is in the order of `packs`, and each pack in the order of its rows."""
        capacity = self.capacity
        if self.flat:
            capacity = capacity and capacity * len(packs)
            packs = [[row for pack in packs for row in pack]]
        sizes = [sum(len(row.input_ids) for row in pack) for pack in packs]
        shape = len(packs), capacity or max(sizes)
        input_ids, labels = _filled(shape, self.pad_id), _filled(shape, IGNORED)
        position_ids = numpy.empty(shape, dtype=numpy.int64)
        counting = numpy.arange(shape[1], dtype=numpy.int64)
        for place, pack in enumerate(packs):
            start = 0
            for row in pack:
                end = start + len(row.input_ids)
                _lay(row, input_ids[place], labels[place], start)
                labels[place, start] = IGNORED
                position_ids[place, start:end] = counting[: end - start]
                start = end
            position_ids[place, start:] = counting[: shape[1] - start]
        places, targets = _targets(labels)
        return Batch(
            input_ids=_tensor(input_ids),
            labels=_tensor(labels),
            position_ids=_tensor(position_ids),
            bounds=_bounds(position_ids),
            places=places,
            targets=targets,
            target_tokens=len(targets),
            tokens=sum(sizes),
            samples=sum(map(len, packs)),
            records=[row.source for pack in packs for row in pack],
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
        shape = len(prompts), max(len(prompt.input_ids) for prompt in prompts)
        input_ids, attention_mask = _filled(shape, self.pad_id), _filled(shape, 0)
        for place, prompt in enumerate(prompts):
            start = shape[1] - len(prompt.input_ids)
            input_ids[place, start:] = prompt.input_ids
            attention_mask[place, start:] = 1
        return PromptBatch(
            input_ids=_tensor(input_ids),
            attention_mask=_tensor(attention_mask),
            indices=[prompt.index for prompt in prompts],
        )


class Idle(list[Any]):
    """The batch of a rank for which a global batch has no item: another rank's, of which nothing is to be learned.

    It takes part in every step, for the others wait for its gradients.
    """


def for_training(collate: Callable[[list[Any]], Batch], rows: list[Any]) -> Batch:
    """Collates the rows of a rank: of an idle one to a batch that teaches nothing, and counts as none."""
    return _unlearned(collate(rows)) if isinstance(rows, Idle) else collate(rows)


def _unlearned(batch: Batch) -> Batch:
    nothing = Batch(
        input_ids=batch["input_ids"],
        labels=torch.full_like(batch["labels"], IGNORED),  # type: ignore[typeddict-item]
        places=_tensor(_filled((0,), 0)),
        targets=_tensor(_filled((0,), 0)),
        target_tokens=0,
        tokens=0,
        samples=0,
        records=[],
    )
    return batch | nothing


def _filled(shape: tuple[int, ...], value: int) -> Matrix:
    return numpy.full(shape, value, dtype=numpy.int64)


def _lay(row: Row, input_ids: Matrix, labels: Matrix, start: int) -> None:
    """Writes a row's tokens and labels into a row of the batch, from `start` on."""
    input_ids[start : start + len(row.input_ids)] = row.input_ids
    for first, end in row.spans:
        labels[start + first : start + end] = row.input_ids[first:end]


def _targets(labels: Matrix) -> tuple[LongTensor, LongTensor]:
    """The places from which labels are predicted, and these."""
    rows, before = numpy.nonzero(labels[:, 1:] != IGNORED)
    places = rows * labels.shape[1] + before
    return _tensor(places), _tensor(labels.reshape(-1)[places + 1])


def _bounds(position_ids: Matrix) -> list[int]:
    """Where positions begin in the flattened rows, and where these end."""
    return [*numpy.flatnonzero(position_ids == 0).tolist(), position_ids.size]


def _tensor(matrix: Matrix) -> LongTensor:
    return torch.from_numpy(matrix)  # type: ignore[return-value]
