"""What a record is: as it was found (columns and a place), and as it is understood (what is asked and answered).

Everything in `ftlab.data` passes these on: `sources` reads RawRecord, `formats` turns them into Record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from ftlab.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Malformed(UserError):  # noqa: N818  # it is the record that is malformed
    """One record that cannot be used; the sentence names where it stands. `data.clean.malformed` says what follows."""


@dataclass(frozen=True)
class RawRecord:
    """One row as it was found.

    Args:
        columns: The row's values by column name.
        source: Where it stands: `dev.jsonl:17` by line, `demo.json#17` by place in a list or table.
    """

    columns: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: system, user, assistant, tool, or any other that the chat template knows; "text" where there is no
            conversation but running text.
        content: What is said.
        train: Whether this turn is learned; None leaves it to `data.learn`.
        fields: What else the chat template reads, such as tool_calls, name, tool_call_id.
    """

    role: str
    content: str
    train: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One thing to ask and the answers that would be right.

    A pair is one user's message and its answers; a conversation has all turns before the last assistant's as its
    context; running text has no context and one answer of role "text"; a pre-tokenised row has neither, but tokens.

    Args:
        context: The turns before the answer.
        answers: Right last turns; each is trained on, and scores know them all. None where there is only to answer.
        source: Where the (first) raw record stands, for messages.
        tools: Descriptions of the functions that may be called, for the chat template.
        rejected: A worse answer, of a preference pair; None for all else.
        tokens: Of a pre-tokenised row.
        labels: The row's own labels (-100 or the token itself, not shifted); None learns every token.
        group: Value of the column by which records stay together in a split; None where there is none.
        stratum: Value of the column over whose values the splits are spread evenly; None where there is none.
    """

    context: tuple[Message, ...]
    answers: tuple[Message, ...]
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()
    rejected: Message | None = None
    tokens: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    group: str | None = None
    stratum: str | None = None

    @property
    def prompt(self) -> str:
        """What is asked, as text: a lone user's message as it stands, a conversation with its roles."""
        if len(self.context) == 1 and self.context[0].role == "user":
            return self.context[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in self.context)

    @property
    def references(self) -> tuple[str, ...]:
        """The answers as text."""
        return tuple(answer.content for answer in self.answers)


def pair(prompt: str, references: tuple[str, ...], source: str) -> Record:
    """A record of one question and its answers."""
    return Record((Message("user", prompt),), tuple(Message("assistant", text) for text in references), source)


@dataclass(frozen=True)
class Group:
    """Records that ask the same, as one with all their answers.

    Args:
        record: The first of them, with every answer that any of them has, each once.
        numbers: The numbers of all.
    """

    record: Record
    numbers: tuple[int, ...]


def group_by_prompt(records: Iterable[tuple[int, Record]]) -> list[Group]:
    """Merges numbered records that ask the same, in the order of first appearance; those that ask nothing are left
    out."""
    asked: dict[str, list[tuple[int, Record]]] = {}
    for number, record in records:
        if record.context:
            turns = [(message.role, message.content, dict(message.fields)) for message in record.context]
            asked.setdefault(json.dumps([turns, record.tools], default=str), []).append((number, record))
    groups = []
    for members in asked.values():
        answers = {(a.content, str(a.fields)): a for _, record in members for a in record.answers}
        merged = replace(members[0][1], answers=tuple(answers.values()))
        groups.append(Group(merged, tuple(number for number, _ in members)))
    return groups
