"""Conversations as they are stored: lists of messages (OpenAI's chat form) and of turns (ShareGPT's).

Both become `Message`s in the form that chat templates read: tool calls and tools as OpenAI writes them, arguments as
objects. A key that holds null counts as missing, also inside tools and tool calls: Arrow and Parquet fill up what a row
does not have, and a record must mean the same in each kind of file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftlab.data.format_strings import kind_of, read_text
from ftlab.data.records import Malformed, Message

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}

_READ = {"role", "content", "from", "value", "tool_calls", "train", "weight"}


def read_messages(value: Any, where: str, source: str) -> tuple[Message, ...]:
    """A whole conversation; each turn may be {role, content} or {from, value}.

    Which turns follow which is left to the chat template: two turns of one role in a row, a system turn that is not the
    first, and roles that nobody knows pass. So do empty contents: `data.clean` has a rule for these.

    Args:
        value: A list of objects.
        where: The column, for messages.
        source: Where the record stands, for messages.

    Raises:
        Malformed: It is no list, is empty, or a turn cannot be read (see `read_message`).
    """
    if not isinstance(value, list):
        raise Malformed(f"{source}: column {where} is {kind_of(value)}, not a list of messages; mend it")
    if not value:
        raise Malformed(f"{source}: column {where} is an empty list; give at least one message or leave the record out")
    return tuple([read_message(item, where, place, source) for place, item in enumerate(value)])


def read_message(item: Any, column: str, place: int | None, source: str) -> Message:
    """One turn.

    {role, content, …}: any role; content is text, null or missing beside tool_calls, or a list of parts of type text,
    which are joined as they stand. `train` (true, false) or OpenAI's `weight` (1, 0) says whether the turn is learned.
    tool_calls are read by `read_tool_calls`; what else there is goes to `fields`.

    {from, value, …}: `from` is one of SHAREGPT_ROLES; the value of a function_call is JSON, {name, arguments} or a list
    of such, and becomes tool_calls.

    Args:
        item: What was found.
        column: Where it was found, for messages.
        place: Its place in the column's list; None where the column holds this one turn.
        source: Where the record stands, for messages.

    Raises:
        Malformed: It is no object, the role is missing, unknown (`from` only) or empty, the content is no text, a part
            is an image or the like, train and weight are neither yes nor no, or tool calls cannot be read.
    """
    if type(item) is dict and len(item) == 2:  # the common turn, at once
        role, content = item.get("role"), item.get("content")
        if type(role) is str and role and type(content) is str and content.isascii() and role.isascii():
            return Message(role, content)
    where = column if place is None else f"{column}[{place}]"
    if not isinstance(item, dict):
        raise Malformed(f"{source}: column {where} is {kind_of(item)}, not an object with role and content; mend it")
    fields = {
        key: _plain(value, f"{where}.{key}", source)
        for key, value in item.items()
        if key not in _READ and value is not None
    }
    calls = item.get("tool_calls")
    if calls is not None and (calls := read_tool_calls(calls, f"{where}.tool_calls", source)):
        fields["tool_calls"] = calls
    train = _train(item, where, source)
    if item.get("role") is None and item.get("from") is not None:
        role, content = _sharegpt(item, where, source, fields)
        return Message(role, content, train, fields)
    role = _role(item, where, source)
    content = item.get("content")
    if content is None and fields.get("tool_calls"):
        return Message(role, "", train, fields)
    return Message(role, _content(content, f"{where}.content", source), train, fields)


def split_conversation(
    messages: tuple[Message, ...], where: str, source: str, answers: bool
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What stands before the answer, and the answer: the last assistant's turn. Turns after it are cut.

    Args:
        messages: All turns.
        where: The column, for messages.
        source: Where the record stands, for messages.
        answers: Whether there must be an answer. Where not, a conversation whose last turn is not the assistant's is
            all context, and there is no answer.

    Raises:
        Malformed: There is no assistant's turn, or nothing stands before it.
    """
    if not answers and messages[-1].role != "assistant":
        return messages, ()
    for last in range(len(messages) - 1, -1, -1):
        if messages[last].role == "assistant":
            break
    else:
        raise Malformed(
            f"{source}: column {where} has no assistant's turn, so there is nothing to learn; its roles are "
            f"{', '.join(message.role for message in messages)}: add the answer or leave the record out"
        )
    if last == 0:
        raise Malformed(
            f"{source}: column {where} has no turn before its last assistant's, so nothing is asked; add one or leave "
            "the record out"
        )
    return messages[:last], (messages[last],)


