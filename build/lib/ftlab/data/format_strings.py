"""Format strings over the columns of a record, as `"Summarise:\\n{dialogue}"`, and how a column is read as text.

A field is the name of a column and nothing else, so no string of a YAML file can reach into objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

from ftlab.data.records import Malformed
from ftlab.errors import UserError

_KINDS = {list: "a list", dict: "an object", type(None): "null", str: "text", int: "a number", float: "a number"}


@dataclass(frozen=True)
class FormatString:
    """A parsed format string; `parse_format_string` makes it.

    Args:
        pieces: Literal text and the column that follows it (None after the last), in order.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once, in order of appearance."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column))

    def fill(self, columns: Mapping[str, Any], source: str) -> str:
        """One text. A column that holds a list of texts (sentences, facts) is set one element a line.

        Raises:
            Malformed: A column is missing, holds no text or number, or is an empty list.
        """
        parts = []
        for literal, column in self.pieces:
            parts.append(literal)
            if column:
                value = read_column(columns, column, source)
                if isinstance(value, list):
                    parts.append("\n".join(read_texts(value, column, source)))
                else:
                    parts.append(read_text(value, column, source))
        return "".join(parts)

    def fill_each(self, columns: Mapping[str, Any], source: str) -> tuple[str, ...]:
        """As many texts as the one column that holds a list has elements; one text where none does.

        Raises:
            Malformed: As `fill`; two columns hold lists.
        """
        lists = [column for column in self.columns if isinstance(columns.get(column), list)]
        if not lists:
            return (self.fill(columns, source),)
        if len(lists) > 1:
            raise Malformed(
                f"{source}: columns {' and '.join(lists)} both hold lists; data.response may name one list only"
            )
        name = lists[0]
        texts = read_texts(columns[name], name, source)
        return tuple(self.fill({**columns, name: text}, source) for text in texts)


def parse_format_string(text: str, option: str, *, constant: bool = False) -> FormatString:
    """Reads a format string; {{ and }} are literal braces.

    Args:
        text: As the user wrote it.
        option: The key it was given under, for messages.
        constant: Whether it may name no column at all.

    Raises:
        UserError: It is no format string, a field is more than a column's name, or no column is named.
    """
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"{option}: {text!r} is no format string ({error}); write literal braces as {{{{ and }}}}"
        ) from error
    for _, column, specification, conversion in fields:
        if column is not None and (not column or specification or conversion):
            raise UserError(
                f"{option}: {text!r} may hold plain {{column}} fields only; drop what stands beside the name"
            )
    if not constant and not any(column for _, column, _, _ in fields):
        raise UserError(f"{option}: {text!r} names no column; write at least one as {{column}}")
    return FormatString(tuple((literal, column) for literal, column, _, _ in fields))


def read_column(columns: Mapping[str, Any], name: str, source: str) -> Any:
    """The value of a column.

    Raises:
        Malformed: There is none; the sentence names those that there are.
    """
    try:
        return columns[name]
    except KeyError:
        raise Malformed(f"{source} has no column {name}; its columns are {named(columns)}") from None


def read_text(value: Any, where: str, source: str) -> str:
    """A text as it stands; a number or truth value as Python writes it.

    Args:
        value: What was found.
        where: The column, or the path inside it, as `messages[2].content`; for messages.
        source: Where the record stands; for messages.

    Raises:
        Malformed: It is null, NaN, a list, an object, or has half a surrogate pair.
    """
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, bool | int | float) and value == value:  # NaN is how tables write that nothing is there
        return str(value)
    if not isinstance(value, str):
        raise Malformed(f"{source}: column {where} is {kind_of(value)}, not text; mend it or name another column")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed(
            f"{source}: column {where} has half a surrogate pair at character {error.start}, which no tokenizer "
            "reads; mend it"
        ) from error
    return value


def read_texts(values: list[Any], where: str, source: str) -> list[str]:
    """The texts of a list.

    Raises:
        Malformed: The list is empty, or an element is no text.
    """
    if not values:
        raise Malformed(f"{source}: column {where} is an empty list; give at least one text or leave the record out")
    return [read_text(value, f"{where}[{place}]", source) for place, value in enumerate(values)]


def kind_of(value: Any) -> str:
    """What a value is, in a reader's words: a list, an object, null, NaN, a number, text, or the type's name."""
    if isinstance(value, float) and value != value:
        return "NaN"
    return _KINDS.get(type(value), type(value).__name__)


def named(columns: Iterable[Any]) -> str:
    """Columns as a message lists them."""
    return ", ".join(map(str, columns)) or "none"
