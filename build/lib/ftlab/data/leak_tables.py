"""What evaluation records are found by: sorted hashes, which training records meet chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy

from ftlab.data.text_hashes import Ragged

Flat = tuple[numpy.ndarray, numpy.ndarray]  # values, and the record of each

_FILTER_BITS = 24
_BLOCK = 1 << 20  # n-grams of evaluation records that are compared with training records at a time
_NEVER = numpy.iinfo(numpy.int64).max


class KeyTable:
    """Keys of evaluation records, each with its owners, and the training records that were met with the same."""

    def __init__(self, keys: numpy.ndarray, owners: numpy.ndarray) -> None:
        order = numpy.argsort(keys, kind="stable")
        self._keys, starts = numpy.unique(keys[order], return_index=True)
        self._owners = Ragged(owners[order], numpy.append(starts, len(keys)))
        self._first = numpy.full(len(self._keys), _NEVER)
        self._met: list[numpy.ndarray] = []

    def meet(self, training: Ragged, number: int) -> numpy.ndarray:
        """Places in the chunk of the records that share a key with an evaluation record."""
        places, found = _find(self._keys, training.values)
        records = training.owners()[found]
        numpy.minimum.at(self._first, places[found], number + records)
        if len(records):  # most chunks meet nothing, and there may be many of them
            self._met.append(number + records)
        return records

    def first_met(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Evaluation records that were met, and the first training record that met each."""
        hit = self._first < _NEVER
        chosen = self._owners.select(hit)
        owners, numbers = chosen.values, self._first[hit][chosen.owners()]
        order = numpy.argsort(-numbers, kind="stable")  # of several, the first is written last and stays
        return owners[order], numbers[order]

    def training(self) -> numpy.ndarray:
        return numpy.concatenate(self._met or [numpy.zeros(0, dtype=numpy.int64)])


@dataclass(frozen=True)
class Pairs:
    """Evaluation and training records that share n-grams, and which share of the former's (pairs,)."""

    evaluation: numpy.ndarray
    training: numpy.ndarray
    share: numpy.ndarray

    def best(self) -> Pairs:
        """For each evaluation record the training record that has most of it, the first of several."""
        order = numpy.lexsort((self.training, -self.share, self.evaluation))
        first = order[numpy.flatnonzero(numpy.diff(self.evaluation[order], prepend=-1))]
        return Pairs(self.evaluation[first], self.training[first], self.share[first])


