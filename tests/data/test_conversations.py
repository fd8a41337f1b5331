"""Messages and turns: what they become, which of them is the answer, and what is refused."""

import json
from typing import Any

import jinja2
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.conversations import (
    SHAREGPT_ROLES,
    read_message,
    read_messages,
    read_tool_calls,
    read_tools,
    split_conversation,
)
from ftlab.data.records import Malformed, Message

USER, ANSWER = Message("user", "q"), Message("assistant", "a")
SUM = {"name": "sum", "arguments": {"of": [1, 2]}}
CALL = {"type": "function", "function": SUM}


def _read(item: Any) -> Message:
    return read_message(item, "messages", 2, "dev.jsonl:17")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user", "content": "é"}, Message("user", "é")),
        ({"role": "user", "content": ""}, Message("user", "")),
        ({"role": "developer", "content": "q"}, Message("developer", "q")),
        ({"role": "narrator", "content": "q"}, Message("narrator", "q")),
        (
            {"role": "user", "content": "q", "name": "Ann", "tool_calls": None},
            Message("user", "q", None, {"name": "Ann"}),
        ),
        ({"role": "tool", "content": "3", "tool_call_id": "x"}, Message("tool", "3", None, {"tool_call_id": "x"})),
        ({"role": "assistant", "content": "a", "train": False}, Message("assistant", "a", False)),
        ({"role": "assistant", "content": "a", "train": None}, Message("assistant", "a")),
        ({"role": "assistant", "content": "a", "weight": 0}, Message("assistant", "a", False)),
        ({"role": "assistant", "content": "a", "weight": 1.0}, Message("assistant", "a", True)),
        ({"role": "assistant", "content": "a", "weight": 1, "train": True}, Message("assistant", "a", True)),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            Message("assistant", "", None, {"tool_calls": [CALL]}),
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, Message("assistant", "", None, {"tool_calls": [CALL]})),
        ({"role": "assistant", "content": "a", "tool_calls": []}, Message("assistant", "a")),
        (
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            Message("user", "one two"),
        ),
        (
            {"role": "user", "content": "q", "seen": {"a": None, "b": [None, 1]}},
            Message("user", "q", None, {"seen": {"b": [None, 1]}}),
        ),
    ],
)
def test_a_message_in_openai_form(item: dict, message: Message) -> None:
    assert _read(item) == message


@pytest.mark.parametrize("speaker", SHAREGPT_ROLES)
def test_a_turn_of_sharegpt(speaker: str) -> None:
    expected = {"human": "user", "user": "user", "system": "system"}
    expected |= dict.fromkeys(["tool", "observation", "function_response"], "tool")
    if speaker != "function_call":
        assert _read({"from": speaker, "value": "x"}) == Message(expected.get(speaker, "assistant"), "x")


@pytest.mark.parametrize(
    "value", [json.dumps(SUM), json.dumps([SUM]), json.dumps({"name": "sum", "arguments": '{"of": [1, 2]}'})]
)
def test_a_function_call_of_sharegpt(value: str) -> None:
    item = {"from": "function_call", "value": value, "weight": 1}
    assert _read(item) == Message("assistant", "", True, {"tool_calls": [CALL]})


