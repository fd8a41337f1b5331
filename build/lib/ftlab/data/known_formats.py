"""The formats that are known by their columns, a function for each: from a record's columns to a `Record`.

A column `system` or `tools` beside them is read by `formats`, which knows all these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ftlab.data.conversations import read_message, read_messages, split_conversation
from ftlab.data.format_strings import kind_of, named, read_column, read_text, read_texts
from ftlab.data.records import Malformed, Message, Record

FoundKind = Literal["pairs", "messages", "conversations", "alpaca", "text", "tokens", "preference"]


@dataclass(frozen=True)
class Known:
    """A known format.

    Args:
        read: From columns, where the record stands, and whether it needs answers, to the record; raises Malformed.
        asks: Columns without which nothing is asked, each with the names that will do for it.
        answers: The same for those without which nothing is answered.
        more: Other columns that are read where they are there.
    """

    read: Callable[[dict[str, Any], str, bool], Record]
    asks: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, ...], ...] = ()
    more: tuple[str, ...] = ()


def _conversation(column: str, columns: dict[str, Any], source: str, answers: bool) -> Record:
    """All turns up to the last assistant's, and this one. A label of KTO beside them is not read."""
    messages = read_messages(read_column(columns, column, source), column, source)
    return Record(*split_conversation(messages, column, source, answers), source)


def _pairs(columns: dict[str, Any], source: str, answers: bool) -> Record:
    """Prompt and completion or response. Several messages as completion go on with the prompt's conversation."""
    context = _asked(columns, "prompt", source)
    given = [name for name in ("completion", "response") if name in columns]
    if len(given) == 2:
        raise Malformed(f"{source} has both completion and response; leave one out")
    if not given:
        if answers:
            raise Malformed(
                f"{source} has neither column completion nor response; its columns are {named(columns)}: add one"
            )
        return Record(context, (), source)
    name, value = given[0], columns[given[0]]
    if type(value) is list and value and isinstance(value[0], dict):
        turns = read_messages(value, name, source)
        if not any(turn.role == "assistant" for turn in turns):
            raise Malformed(f"{source}: column {name} has no assistant's turn, so there is nothing to learn; add one")
        return Record(*split_conversation(context + turns, name, source, answers), source)
    return Record(context, _answers(value, name, source, answers), source)


def _alpaca(columns: dict[str, Any], source: str, answers: bool) -> Record:
    """Earlier turns (LLaMA-Factory's history of [question, answer]), then instruction and input, then output."""
    context = _instructed(columns, source)
    output = columns.get("output") if not answers else read_column(columns, "output", source)
    return Record(context, _answers(output, "output", source, answers), source)


def _text(columns: dict[str, Any], source: str, answers: bool) -> Record:
    text = read_text(read_column(columns, "text", source), "text", source)
    return Record((), (Message("text", text),), source)


def _tokens(columns: dict[str, Any], source: str, answers: bool) -> Record:
    """A row that was tokenised before."""
    tokens = _integers(columns, "input_ids", source)
    if not tokens or min(tokens) < 0:
        fault = "holds a negative number" if tokens else "is an empty list"
        raise Malformed(f"{source}: column input_ids {fault}; mend it or leave the record out")
    if columns.get("attention_mask") is not None and set(mask := _integers(columns, "attention_mask", source)) != {1}:
        place = next((place for place, bit in enumerate(mask) if bit != 1), 0)
        raise Malformed(
            f"{source}: column attention_mask[{place}] is not 1; take the padding out, ftlab pads by itself"
        )
    if columns.get("labels") is None:
        return Record((), (), source, tokens=tokens)
    labels = _integers(columns, "labels", source)
    if len(labels) != len(tokens):
        raise Malformed(
            f"{source}: column labels has {len(labels)} numbers, input_ids {len(tokens)}; give one label a token"
        )
    for place, (label, token) in enumerate(zip(labels, tokens, strict=True)):
        if label not in (token, -100):
            raise Malformed(
                f"{source}: column labels[{place}] is {label} where the token is {token}; a label is the token itself, "
                "not the next one, or -100"
            )
    return Record((), (), source, tokens=tokens, labels=labels)


