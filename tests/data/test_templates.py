"""Templates: what the columns become, and what is said when they cannot."""

import pytest

from ftlab.data.records import RawRecord
from ftlab.data.templates import Record, build_records, group_by_prompt
from ftlab.errors import UserError


def _raw(**columns: object) -> list[RawRecord]:
    return [RawRecord(columns, "dev.jsonl:17")]


def test_format_strings_fill_columns_and_keep_literal_braces() -> None:
    raw = _raw(dialogue="{hi} {{there}}", summary="yes", n=3, **{"a b.c": "d"})
    records = build_records(raw, "Summarise {{json}}:\n{dialogue}|{n}|{a b.c}", "{summary}")
    assert records == [Record("Summarise {json}:\n{hi} {{there}}|3|d", ("yes",), "dev.jsonl:17")]


def test_a_list_gives_several_references() -> None:
    assert build_records(_raw(q="a", t=["x", 2]), "{q}", "= {t}.")[0].references == ("= x.", "= 2.")


@pytest.mark.parametrize(
    ("columns", "prompt", "answer"),
    [
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"prompt": "a", "response": "b", "extra": None}, "a", "b"),
        ({"instruction": "a", "input": "c", "output": "b"}, "a\n\nc", "b"),
        ({"instruction": "a", "input": "", "output": "b"}, "a", "b"),
        ({"instruction": "a", "input": None, "output": "b"}, "a", "b"),
        ({"instruction": "a", "output": "b"}, "a", "b"),
    ],
)
def test_known_columns_are_recognised(columns: dict, prompt: str, answer: str) -> None:
    assert build_records(_raw(**columns)) == [Record(prompt, (answer,), "dev.jsonl:17")]


@pytest.mark.parametrize(
    ("columns", "prompt", "response", "sentence"),
    [
        ({"mr": "a", "ref": "b"}, "{text}", "{ref}", r"dev\.jsonl:17 has no column text; its columns are mr, ref"),
        ({"mr": "a", "ref": "b"}, "{mr}", "{mr.__class__}", r"has no column mr\.__class__"),
        ({"mr": "a", "ref": "b"}, "{mr[0]}", "{ref}", r"has no column mr\[0\]"),
        ({"mr": "a", "ref": "b"}, "{mr!r}", "{ref}", r"data\.prompt: .* plain \{column\} fields only"),
        ({"mr": "a", "ref": "b"}, "{mr}", "{ref:>9}", r"data\.response: .* plain \{column\} fields only"),
        ({"mr": "a", "ref": "b"}, "{}", "{ref}", r"plain \{column\} fields only"),
        ({"mr": "a", "ref": "b"}, "{mr", "{ref}", r"data\.prompt: .* is no format string .*literal braces as \{\{"),
        ({"mr": "a", "ref": "b"}, "hello", "{ref}", r"names no column"),
        ({"mr": "a", "ref": "b"}, "{mr}", None, r"data\.response is missing: give both"),
        ({"mr": "a", "ref": "b"}, None, "{ref}", r"data\.prompt is missing: give both"),
        ({"mr": "a", "ref": "b"}, None, None, r"no wording is known for the columns mr, ref; give data\.prompt"),
        ({"prompt": "a", "completion": "b", "response": "c"}, None, None, r"both completion and response"),
        ({"mr": None, "ref": "b"}, "{mr}", "{ref}", r"dev\.jsonl:17: column mr is null, not text"),
        ({"mr": float("nan"), "ref": "b"}, "{mr}", "{ref}", r"column mr is NaN, not text"),
        ({"mr": ["a"], "ref": "b"}, "{mr}", "{ref}", r"column mr is a list, not text"),
        ({"mr": "a", "ref": {"b": 1}}, "{mr}", "{ref}", r"column ref is an object, not text"),
        ({"mr": "a", "ref": []}, "{mr}", "{ref}", r"column ref is an empty list"),
        ({"mr": "a", "ref": ["b", None]}, "{mr}", "{ref}", r"column ref is null, not text"),
        ({"mr": ["a"], "ref": ["b"]}, "{mr}", "{mr}{ref}", r"column mr is a list"),
        ({"q": "c", "mr": ["a"], "ref": ["b"]}, "{q}", "{mr}{ref}", r"columns mr and ref both hold lists"),
        ({"mr": "a\ud83d", "ref": "b"}, "{mr}", "{ref}", r"column mr has half a surrogate pair at character 1"),
    ],
)
def test_what_cannot_be_filled_is_refused(
    columns: dict, prompt: str | None, response: str | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        build_records(_raw(**columns), prompt, response)
    assert "\n" not in str(refusal.value)


def test_a_record_with_other_columns_than_the_first_is_named() -> None:
    raw = [RawRecord({"prompt": "a", "completion": "b"}, "a:1"), RawRecord({"text": "c"}, "a:2")]
    with pytest.raises(UserError, match="a:2 has no column prompt; its columns are text"):
        build_records(raw)


def test_records_that_share_a_prompt_become_one() -> None:
    records = [Record("p", ("x",), "1"), Record("q", ("y",), "2"), Record("p", ("z", "x"), "3")]
    assert group_by_prompt(records) == [Record("p", ("x", "z"), "1"), Record("q", ("y",), "2")]
