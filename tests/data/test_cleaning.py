"""Cleaning: what each rule changes and drops, and that texts which need nothing are left the very same."""

import pickle
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab.data.cleaning import Cleaning
from ftlab.data.records import Malformed, Message, RawRecord, Record, pair
from ftlab.errors import UserError

PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # "I want", spelt with U+200C
COMPUTER = "\U0001f469\u200d\U0001f4bb"  # a woman at a computer, joined by U+200D
NOTHING = Cleaning(unicode="none", control_characters=False, whitespace="none", empty=False)


def _mended(cleaning: Cleaning, text: str) -> str:
    return cleaning.columns(RawRecord({"text": text}, "a.jsonl:1")).columns["text"]


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, "cafe\u0301", "caf\u00e9"),
        ({}, "2\u2075 \ufb01", "2\u2075 \ufb01"),
        ({"unicode": "NFKC"}, "2\u2075 \ufb01", "25 fi"),
        ({"unicode": "none"}, "cafe\u0301", "cafe\u0301"),
        ({}, "\ufeffa\x00b\x1bc\x7f\u0080d\ufdd0\ufffe\U0010ffff\ud800", "abcd"),
        ({}, PERSIAN, PERSIAN),
        ({}, COMPUTER, COMPUTER),
        ({}, "a\tb\nc", "a\tb\nc"),
        ({}, "e\x00\u0301", "\u00e9"),  # composed once what stood between is gone
        ({"control_characters": False}, "a\x00\ufeff", "a\x00\ufeff"),
        ({}, "a\r\nb\rc\x0cd\x0be\x85f", "a\nb\nc\nd\ne\nf"),
        ({"whitespace": "none"}, "a\r\nb\rc\x0c", "a\r\nb\rc\x0c"),
        ({}, "  a  \n\n\n\n b ", "  a  \n\n\n\n b "),
        ({"whitespace": "strip"}, "\n  a   b \t\n\n\n c \n", "a   b\n\n\n c"),
        ({"remove": ("<|end|>", "cat")}, "con<|end|>cat<|end|>enate <|end", "conenate <|end"),
        ({"remove": ("a\r",), "whitespace": "newlines"}, "a\r\nb", "\nb"),  # before all else
        ({"whitespace": "collapse"}, "\n  a \t b \t\n \n\n c\u00a0\u00a0d \n", "a b\n\n c d"),
    ],
)
def test_texts(options: dict, text: str, expected: str) -> None:
    assert _mended(Cleaning(**options), text) == expected


@given(st.text())
def test_nothing_is_done_where_all_is_turned_off(text: str) -> None:
    raw = RawRecord({"text": text, "more": [text, {"a": text}]}, "a")
    assert NOTHING.columns(raw) is raw


OPTIONS = st.builds(
    Cleaning,
    unicode=st.sampled_from(["none", "NFC", "NFKC"]),
    control_characters=st.booleans(),
    whitespace=st.sampled_from(["none", "newlines", "strip", "collapse"]),
)
TEXTS = st.text(st.one_of(st.sampled_from(" \t\n\r\x0c\x85\x00\ufeff\u0301e\u200d\u00a0"), st.characters()))


@given(OPTIONS, TEXTS)
def test_mending_twice_is_mending_once(cleaning: Cleaning, text: str) -> None:
    once = cleaning.columns(RawRecord({"text": text}, "a"))
    assert cleaning.columns(once) is once


@given(OPTIONS, TEXTS)
def test_each_rule_holds_of_what_it_mended(cleaning: Cleaning, text: str) -> None:
    mended = _mended(cleaning, text)
    if cleaning.unicode != "none":
        assert unicodedata.is_normalized(cleaning.unicode, mended)
    if cleaning.control_characters:
        assert all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t\r\x0b\x0c\x85" for c in mended)
    if cleaning.whitespace != "none":
        assert not set(mended) & set("\r\x0b\x0c\x85")
    if cleaning.whitespace in ("strip", "collapse"):
        assert mended == mended.strip()
        assert all(line == line.rstrip() for line in mended.split("\n"))
    if cleaning.whitespace == "collapse":
        assert "\n\n\n" not in mended
        assert "  " not in mended


