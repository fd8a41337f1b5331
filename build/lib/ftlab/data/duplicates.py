"""Which records repeat an earlier one: in the same words, or in nearly the same.

The first of several stays, so that the outcome follows the order in which records are read, over all sources.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy

from ftlab.data.records import Message, Record
from ftlab.data.text_hashes import normalised, number, token_text, word_ngram_hashes
from ftlab.errors import UserError


@dataclass(frozen=True, slots=True)
class Signature:
    """What two records are compared by.

    Args:
        content: 60 bits of the digest of all that the record holds: an int of 32 bytes, and among a million records a
            chance of 4e-7 that any two differ and yet share it.
        minhash: Least hash of the record's shingles under each permutation (permutations,) uint32; None where near
            duplicates are not asked for, or the record is shorter than one shingle.
    """

    content: int
    minhash: numpy.ndarray | None


@dataclass(frozen=True)
class Duplicates:
    """Which training records are left out because an earlier one is the same.

    Args:
        exact: Leave out records with the same turns, answers, tools and tokens as an earlier one.
        normalised: Compare them without regard to case, punctuation and spacing ("3 - 4" is then "3 + 4").
        near: Leave out records whose sets of shingles have at least this Jaccard similarity, as MinHash estimates it
            (Broder 1997, doi 10.1109/SEQUEN.1997.666900), with an earlier one's; 0.8 is a usual value, null none.
        shingle: Words in one shingle; shorter records have no near duplicates.
        permutations: Hash functions of MinHash; the estimate's standard error is at most 0.5 / sqrt(permutations).
    """

    exact: bool = True
    normalised: bool = False
    near: float | None = None
    shingle: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        if self.near is not None and not 0 < self.near <= 1:
            raise UserError(f"data.duplicates.near is {self.near}; give a similarity above 0 and up to 1, or null")
        for name, least in (("shingle", 1), ("permutations", 2)):
            if getattr(self, name) < least:
                raise UserError(f"data.duplicates.{name} is {getattr(self, name)}; give a whole number from {least} on")

    def signature(self, records: Sequence[Record]) -> list[Signature]:
        """One signature for each record."""
        contents = [number(*_content(record, self.normalised)) >> 4 for record in records]
        minhashes = self._minhashes(records) if self.near is not None else [None] * len(records)
        return list(map(Signature, contents, minhashes))

    def _minhashes(self, records: Sequence[Record]) -> list[numpy.ndarray | None]:
        from datasketch import MinHash

        texts = ["\n".join(_texts(record)) for record in records]
        hashes, offsets = word_ngram_hashes(texts, self.shingle)
        shingles = (hashes >> numpy.uint64(32)).tolist()
        found: list[numpy.ndarray | None] = []
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if start == end:
                found.append(None)
                continue
            minhash = MinHash(
                hashfunc=int,
                permutations=_permutations(self.permutations),
                scheme="affine32",
                num_perm=self.permutations,
            )
            minhash.update_batch(shingles[start:end])
            found.append(minhash.hashvalues)
        return found


class DuplicateIndex:
    """Remembers the records that were first, at some 90 bytes each; with `near` at some 2 KB each.

    Args:
        duplicates: What counts as a duplicate.
    """

    def __init__(self, duplicates: Duplicates) -> None:
        self._exact = duplicates.exact
        self._contents: dict[int, int | str] = {}
        self._places = _Places()
        self._near = _NearIndex(duplicates.near, duplicates.permutations) if duplicates.near is not None else None

    def repeats(self, signature: Signature, source: str) -> tuple[str, str] | None:
        """Says which earlier record this one repeats, if any; else remembers it.

        Returns:
            "exact_duplicate" or "near_duplicate" and the source of the first; None for a new record.
        """
        if self._exact:
            first = self._contents.get(signature.content)
            if first is not None:
                return "exact_duplicate", self._places.source(first)
        place = self._places.packed(source)
        if self._near is not None and signature.minhash is not None:
            first = self._near.find_or_add(signature.minhash, place)
            if first is not None:
                return "near_duplicate", self._places.source(first)
        if self._exact:
            self._contents[signature.content] = place
        return None


class _NearIndex:
    """Locality-sensitive hashing in bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3).

    datasketch draws the permutations and chooses the bands; its index takes 5 KB a record, this one a third of it.
    """

    def __init__(self, threshold: float, permutations: int) -> None:
        from datasketch import MinHashLSH

        # candidates are verified, so that a wrong one costs time alone, and a missed one is lost
        chosen = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.1, 0.9))
        self._bands = [slice(band * chosen.r, (band + 1) * chosen.r) for band in range(chosen.b)]
        self._threshold = threshold
        self._permutations = permutations
        self._minhashes = array("I")
        self._places: list[int | str] = []
        self._last: list[dict[int, int]] = [{} for _ in self._bands]  # of each band's value: the row that had it last
        self._previous = array("q")  # (rows, bands): the row that had it before, or -1

    def find_or_add(self, minhash: numpy.ndarray, place: int | str) -> int | str | None:
        """The place of the most similar earlier record, where any is similar enough."""
        keys = [hash(minhash[band].tobytes()) for band in self._bands]
        candidates = sorted(self._candidates(keys))
        if candidates:
            known = numpy.frombuffer(self._minhashes, dtype=numpy.uint32).reshape(-1, self._permutations)
            similarities = (known[candidates] == minhash).mean(axis=1)
            best = int(similarities.argmax())
            if similarities[best] >= self._threshold:
                return self._places[candidates[best]]
            del known  # an array that is looked into cannot grow
        row = len(self._places)
        self._places.append(place)
        self._minhashes.frombytes(minhash.tobytes())
        for last, key in zip(self._last, keys, strict=True):
            self._previous.append(last.get(key, -1))
            last[key] = row
        return None

    def _candidates(self, keys: list[int]) -> set[int]:
        found: set[int] = set()
        for band, (last, key) in enumerate(zip(self._last, keys, strict=True)):
            row = last.get(key, -1)
            while row >= 0:
                found.add(row)
                row = self._previous[row * len(keys) + band]
        return found


class _Places:
    """Sources as numbers, a third of their size: `train.jsonl:17` is the file's place in a list, and 17."""

    _LINE_BITS = 40

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._files: list[str] = []

    def packed(self, source: str) -> int | str:
        """The source as a number; itself where it does not end in one."""
        digits = source[max(source.rfind(":"), source.rfind("#")) + 1 :]
        if not (digits.isascii() and digits.isdigit() and len(digits) < 12) or str(int(digits)) != digits:
            return source
        file = source[: -len(digits)]
        if file not in self._numbers:
            self._numbers[file] = len(self._files)
            self._files.append(file)
        return self._numbers[file] << self._LINE_BITS | int(digits)

    def source(self, place: int | str) -> str:
        if isinstance(place, str):
            return place
        return f"{self._files[place >> self._LINE_BITS]}{place & ((1 << self._LINE_BITS) - 1)}"


@lru_cache(maxsize=4)
def _permutations(count: int) -> numpy.ndarray:
    from datasketch import MinHash

    return MinHash(num_perm=count, seed=1).permutations


def _texts(record: Record) -> Iterator[str]:
    for message in (*record.context, *record.answers, *((record.rejected,) if record.rejected else ())):
        yield message.content
    if record.tokens is not None:
        yield token_text(record.tokens)


def _content(record: Record, without_form: bool) -> Iterator[str]:
    """All that the network would see or learn of a record, piece by piece; its group, stratum and source are not."""

    def message(role: str, turn: Message) -> Iterator[str]:
        yield role
        yield turn.role
        yield normalised(turn.content) if without_form else turn.content
        if turn.fields or turn.train is not None:
            yield _json([dict(turn.fields), turn.train])

    for turn in record.context:
        yield from message("context", turn)
    for turn in record.answers:
        yield from message("answer", turn)
    if record.rejected is not None:
        yield from message("rejected", record.rejected)
    if record.tools:
        yield _json(["tools", *map(dict, record.tools)])
    if record.tokens is not None:
        yield _json(["tokens", record.tokens, record.labels])


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
