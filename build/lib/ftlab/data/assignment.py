"""Which records train, which steer and which judge: given files, or a share or number carved out by a hash.

The hash is of the record's group or prompt alone, so that neither seed nor order matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy

from ftlab.data.records import SPLITS, Record, Split
from ftlab.data.text_hashes import token_text
from ftlab.errors import UserError

T = TypeVar("T")

_TRAIN, _VALIDATION, _TEST = (SPLITS.index(split) for split in ("train", "validation", "test"))


@dataclass(frozen=True)
class Splits:
    """How many records are carved out of training, where no file is given for them.

    A share takes the records whose hash falls below it (validation) or above 1 minus it (test): adding records never
    moves old ones, and changing one share leaves the other's records where they are. A number takes those with the
    lowest hashes (validation) or highest (test), of data that are spread evenly over the values of a column each
    value's portion; then a new record can push one out at the edge. Records of the same group, or without groups of
    the same prompt, are never parted: a number is then met as nearly as whole groups allow.

    Args:
        validation: Share of the records below 1, or a whole number of them, carved out of training for validation.
        test: The same for test, of data that come without any files for the splits.
    """

    validation: int | float = 0.05
    test: int | float = 0.05

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            value = getattr(self, name)
            if value < 0 or (isinstance(value, float) and not value < 1):
                raise UserError(
                    f"data.splits.{name} is {value}; give a share from 0 to below 1, or a whole number of records"
                )
        if _share(self.validation) + _share(self.test) >= 1:
            raise UserError(
                f"data.splits.validation {self.validation} and data.splits.test {self.test} leave nothing to train on; "
                "together they must stay below 1"
            )

    @property
    def online(self) -> bool:
        """Whether a record's split follows from its key alone, as streaming needs it; with strata it never does."""
        return _is_share(self.validation) and _is_share(self.test)

    def key(self, record: Record) -> int:
        """The record's place between 0 and 2**64, of its group, else its prompt; without a prompt of its content."""
        if record.group is not None:
            text = record.group
        elif record.context:
            text = record.prompt
        else:
            text = token_text(record.tokens) if record.tokens is not None else "\n".join(record.references)
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    def available(self, pooled: bool, given: set[Split]) -> set[Split]:
        """The splits that there are: those given, and those carved out.

        Args:
            pooled: Whether the data come without files for the splits, so that they are shared out among all three.
            given: The splits that have files; of pooled data only "train".
        """
        validation, test = self._carved(pooled, given)
        carved: dict[Split, int | float] = {"validation": validation, "test": test}
        return given | {split for split, value in carved.items() if value}

    def assign(
        self, keys: numpy.ndarray, strata: numpy.ndarray | None, pooled: bool, given: set[Split]
    ) -> numpy.ndarray:
        """Shares out what was read for training.

        Args:
            keys: `key` of every record (records,) uint64.
            strata: Number of every record's stratum, from 0 on (records,) int; None where splits are not spread over
                a column. A group that has records of several belongs to the one most of them have.
            pooled: As in `available`.
            given: As in `available`.

        Returns:
            The number in SPLITS of every record's split (records,) int8.

        Raises:
            UserError: The numbers asked for leave no record to train on.
        """
        validation, test = self._carved(pooled, given)
        if strata is None or not len(keys):
            return _by_hash(keys, validation, test)
        return _by_stratum(keys, strata, validation, test)

    def refuse_empty(self, splits: numpy.ndarray, pooled: bool, given: set[Split]) -> None:
        """Refuses an assignment of a whole source that leaves a split without records.

        Raises:
            UserError: A split that is asked for, or training, is empty.
        """
        sizes = numpy.bincount(splits, minlength=len(SPLITS))
        if len(splits) and not sizes[_TRAIN]:
            raise UserError(
                f"data.splits.validation {self.validation} and data.splits.test {self.test} leave none of the "
                f"{len(splits)} records to train on; lower them or add records"
            )
        for name, value in zip(("validation", "test"), self._carved(pooled, given), strict=True):
            if value and not sizes[SPLITS.index(name)]:
                raise UserError(
                    f"data.splits.{name} {value}: none of the {len(splits)} records falls into {name}; add records, "
                    f"raise it, give a number of records, or set it to 0"
                )

    def _carved(self, pooled: bool, given: set[Split]) -> tuple[int | float, int | float]:
        """Validation and test as they are carved out of these data; 0 where they are not."""
        if pooled:
            return self.validation, self.test
        return (self.validation if "train" in given and "validation" not in given else 0), 0


