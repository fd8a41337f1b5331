"""A configuration of another tool: its keys are taken one by one, and what nobody takes is named with the reason.

What is known of a tool is data, under assets/importing: keys/TOOL.yaml lists its keys and their defaults, by
scripts/foreign_keys.py; TOOL.yaml says what becomes of each, and hf.yaml of those that all hand on to HF Trainer.
"""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

import ftlab
from ftlab.cli.compose import read_config
from ftlab.errors import UserError

ASSETS = Path(ftlab.__file__).parent / "assets" / "importing"
NAMES = ("trl", "llama-factory", "axolotl")

Kind = Literal["differs", "hand", "none", "ours"]
NO_COUNTERPART = "has no counterpart in ftlab"
_LOADERS = ("json", "csv", "parquet", "text", "arrow", "pandas")
"""What `datasets` takes in the place of a path: kinds of files."""
_EMPTY: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class Tool:
    """What is known of a tool.

    Args:
        name: As `--from` has it.
        title: As it calls itself.
        packages: Those that its keys were read from, with their versions.
        keys: What a configuration may say, with the defaults that are plain values.
        of_dataset: The same of one data set within it, where it lists some.
        names: Its own names for arguments of HF Trainer, by theirs.
        old: Keys of before, each with what it is called now.
        maps: Keys that ftlab has something for, and what.
        reasons: What else becomes of a key: kind and reason.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    keys: Mapping[str, Any]
    of_dataset: tuple[str, ...]
    names: Mapping[str, str]
    old: Mapping[str, str]
    maps: Mapping[str, str]
    reasons: Mapping[str, tuple[Kind, str]]

    def reason(self, key: str) -> tuple[Kind, str]:
        """What becomes of a key that does not map."""
        return self.reasons.get(key, ("none", NO_COUNTERPART))


@cache
def asset(name: str) -> dict[str, Any]:
    """A table under assets/importing."""
    return yaml.safe_load((ASSETS / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def tool(name: str) -> Tool:
    """What is known of the tool of this name."""
    listed, own, shared = asset(f"keys/{name}"), asset(name), asset("hf")
    names = own.get("names", {})
    keys = listed["keys"]
    maps = {names.get(key, key): text for key, text in shared["maps"].items()} | own["maps"]
    reasons: dict[str, tuple[Kind, str]] = {}
    for table in (shared, own):
        kinds: tuple[Kind, ...] = ("hand", "ours", "none")
        for kind in kinds:
            for why, of in table.get(kind, {}).items():
                reasons |= dict.fromkeys(of, (kind, why))
    return Tool(
        name,
        own["title"],
        tuple(listed["packages"]),
        keys,
        tuple(listed.get("of a data set", ())),
        names,
        own["old"],
        {key: text for key, text in maps.items() if key in keys},
        {key: reason for key, reason in reasons.items() if key in keys},
    )


@dataclass(frozen=True)
class Note:
    """What must be known of a key: `differs` where it maps and yet is not the same there and here."""

    kind: Kind
    keys: tuple[str, ...]
    text: str


class Values(ABC):
    """What something says, key by key, each value of the shape that it must have."""

    @abstractmethod
    def take(self, name: str, otherwise: Any = None) -> Any:
        """What is said under a key, else `otherwise`; null is as not said."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Where a key stands, for messages."""

    def wrong(self, name: str, wanted: str) -> UserError:
        """A value that the tool itself could not read."""
        return UserError(f"{self.place(name)} is {self.take(name)!r}: it must be {wanted}")

    def flag(self, name: str) -> bool:
        """A value that is true or false."""
        value = self.take(name, False)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str, otherwise: float = 0.0) -> float:
        """A number: 2e-5 is a text to YAML."""
        value = self.take(name, otherwise)
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(name, "a number") from None

    def whole(self, name: str, otherwise: int = 0) -> int:
        """A whole number."""
        number = self.number(name, otherwise)
        if not number.is_integer():
            raise self.wrong(name, "a whole number")
        return int(number)

    def whole_or_none(self, name: str) -> int | None:
        """A whole number; None where nothing is said."""
        return None if self.take(name) is None else self.whole(name)

    def text(self, name: str) -> str | None:
        """A text; None where nothing is said."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, or one alone."""
        value = self.take(name, [])
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise self.wrong(name, "a text or a list of texts")
        return listed

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping, which a text may hold as JSON."""
        value = self.take(name, {})
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value or "{}")
        if not isinstance(value, dict):
            raise self.wrong(name, "a mapping")
        return dict(value)


class Part(Values):
    """A mapping within a configuration, such as a data set's: what has been asked of it, and what has not.

    Args:
        what: What it is, for messages.
        given: What it says.
        defaults: What its keys say where they are not given, as far as that matters.

    Raises:
        UserError: It is no mapping.
    """

    def __init__(self, what: str, given: Any, **defaults: Any) -> None:
        if not isinstance(given, Mapping):
            raise UserError(f"{what} is {given!r}: it must be a mapping")
        self._what, self._given, self._defaults = what, given, defaults
        self._read: set[str] = set()

    def take(self, name: str, otherwise: Any = None) -> Any:
        self._read.add(name)
        value = self._given.get(name)
        return otherwise if value is None else value

    def place(self, name: str) -> str:
        return f"{self._what}: {name}"

    def part(self, name: str) -> Part:
        """A mapping within it."""
        return Part(self.place(name), self.mapping(name))

    def unread(self) -> list[str]:
        """Keys that say something and that nobody has read."""
        unread = ((key, value) for key, value in self._given.items() if key not in self._read)
        return [key for key, value in unread if value not in _EMPTY and value != self._defaults.get(key)]


@dataclass
class Foreign(Values):
    """A configuration that is being translated.

    Args:
        tool: Whose it is.
        given: What it says, by today's names.
        file: Where it stands, for messages.
    """

    tool: Tool
    given: dict[str, Any]
    file: Path
    taken: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """What the tool calls an argument of HF Trainer; its other keys as they are."""
        return self.tool.names.get(name, name)

    def says(self, name: str) -> bool:
        """Whether the file itself says something."""
        return self.given.get(self.key(name)) is not None

    def take(self, name: str, otherwise: Any = None) -> Any:
        """What the file says, else the tool's default, else `otherwise`; null is as not said."""
        key = self.key(name)
        self.taken.add(key)
        for value in (self.given.get(key), self.tool.keys.get(key)):
            if value is not None:
                return value
        return otherwise

    def place(self, name: str) -> str:
        return f"{self.file}: {self.key(name)}"

    def listed(self, name: str) -> list[str] | None:
        """A list of texts, which LLaMA-Factory writes as one with commas; None where nothing is said."""
        if isinstance(value := self.take(name), str):
            return [part.strip() for part in value.split(",")]
        return None if value is None else self.texts(name)

    def refuse(self, sentence: str) -> UserError:
        """What cannot be imported at all."""
        return UserError(f"{self.file}: {sentence}")

    def put(self, place: str, value: Any) -> None:
        """Says something in ftlab's configuration, by its dotted key."""
        *above, last = place.split(".")
        part = self.result
        for name in above:
            part = part.setdefault(name, {})
        part[last] = value

    def note(self, kind: Kind, text: str, *names: str) -> None:
        """Says something of keys."""
        self.notes.append(Note(kind, tuple(self.key(name) for name in names), text))

    def part(self, name: str, **defaults: Any) -> Part:
        """A mapping within it."""
        return Part(self.place(name), self.mapping(name), **defaults)

    def data_set(self, given: Any, **defaults: Any) -> Part:
        """One of the data sets that the configuration lists.

        Raises:
            UserError: It is no mapping, or has a key that the tool does not know.
        """
        what = f"{self.file}: a data set"
        part = Part(what, given, **defaults)
        if unknown := [str(key) for key in given if key not in self.tool.of_dataset]:
            raise UserError(no_such_keys(f"{what} of {self.tool.title}", unknown, self.tool.of_dataset))
        return part

    def files(self, part: Part) -> list[str]:
        """The training files of a data set, or its name with that of a subset; other splits are named.

        Raises:
            UserError: It says neither.
        """
        path, subset = part.text("path"), part.text("name")
        if isinstance(part.take("data_files"), dict):
            of_split = part.part("data_files")
            files = of_split.texts("train")
            self.note_unread(of_split, f"data_files of {path}", "datasets")
        else:
            files = part.texts("data_files")
        if path and Path(path).is_dir():
            return [str(Path(path) / file) for file in files] or [path]
        if files and (not path or path in _LOADERS):
            return files
        if not path:
            raise self.refuse("a data set has no path: say where it lies")
        if files:
            what = f"{', '.join(files)} of {path} {_is(files)} not carried over"
            self.note("hand", f"{what}: fetch them, and give their place as data.path", "datasets")
        return [f"{path}:{subset}" if subset else path]

    def note_unread(self, part: Part, what: str, name: str) -> None:
        """Names what has not been read of a part, which is known by `what` and stands under the key `name`."""
        if unread := part.unread():
            self.note("hand", f"{', '.join(unread)} of {what} {_is(unread)} not carried over", name)

    def left(self) -> Iterator[Note]:
        """What nobody has taken, by reason; what only says what holds without it is left out."""
        found: dict[tuple[Kind, str], list[str]] = {}
        for key in self.given:
            if key not in self.taken and key not in self.without_effect():
                found.setdefault(self.tool.reason(key), []).append(key)
        for (kind, text), keys in found.items():
            yield Note(kind, tuple(keys), text)

    def without_effect(self) -> list[str]:
        """Keys that nobody has taken, and that say nothing or the tool's own default."""
        return [
            key
            for key, value in self.given.items()
            if key not in self.taken and (value in _EMPTY or value == self.tool.keys.get(key))
        ]