def _preference(columns: dict[str, Any], source: str, answers: bool) -> Record:
    """A better and a worse answer: texts, turns, or two conversations that differ in their last turn."""
    context: tuple[Message, ...] = ()
    before = next((name for name in ("prompt", "messages", "conversations", "instruction") if name in columns), None)
    if before == "instruction":
        context = _instructed(columns, source)
    elif before is not None:
        context = _asked(columns, before, source)
    if not answers and is_absent(columns.get("chosen")):
        return Record(context, (), source)
    chosen, rejected = _turns(columns, "chosen", source), _turns(columns, "rejected", source)
    if len(chosen) > 1 or len(rejected) > 1:
        if chosen[:-1] != rejected[:-1]:
            raise Malformed(f"{source}: columns chosen and rejected differ before their last turns; mend one")
        if any(message not in chosen for message in context):
            raise Malformed(
                f"{source}: the conversation in column chosen does not hold that in column {before}; mend one, or keep "
                "the last turns alone in chosen and rejected"
            )
        context = chosen[:-1]
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1].role != "assistant":
            raise Malformed(
                f"{source}: column {name} ends with a turn of {turns[-1].role}, not the assistant's; mend it"
            )
    if not context:
        raise Malformed(
            f"{source} has no prompt before chosen and rejected; its columns are {named(columns)}: add prompt, or give "
            "both as conversations"
        )
    return Record(context, (chosen[-1],), source, rejected=rejected[-1])


def _asked(columns: dict[str, Any], name: str, source: str) -> tuple[Message, ...]:
    """The turns of a column that holds a user's text or messages."""
    value = read_column(columns, name, source)
    if type(value) is not list:
        return (Message("user", read_text(value, name, source)),)
    if value and not isinstance(value[0], dict):
        raise Malformed(
            f"{source}: column {name} is a list without messages; give data.prompt and data.response, "
            "which join a list line by line"
        )
    return read_messages(value, name, source)


def _instructed(columns: dict[str, Any], source: str) -> tuple[Message, ...]:
    """Instruction, blank line, input; where input is empty the instruction alone (Taori et al. 2023)."""
    text = read_text(read_column(columns, "instruction", source), "instruction", source)
    if columns.get("input"):
        text += "\n\n" + read_text(columns["input"], "input", source)
    history = columns.get("history")
    if not history:
        return (Message("user", text),)
    if not isinstance(history, list):
        raise Malformed(f"{source}: column history is {kind_of(history)}, not a list of [question, answer]; mend it")
    turns = []
    for place, turn in enumerate(history):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Malformed(f"{source}: column history[{place}] is no [question, answer]; mend it")
        for role, said in zip(("user", "assistant"), turn, strict=True):
            turns.append(Message(role, read_text(said, f"history[{place}]", source)))
    return (*turns, Message("user", text))


def _answers(value: Any, name: str, source: str, answers: bool) -> tuple[Message, ...]:
    """One right answer, or several from a list."""
    if type(value) is str:
        return (Message("assistant", read_text(value, name, source)),)
    if not answers and is_absent(value):
        return ()
    if isinstance(value, list):
        return tuple([Message("assistant", text) for text in read_texts(value, name, source)])
    return (Message("assistant", read_text(value, name, source)),)


def _turns(columns: dict[str, Any], name: str, source: str) -> tuple[Message, ...]:
    """An answer that is a text, a turn, or a conversation."""
    value = read_column(columns, name, source)
    if isinstance(value, list):
        return read_messages(value, name, source)
    if isinstance(value, dict):
        return (read_message(value, name, None, source),)
    return (Message("assistant", read_text(value, name, source)),)


def _integers(columns: dict[str, Any], name: str, source: str) -> tuple[int, ...]:
    value = read_column(columns, name, source)
    if not isinstance(value, list | tuple):
        raise Malformed(f"{source}: column {name} is {kind_of(value)}, not a list of token ids; mend it")
    for place, number in enumerate(value):
        if type(number) is not int:
            raise Malformed(f"{source}: column {name}[{place}] is {kind_of(number)}, not a whole number; mend it")
    return tuple(value)


def is_absent(value: Any) -> bool:
    """Whether there is no answer: the column is missing, null, NaN (an empty cell of a table) or an empty list."""
    return value is None or value == [] or value != value


_MORE = ("system", "tools")

KNOWN: dict[FoundKind, Known] = {
    "pairs": Known(_pairs, (("prompt",),), (("completion", "response"),), _MORE),
    "messages": Known(partial(_conversation, "messages"), (("messages",),), more=_MORE),
    "conversations": Known(partial(_conversation, "conversations"), (("conversations",),), more=_MORE),
    "alpaca": Known(_alpaca, (("instruction",),), (("output",),), ("input", "history", *_MORE)),
    "text": Known(_text, (("text",),)),
    "tokens": Known(_tokens, (("input_ids",),), more=("labels", "attention_mask")),
    "preference": Known(
        _preference,
        (),
        (("chosen",), ("rejected",)),
        ("prompt", "messages", "conversations", "instruction", "input", "history", *_MORE),
    ),
}
