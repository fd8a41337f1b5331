"""Format strings: what they fill in, and what is said when they cannot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.format_strings import parse_format_string, read_text
from ftlab.data.records import Malformed
from ftlab.errors import UserError

NAMES = ["dialogue", "n", "topic_2"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = TEXTS | st.integers() | st.booleans() | st.floats(allow_nan=False)


def test_columns_are_filled_and_literal_braces_kept() -> None:
    text = parse_format_string("Summarise {{json}}:\n{dialogue}|{n}|{a b.c}", "data.prompt")
    columns = {"dialogue": "{hi} {{there}}", "n": 3, "a b.c": "d"}
    assert text.columns == ("dialogue", "n", "a b.c")
    assert text.fill(columns, "dev.jsonl:17") == "Summarise {json}:\n{hi} {{there}}|3|d"


def test_a_list_is_joined_line_by_line() -> None:
    text = parse_format_string("{title}:\n{source}", "data.prompt")
    assert text.fill({"title": "t", "source": ["One.", 2, "Three."]}, "a:1") == "t:\nOne.\n2\nThree."


def test_a_list_gives_several_texts() -> None:
    text = parse_format_string("= {t}{q}.", "data.response")
    assert text.fill_each({"q": "!", "t": ["x", 2]}, "a:1") == ("= x!.", "= 2!.")
    assert text.fill_each({"q": "!", "t": "x"}, "a:1") == ("= x!.",)


@settings(max_examples=100)
@given(
    pieces=st.lists(TEXTS | st.sampled_from(NAMES).map(lambda name: ("column", name)), min_size=1),
    columns=st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)),
)
def test_filling_is_what_str_format_does(pieces: list, columns: dict) -> None:
    text = "".join(
        "{" + piece[1] + "}" if isinstance(piece, tuple) else piece.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )
    string = parse_format_string(text, "data.prompt", constant=True)
    assert string.fill(columns, "a:1") == text.format(**columns)
    assert string.fill_each(columns, "a:1") == (text.format(**columns),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{mr!r}", r"data\.prompt: .* plain \{column\} fields only"),
        ("{mr:>9}", r"plain \{column\} fields only"),
        ("{}", r"plain \{column\} fields only"),
        ("{mr", r"is no format string .*literal braces as \{\{"),
        ("hello", r"'hello' names no column; write at least one"),
        ("", r"names no column"),
    ],
)
def test_what_is_no_format_string_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_format_string(text, "data.prompt")


def test_a_constant_may_name_no_column() -> None:
    assert parse_format_string("Be {{brief}}.", "data.system", constant=True).fill({}, "a:1") == "Be {brief}."


@pytest.mark.parametrize(
    ("columns", "text", "sentence"),
    [
        ({"mr": "a"}, "{text}", r"dev\.jsonl:17 has no column text; its columns are mr$"),
        ({"mr": "a"}, "{mr.__class__}", r"has no column mr\.__class__"),
        ({"mr": "a"}, "{mr[0]}", r"has no column mr\[0\]"),
        ({}, "{mr}", r"has no column mr; its columns are none"),
        ({"mr": None}, "{mr}", r"dev\.jsonl:17: column mr is null, not text"),
        ({"mr": float("nan")}, "{mr}", r"column mr is NaN, not text"),
        ({"mr": {"b": 1}}, "{mr}", r"column mr is an object, not text"),
        ({"mr": b"a"}, "{mr}", r"column mr is bytes, not text"),
        ({"mr": []}, "{mr}", r"column mr is an empty list"),
        ({"mr": ["b", None]}, "{mr}", r"column mr\[1\] is null, not text"),
        ({"mr": [["b"]]}, "{mr}", r"column mr\[0\] is a list, not text"),
        ({"mr": "aé\ud83d"}, "{mr}", r"column mr has half a surrogate pair at character 2"),
    ],
)
def test_what_cannot_be_filled_is_malformed(columns: dict, text: str, sentence: str) -> None:
    string = parse_format_string(text, "data.prompt")
    for fill in (string.fill, string.fill_each):
        with pytest.raises(Malformed, match=sentence) as refusal:
            fill(columns, "dev.jsonl:17")
        assert "\n" not in str(refusal.value)


def test_two_lists_in_a_response_are_malformed() -> None:
    with pytest.raises(Malformed, match=r"a:1: columns mr and ref both hold lists; data\.response"):
        parse_format_string("{mr}{ref}", "data.response").fill_each({"mr": ["a"], "ref": ["b"]}, "a:1")


def test_ten_million_characters_are_one_text() -> None:
    long = "é" * 10_000_000
    assert read_text(long, "text", "a:1") is long
