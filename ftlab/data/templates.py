"""From raw columns to what is asked and what should be answered: prompt and references, by format strings or by
columns that are recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any

from ftlab.data.records import RawRecord
from ftlab.errors import UserError


@dataclass(frozen=True)
class Record:
    """One thing to ask and the answers that would be right.

    Args:
        prompt: What the network is given.
        references: Answers; each is trained on, and scores know them all. None where there is only to answer.
        source: Where the (first) raw record stands, for messages.
    """

    prompt: str
    references: tuple[str, ...]
    source: str


def build_records(raw: Iterable[RawRecord], prompt: str | None = None, response: str | None = None) -> list[Record]:
    """Turns raw records into records, one for one.

    Args:
        raw: What `records` read.
        prompt: Format string over the columns, as `"Summarise:\\n{dialogue}"`; {{ and }} are literal braces.
        response: The same for the answer. Where its column holds a list, each element is a reference.

    Without both strings the columns are recognised: prompt and completion or response; instruction, input (may be
    missing) and output.

    Raises:
        UserError: Only one string was given, a string is not a plain format, a column is missing or holds no text,
            or no wording is known for the columns.
    """
    raw = list(raw)
    if prompt is not None and response is not None:
        ask, answer = _parse(prompt, "data.prompt"), _parse(response, "data.response")
        return [Record(_one(ask, row), _several(answer, row), row.source) for row in raw]
    if prompt is not None or response is not None:
        missing = "data.response" if response is None else "data.prompt"
        raise UserError(f"{missing} is missing: give both data.prompt and data.response, or neither")
    if not raw:
        return []
    recognised = _recognise(raw[0])
    return [recognised(row) for row in raw]


def build_prompts(raw: Iterable[RawRecord], prompt: str | None = None, response: str | None = None) -> list[Record]:
    """Records to be answered: as `build_records`, but where the first has no response, none needs one.

    Raises:
        UserError: As `build_records`.
    """
    raw = list(raw)
    columns = set(raw[0].columns) if raw else set()
    if prompt is not None and response is not None:
        answers = {piece.column for piece in _parse(response, "data.response") if piece.column}
        if not answers <= columns:
            ask = _parse(prompt, "data.prompt")
            return [Record(_one(ask, row), (), row.source) for row in raw]
    elif prompt is None and response is None and not columns & {"completion", "response", "output"}:
        if "prompt" in columns:
            return [Record(_one([_Piece("", "prompt")], row), (), row.source) for row in raw]
        if "instruction" in columns:
            return [Record(_alpaca_prompt(row), (), row.source) for row in raw]
    return build_records(raw, prompt, response)


def group_by_prompt(records: Iterable[Record]) -> list[Record]:
    """Merges records that ask the same into one with all their references.

    The order is that of first appearance; a reference that is there already is not repeated.
    """
    references: dict[str, dict[str, None]] = {}
    sources: dict[str, str] = {}
    for record in records:
        references.setdefault(record.prompt, {}).update(dict.fromkeys(record.references))
        sources.setdefault(record.prompt, record.source)
    return [Record(prompt, tuple(answers), sources[prompt]) for prompt, answers in references.items()]


@dataclass(frozen=True)
class _Piece:
    """Literal text and the column that follows it (None after the last)."""

    literal: str
    column: str | None


def _parse(template: str, option: str) -> list[_Piece]:
    """Reads a format string; a field is the name of a column and nothing else, so none can reach into objects."""
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"{option}: {template!r} is no format string ({error}); write literal braces as {{{{ and }}}}"
        ) from error
    for _, column, specification, conversion in fields:
        if column is not None and (not column or specification or conversion):
            raise UserError(
                f"{option}: {template!r} may hold plain {{column}} fields only; drop what stands beside the name"
            )
    pieces = [_Piece(literal, column) for literal, column, _, _ in fields]
    if not any(piece.column for piece in pieces):
        raise UserError(f"{option}: {template!r} names no column; write at least one as {{column}}")
    return pieces


def _one(pieces: list[_Piece], row: RawRecord) -> str:
    """Fills a template whose columns each hold one text."""
    return "".join(
        piece.literal + (_text(_column(row, piece.column), piece.column, row) if piece.column else "")
        for piece in pieces
    )


def _several(pieces: list[_Piece], row: RawRecord) -> tuple[str, ...]:
    """Fills a template once for each element of the one column that holds a list."""
    columns = [piece.column for piece in pieces if piece.column]
    lists = sorted({column for column in columns if isinstance(_column(row, column), list)})
    if not lists:
        return (_one(pieces, row),)
    if len(lists) > 1:
        raise UserError(
            f"{row.source}: columns {' and '.join(lists)} both hold lists; data.response may name one list only"
        )
    values = row.columns[lists[0]]
    if not values:
        raise UserError(
            f"{row.source}: column {lists[0]} is an empty list; give at least one reference or leave the record out"
        )
    return tuple(_one(pieces, RawRecord(row.columns | {lists[0]: value}, row.source)) for value in values)


def _column(row: RawRecord, name: str) -> Any:
    if name not in row.columns:
        raise UserError(f"{row.source} has no column {name}; its columns are {', '.join(map(str, row.columns))}")
    return row.columns[name]


def _text(value: Any, column: str, row: RawRecord) -> str:
    if isinstance(value, bool | int | float) and value == value:  # NaN is how tables write that nothing is there
        value = str(value)
    if not isinstance(value, str):
        kinds = {list: "a list", dict: "an object", type(None): "null", float: "NaN"}
        kind = kinds.get(type(value), type(value).__name__)
        raise UserError(f"{row.source}: column {column} is {kind}, not text; mend it or name another column")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.source}: column {column} has half a surrogate pair at character {error.start}, which no tokenizer "
            "reads; mend it"
        ) from error
    return value


def _recognise(row: RawRecord) -> Callable[[RawRecord], Record]:
    """Chooses the wording by the first record's columns."""
    columns = set(row.columns)
    answers = sorted(columns & {"completion", "response"})
    if "prompt" in columns and len(answers) == 2:
        raise UserError(
            f"{row.source} has both completion and response; say with data.prompt and data.response which to learn"
        )
    if "prompt" in columns and answers:
        answer = [_Piece("", answers[0])]
        return lambda row: Record(_one([_Piece("", "prompt")], row), _several(answer, row), row.source)
    if {"instruction", "output"} <= columns:
        return _alpaca
    raise UserError(
        f"{row.source}: no wording is known for the columns {', '.join(map(str, row.columns))}; "
        'give data.prompt and data.response as format strings, like "{column}"'
    )


def _alpaca(row: RawRecord) -> Record:
    return Record(_alpaca_prompt(row), _several([_Piece("", "output")], row), row.source)


def _alpaca_prompt(row: RawRecord) -> str:
    """Instruction, blank line, input; where input is empty the instruction alone (Taori et al. 2023)."""
    prompt = _one([_Piece("", "instruction")], row)
    if row.columns.get("input"):
        prompt += "\n\n" + _one([_Piece("", "input")], row)
    return prompt
