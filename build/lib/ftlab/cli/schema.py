"""`ftlab schema`: every configuration key as a JSON Schema (draft 2020-12), so that editors complete and check YAML.

The keys are those of the parser of an experiment, their meanings those of its help: nothing is written down twice.
Files hold a part of an experiment each, so that no key is required; any class of one's own may be named.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from ftlab.cli import VERBS
from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse

Schema = dict[str, Any]

_DESCRIBED = ("ftlab.", "peft.", "torch.optim.", "lightning.pytorch.callbacks.")
"""Of classes from elsewhere the names alone are told: they lead through half of torch."""

_NAMED = ("ftlab", "peft", "torch.optim", "lightning")

_PLAIN = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    dict: "object",
    list: "array",
}
_DESCRIPTION = f"""{VERBS["schema"]}.

Keep it in a file, and name that in the first line of a YAML: # yaml-language-server: $schema=PATH"""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Prints the schema."""
    parse(own_parser(verb, _DESCRIPTION), arguments)
    print(json.dumps(schema(), indent=1, ensure_ascii=False))
    return 0


def schema() -> Schema:
    """The schema of a configuration file."""
    builder = _Builder()
    keys = builder.of_keys(experiment_parser())
    keys["properties"] = {
        "include": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Files that are applied before this one, by their places relative to it.",
        },
        **keys["properties"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An experiment of ftlab",
        **keys,
        "$defs": dict(sorted(builder.definitions.items())),
    }


def experiment_parser() -> ArgumentParser:
    """The parser of an experiment, without one."""

    class FoundError(Exception):
        pass

    class ParserAlone(Experiment):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise FoundError(parser)

    try:
        ParserAlone([])
    except FoundError as found:
        return found.args[0]
    raise AssertionError("an experiment parses its arguments")


