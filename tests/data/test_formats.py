"""Formats: which columns become which records, how they are recognised, and what is said when they do not fit."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.formats import Format, recognise
from ftlab.data.records import Malformed, Message, RawRecord, Record, pair
from ftlab.errors import UserError

AT = "dev.jsonl:17"
Q, A, B = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
SYSTEM = Message("system", "s")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
WORSE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOOL = {"type": "function", "function": {"name": "f"}}
LEARNED = Record((Q,), (A,), AT)
PREFERRED = Record((Q,), (A,), AT, rejected=B)
ALPACA = {"instruction": "q", "output": "a"}


def _convert(columns: dict[str, Any], answers: bool = True, **options: Any) -> Record | None:
    raw = RawRecord(columns, AT)
    return recognise(Format(**options), raw, answers).convert(raw, answers)


@pytest.mark.parametrize(
    ("columns", "kind", "record"),
    [
        ({"prompt": "q", "completion": "a"}, "pairs", LEARNED),
        ({"prompt": "q", "response": "a", "extra": None}, "pairs", LEARNED),
        ({"prompt": "q", "response": ["a", "b", 3]}, "pairs", pair("q", ("a", "b", "3"), AT)),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "pairs", LEARNED),
        ({"prompt": TURNS[:1], "completion": "a"}, "pairs", LEARNED),
        ({"prompt": "q", "completion": [*WORSE[1:], *TURNS]}, "pairs", Record((Q, B, Q), (A,), AT)),
        ({"prompt": "q", "completion": "a", "system": "s"}, "pairs", Record((SYSTEM, Q), (A,), AT)),
        (ALPACA, "alpaca", LEARNED),
        (ALPACA | {"input": "", "text": "q a"}, "alpaca", LEARNED),
        (ALPACA | {"input": None, "history": None, "system": ""}, "alpaca", LEARNED),
        (ALPACA | {"input": "c"}, "alpaca", pair("q\n\nc", ("a",), AT)),
        (ALPACA | {"output": ["a", "b"]}, "alpaca", pair("q", ("a", "b"), AT)),
        (ALPACA | {"history": [["q", "b"]], "system": "s"}, "alpaca", Record((SYSTEM, Q, B, Q), (A,), AT)),
        ({"messages": TURNS}, "messages", LEARNED),
        ({"messages": TURNS, "label": False}, "messages", LEARNED),
        ({"messages": [*WORSE, *TURNS]}, "messages", Record((Q, B, Q), (A,), AT)),
        ({"messages": TURNS, "tools": '[{"name": "f"}]'}, "messages", Record((Q,), (A,), AT, tools=(TOOL,))),
        ({"messages": TURNS, "tools": None, "text": "x"}, "messages", LEARNED),
        ({"conversations": SHARED, "system": "s"}, "conversations", Record((SYSTEM, Q), (A,), AT)),
        ({"conversations": TURNS, "tools": [TOOL]}, "conversations", Record((Q,), (A,), AT, tools=(TOOL,))),
        ({"text": "a"}, "text", Record((), (Message("text", "a"),), AT)),
        ({"input_ids": [5, 6, 7]}, "tokens", Record((), (), AT, tokens=(5, 6, 7))),
        (
            {"input_ids": [5, 6], "labels": [-100, 6], "attention_mask": [1, 1], "text": "x"},
            "tokens",
            Record((), (), AT, tokens=(5, 6), labels=(-100, 6)),
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", PREFERRED),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": WORSE[1:]}, "preference", PREFERRED),
        ({"prompt": "q", "chosen": TURNS, "rejected": WORSE}, "preference", PREFERRED),
        ({"chosen": TURNS, "rejected": WORSE}, "preference", PREFERRED),
        ({"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": WORSE[1]}, "preference", PREFERRED),
        ({"messages": TURNS[:1], "chosen": TURNS[1], "rejected": "b"}, "preference", PREFERRED),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "preference", PREFERRED),
    ],
)
def test_columns_are_recognised_and_named_alike(columns: dict, kind: Any, record: Record) -> None:
    raw = RawRecord(columns, AT)
    for format in (Format(), Format(kind=kind)):
        convert = recognise(format, raw)
        assert convert.kind == kind
        assert pickle.loads(pickle.dumps(convert)).convert(raw) == record
        assert convert.convert(raw, answers=False) == record


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"prompt": "q"}, {}),
        ({"prompt": "q", "completion": None}, {}),
        ({"prompt": "q", "completion": float("nan")}, {}),
        ({"prompt": "q", "response": []}, {}),
        ({"prompt": TURNS[:1]}, {}),
        ({"instruction": "q"}, {}),
        ({"instruction": "q", "output": None}, {}),
        ({"messages": TURNS[:1]}, {}),
        ({"conversations": SHARED[:1]}, {}),
        ({"prompt": "q", "chosen": None, "rejected": None}, {}),
        ({"x": "q"}, {"prompt": "{x}", "response": "{y}", "group_by": "z"}),
        ({"x": "q", "y": None}, {"prompt": "{x}", "response": "{y}"}),
    ],
)
def test_a_prompt_alone_can_be_answered_but_not_learned(columns: dict, options: dict) -> None:
    assert _convert(columns, answers=False, **options) == Record((Q,), (), AT)
    with pytest.raises(UserError, match=r"dev\.jsonl:17"):
        _convert(columns, **options)


def test_a_question_after_the_last_answer_is_what_is_answered() -> None:
    assert _convert({"messages": [*WORSE, TURNS[0]]}) == Record((Q,), (B,), AT)
    assert _convert({"messages": [*WORSE, TURNS[0]]}, answers=False) == Record((Q, B, Q), (), AT)


def test_format_strings_over_any_columns() -> None:
    columns = {
        "t": "q",
        "source": ["One.", "Two."],
        "target": ["a", "b"],
        "id": 3,
        "year": 2020,
        "system": "no",
        "n": 1,
    }
    record = _convert(
        columns, prompt="{t}\n{source}", response="{target}", system="s{n}", group_by="id", stratify_by="year"
    )
    context = (Message("system", "s1"), Message("user", "q\nOne.\nTwo."))
    assert record == Record(context, (A, B), AT, group="3", stratum="2020")
    text = _convert(columns, kind="text", response="{t}: {source}")
    assert text == Record((), (Message("text", "q: One.\nTwo."),), AT)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_conversations_own_system_turn_stands(role: str) -> None:
    own = {"role": role, "content": "own"}
    record = _convert({"messages": [own, *TURNS], "system": "column"}, system="option")
    assert record == Record((Message(role, "own"), Q), (A,), AT)


def test_the_system_column_stands_before_the_option() -> None:
    assert _convert({"messages": TURNS, "system": "s"}, system="option") == Record((SYSTEM, Q), (A,), AT)
    assert _convert({"messages": TURNS, "system": None}, system="s") == Record((SYSTEM, Q), (A,), AT)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"mr": "a", "ref": "b"}, {}, r"dev\.jsonl:17: no format is known for the columns mr, ref; give data\.prompt"),
        ({"prompt": "q"}, {}, r"no format is known for the columns prompt;"),
        ({"prompt": "q", "completion": "b", "response": "c"}, {}, r"dev\.jsonl:17 has both completion and response"),
        ({"prompt": "q", "completion": "b", "response": "c"}, {"kind": "pairs"}, r"has both completion and response"),
        ({"messages": TURNS, "prompt": "q"}, {}, r"messages, prompt could be read as messages or as pairs; say which"),
        ({"messages": TURNS, "conversations": SHARED}, {}, r"as messages or as conversations"),
        ({"prompt": "q", "completion": "a", "input_ids": [1]}, {}, r"as pairs or as tokens"),
        ({"prompt": "q", "completion": "a", "chosen": "a", "rejected": "b"}, {}, r"as pairs or as preference"),
        (
            {"prompt": "q", "messages": TURNS, "chosen": "a", "rejected": "b"},
            {},
            r"messages or as pairs or as preference",
        ),
        (
            {"text": "a"},
            {"kind": "messages"},
            r"17 has no column messages, which data\.format \(messages\) asks for; .* text",
        ),
        ({"prompt": "a"}, {"kind": "pairs"}, r"has no column completion or response, which"),
        ({"prompt": "a"}, {"kind": "preference"}, r"has no column chosen and no column rejected, which"),
        ({"text": "a"}, {"group_by": "g", "stratify_by": "text"}, r"has no column g, which .* its columns are text"),
        ({"a": "b"}, {"prompt": "{x}", "response": "{y}"}, r"dev\.jsonl:17 has no column x and no column y, which"),
        ({"a": "b"}, {"prompt": "{a}"}, r"data\.response is missing: give both"),
        ({"a": "b"}, {"response": "{a}"}, r"data\.prompt is missing: give both"),
        ({"a": "b"}, {"prompt": "{a}", "response": "b"}, r"data\.response: 'b' names no column"),
        (
            {"a": "b"},
            {"prompt": "{a}", "response": "{a}", "kind": "text"},
            r"data\.prompt has no place in .* text",
        ),
        ({"a": "b"}, {"prompt": "{a}", "response": "{a}", "kind": "tokens"}, r"make pairs, not tokens; take them out"),
        ({"text": "a"}, {"kind": "text", "system": "s"}, r"data\.system has no place in format text"),
        ({"text": "a"}, {"system": "s"}, r"data\.system has no place in format text"),
        ({"text": "a"}, {"function": "f"}, r"data\.function: 'f' is no dotted path"),
        ({"text": "a"}, {"function": "no_such.f"}, r"no_such\.f cannot be imported \(ModuleNotFoundError: .*no_such"),
        ({"text": "a"}, {"function": "json.no_such"}, r"json\.no_such cannot be imported \(AttributeError: "),
        ({"text": "a"}, {"function": "sys.path"}, r"sys\.path is a list, not a function"),
        ({"text": "a"}, {"function": "json.dumps"}, r"17: data\.function json\.dumps returned text; it must"),
        (
            {"text": "a"},
            {"function": "math.sqrt"},
            r"17: data\.function math\.sqrt failed with TypeError: must be",
        ),
    ],
)
def test_what_the_first_record_does_not_allow_is_refused(columns: dict, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        recognise(Format(**options), RawRecord(columns, AT))
    assert not isinstance(refusal.value, Malformed)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"prompt": None, "completion": "a"}, r"column prompt is null, not text"),
        ({"prompt": float("nan"), "completion": "a"}, r"column prompt is NaN, not text"),
        (
            {"prompt": ["One.", "Two."], "completion": "a"},
            r"column prompt is a list without messages; give data\.prompt",
        ),
        ({"prompt": [], "completion": "a"}, r"column prompt is an empty list"),
        ({"prompt": "q", "completion": None}, r"column completion is null"),
        ({"prompt": "q", "completion": []}, r"column completion is an empty list"),
        ({"prompt": "q", "completion": ["a", None]}, r"column completion\[1\] is null"),
        ({"prompt": "q", "completion": {"a": 1}}, r"column completion is an object"),
        ({"prompt": "q", "completion": TURNS[:1]}, r"column completion has no assistant's turn"),
        ({"prompt": "q", "completion": "a\ud83d"}, r"column completion has half a surrogate pair at character 1"),
        ({"prompt": "q", "completion": "a", "system": {}}, r"column system is an object"),
        ({"prompt": "q", "completion": "a", "tools": "f()"}, r"column tools is no JSON"),
        (ALPACA | {"history": "q"}, r"column history is text, not a list of \[question, answer\]"),
        (ALPACA | {"history": [["q"]]}, r"column history\[0\] is no \[question, answer\]"),
        (ALPACA | {"history": [["q", None]]}, r"column history\[0\] is null"),
        (ALPACA | {"input": float("nan")}, r"column input is NaN"),
        ({"messages": TURNS[:1]}, r"column messages has no assistant's turn"),
        ({"messages": [*TURNS, 3]}, r"column messages\[2\] is a number, not an object"),
        ({"text": None}, r"column text is null"),
        ({"input_ids": []}, r"column input_ids is an empty list"),
        ({"input_ids": "1 2"}, r"column input_ids is text, not a list of token ids"),
        ({"input_ids": [1, 2.0]}, r"column input_ids\[1\] is a number, not a whole number"),
        ({"input_ids": [1, True]}, r"column input_ids\[1\] is bool"),
        ({"input_ids": [1, -1]}, r"column input_ids holds a negative number"),
        ({"input_ids": [1, 2], "labels": [2]}, r"column labels has 1 numbers, input_ids 2; give one label a token"),
        (
            {"input_ids": [1, 2], "labels": [2, -100]},
            r"column labels\[0\] is 2 where the token is 1; .* not the next one",
        ),
        ({"input_ids": [1, 2], "attention_mask": [1, 0]}, r"column attention_mask\[1\] is not 1; take the padding out"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, r"column rejected is null"),
        (
            {"chosen": "a", "rejected": "b"},
            r"has no prompt before chosen and rejected; its columns are chosen, rejected",
        ),
        ({"chosen": TURNS[:1], "rejected": WORSE}, r"columns chosen and rejected differ before their last turns"),
        ({"chosen": TURNS, "rejected": [*TURNS, *WORSE]}, r"columns chosen and rejected differ before"),
        ({"prompt": "x", "chosen": TURNS, "rejected": WORSE}, r"chosen does not hold that in column prompt"),
        (
            {"prompt": "q", "chosen": TURNS[:1], "rejected": "b"},
            r"column chosen ends with a turn of user, not the assistant's",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_malformed(columns: dict, sentence: str) -> None:
    raw = RawRecord(columns, AT)
    convert = recognise(Format(), raw)
    with pytest.raises(Malformed, match=sentence) as refusal:
        convert.convert(raw)
    assert str(refusal.value).startswith(AT)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("first", "options", "sentence"),
    [
        ({"prompt": "q", "completion": "a"}, {}, "a:2 has no column prompt; its columns are extra"),
        ({"messages": TURNS}, {}, "a:2 has no column messages; its columns are extra"),
        ({"input_ids": [1]}, {}, "a:2 has no column input_ids; its columns are extra"),
        ({"x": "q", "y": "a"}, {"prompt": "{x}", "response": "{y}"}, "a:2 has no column x; its columns are extra"),
        (
            {"extra": "q", "g": "a"},
            {"kind": "text", "response": "{extra}", "group_by": "g"},
            "a:2 has no column g; its",
        ),
    ],
)
def test_a_record_with_other_columns_than_the_first_is_malformed(first: dict, options: dict, sentence: str) -> None:
    convert = recognise(Format(**options), RawRecord(first, "a:1"))
    with pytest.raises(Malformed, match=sentence):
        convert.convert(RawRecord({"extra": "c"}, "a:2"))


def test_a_users_function_makes_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_columns.py").write_text(
        "def ask(columns):\n"
        "    if columns.pop('lang') != 'en':\n"
        "        return None\n"
        "    return {'messages': [{'role': 'user', 'content': columns['q']}, {'role': 'assistant', 'content': 'a'}]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_columns", raising=False)
    english, other = RawRecord({"q": "q", "lang": "en", "doc": 7}, "a:1"), RawRecord({"lang": "de"}, "a:2")
    format = Format(function="my_columns.ask", group_by="doc")
    for first, kind in ((english, "messages"), (other, None)):
        convert = pickle.loads(pickle.dumps(recognise(format, first)))
        assert convert.kind == kind
        assert convert.convert(english) == Record((Q,), (A,), "a:1", group="7")
        assert convert.convert(other) is None
    assert english.columns == {"q": "q", "lang": "en", "doc": 7}
    with pytest.raises(UserError, match=r"a:3: data\.function my_columns\.ask failed with KeyError: 'lang'"):
        convert.convert(RawRecord({}, "a:3"))


@pytest.mark.parametrize(
    ("columns", "options", "line"),
    [
        ({"messages": TURNS, "label": True}, {}, "messages, recognised by its columns messages; not read: label"),
        ({"prompt": "q", "response": "a"}, {"kind": "pairs"}, "pairs, from columns prompt, response"),
        (
            {"x": "q", "y": "a", "z": 1, "n": 1},
            {"prompt": "{x}\n", "response": "{y}", "system": "s", "stratify_by": "z"},
            r"pairs, prompt '{x}\n' and response '{y}' over columns x, y, z, system 's'; not read: n",
        ),
        ({"text": "a"}, {"function": "builtins.dict"}, "text, recognised by its columns text, after builtins.dict"),
    ],
)
def test_a_line_for_the_data_card(columns: dict, options: dict, line: str) -> None:
    assert recognise(Format(**options), RawRecord(columns, AT)).describe() == line


KINDS = ["pairs", "messages", "conversations", "alpaca", "text", "tokens", "preference"]
NAMES = ["prompt", "completion", "messages", "conversations", "instruction", "input", "history", "output", "text"]
NAMES += ["input_ids", "labels", "attention_mask", "chosen", "rejected", "system", "tools"]
LEAVES = st.none() | st.booleans() | st.integers(-100, 3) | st.floats() | st.text(max_size=3)
LEAVES |= st.sampled_from(["user", "assistant", "gpt", "human", "function_call", '{"name": "f"}'])
KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "type", "text", "weight"])
VALUES = st.recursive(
    LEAVES | st.sampled_from([TURNS, WORSE, SHARED]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.sampled_from(KINDS), st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, VALUES)), st.booleans())
def test_any_columns_give_a_record_or_one_sentence_with_its_place(kind: Any, columns: dict, answers: bool) -> None:
    raw = RawRecord(columns, AT)
    said, record = "", None
    try:
        record = recognise(Format(kind=kind), raw, answers).convert(raw, answers)
    except UserError as refusal:
        said = str(refusal)
    assert (AT in said and "\n" not in said) if record is None else record.source == AT
    for message in (*record.context, *record.answers) if record else ():
        assert f"{message.role}{message.content}".encode() is not None