def test_texts_in_lists_and_objects_are_mended_and_all_else_is_left() -> None:
    tokens, turns = [1, 2, 3], [{"role": "user", "content": "a\r\nb"}, {"role": "user", "content": "fine"}]
    raw = RawRecord({"messages": turns, "input_ids": tokens, "score": 0.5, "none": None, "tags": ["x\x00", "y"]}, "a:1")
    mended = Cleaning().columns(raw)
    assert mended.columns == {
        "messages": [{"role": "user", "content": "a\nb"}, {"role": "user", "content": "fine"}],
        "input_ids": [1, 2, 3],
        "score": 0.5,
        "none": None,
        "tags": ["x", "y"],
    }
    assert mended.source == "a:1"
    assert mended.columns["input_ids"] is tokens
    assert mended.columns["messages"][1] is turns[1]
    assert turns[0]["content"] == "a\r\nb"  # what was given is not written to
    assert list(mended.columns) == list(raw.columns)


def test_long_runs_of_blanks_take_linear_time() -> None:
    text = "a" + " " * 1_000_000 + "b"
    assert _mended(Cleaning(whitespace="strip"), text) == text
    assert _mended(Cleaning(whitespace="collapse"), text) == "a b"


def _chat(*turns: tuple[str, str], answers: tuple[str, ...] = ("yes",)) -> Record:
    context = tuple(Message(role, content) for role, content in turns)
    return Record(context, tuple(Message("assistant", text) for text in answers), "a:1")


TEXT = Record((), (Message("text", "Once upon"),), "a:1")
TOKENS = Record((), (), "a:1", tokens=(1, 2))
CALL = Message("assistant", "", fields={"tool_calls": [{"name": "f"}]})


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (pair("ask", ("say",), "a"), None),
        (pair(" \n", ("say",), "a"), "empty_prompt"),
        (pair("ask", ("", " \t"), "a"), "empty_answer"),
        (pair("ask", (), "a"), None),  # only asks: to predict
        (_chat(("system", "be kind"), ("user", "")), "empty_prompt"),
        (_chat(("user", "hi"), ("assistant", ""), ("user", "so?")), None),
        (_chat(), "empty_prompt"),
        (TEXT, None),
        (replace(TEXT, answers=(Message("text", "\n"),)), "empty_answer"),
        (TOKENS, None),
        (replace(TOKENS, tokens=()), "empty_answer"),
        (replace(_chat(("user", "hi")), answers=(CALL,)), None),
        (replace(_chat(("user", "hi")), rejected=Message("assistant", "no")), None),
        (replace(_chat(("user", "hi")), rejected=Message("assistant", "")), "empty_answer"),
    ],
)
def test_empty_sides(record: Record, rule: str | None) -> None:
    assert Cleaning().judge(record) == (None if rule else record, rule)
    assert Cleaning(empty=False).judge(record) == (record, None)


def test_only_the_empty_answers_of_several_are_left_out() -> None:
    judged, rule = Cleaning().judge(pair("ask", ("one", " ", "two"), "a"))
    assert judged == pair("ask", ("one", "two"), "a")
    assert rule is None


def test_lengths_are_of_prompt_and_longest_answer() -> None:
    record = pair("123", ("4", "4567"), "a")  # 7 characters
    assert Cleaning(min_characters=7, max_characters=7).judge(record) == (record, None)
    assert Cleaning(min_characters=8).judge(record) == (None, "too_few_characters")
    assert Cleaning(max_characters=6).judge(record) == (None, "too_many_characters")
    assert Cleaning(max_characters=6).judge(TOKENS) == (TOKENS, None)
    worse = replace(record, rejected=Message("assistant", "45678"))
    assert Cleaning(max_characters=7).judge(worse) == (None, "too_many_characters")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"min_characters": -1}, "min_characters"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_characters": 5, "max_characters": 4}, "max_characters"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(options: dict, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.clean\.{name}"):
        Cleaning(**options)


def test_options_can_be_sent_to_workers() -> None:
    assert pickle.loads(pickle.dumps(Cleaning(min_tokens=3))) == Cleaning(min_tokens=3)


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({}, True),
        ({"label": True}, True),
        ({"label": False}, False),
        ({"label": True, "topic": "work"}, True),
        ({"label": True, "topic": "school"}, False),
        ({"topic": ["school", "work"]}, True),
        ({"topic": []}, False),
        ({"topic": "wor"}, False),
        ({"empty": None}, True),
    ],
)
def test_records_are_taken_by_their_columns(where: dict, taken: bool) -> None:
    assert Cleaning(where=where).takes(RawRecord({"label": True, "topic": "work", "empty": None}, "a:1")) is taken


def test_where_and_remove_refuse_what_cannot_be_meant() -> None:
    with pytest.raises(Malformed, match="a:1 has no column labl; its columns are label"):
        Cleaning(where={"labl": True}).takes(RawRecord({"label": True}, "a:1"))
    with pytest.raises(UserError, match=r"data\.clean\.remove holds an empty text"):
        Cleaning(remove=("a", ""))