class _Builder:
    """Collects the definitions of the classes that keys may name."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def of_keys(self, parser: ArgumentParser, description: str = "") -> Schema:
        """A mapping of the keys that a parser knows, those in groups nested, and of no others."""
        root = _mapping(description)
        titles = {name: group.title for name, group in (parser.groups or {}).items() if group.title}
        for action in parser._actions:
            hint = getattr(action, "_typehint", None)
            if hint is None or type(action).__name__ == "ActionLink":
                continue
            *above, name = action.dest.split(".")
            place = root
            for depth, part in enumerate(above, 1):
                title = titles.get(".".join(above[:depth]), "")
                place = place["properties"].setdefault(part, _mapping(title))
            key = self.of_type(hint)
            if action.help:
                key["description"] = " ".join(action.help.split())
            default = _plain(action.default)
            if default is not None or _takes(key, "null"):
                key["default"] = default
            place["properties"][name] = key
            if _takes(key, "array"):
                place["properties"][f"{name}+"] = key | {"description": f"Added to what other files give {name}."}
                place["properties"][f"{name}+"].pop("default", None)
        return root

    def of_type(self, hint: Any) -> Schema:
        """What a type hint allows; everything, where nothing is known of it."""
        origin, parts = get_origin(hint), get_args(hint)
        if hint in _PLAIN:
            return {"type": _PLAIN[hint]}
        if hint in (Any, object):
            return {}
        if origin is Literal:
            return {"enum": list(parts)}
        if origin in (Union, types.UnionType):
            return _any_of([self.of_type(part) for part in parts])
        if origin is not None and _is(origin, Callable):
            made = parts[-1] if parts else None
            return self.of_class(made, len(parts[0])) if _named(made) else {"type": "string"}
        if origin is not None and _is(origin, dict):
            return {"type": "object", "additionalProperties": self.of_type(parts[1])}
        if origin is not None and inspect.isclass(origin) and issubclass(origin, Iterable):
            return {"type": "array", "items": self.of_type(parts[0])}
        if not inspect.isclass(hint):
            return {}
        if issubclass(hint, Enum):
            return {"enum": [member.value for member in hint]}
        if dataclasses.is_dataclass(hint) and not hint.__subclasses__():
            return self.defined(hint)
        if hint.__module__ in ("pathlib", "datetime"):
            return {"type": "string"}
        return self.of_class(hint) if _named(hint) else {}

    def of_class(self, base: type, given: int = 0) -> Schema:
        """One of the classes below `base`, by its path alone or with arguments; of an unknown one any arguments.

        Args:
            base: The class.
            given: How many first arguments are not the configuration's.
        """
        known = {public_path(cls): cls for cls in concrete_classes(base)}
        names = {"anyOf": [{"enum": [*known, *_short(known)]}, {"type": "string"}]}
        mapping = _mapping(_first_words(base))
        mapping["properties"] = {
            "class_path": names,
            "init_args": {"type": "object"},
            "dict_kwargs": {"type": "object"},
        }
        told = [
            {
                "if": {"properties": {"class_path": {"enum": [path, *_short([path])]}}, "required": ["class_path"]},
                "then": {"properties": {"init_args": self.defined(cls, given)}},
            }
            for path, cls in known.items()
            if path.startswith(_DESCRIBED)
        ]
        if told:
            mapping["allOf"] = told
        place = f"one of {public_path(base)}"
        self.definitions[place] = {"anyOf": [names, mapping]}
        return {"$ref": _reference(place)}

    def defined(self, cls: type, given: int = 0) -> Schema:
        """The arguments of a class, kept among the definitions."""
        path = public_path(cls)
        if path not in self.definitions:
            self.definitions[path] = {}  # a class may take another of its kind
            self.definitions[path].update(self.arguments(cls, given))
        return {"$ref": _reference(path)}

    def arguments(self, cls: type, given: int) -> Schema:
        parser = ArgumentParser(exit_on_error=False)
        try:
            parser.add_class_arguments(cls, skip={given} if given else None)
        except (ValueError, TypeError, NameError):  # its types cannot be told
            return {"type": "object", "description": _first_words(cls)}
        return self.of_keys(parser, _first_words(cls))


def concrete_classes(base: type) -> list[type]:
    """The classes that a key of the type `base` may name, but for a user's own: ftlab's, and those of where `base` is
    from."""
    there = {"ftlab", base.__module__.split(".")[0]}
    found = {
        cls
        for cls in (base, *_below(base))
        if str(cls.__module__).split(".")[0] in there
        and not inspect.isabstract(cls)
        and not cls.__name__.startswith("_")
        and public_path(cls) != f"{cls.__module__}.{cls.__qualname__}"
    }
    return sorted(found, key=public_path)


def public_path(cls: type) -> str:
    """The shortest dotted path by which a class can be imported."""
    parts = cls.__module__.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if getattr(importlib.import_module(module), cls.__name__, None) is cls:
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _named(hint: Any) -> TypeGuard[type]:
    """Whether a key of this type names one of the classes that a configuration is made of."""
    return inspect.isclass(hint) and hint.__module__.startswith(_NAMED)


def _below(base: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(base)
    for cls in subclasses:
        yield cls
        yield from _below(cls)


def _mapping(description: str) -> Schema:
    said = {"description": description} if description else {}
    return {"type": "object", **said, "properties": {}, "additionalProperties": False}


def _any_of(schemas: list[Schema]) -> Schema:
    """One of several; plain types are put together."""
    kinds = list(dict.fromkeys(one["type"] for one in schemas if set(one) == {"type"}))
    others = [one for one in schemas if set(one) != {"type"}]
    if kinds:
        others.append({"type": kinds[0] if len(kinds) == 1 else kinds})
    return others[0] if len(others) == 1 else {"anyOf": others}


def _takes(key: Schema, kind: str) -> bool:
    said = key.get("type", [])
    return kind == said or kind in said or any(_takes(one, kind) for one in key.get("anyOf", []))


def _plain(default: Any) -> Any:
    """A default as JSON has it; None for one that it cannot have."""
    if isinstance(default, Namespace):
        default = default.as_dict()
    if isinstance(default, Enum):
        default = default.value
    try:
        return json.loads(json.dumps(default, allow_nan=False)) if default != "==SUPPRESS==" else None
    except (TypeError, ValueError):
        return None


def _short(paths: Iterable[str]) -> list[str]:
    """The bare names, by which a class that is imported can be named, too."""
    return [path.rpartition(".")[2] for path in paths]


def _reference(place: str) -> str:
    return f"#/$defs/{place.replace(' ', '%20')}"


def _is(origin: Any, kind: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, get_origin(kind) or kind)


def _first_words(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