@pytest.mark.parametrize("arguments", [{"x": None}, '{"x": null}'])
def test_nulls_in_a_function_call_of_sharegpt_are_meant(arguments: dict | str) -> None:
    value = json.dumps({"name": "sum", "arguments": arguments})
    (call,) = _read({"from": "function_call", "value": value}).fields["tool_calls"]
    assert call["function"] == {"name": "sum", "arguments": {"x": None}}
    assert _read({"role": "assistant", "tool_calls": f"[{value}]"}).fields["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("hello", r"column messages\[2\] is text, not an object with role and content"),
        (None, r"column messages\[2\] is null, not an object"),
        ({}, r"column messages\[2\] has no role; its keys are none"),
        ({"content": "a"}, r"messages\[2\] has no role; its keys are content"),
        ({"role": "", "content": "a"}, r"messages\[2\]\.role is ''; name who speaks"),
        ({"role": 3, "content": "a"}, r"messages\[2\]\.role is 3"),
        ({"role": "user"}, r"messages\[2\]\.content is null, not text; null may stand only beside tool_calls"),
        ({"role": "user", "content": None}, r"messages\[2\]\.content is null"),
        ({"role": "assistant", "content": None, "tool_calls": []}, r"messages\[2\]\.content is null"),
        ({"role": "user", "content": float("nan")}, r"messages\[2\]\.content is NaN, not text"),
        ({"role": "user", "content": 3}, r"messages\[2\]\.content is a number, not text"),
        ({"role": "user", "content": {"a": 1}}, r"messages\[2\]\.content is an object"),
        ({"role": "user", "content": "\ud83d"}, r"messages\[2\]\.content has half a surrogate pair"),
        ({"role": "us\ud83d", "content": "a"}, r"messages\[2\]\.role has half a surrogate pair"),
        ({"role": "user", "content": "a", "name": "\ud83d"}, r"messages\[2\]\.name has half a surrogate pair"),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            r"content\[0\] is a part of type 'image_url'; only .* text",
        ),
        ({"role": "user", "content": ["a"]}, r"content\[0\] is text; only parts"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, r"content\[0\]\.text is null"),
        ({"role": "user", "content": "a", "train": "no"}, r"messages\[2\]\.train is 'no'; write true or false"),
        ({"role": "user", "content": "a", "weight": 0.5}, r"messages\[2\]\.weight is 0\.5; write 0 or 1"),
        ({"role": "user", "content": "a", "weight": 0, "train": True}, r"has train True and weight 0; leave one out"),
        ({"role": "assistant", "tool_calls": "[{"}, r"tool_calls is no JSON \(.*\); mend it"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, r"tool_calls is an object, not a list of objects"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, r"tool_calls\[0\] names no function; write"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": float("nan")}}]},
            r"arguments\.a is NaN",
        ),
        ({"from": "robot", "value": "a"}, r"messages\[2\]\.from is 'robot'; known are human, user, gpt"),
        ({"from": ["gpt"], "value": "a"}, r"messages\[2\]\.from is \['gpt'\]"),
        ({"from": "gpt", "value": None}, r"messages\[2\]\.value is null"),
        ({"from": "gpt"}, r"messages\[2\]\.value is null"),
        ({"from": "function_call", "value": "sum(1)"}, r"messages\[2\]\.value is no JSON"),
        ({"from": "function_call", "value": "[" * 100_000}, r"messages\[2\]\.value is no JSON"),
        ({"from": "function_call", "value": "3"}, r"messages\[2\]\.value\[0\] names no function"),
    ],
)
def test_a_turn_that_cannot_be_read_is_malformed(item: Any, sentence: str) -> None:
    with pytest.raises(Malformed, match=sentence) as refusal:
        _read(item)
    assert str(refusal.value).startswith("dev.jsonl:17: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("value", "kind"), [([], "an empty list"), (None, "null"), ("[]", "text"), ({}, "an object")])
def test_what_is_no_conversation_is_malformed(value: Any, kind: str) -> None:
    with pytest.raises(Malformed, match=rf"a:1: column messages is {kind}"):
        read_messages(value, "messages", "a:1")


@pytest.mark.parametrize(
    ("roles", "answer"),
    [
        (["user", "assistant"], 1),
        (["system", "user", "assistant", "user", "assistant"], 4),
        (["user", "assistant", "user"], 1),  # what nobody answered is cut
        (["user", "assistant", "tool", "user"], 1),
        (["user", "user", "assistant"], 2),
        (["user", "assistant", "assistant"], 2),
        (["assistant", "user", "assistant"], 2),
        (["user", "system", "assistant"], 2),
        (["system", "assistant"], 1),
    ],
)
def test_the_last_assistants_turn_is_the_answer(roles: list[str], answer: int) -> None:
    messages = tuple(Message(role, str(place)) for place, role in enumerate(roles))
    assert split_conversation(messages, "messages", "a:1", True) == (messages[:answer], (messages[answer],))
    to_answer = (messages[:answer], (messages[answer],)) if roles[-1] == "assistant" else (messages, ())
    assert split_conversation(messages, "messages", "a:1", False) == to_answer


def test_without_an_assistants_turn_or_a_question_there_is_nothing_to_learn() -> None:
    with pytest.raises(Malformed, match=r"a:1: column messages has no assistant's turn.*its roles are user, tool"):
        split_conversation((USER, Message("tool", "3")), "messages", "a:1", True)
    for answers in (True, False):
        with pytest.raises(Malformed, match="a:1: column messages has no turn before its last assistant's"):
            split_conversation((ANSWER,), "messages", "a:1", answers)


@pytest.mark.parametrize(
    "value",
    [
        [{"type": "function", "function": {"name": "sum", "description": "Adds."}}],
        [{"name": "sum", "description": "Adds."}],
        '[{"name": "sum", "description": "Adds."}]',
        [{"name": "sum", "description": "Adds.", "parameters": None}],  # as Arrow fills it up
    ],
)
def test_tools_have_one_form(value: Any) -> None:
    assert read_tools(value, "tools", "a:1") == (
        {"type": "function", "function": {"name": "sum", "description": "Adds."}},
    )


@pytest.mark.parametrize("value", [None, "", [], "[]"])
def test_no_tools(value: Any) -> None:
    assert read_tools(value, "tools", "a:1") == ()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("sum", r"a:1: column tools is no JSON"),
        ("{}", r"a:1: column tools is an object, not a list"),
        ([None], r"a:1: column tools\[0\] names no function"),
        ([{"type": "function", "function": {}}], r"a:1: column tools\[0\] names no function"),
    ],
)
def test_what_are_no_tools_is_malformed(value: Any, sentence: str) -> None:
    with pytest.raises(Malformed, match=sentence):
        read_tools(value, "tools", "a:1")