def evenly_spaced(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items: every ceil(N / limit)-th from the first on; all of them without a limit."""
    if limit is None or len(items) <= limit:
        return list(items)
    return list(items[:: -(-len(items) // limit)])


def _is_share(value: int | float) -> bool:
    return value < 1


def _share(value: int | float) -> float:
    return float(value) if _is_share(value) else 0.0


def _by_hash(keys: numpy.ndarray, validation: int | float, test: int | float) -> numpy.ndarray:
    """Shares by the hash alone, numbers by its rank."""
    places = keys.astype(numpy.float64) / 2**64
    if _is_share(validation) and _is_share(test):
        low, high = places < validation, (places >= 1 - test) & (test > 0)
    else:
        groups, members, sizes = numpy.unique(keys, return_inverse=True, return_counts=True)
        low = places < validation if _is_share(validation) else members < _nearest(sizes, int(validation))
        edge = len(groups) - _nearest(sizes[::-1], int(test))
        high = (places >= 1 - test) & (test > 0) if _is_share(test) else members >= edge
    _refuse_overlap(validation, test, bool((low & high).any()), len(keys))
    splits = numpy.full(len(keys), _TRAIN, dtype=numpy.int8)
    splits[high] = _TEST
    splits[low] = _VALIDATION
    return splits


def _by_stratum(
    keys: numpy.ndarray, strata: numpy.ndarray, validation: int | float, test: int | float
) -> numpy.ndarray:
    """The lowest and highest hashes of each stratum, by its portion of what is asked for."""
    groups, members, sizes = numpy.unique(keys, return_inverse=True, return_counts=True)
    of_group = _main_strata(members, strata)
    order = numpy.lexsort((groups, of_group))
    firsts = numpy.flatnonzero(numpy.diff(of_group[order], prepend=-1))
    ends = [*firsts[1:].tolist(), len(order)]
    records = numpy.add.reduceat(sizes[order], firsts) if len(order) else numpy.zeros(0, dtype=numpy.int64)
    least = groups[order[firsts]]
    low = _quotas(_number(validation, len(keys)), records, records, least)
    high = _quotas(_number(test, len(keys)), records, records - low, least)
    splits = numpy.full(len(groups), _TRAIN, dtype=numpy.int8)
    for first, end, lower, higher in zip(firsts.tolist(), ends, low.tolist(), high.tolist(), strict=True):
        mine = order[first:end]
        taken = _nearest(sizes[mine], lower)
        rest = mine[taken:]
        splits[mine[:taken]] = _VALIDATION
        splits[rest[len(rest) - _nearest(sizes[rest][::-1], higher) :]] = _TEST
    _refuse_overlap(validation, test, not (splits == _TRAIN).any(), len(keys))
    return splits[members]


def _number(value: int | float, records: int) -> int:
    return min(round(value * records) if _is_share(value) else int(value), records)


def _nearest(sizes: numpy.ndarray, wanted: int) -> int:
    """How many groups, from the first on, come nearest to the wanted number of records; the fewer of two as near."""
    reached = numpy.concatenate([[0], numpy.cumsum(sizes)])
    return int(numpy.abs(reached - wanted).argmin())


def _quotas(wanted: int, sizes: numpy.ndarray, room: numpy.ndarray, least_keys: numpy.ndarray) -> numpy.ndarray:
    """Shares a number out by size, each within one of its exact part (largest remainders), but no more than the room.

    Equal remainders are ordered by the strata's own least hashes, so that the strata's numbering does not matter.
    """
    total = max(int(sizes.sum()), 1)
    quotas = numpy.minimum(wanted * sizes // total, room)
    by_remainder = numpy.lexsort((least_keys, -(wanted * sizes % total)))
    roomy = by_remainder[quotas[by_remainder] < room[by_remainder]]
    quotas[roomy[: max(wanted - int(quotas.sum()), 0)]] += 1
    return quotas


def _main_strata(members: numpy.ndarray, strata: numpy.ndarray) -> numpy.ndarray:
    """The stratum that most records of each group have, the lowest of several."""
    pairs, counts = numpy.unique(numpy.stack([members, strata]), axis=1, return_counts=True)
    order = numpy.lexsort((pairs[1], -counts, pairs[0]))
    return pairs[1][order][numpy.flatnonzero(numpy.diff(pairs[0][order], prepend=-1))]


def _refuse_overlap(validation: int | float, test: int | float, overlap: bool, records: int) -> None:
    counted = sum(int(value) for value in (validation, test) if not _is_share(value))
    if records and (overlap or counted >= records > 0):
        raise UserError(
            f"data.splits.validation {validation} and data.splits.test {test} leave none of the {records} records to "
            "train on; lower them or add records"
        )
