"""Parsers that refuse in one sentence of ours what jsonargparse refuses over many lines."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from ftlab.errors import UserError, one_line

# A configuration names classes. Those that start a process, evaluate text or unpickle are refused.
set_parsing_settings(import_path_denylist=[])

_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<key>[^']+)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(r"Problem with given class_path '([^']+)': ((?:module|No module|cannot import).*?)(?: - |$)")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_NO_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_MISSING = re.compile(r'following arguments are required: ([^ ,]+)|Key "([^"]+)" not found')
_EXPECTED = re.compile(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])")
_VALUE = re.compile(r"(?:Given|Got) value: (?!NestedArg)(.*?)(?:\. Got value| Given value| - Expected|$)")
# a UserError of ours that jsonargparse has wrapped up
_OWN = re.compile(r"Errors: - (?!Expected|Problem|Parser|Import|Type)(.*?) - Expected a <class 'NoneType'>")

_OF_THE_PARSER = ("", "help", "config", "print_config", "print_shtab")
_IN_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


def sentence(error: Exception, parser: ArgumentParser) -> str:
    """What is wrong, where, and what to do; the nearest key that exists where one is unknown.

    Args:
        error: What parsing raised.
        parser: The parser, which knows the keys and their types.
    """
    text = one_line(error)
    if own := _OWN.search(text):
        return own[1]
    key = ".".join(_KEY.findall(text))
    owner = next(iter(_CLASS.findall(text)[-1:]), None)
    if option := _UNKNOWN_OPTION.search(text):
        if not option[1].startswith("-"):
            return f"{option[1]!r} belongs to no option: options look like --trainer.max_steps 100"
        name = option[1].lstrip("-").split("=")[0]
        if any(action.dest == name and not action.option_strings for action in parser._actions):
            return f"{name} is told by its place: leave out {option[1].split('=')[0]}"
        if not _takes_files(parser) and "." not in name:
            return _unknown_option(option[1].split("=")[0], parser)
        return _unknown(f"{key}.{name.split('.')[0]}" if key else name, owner, parser)
    if unknown := _UNKNOWN_KEY.search(text):
        above = key or unknown["group"]
        return _unknown(f"{above}.{unknown['key']}" if above else unknown["key"], owner, parser)
    if missing := _MISSING.search(text):
        name = missing[1] or missing[2]
        return _missing(f"{key}.{name}" if key else name, parser)
    if problem := _NO_IMPORT.search(text):
        return f"{key}: {problem[1]} cannot be imported ({problem[2]}){_known_classes(key, parser)}"
    if denied := _DENIED.search(text):
        return f"{key}: {denied[1]} can run whatever it is given, and no configuration may name it: take another"
    if other := _NO_SUBCLASS.search(text):
        return f"{key}: {other[1]} is no {other[2]}{_known_classes(key, parser)}"
    return _wrong_value(text, key, parser) if key else text


def own_parser(verb: str, description: str) -> ArgumentParser:
    """The parser of a verb that is no experiment."""
    return ArgumentParser(f"ftlab {verb}", description=description, exit_on_error=False, allow_abbrev=False)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """What a verb's own parser makes of its arguments, classes instantiated.

    Raises:
        UserError: They cannot be parsed.
    """
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(sentence(error, parser)) from error


def _takes_files(parser: ArgumentParser) -> bool:
    return any(isinstance(action, ActionConfigFile) for action in parser._actions)


def _unknown_option(option: str, parser: ArgumentParser) -> str:
    """For a verb's own option; its classes' arguments are keys."""
    there = [action.option_strings[0] for action in parser._actions if action.option_strings]
    there = [name for name in there if name.startswith("--") and name[2:] not in _OF_THE_PARSER and "." not in name]
    if near := difflib.get_close_matches(option, there, n=1):
        return f"there is no option {option}: did you mean {near[0]}?"
    return f"there is no option {option}: there are {', '.join([*there, '--help'])}"


def _missing(key: str, parser: ArgumentParser) -> str:
    if _takes_files(parser):
        return f"{key} is missing: give it in a configuration file or on the command line"
    return f"{key} is missing: {parser.prog} --help says what it is"


def _wrong_value(text: str, key: str, parser: ArgumentParser) -> str:
    value = _VALUE.search(text)
    expected = list(dict.fromkeys(_expected(text)))
    if value and value[1] == "None":
        return _missing(key, parser)
    if value and expected:
        return f"{key} is {value[1]}: it must be {' or '.join(expected)}"
    if unknown := _NO_CLASS.search(text):
        return f"{key}: there is no {unknown[1]!r}{_known_classes(key, parser)}"
    return text


def _expected(text: str) -> Iterator[str]:
    words = [word.strip("' ") for _, literals in _EXPECTED.findall(text) for word in literals.split(",") if word]
    if words:
        yield f"one of {', '.join(words)}"
    yield from (_IN_WORDS.get(kind, kind) for kind, _ in _EXPECTED.findall(text) if kind not in ("", "NoneType"))


def _unknown(key: str, owner: str | None, parser: ArgumentParser) -> str:
    """For `trainer.max_stps`: the first part of it that does not exist, and the nearest that does."""
    keys = [action.dest for action in parser._actions]
    parts = key.split(".")
    above = len(parts) - 1 if owner else 0  # how many parts of the key exist
    there = _parameters(owner) if owner else _below("", keys)
    while not owner and parts[above] in there and above < len(parts) - 1:
        above += 1
        there = _below(".".join(parts[:above]), keys)
    missing, place = ".".join(parts[: above + 1]), ".".join(parts[:above])
    if near := difflib.get_close_matches(parts[above], there, n=1):
        return f"there is no key {missing}: did you mean {'.'.join([*parts[:above], near[0]])}?"
    if not there:
        return f"there is no key {missing}"
    return f"there is no key {missing}: {f'under {place} there are' if place else 'there are'} {', '.join(there)}"


def _below(above: str, keys: Iterable[str]) -> list[str]:
    """The names right under a key; nothing under one that holds a class."""
    prefix = f"{above}." if above else ""
    names = (key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix))
    return [name for name in dict.fromkeys(names) if name not in _OF_THE_PARSER]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return [name for name in parameters if name != "params"]  # an optimiser gets these from ftlab


def _known_classes(key: str, parser: ArgumentParser) -> str:
    """The classes that a key takes, by their short names; nothing for the many that torch brings."""
    action = next((action for action in parser._actions if action.dest == key), None)
    hint = getattr(action, "_typehint", None)
    kinds = [kind for kind in (hint, *get_args(hint)) if inspect.isclass(kind) and inspect.isabstract(kind)]
    names = [cls.__name__ for kind in kinds for cls in _concrete(kind) if cls.__module__.startswith("ftlab.")]
    if not names:
        return ""
    return f"; there are {', '.join(dict.fromkeys(names))}, or the dotted path of a class of your own"


def _concrete(kind: type[Any]) -> Iterator[type[Any]]:
    for cls in kind.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _concrete(cls)