def test_a_template_writes_arguments_as_json_however_they_were_stored() -> None:
    template = jinja2.Template("{{ calls[0].function.arguments | tojson }}")
    stored: dict = {"type": "function", "function": {"name": "sum", "arguments": '{"of": [1, 2], "as": null}'}}
    assert template.render(calls=read_tool_calls([stored], "c", "a:1")) == '{"as": null, "of": [1, 2]}'
    stored = {"type": "function", "function": {"name": "sum", "arguments": "no object"}}
    assert read_tool_calls([stored], "c", "a:1") == [stored]


def test_arrow_gives_the_same_messages_as_json() -> None:
    rows: list[dict] = [
        {"messages": [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [{"role": "tool", "content": "3"}, {"role": "assistant", "content": "a", "train": False}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}]},
    ]
    for row, filled in zip(rows, pa.Table.from_pylist(rows).to_pylist(), strict=True):
        assert read_messages(filled["messages"], "m", "a:1") == read_messages(row["messages"], "m", "a:1")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
JSON = st.recursive(
    TEXTS | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=4
)
CALLS = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    TEXTS,
    st.dictionaries(TEXTS, JSON, max_size=2),
)
MESSAGES = st.fixed_dictionaries(
    {"role": TEXTS.filter(bool), "content": TEXTS},
    optional={
        "train": st.booleans(),
        "name": TEXTS,
        "tool_calls": st.lists(CALLS, min_size=1, max_size=2),
        "tool_call_id": TEXTS,
        "reasoning_content": TEXTS,
    },
)


@settings(max_examples=100)
@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_messages_come_back_as_they_went_in(messages: list[dict]) -> None:
    read = read_messages(messages, "messages", "a:1")
    back = [
        {"role": message.role, "content": message.content, **message.fields}
        | ({} if message.train is None else {"train": message.train})
        for message in read
    ]
    assert back == messages
