"""Duplicates: exact ones against a plain set, near ones against the true Jaccard similarity of their shingles."""

import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab.data.duplicates import DuplicateIndex, Duplicates
from ftlab.data.records import Message, Record, pair
from ftlab.errors import UserError


def _found(duplicates: Duplicates, records: list[Record]) -> list[tuple[str, str] | None]:
    index = DuplicateIndex(duplicates)
    return [
        index.repeats(signature, record.source)
        for signature, record in zip(duplicates.signature(records), records, strict=True)
    ]


def _pairs(*texts: tuple[str, ...]) -> list[Record]:
    return [pair(prompt, tuple(answers), f"a.jsonl:{line}") for line, (prompt, *answers) in enumerate(texts, start=1)]


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "b."]), st.sampled_from(["x", "X", ""])), max_size=12))
def test_exactly_the_repeated_are_found_and_the_first_named(contents: list[tuple[str, str]]) -> None:
    records = _pairs(*contents)
    expected = []
    for place, content in enumerate(contents):
        first = contents.index(content)
        expected.append(("exact_duplicate", records[first].source) if first < place else None)
    assert _found(Duplicates(), records) == expected


def test_the_boundary_of_prompt_and_answer_matters() -> None:
    assert _found(Duplicates(), _pairs(("ab", "c"), ("a", "bc"), ("a", "b", "c"), ("a", "bc"))) == [
        None,
        None,
        None,
        ("exact_duplicate", "a.jsonl:2"),
    ]


def test_normalised_content() -> None:
    records = _pairs(("Hello, World", "x"), ("hello world!", " X"), ("hello words", "x"))
    assert _found(Duplicates(normalised=True), records) == [None, ("exact_duplicate", "a.jsonl:1"), None]
    assert _found(Duplicates(), records) == [None, None, None]


BASE = replace(pair("ask", ("say",), "a:1"), tools=({"name": "f"},), rejected=Message("assistant", "no"))


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, context=(Message("system", "ask"),)),
        replace(BASE, context=(Message("user", "ask", train=True),)),
        replace(BASE, context=(), answers=(Message("user", "ask"), *BASE.answers)),
        replace(BASE, answers=(Message("assistant", "say", fields={"tool_calls": [{"name": "f"}]}),)),
        replace(BASE, tools=()),
        replace(BASE, rejected=None),
        replace(BASE, rejected=Message("assistant", "never")),
        replace(BASE, tokens=(1,)),
    ],
)
def test_all_that_is_seen_or_learned_is_content(other: Record) -> None:
    assert _found(Duplicates(), [BASE, other]) == [None, None]


def test_group_stratum_and_source_are_not_content() -> None:
    other = replace(BASE, group="g", stratum="s", source="b:9")
    assert _found(Duplicates(), [BASE, other]) == [None, ("exact_duplicate", "a:1")]


def test_tokens_and_their_labels() -> None:
    rows = [
        Record((), (), f"a#{place}", tokens=tokens, labels=labels)
        for place, (tokens, labels) in enumerate([((1, 2), None), ((12,), None), ((1, 2), (-100, 2)), ((1, 2), None)])
    ]
    assert _found(Duplicates(), rows) == [None, None, None, ("exact_duplicate", "a#0")]


@given(st.lists(st.one_of(st.from_regex(r"[a-z.:#]{0,4}[:#][0-9]{0,13}", fullmatch=True), st.text()), max_size=6))
def test_sources_come_back_as_they_were(sources: list[str]) -> None:
    duplicates = Duplicates()
    index = DuplicateIndex(duplicates)
    signatures = duplicates.signature([pair(str(place), ("x",), "") for place in range(len(sources))])
    assert [index.repeats(one, source) for one, source in zip(signatures, sources, strict=True)] == [None] * len(
        sources
    )
    assert [index.repeats(one, "?") for one in signatures] == [("exact_duplicate", source) for source in sources]


def test_nothing_is_a_duplicate_where_nothing_is_asked_for() -> None:
    assert _found(Duplicates(exact=False), _pairs(("a", "b"), ("a", "b"))) == [None, None]


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def test_near_duplicates_against_the_true_similarity() -> None:
    """200 texts and an edited copy of each; MinHash of 256 permutations errs by 0.03 (one standard deviation)."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(500)]
    originals = [draw.choices(vocabulary, k=120) for _ in range(200)]
    copies = []
    for place, words in enumerate(originals):
        copy = list(words)
        for edit in draw.sample(range(120), place % 10):
            copy[edit] = "edited"
        copies.append(copy)
    texts = [*originals, *copies]
    records = _pairs(*((" ".join(words[:60]), " ".join(words[60:])) for words in texts))
    found = _found(Duplicates(exact=False, near=0.7, permutations=256), records)
    assert found[:200] == [None] * 200
    sure = 0
    for place, words in enumerate(copies):
        one, other = _shingles(originals[place]), _shingles(words)
        similarity = len(one & other) / len(one | other)
        expected = ("near_duplicate", f"a.jsonl:{place + 1}")
        if abs(similarity - 0.7) > 0.12:  # four standard deviations
            sure += 1
            assert found[200 + place] == (expected if similarity > 0.7 else None), similarity
        else:
            assert found[200 + place] in (None, expected)
    assert sure > 100


def test_an_edited_record_is_a_near_and_a_copied_one_an_exact_duplicate() -> None:
    words = [f"w{number}" for number in range(100)]
    text, edited = " ".join(words), " ".join([*words[:-1], "other"])
    records = _pairs(
        (text, "yes it is"), (edited, "yes it is"), (text, "yes it is"), ("short", "text"), ("short", "test")
    )
    near, exact = ("near_duplicate", "a.jsonl:1"), ("exact_duplicate", "a.jsonl:1")
    assert _found(Duplicates(near=0.8), records) == [None, near, exact, None, None]


def test_signatures_can_be_sent_between_processes() -> None:
    duplicates = pickle.loads(pickle.dumps(Duplicates(near=0.5)))
    records = _pairs(("one two three four five", "six"), ("one", "two"))
    signatures = pickle.loads(pickle.dumps(duplicates.signature(records)))
    assert signatures[0].minhash.shape == (128,)
    assert signatures[1].minhash is None
    index = DuplicateIndex(duplicates)
    assert [index.repeats(signature, "a:1") for signature in [*signatures, signatures[0]]][2] is not None


@pytest.mark.parametrize(
    ("options", "name"),
    [({"near": 0.0}, "near"), ({"near": 1.1}, "near"), ({"shingle": 0}, "shingle"), ({"permutations": 1}, "permut")],
)
def test_options_out_of_range_are_refused(options: dict, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.duplicates\.{name}"):
        Duplicates(**options)
