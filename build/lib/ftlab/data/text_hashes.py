"""Texts made comparable and small: a normalised form, digests, and hashes of every n consecutive words.

All hashes are the same on every machine and in every process, so that they may be stored and compared across both.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy

_NO_WORD = re.compile(r"[^\w]+")
_NO_WORD_CHARACTER = re.compile(r"[^\w]")

# Punctuation beyond ASCII. Whatever else is beyond ASCII counts as part of a word.
_PUNCTUATION = re.compile(
    "[\x80-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\u2000-\u206f\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030"
    "\u30fb\ufe10-\ufe6f\ufeff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


def normalised(text: str) -> str:
    """The text for comparisons only: NFKC, case folded, runs of all but letters, digits, marks and _ made one space."""
    if text.isascii():
        return _NO_WORD.sub(" ", text.lower()).strip()
    folded = unicodedata.normalize("NFKC", text).casefold()
    # \w knows no combining marks, without which Indic and Thai words would lose their vowels
    return " ".join(_NO_WORD_CHARACTER.sub(_mark_or_space, folded).split())


def _mark_or_space(match: re.Match[str]) -> str:
    return match[0] if unicodedata.category(match[0])[0] == "M" else " "


def digest(*texts: str) -> bytes:
    """16 bytes of BLAKE2b over the texts in their order; ("ab", "c") and ("a", "bc") differ."""
    if len(texts) == 1:
        return hashlib.blake2b(_utf8(texts[0]), digest_size=16).digest()
    parts = [_utf8(text) for text in texts]
    lengths = ",".join(str(len(part)) for part in parts)
    return hashlib.blake2b(b"".join([lengths.encode(), b":", *parts]), digest_size=16, person=b"texts").digest()


def number(*texts: str) -> int:
    """The first 8 bytes of `digest` as a number: for n texts, the chance that any two share it is below n² / 2**65."""
    return int.from_bytes(digest(*texts)[:8])


def token_text(tokens: Sequence[int]) -> str:
    """Token ids as words, so that pre-tokenised rows can be compared as texts are."""
    return " ".join(map(str, tokens))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can hold half a surrogate pair


@dataclass(frozen=True)
class Ragged:
    """Several values for each record.

    Args:
        values: Those of all records (total,) uint64.
        offsets: Where each record's begin, and the end (records + 1,) int64.
    """

    values: numpy.ndarray
    offsets: numpy.ndarray

    @classmethod
    def of(cls, keys: Sequence[Sequence[int]]) -> Ragged:
        """From a list of hashes for each record."""
        values = numpy.fromiter((key for record in keys for key in record), dtype=numpy.uint64)
        return cls(values, numpy.cumsum([0, *map(len, keys)], dtype=numpy.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def owners(self) -> numpy.ndarray:
        """The record that each value belongs to."""
        return numpy.repeat(numpy.arange(len(self)), numpy.diff(self.offsets))

    def take(self, records: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The values of records in any order, one after the other, and the place in `records` that each is for."""
        starts, sizes = self.offsets[records], self.offsets[records + 1] - self.offsets[records]
        places = numpy.repeat(numpy.arange(len(records)), sizes)
        within = numpy.arange(len(places)) - numpy.repeat(numpy.cumsum(sizes) - sizes, sizes)
        return self.values[starts[places] + within], places

    def select(self, mask: numpy.ndarray) -> Ragged:
        """The values of some records."""
        sizes = numpy.diff(self.offsets)
        return Ragged(self.values[numpy.repeat(mask, sizes)], numpy.concatenate([[0], numpy.cumsum(sizes[mask])]))


# Words are hashed as polynomials of their bytes' random values, all of them in a few passes of numpy; mod 2**64 is what
# uint64 does by itself. The base is 3 mod 8, which keeps the powers of two in B**i - B**j low: swapped letters still
# differ in some 60 bits.
_BASE = 0x9E3779B97F4A7C1B
_INVERSE = pow(_BASE, -1, 2**64)
_GRAM_BASE = numpy.uint64(0xD6E8FEB86659FD93)
_BLOCK = 1 << 20  # bytes for which the powers are kept between calls (16 MiB)