def read(file: Path, name: str | None) -> Foreign:
    """Reads a configuration, and finds out whose it is.

    Args:
        file: YAML, or JSON.
        name: The tool; None to tell it by the keys.

    Raises:
        UserError: It cannot be read, it may be that of several tools, or it has a key that the tool does not know.
    """
    given = read_config(file)
    found = tool(name or _whose(file, given))
    if unknown := [str(key) for key in given if key not in found.keys]:
        raise UserError(f"{file}: {no_such_keys(found.title, unknown, found.keys)}, or name the tool with --from")
    return Foreign(found, {found.old.get(key, key): value for key, value in given.items()}, file)


def no_such_keys(whose: str, unknown: Sequence[str], known: Iterable[str]) -> str:
    """That keys are unknown, with the nearest that there are."""
    known = list(known)
    near = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
    said = [f"{key} (did you mean {near[key][0]}?)" if near[key] else key for key in unknown]
    return f"{whose} has no key {', '.join(said)}: correct it or take it out"


def _is(those: Sequence[str]) -> str:
    return "is" if len(those) == 1 else "are"


def _whose(file: Path, given: Mapping[str, Any]) -> str:
    """The tool that knows the most of the keys."""
    known = {name: sum(key in tool(name).keys for key in given) for name in NAMES}
    best = [name for name in NAMES if known[name] == max(known.values())]
    if max(known.values()) == 0:
        raise UserError(f"{file}: none of its keys is one of TRL, LLaMA-Factory or Axolotl: name the tool with --from")
    if len(best) > 1:
        titles = " or ".join(tool(name).title for name in best)
        raise UserError(f"{file} may be a configuration of {titles}: say which with --from {'|'.join(best)}")
    return best[0]
