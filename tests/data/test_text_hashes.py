"""Hashes of texts, against sets of word tuples made the plain way."""

import hashlib
import re

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data import text_hashes
from ftlab.data.text_hashes import Ragged, digest, normalised, number, token_text, word_ngram_hashes

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "Aa", "é", "x_1", "7"]), max_size=9)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   World!\n", "hello world"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\uff46\uff55\uff4c\uff4c\uff0d\uff57\uff49\uff44\uff54\uff48", "full width"),  # wide letters
        ("\u201cDon\u2019t\u201d", "don t"),
        ("की बात।", "की बात"),  # the vowel sign is no letter, but part of the word
        ("?!", ""),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing_in_ascii(text: str) -> None:
    once = normalised(text.encode("ascii", "ignore").decode())
    assert normalised(once) == once
    assert re.fullmatch(r"(\w+( \w+)*)?", once)


def test_digests_of_one_text_are_blake2b() -> None:
    assert digest("né") == hashlib.blake2b("né".encode(), digest_size=16).digest()
    assert number("né") == int.from_bytes(hashlib.blake2b("né".encode(), digest_size=16).digest()[:8])


@given(st.lists(st.text("ab1:,", max_size=3), max_size=4), st.lists(st.text("ab1:,", max_size=3), max_size=4))
def test_digests_tell_apart_where_texts_end(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_half_a_surrogate_pair_can_be_hashed() -> None:
    assert len(digest("\ud800")) == 16
    assert len(word_ngram_hashes(["\ud800 a b"], 3)[0]) == 1


def test_tokens_as_words() -> None:
    assert token_text((1, 23, 456)) == "1 23 456"


@given(st.lists(WORDS.map(" ".join), max_size=5), st.integers(1, 4))
def test_ngram_hashes_are_equal_where_ngrams_are(texts: list[str], n: int) -> None:
    hashes, offsets = word_ngram_hashes(texts, n)
    expected = [_grams(text, n) for text in texts]
    assert numpy.diff(offsets).tolist() == list(map(len, expected))
    of_gram: dict[tuple[str, ...], int] = {}
    for place, gram in enumerate(gram for grams in expected for gram in grams):
        assert of_gram.setdefault(gram, int(hashes[place])) == hashes[place]
    assert len(set(of_gram.values())) == len(of_gram)


@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=50)
def test_ngram_hashes_of_a_text_do_not_hang_on_its_neighbours(texts: list[str], n: int) -> None:
    hashes, offsets = word_ngram_hashes(texts, n)
    for place, text in enumerate(texts):
        alone, _ = word_ngram_hashes([text], n)
        assert hashes[offsets[place] : offsets[place + 1]].tolist() == alone.tolist()


def test_long_texts_and_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two three four five " * 3, "", "six seven eight", "nine ten"]
    whole, offsets = word_ngram_hashes(texts, 3)
    monkeypatch.setattr(text_hashes, "_BLOCK", 20)
    text_hashes._kept_powers.cache_clear()
    try:
        cut, same_offsets = word_ngram_hashes(texts, 3)
    finally:
        text_hashes._kept_powers.cache_clear()
    assert cut.tolist() == whole.tolist()
    assert same_offsets.tolist() == offsets.tolist() == [0, 13, 13, 14, 14]


def test_punctuation_and_case_do_not_part_ngrams() -> None:
    hashes, _ = word_ngram_hashes(["“Well,” he said — no!", "well he SAID: no", "Well he said no"], 4)
    assert len(set(hashes.tolist())) == 1


def test_chinese_characters_are_words() -> None:
    _, offsets = word_ngram_hashes(
        ["\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u3002", "short text"], 3
    )
    assert numpy.diff(offsets).tolist() == [7, 0]  # "fine weather today, let us go": nine characters


def test_swapped_letters_differ() -> None:
    words = [f"{'a' * place}b{'a' * (63 - place)}" for place in range(64)]
    hashes, _ = word_ngram_hashes(words, 1)
    assert len(set(hashes.tolist())) == 64
    assert len({value & 0xFFFFFFFF for value in hashes.tolist()}) == 64


def test_hashes_hang_on_nothing_but_the_words() -> None:
    """The docstring's polynomials, in Python's own integers."""

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    def word(text: str) -> int:
        values = [int.from_bytes(hashlib.blake2b(bytes([b]), digest_size=8).digest()) for b in text.encode()]
        return mixed(sum(value * 0x9E3779B97F4A7C1B**place for place, value in enumerate(values)) % 2**64)

    expected = mixed((word("naïve") * 0xD6E8FEB86659FD93 + word("2nd")) % 2**64)
    assert word_ngram_hashes(["", "... Naïve, 2nd"], 2)[0].tolist() == [expected]


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5), st.data())
def test_ragged_selects_as_a_list_does(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(lists)
    mask = data.draw(st.lists(st.booleans(), min_size=len(lists), max_size=len(lists)))
    chosen = ragged.select(numpy.array(mask, dtype=bool))
    kept = [values for values, keep in zip(lists, mask, strict=True) if keep]
    assert chosen.values.tolist() == [value for values in kept for value in values]
    assert numpy.diff(chosen.offsets).tolist() == list(map(len, kept))
    assert ragged.owners().tolist() == [place for place, values in enumerate(lists) for _ in values]
    if lists:
        order = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=4))
        values, places = ragged.take(numpy.array(order, dtype=int))
        assert values.tolist() == [value for record in order for value in lists[record]]
        assert places.tolist() == [place for place, record in enumerate(order) for _ in lists[record]]