_WORD = numpy.zeros(256, dtype=bool)
_WORD[list(b"0123456789_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")] = True
_WORD[0x80:] = True
_LONE = numpy.zeros(256, dtype=bool)
_LONE[0xE3:0xEA] = True  # first bytes of U+3000 to U+9FFF: each of these is a word, having no spaces between words
_VALUES = numpy.array(
    [int.from_bytes(hashlib.blake2b(bytes([byte]), digest_size=8).digest()) for byte in range(256)], dtype=numpy.uint64
)
_VALUES[~_WORD] = 0


def word_ngram_hashes(texts: Sequence[str], n: int = 13) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Hashes every n consecutive words of each text, in order, case ignored.

    Words are runs of letters, digits and underscores; a Chinese character or kana is a word of its own. In other
    scripts without spaces (Thai, Khmer), what stands between two spaces is one word. A text of fewer than n words has
    no hash: what is so short is compared whole, by `digest`.

    Two different n-grams of ordinary words share a hash with a chance of about 2**-60: of a hundred million n-grams
    looked up among a million, 10**-4 are expected to be found wrongly. Collisions made on purpose are not guarded
    against.

    Args:
        texts: Any texts.
        n: Words in one n-gram.

    Returns:
        Hashes (total,) uint64, and offsets (texts + 1,) int64: those of text i are `hashes[offsets[i]:offsets[i + 1]]`.
    """
    hashes, counts = [], [numpy.zeros(1, dtype=numpy.int64)]
    for block in _blocks([_folded(text) for text in texts]):
        found, by_text = _hash_block(block, n)
        hashes.append(found)
        counts.append(by_text)
    empty = numpy.zeros(0, dtype=numpy.uint64)
    return numpy.concatenate(hashes or [empty]), numpy.cumsum(numpy.concatenate(counts))


def _folded(text: str) -> bytes:
    return text.lower().encode() if text.isascii() else _utf8(_PUNCTUATION.sub(" ", text.lower()))


def _blocks(parts: list[bytes]) -> list[list[bytes]]:
    """Cuts texts into groups of at most _BLOCK bytes, a longer text being a group by itself."""
    blocks: list[list[bytes]] = []
    size = _BLOCK
    for part in parts:
        size += len(part) + 1
        if size > _BLOCK:
            blocks.append([])
            size = len(part) + 1
        blocks[-1].append(part)
    return blocks


def _hash_block(parts: list[bytes], n: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    data = numpy.frombuffer(b" ".join(parts), dtype=numpy.uint8)
    in_word = _WORD[data]
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1] | _LONE[data[1:]]
    starts = numpy.flatnonzero(begins)
    # texts are told apart by the place of their first byte; the space between them keeps their words apart
    firsts = numpy.cumsum([0, *(len(part) + 1 for part in parts)])
    bounds = numpy.searchsorted(starts, firsts)
    counts = numpy.maximum(numpy.diff(bounds) - n + 1, 0)
    if not counts.any():
        return numpy.zeros(0, dtype=numpy.uint64), counts
    powers, inverses = _powers(_BLOCK if len(data) <= _BLOCK else len(data))
    # what is no word has value 0, so that a sum may run up to the next word
    words = numpy.add.reduceat(_VALUES[data] * powers[: len(data)], starts) * inverses[starts]
    words = _mixed(words)
    last = len(words) - n + 1
    grams = words[:last].copy()
    for place in range(1, n):
        grams *= _GRAM_BASE
        grams += words[place : place + last]
    ends = numpy.repeat(bounds[1:], numpy.diff(bounds))[:last]
    return _mixed(grams[numpy.arange(last) + n <= ends]), counts


def _powers(size: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    return _kept_powers() if size == _BLOCK else _computed_powers(size)


@lru_cache(maxsize=1)
def _kept_powers() -> tuple[numpy.ndarray, numpy.ndarray]:
    return _computed_powers(_BLOCK)


def _computed_powers(size: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    def powers(base: int) -> numpy.ndarray:
        factors = numpy.full(size, base, dtype=numpy.uint64)
        factors[0] = 1
        return numpy.multiply.accumulate(factors)

    return powers(_BASE), powers(_INVERSE)


def _mixed(hashes: numpy.ndarray) -> numpy.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195), one to one, in place."""
    hashes ^= hashes >> numpy.uint64(30)
    hashes *= numpy.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> numpy.uint64(27)
    hashes *= numpy.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> numpy.uint64(31)
    return hashes
