"""From columns to records: what is asked and what should be answered, in each of the formats that people store.

`recognise` chooses the format, by name or by the first record's columns; the `Convert` it gives reads every record.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from ftlab.data.conversations import read_tools
from ftlab.data.format_strings import FormatString, kind_of, named, parse_format_string, read_column, read_text
from ftlab.data.known_formats import KNOWN, FoundKind, is_absent
from ftlab.data.records import Message, RawRecord, Record
from ftlab.errors import UserError

Kind = Literal["auto", FoundKind]


@dataclass(frozen=True)
class Format:
    """How columns become records.

    Args:
        kind: auto recognises the format by the columns of the first record. pairs: prompt and completion or response,
            each a text or messages; several texts are several right answers. messages: OpenAI's chat form, with tools.
            conversations: ShareGPT's. alpaca: instruction, input and output. text: running text. tokens: input_ids and
            labels. preference: chosen and rejected, after a prompt, messages or conversations.
        prompt: Format string over the columns, as "Summarise:\\n{dialogue}"; {{ and }} are literal braces. A column
            that holds a list of texts is set one element a line. Needs response.
        response: The same for the answer; where its column holds a list, each element is a right answer. Alone, with
            kind text, it is the running text.
        system: A system turn set before each conversation that has none; may name columns as prompt does.
        function: Dotted path of your own function, from a record's columns (a dict) to columns in one of the formats
            (a dict, which replaces them), or None to leave the record out.
        group_by: Column whose equal values stay together in a split.
        stratify_by: Column over whose values the splits are spread evenly.
    """

    kind: Kind = "auto"
    prompt: str | None = None
    response: str | None = None
    system: str | None = None
    function: str | None = None
    group_by: str | None = None
    stratify_by: str | None = None


def recognise(format: Format, first: RawRecord, answers: bool = True) -> Convert:
    """Chooses how the records of a source are read: by the format's kind, or by the first record's columns.

    Text is recognised only where nothing else is: Alpaca's own file has a column text beside the others.

    Args:
        format: What the user said.
        first: The source's first record.
        answers: Whether records need answers; False to predict, where a prompt alone will do.

    Raises:
        UserError: No format fits the columns or more than one does, the first record lacks a column, a format string
            is none, options exclude each other, or the user's function cannot be imported or fails.
    """
    convert = Convert(format)
    columns = convert.made(first)
    if columns is None:
        return convert
    kind = convert.kind or _recognised_at(first.source, columns, answers)
    convert = Convert(format, tuple(columns), kind)
    if format.system is not None and kind in ("text", "tokens"):
        raise UserError(f"data.system has no place in format {kind}, which has no turns; take it out")
    missing = [" or ".join(names) for names in convert.needs(answers) if not any(name in columns for name in names)]
    if answers:
        groups = (format.group_by, format.stratify_by)
        missing += [name for name in groups if name and name not in columns and name not in first.columns]
    if missing:
        raise UserError(
            f"{first.source} has no column {' and no column '.join(missing)}, which data.format ({kind}) asks for; its "
            f"columns are {named(columns)}"
        )
    if kind == "pairs" and format.prompt is None and "completion" in columns and "response" in columns:
        raise UserError(
            f"{first.source} has both completion and response; say with data.prompt and data.response which to take"
        )
    return convert


class Convert:
    """Reads the records of one source; `recognise` makes it. Can be pickled.

    Args:
        format: What the user said.
        columns: The first record's, after the user's function.
        kind: The format that was found; None recognises every record by itself, which is done only where the user's
            function left out the first one.

    Raises:
        UserError: As `recognise`, for what the columns do not matter to.
    """

    def __init__(self, format: Format, columns: tuple[str, ...] = (), kind: FoundKind | None = None) -> None:
        self.format = format
        self.columns = columns
        self.kind = kind or _named_kind(format)
        self._prompt, self._response, self._system = (
            None if text is None else parse_format_string(text, f"data.{name}", constant=name == "system")
            for name, text in (("prompt", format.prompt), ("response", format.response), ("system", format.system))
        )
        self._function = None if format.function is None else _import(format.function)

    def __reduce__(self) -> tuple[Any, ...]:
        return Convert, (self.format, self.columns, self.kind)

    def convert(self, raw: RawRecord, answers: bool = True) -> Record | None:
        """The record; None where the user's function left it out.

        Args:
            raw: As it was found.
            answers: Whether it needs answers. Where not, those that are there are read all the same, and the columns
                of groups and strata are not.

        Raises:
            Malformed: The record does not fit: a column is missing or holds something else.
            UserError: The user's function fails.
        """
        columns = raw.columns if self._function is None else self.made(raw)
        if columns is None:
            return None
        kind = self.kind or _recognised_at(raw.source, columns, answers)
        if self._response is not None:
            record = self._fill(self._response, columns, raw.source, answers)
        else:
            record = KNOWN[kind].read(columns, raw.source, answers)
        changes: dict[str, Any] = {}
        if kind not in ("text", "tokens"):
            if (self._system is not None or "system" in columns) and (text := self._system_text(record, columns)):
                changes["context"] = (Message("system", text), *record.context)
            if "tools" in columns and self._response is None:
                changes["tools"] = read_tools(columns["tools"], "tools", raw.source)
        if answers:
            for field, name in (("group", self.format.group_by), ("stratum", self.format.stratify_by)):
                if name is not None:
                    held = columns if name in columns else raw.columns
                    changes[field] = read_text(read_column(held, name, raw.source), name, raw.source)
        return replace(record, **changes) if changes else record

    def made(self, raw: RawRecord) -> dict[str, Any] | None:
        """The columns after the user's function.

        Raises:
            UserError: It fails, or returns something else than columns or None.
        """
        if self._function is None:
            return raw.columns
        name = f"data.function {self.format.function}"
        try:
            columns = self._function(dict(raw.columns))
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"{raw.source}: {name} failed with {type(error).__name__}: {said}; mend it, or let it return None to "
                "leave the record out"
            ) from error
        if columns is not None and not isinstance(columns, dict):
            raise UserError(
                f"{raw.source}: {name} returned {kind_of(columns)}; it must return a dict of columns, or None to leave "
                "the record out"
            )
        return columns

    def needs(self, answers: bool) -> tuple[tuple[str, ...], ...]:
        """The columns without which no record can be read, each with the names that will do for it."""
        strings = [self._prompt, self._system] + ([self._response] if answers or self._prompt is None else [])
        known = KNOWN[self.kind] if self.kind is not None and self._response is None else None
        needed: list[tuple[str, ...]] = [(column,) for string in strings if string for column in string.columns]
        if known is not None:
            needed += [*known.asks, *(known.answers if answers else ())]
        return tuple(dict.fromkeys(needed))

    def describe(self) -> str:
        """One line for a data card: the format, how it was found, and which columns are not read."""
        after = f", after {self.format.function}" if self.format.function else ""
        if self.kind is None:
            return f"recognised record by record{after}"
        read = {self.format.group_by, self.format.stratify_by, *(name for names in self.needs(True) for name in names)}
        if self._response is None:
            read |= set(KNOWN[self.kind].more)
            how = f"{self.kind}, {'recognised by its' if self.format.kind == 'auto' else 'from'} columns"
        else:
            prompt = "" if self.format.prompt is None else f"prompt {self.format.prompt!r} and "
            how = f"{self.kind}, {prompt}response {self.format.response!r} over columns"
        how += f" {named(name for name in self.columns if name in read)}"
        system = "" if self.format.system is None else f", system {self.format.system!r}"
        unread = [name for name in self.columns if name not in read]
        return how + system + after + (f"; not read: {named(unread)}" if unread else "")

    def _fill(self, response: FormatString, columns: dict[str, Any], source: str, answers: bool) -> Record:
        """By format strings."""
        if self._prompt is None:
            return Record((), (Message("text", response.fill(columns, source)),), source)
        context = (Message("user", self._prompt.fill(columns, source)),)
        if not answers and any(is_absent(columns.get(name)) for name in response.columns):
            return Record(context, (), source)
        texts = response.fill_each(columns, source)
        return Record(context, tuple([Message("assistant", text) for text in texts]), source)

    def _system_text(self, record: Record, columns: dict[str, Any]) -> str:
        """The system turn to set before; empty where the conversation has one, which always stands."""
        if any(message.role in ("system", "developer") for message in record.context):
            return ""
        held = columns.get("system") if self._response is None else None
        if held is not None and held != "":
            return read_text(held, "system", record.source)
        return "" if self._system is None else self._system.fill(columns, record.source)


def _named_kind(format: Format) -> FoundKind | None:
    """The kind as far as the format alone says it; options that exclude each other are refused."""
    if format.prompt is None and format.response is None:
        return None if format.kind == "auto" else format.kind
    if format.kind == "text":
        if format.prompt is None:
            return "text"
        raise UserError("data.prompt has no place in format text; give the whole text as data.response")
    if format.kind not in ("auto", "pairs"):
        raise UserError(
            f"data.prompt and data.response make pairs, not {format.kind}; take them out, or set data.format: pairs"
        )
    if format.prompt is None or format.response is None:
        missing = "response" if format.response is None else "prompt"
        raise UserError(f"data.{missing} is missing: give both data.prompt and data.response")
    return "pairs"


def _recognised_at(source: str, columns: Mapping[str, Any], answers: bool) -> FoundKind:
    try:
        return _recognised(tuple(columns), answers)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


@lru_cache(maxsize=256)
def _recognised(columns: tuple[str, ...], answers: bool) -> FoundKind:
    """The one format that fits the columns."""
    names = set(columns)
    fits: list[FoundKind] = []
    if "messages" in names:
        fits.append("messages")
    if "conversations" in names:
        fits.append("conversations")
    answered = names & {"completion", "response"}
    if "prompt" in names and (answered or fits or not answers):  # beside messages: which of the two is asked?
        fits.append("pairs")
    if "instruction" in names and ("output" in names or not answers):
        fits.append("alpaca")
    if {"chosen", "rejected"} <= names:
        before = names & {"prompt", "messages", "conversations", "instruction"}
        fits = ["preference"] if len(before) < 2 and not answered and "output" not in names else [*fits, "preference"]
    if "input_ids" in names:
        fits.append("tokens")
    if not fits and "text" in names:
        return "text"
    if len(fits) > 1:
        raise UserError(
            f"the columns {named(columns)} could be read as {' or as '.join(fits)}; say which with data.format"
        )
    if not fits:
        raise UserError(
            f"no format is known for the columns {named(columns)}; give data.prompt and data.response as "
            'format strings, like "{column}", or a data.function'
        )
    return fits[0]


def _import(path: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """The user's function; the directory where the command is given is on Python's path."""
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"data.function: {path!r} is no dotted path; write module.function")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"data.function: {path} cannot be imported ({type(error).__name__}: {said}); mend the path or the module"
        ) from error
    if not callable(function):
        raise UserError(f"data.function: {path} is {kind_of(function)}, not a function; name a function")
    return function
