"""Packing: which records share one row of a batch, so that hardly a position is padding.

Best-fit decreasing looks at lengths alone, so the number of packs, and how full each is, depends on nothing else:
of records of the same length, whichever comes first in `order` takes the place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from ftlab.errors import UserError

IntArray = NDArray[numpy.integer]


@dataclass(frozen=True)
class Bins:
    """Packs of records in one flat array: pack k is `rows[offsets[k]:offsets[k + 1]]`.

    Args:
        rows: (records,), each record's index once.
        offsets: (packs + 1,).
    """

    rows: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> IntArray:
        return self.rows[self.offsets[number] : self.offsets[number + 1]]


def best_fit(lengths: IntArray, capacity: int, order: IntArray | None = None) -> Bins:
    """Packs by best-fit decreasing (Johnson 1973): longest first, each into the fullest pack that still has room.

    Args:
        lengths: Tokens of each record, (records,).
        capacity: Most tokens of a pack.
        order: A permutation of the records that says who comes first among equal lengths; by default as they stand.

    Raises:
        UserError: A record is longer than `capacity`.
    """
    longest = int(lengths.max(initial=0))
    if longest > capacity:
        raise UserError(
            f"data: a record of {longest} tokens does not fit into a pack of {capacity}; make packs as long as the "
            "longest record, or let data.overflow cut or drop it"
        )
    by_length = longest_first(lengths, order)
    packs = _best_fit_decreasing(lengths[by_length].tolist(), capacity)
    sizes = numpy.bincount(packs) if len(packs) else numpy.zeros(0, dtype=numpy.int64)
    return Bins(by_length[numpy.argsort(packs, kind="stable")], numpy.concatenate([[0], numpy.cumsum(sizes)]))


def longest_first(lengths: IntArray, order: IntArray | None = None) -> IntArray:
    """Indices from the longest record to the shortest; equal ones as in `order`, by default as they stand."""
    if order is None:
        return numpy.argsort(-lengths.astype(numpy.int64), kind="stable")
    return order[numpy.argsort(-lengths[order].astype(numpy.int64), kind="stable")]


def waste(lengths: IntArray, bins: Bins, capacity: int) -> float:
    """Share of the packs' positions that no record fills."""
    return 1.0 - float(lengths[bins.rows].sum()) / (len(bins) * capacity) if len(bins) else 0.0


def _best_fit_decreasing(lengths: list[int], capacity: int) -> IntArray:
    """The pack of each of these falling lengths, (records,)."""
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs, by the tokens they still have room for
    rooms = 0  # bit r is set where by_room[r] is not empty: the tightest room is the lowest bit above the length
    packs, opened = [], 0
    for length in lengths:
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            pack, room = opened, capacity
            opened += 1
        packs.append(pack)
        by_room[room - length].append(pack)
        rooms |= 1 << (room - length)
    return numpy.array(packs, dtype=numpy.int64)
