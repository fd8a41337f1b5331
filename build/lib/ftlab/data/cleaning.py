"""What is mended in every text before it is understood, and which records are left out.

Nothing here knows a language: a rule looks at code points, lengths and what the user names, not at words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ftlab.data.format_strings import read_column
from ftlab.data.records import Message, RawRecord, Record
from ftlab.errors import UserError

# All that any rule could touch in an ASCII text: controls but \n and \t, so that most texts are looked at only once.
_ASCII_SUSPECTS = bytes([*range(0x09), *range(0x0B, 0x20), 0x7F])

# Controls but for tab and the line breaks, which are whitespace's business; the byte order mark; code points that
# Unicode keeps from ever being characters; halves of surrogate pairs, which no UTF-8 can hold. The joiners U+200C and
# U+200D stay: Persian and Indic spelling and composed emoji need them.
_NO_CHARACTERS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufdd0-\ufdef\ud800-\udfff"
    + "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85]")
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Cleaning:
    """What is done to texts, and which records are dropped; each rule can be turned off.

    Args:
        where: Take only records whose columns hold these values, as {label: true}, or one of several, as
            {topic: [work, school]}; columns as they are in the file, before data.function.
        remove: Texts to take out wherever they stand, as another tokenizer's "<|endoftext|>", which would be learned
            as if it were words.
        unicode: Normal form of every text: NFC composes accents, NFKC also makes wide, small and joined forms plain
            (it changes meaning: 2⁵ becomes 25), none leaves texts as they are.
        control_characters: Remove control characters but line breaks and tabs, byte order marks, and code points that
            are no characters.
        whitespace: newlines makes every line break \\n, and no more, since a completion's leading space and a prompt's
            trailing line break are meant; strip also removes blanks at both ends and at line ends; collapse also makes
            runs of blanks one space and leaves at most one empty line; none leaves texts as they are.
        empty: Drop answers without text, and records without prompt or answer.
        min_characters: Drop records with fewer characters in prompt and longest answer together.
        max_characters: Drop records with more characters in prompt and longest answer together.
        min_tokens: Drop records that are encoded into fewer tokens.
        malformed: What follows on a record that cannot be used: refuse stops, drop leaves it out.
    """

    where: dict[str, Any] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    control_characters: bool = True
    whitespace: Literal["none", "newlines", "strip", "collapse"] = "newlines"
    empty: bool = True
    min_characters: int | None = None
    max_characters: int | None = None
    min_tokens: int | None = None
    malformed: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        if "" in self.remove:
            raise UserError("data.clean.remove holds an empty text; take it out")
        for name in ("min_characters", "max_characters", "min_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"data.clean.{name} is {value}; give a whole number from 0 on, or null")
        if self.min_characters and self.max_characters is not None and self.min_characters > self.max_characters:
            raise UserError(
                f"data.clean.min_characters {self.min_characters} is above data.clean.max_characters "
                f"{self.max_characters}, which leaves no record; lower it"
            )

    def takes(self, raw: RawRecord) -> bool:
        """Whether the record is one that `where` asks for.

        Raises:
            Malformed: It lacks a column that `where` names.
        """
        for name, wanted in self.where.items():
            value = read_column(raw.columns, name, raw.source)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def columns(self, raw: RawRecord) -> RawRecord:
        """Mends every text in the columns, in lists and objects too; the very same object where nothing changed."""
        columns = self._value(raw.columns)
        return raw if columns is raw.columns else RawRecord(columns, raw.source)

    def judge(self, record: Record) -> tuple[Record | None, str | None]:
        """Decides whether a record stays.

        Returns:
            The record, perhaps with fewer answers, and None; or None and the rule that drops it: "empty_prompt",
            "empty_answer", "too_few_characters" or "too_many_characters". Characters of pre-tokenised records are not
            known: they are only dropped when they are empty. Records that only ask, without any answer, are kept.
        """
        if record.tokens is not None:
            return (None, "empty_answer") if self.empty and not record.tokens else (record, None)
        if self.empty:
            asked = any(message.role != "system" and _says(message) for message in record.context)
            if not asked and not _is_text(record):
                return None, "empty_prompt"
            if record.rejected is not None and not _says(record.rejected):
                return None, "empty_answer"
            if not all(map(_says, record.answers)):
                record = replace(record, answers=tuple(filter(_says, record.answers)))
                if not record.answers:
                    return None, "empty_answer"
        if self.min_characters is not None or self.max_characters is not None:
            length = _characters(record)
            if self.min_characters is not None and length < self.min_characters:
                return None, "too_few_characters"
            if self.max_characters is not None and length > self.max_characters:
                return None, "too_many_characters"
        return record, None

    def _text(self, text: str) -> str:
        for unwanted in self.remove:
            text = text.replace(unwanted, "")
        if not text.isascii() or self._suspect(text):
            if self.whitespace != "none":
                text = _BREAKS.sub("\n", text)
            if self.control_characters:
                text = _NO_CHARACTERS.sub("", text)
            # after the removals, which may bring an accent to its letter; before the blanks, of which NFKC makes more
            if self.unicode != "none" and not unicodedata.is_normalized(self.unicode, text):
                text = unicodedata.normalize(self.unicode, text)
        if self.whitespace == "collapse":
            text = _BLANKS.sub(" ", text)
        if self.whitespace in ("strip", "collapse"):
            text = "\n".join(map(str.rstrip, text.split("\n"))).strip()
        return _EMPTY_LINES.sub("\n\n", text) if self.whitespace == "collapse" else text

    @staticmethod
    def _suspect(ascii_text: str) -> bool:
        data = ascii_text.encode()
        return len(data.translate(None, _ASCII_SUSPECTS)) < len(data)

    def _value(self, value: Any) -> Any:
        """The value with its texts mended, itself where none was changed."""
        if isinstance(value, str):
            mended = self._text(value)
            return value if mended == value else mended
        if isinstance(value, dict):
            return _mapped(self._value, value)
        if isinstance(value, list) and value and not isinstance(value[0], int | float):  # not through a list of tokens
            items = [self._value(item) for item in value]
            return value if all(map(_same, items, value)) else items
        return value


def _mapped(mend: Callable[[Any], Any], columns: dict[str, Any]) -> dict[str, Any]:
    changed = {name: mended for name, value in columns.items() if (mended := mend(value)) is not value}
    return columns | changed if changed else columns


def _same(one: object, other: object) -> bool:
    return one is other


def _is_text(record: Record) -> bool:
    return not record.context and any(answer.role == "text" for answer in record.answers)


def _says(message: Message) -> bool:
    """Whether a message has any content; a call of a tool has, without words."""
    return bool(message.content.strip() or message.fields.get("tool_calls"))


def _characters(record: Record) -> int:
    answers = (*record.answers, record.rejected) if record.rejected else record.answers
    longest = max((len(answer.content) for answer in answers), default=0)
    return sum(len(message.content) for message in record.context) + longest