class GramTable:
    """N-grams of evaluation records, the parts of records that have them, and the training records that met them.

    A part is 2 * record for its prompt, and one more for its answers.
    """

    def __init__(self, prompts: Flat, answers: Flat, common: int) -> None:
        grams = numpy.concatenate([prompts[0], answers[0]])
        parts = numpy.concatenate([2 * prompts[1], 2 * answers[1] + 1])
        self._common = common
        self._grams, places = numpy.unique(grams, return_inverse=True)
        self._places, self._parts = numpy.unique(numpy.stack([places, parts]), axis=1)
        self._counts = numpy.zeros(len(self._grams), dtype=numpy.int64)
        # says of most n-grams that are not here so, in one look
        self._filter = numpy.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[self._grams >> numpy.uint64(64 - _FILTER_BITS)] = True
        self._met: list[tuple[numpy.ndarray, numpy.ndarray]] = []

    def meet(self, prompts: Ragged, answers: Ragged, number: int) -> numpy.ndarray:
        """Places in the chunk of the records that share an n-gram that is not yet too common."""
        places, records = (
            numpy.concatenate(arrays) for arrays in zip(*map(self._shared, (prompts, answers)), strict=True)
        )
        places, records = numpy.unique(numpy.stack([places, records]), axis=1)
        grams, starts, sizes = numpy.unique(places, return_index=True, return_counts=True)
        earlier = numpy.arange(len(places)) - numpy.repeat(starts, sizes) + self._counts[places]
        self._counts[grams] += sizes
        rare = earlier < self._common
        if rare.any():
            self._met.append((places[rare], number + records[rare]))
        return records[rare]

    def pairs(self, total: int, overlap: float) -> Pairs:
        """Pairs of which the training record has enough of the evaluation record's n-grams.

        Args:
            total: How many evaluation records there are.
            overlap: Share, above 0, that is enough: of the n-grams of the prompt, or of all.
        """
        counted = self._counts <= self._common
        trainings = self._trainings(counted)
        rows = counted[self._places]
        sizes = _prompt_and_all(self._parts[rows], total)
        rows &= self._counts[self._places] > 0
        # no one training record has more than all of them together
        most = _share(_prompt_and_all(self._parts[rows], total), sizes)
        rows &= (most >= overlap)[self._parts // 2]
        blocks = _blocks(numpy.flatnonzero(rows), self._parts // 2)
        pairs = [_pairs(self._places[block], self._parts[block], trainings, sizes, overlap) for block in blocks]
        empty = numpy.zeros(0, dtype=numpy.int64)
        pairs.append(Pairs(empty, empty, numpy.zeros(0)))
        return Pairs(*(numpy.concatenate([getattr(pair, part.name) for pair in pairs]) for part in fields(Pairs)))

    def _trainings(self, counted: numpy.ndarray) -> Ragged:
        """The training records that each n-gram met, where it counts."""
        empty = numpy.zeros(0, dtype=numpy.int64)
        met, training = (numpy.concatenate(arrays) for arrays in zip((empty, empty), *self._met, strict=True))
        order = numpy.argsort(met, kind="stable")
        order = order[counted[met[order]]]
        return Ragged(training[order], numpy.searchsorted(met[order], numpy.arange(len(counted) + 1)))

    def _shared(self, training: Ragged) -> Flat:
        likely = numpy.flatnonzero(self._filter[training.values >> numpy.uint64(64 - _FILTER_BITS)])
        places, found = _find(self._grams, training.values[likely])
        return places[found], numpy.searchsorted(training.offsets, likely[found], side="right") - 1


def _pairs(
    places: numpy.ndarray, parts: numpy.ndarray, trainings: Ragged, sizes: numpy.ndarray, overlap: float
) -> Pairs:
    numbers, rows = trainings.take(places)
    span = int(numbers.max()) + 1
    pairs, members = numpy.unique(parts[rows] // 2 * span + numbers, return_inverse=True)
    found = _prompt_and_all(2 * members + parts[rows] % 2, len(pairs))
    records = pairs // span
    shares = _share(found, sizes[records])
    enough = shares >= overlap
    return Pairs(records[enough], pairs[enough] % span, shares[enough])


def _prompt_and_all(parts: numpy.ndarray, total: int) -> numpy.ndarray:
    """How many n-grams each record has in its prompt, and in all (total, 2)."""
    counts = numpy.bincount(parts, minlength=2 * total).reshape(-1, 2)
    return counts.cumsum(axis=1)


def _share(found: numpy.ndarray, sizes: numpy.ndarray) -> numpy.ndarray:
    """The greater of the shares of the prompt and of all (records,)."""
    return (found / numpy.maximum(sizes, 1)).max(axis=-1)


def _blocks(rows: numpy.ndarray, records: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """The rows of a few thousand records at a time, so that memory does not grow with how much has leaked."""
    by_record = rows[numpy.argsort(records[rows], kind="stable")]
    sorted_records = records[by_record]
    start = 0
    while start < len(by_record):
        last = sorted_records[min(start + _BLOCK, len(by_record)) - 1]
        end = int(numpy.searchsorted(sorted_records, last, side="right"))
        yield by_record[start:end]
        start = end


def _find(sorted_keys: numpy.ndarray, keys: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Where keys stand among the sorted ones, and which of them are there at all."""
    if not len(sorted_keys):
        return numpy.zeros(len(keys), dtype=numpy.int64), numpy.zeros(len(keys), dtype=bool)
    places = numpy.minimum(numpy.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return places, sorted_keys[places] == keys