def read_tools(value: Any, where: str, source: str) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of functions, from a list of objects or its JSON; none where it is null or empty.

    A bare {name, description, parameters} is set into {"type": "function", "function": …}, the one form that chat
    templates know.

    Raises:
        Malformed: It is no such list, or no JSON of one.
    """
    if value is None or value == "":
        return ()
    tools = _json(value, where, source) if isinstance(value, str) else _plain(value, where, source)
    return tuple(_function(tool, f"{where}[{place}]", source) for place, tool in enumerate(_list(tools, where, source)))


def read_tool_calls(value: Any, where: str, source: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, {"type": "function", "function": {name, arguments}}, also from bare {name, arguments}.

    OpenAI writes the arguments as a JSON string; templates write them with `tojson`, which would quote the string a
    second time, so a string that holds an object becomes this object. Any other is left as it is.

    Raises:
        Malformed: It is no list of such objects, nor JSON of one.
    """
    calls = _json(value, where, source) if isinstance(value, str) else _plain(value, where, source)
    return _calls(calls, where, source)


def _calls(calls: Any, where: str, source: str) -> list[dict[str, Any]]:
    """As `read_tool_calls`, of what is plain already."""
    read = []
    for place, call in enumerate(_list(calls, where, source)):
        call = dict(_function(call, f"{where}[{place}]", source))
        function = call["function"] = dict(call["function"])
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except (ValueError, RecursionError):
                parsed = None
            if isinstance(parsed, dict):
                function["arguments"] = _plain(parsed, f"{where}[{place}].function.arguments", source, nulls=True)
        read.append(call)
    return read


def _sharegpt(item: dict[str, Any], where: str, source: str, fields: dict[str, Any]) -> tuple[str, str]:
    """Role and content of a {from, value}; a function call goes into `fields`."""
    speaker = item["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise Malformed(
            f"{source}: column {where}.from is {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}: rename it, or write "
            "role and content, where any role may stand"
        )
    if speaker != "function_call":
        return SHAREGPT_ROLES[speaker], _content(item.get("value"), f"{where}.value", source)
    text = read_text(item.get("value"), f"{where}.value", source)
    calls = _json(text, f"{where}.value", source)
    fields["tool_calls"] = _calls(calls if isinstance(calls, list) else [calls], f"{where}.value", source)
    return "assistant", ""


def _role(item: dict[str, Any], where: str, source: str) -> str:
    role = item.get("role")
    if role is None:
        raise Malformed(
            f"{source}: column {where} has no role; its keys are {', '.join(map(str, item)) or 'none'}: write role and "
            "content, or from and value"
        )
    if not isinstance(role, str) or not role:
        raise Malformed(f"{source}: column {where}.role is {role!r}; name who speaks, as user or assistant")
    return read_text(role, f"{where}.role", source)


def _content(content: Any, where: str, source: str) -> str:
    if isinstance(content, str):
        return read_text(content, where, source)
    if not isinstance(content, list):
        advice = "; null may stand only beside tool_calls" if content is None else ""
        raise Malformed(f"{source}: column {where} is {kind_of(content)}, not text{advice}; mend it")
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = f"a part of type {part.get('type')!r}" if isinstance(part, dict) else kind_of(part)
            raise Malformed(
                f"{source}: column {where}[{place}] is {kind}; only parts of type text can be read: take it out, or "
                "leave the record out"
            )
        texts.append(read_text(part.get("text"), f"{where}[{place}].text", source))
    return "".join(texts)


def _train(item: dict[str, Any], where: str, source: str) -> bool | None:
    train, weight = item.get("train"), item.get("weight")
    if train is None and weight is None:
        return None
    if train is not None and not isinstance(train, bool):
        raise Malformed(f"{source}: column {where}.train is {train!r}; write true or false")
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        raise Malformed(f"{source}: column {where}.weight is {weight!r}; write 0 or 1")
    if train is not None and weight is not None and train != bool(weight):
        raise Malformed(f"{source}: column {where} has train {train} and weight {weight!r}; leave one out")
    return bool(weight) if train is None else train


def _function(value: Any, where: str, source: str) -> Mapping[str, Any]:
    """A tool or a call: {"type": "function", "function": {name, …}}, whether it was written so or bare."""
    if isinstance(value, dict) and "function" not in value and isinstance(value.get("name"), str):
        return {"type": "function", "function": value}
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Malformed(
            f'{source}: column {where} names no function; write {{"type": "function", "function": {{"name": …}}}}'
        )
    return value


def _list(value: Any, where: str, source: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{source}: column {where} is {kind_of(value)}, not a list of objects; mend it")
    return value


def _json(text: str, where: str, source: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{source}: column {where} is no JSON ({error}); mend it") from error
    return _plain(value, where, source, nulls=True)


def _plain(value: Any, where: str, source: str, *, nulls: bool = False) -> Any:
    """A copy that a chat template can write: every text can be encoded, no number is NaN.

    Args:
        nulls: Whether keys that hold null are kept: what stands as JSON text is meant as it stands, what Arrow filled
            up is not.
    """
    if isinstance(value, dict):
        return {
            read_text(key, where, source): _plain(inner, f"{where}.{key}", source, nulls=nulls)
            for key, inner in value.items()
            if nulls or inner is not None
        }
    if isinstance(value, list):
        return [_plain(inner, f"{where}[{place}]", source, nulls=nulls) for place, inner in enumerate(value)]
    if isinstance(value, str) or value != value:
        return read_text(value, where, source)
    return value
