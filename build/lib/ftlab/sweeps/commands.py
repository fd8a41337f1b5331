"""The command of a trial: W&B's macros filled in, and which files of configuration it names."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ftlab.errors import UserError

CONFIG = "config"
"""The parameter whose values are files of configuration, or lists of them."""
_FLAGS = ("-c", "--config")


def resolved_command(command: Sequence[str], file: Path) -> list[str]:
    """The command with what does not depend on the trial filled in: its interpreter, and where its `-c` files lie.

    Args:
        command: As the sweep file has it.
        file: The sweep file, beside which files of configuration are looked for first.

    Raises:
        UserError: A file is not there.
    """
    words: list[str] = []
    for word in command:
        if word == "${env}":
            continue
        if word == "${interpreter}" or (not words and word in ("python", "python3")):
            words.append(sys.executable)
        elif not words and word == "ftlab":
            words += [sys.executable, "-m", "ftlab"]
        elif is_ftlab(words) and words[-1] in _FLAGS:  # python has a -c of its own
            words.append(find(word, file))
        elif is_ftlab(words) and word.startswith("--config="):
            words.append("--config=" + find(word.removeprefix("--config="), file))
        elif word.startswith("${envvar:"):
            words.append(os.environ.get(word.removeprefix("${envvar:").rstrip("}"), ""))
        elif word.startswith("${") and word not in _MACROS:
            raise UserError(f"{file}: command has {word}, which is none of W&B's macros: there are {_KNOWN}")
        else:
            words.append(word)
    return words


def find(name: str, file: Path) -> str:
    """Where a file of configuration lies that a sweep file names: beside it, or in the working directory.

    Raises:
        UserError: At neither place.
    """
    for place in (file.parent / name, Path(name)):
        if place.is_file():
            return str(place.resolve())
    raise UserError(f"{file} names {name}, which is neither beside it nor in {Path.cwd()}")


def files_of(value: Any) -> list[str]:
    """The files that a value of the parameter `config` names."""
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def is_ftlab(command: Sequence[str]) -> bool:
    """Whether a command is `ftlab fit`."""
    return ("ftlab", "fit") in pairwise(command)


def trial_command(command: Sequence[str], parameters: Mapping[str, Any], options: Sequence[str] = ()) -> list[str]:
    """The words that run a trial.

    Args:
        command: Resolved.
        parameters: Of the trial.
        options: More, which stand after the parameters.
    """
    words: list[str] = []
    for word in command:
        words += _MACROS[word](parameters) if word in _MACROS else [word]
        if word in _MACROS:
            words += options
    return words


def name_of_run(command: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """The name of a trial's run: a hash of what it runs, so that the same is never run twice."""
    text = json.dumps([list(command), dict(parameters)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _flags(parameters: Mapping[str, Any]) -> list[str]:
    """As ftlab takes them; files of configuration first, or they would replace what stands before them."""
    files = [f"--config={name}" for name in files_of(parameters[CONFIG])] if CONFIG in parameters else []
    return files + [f"--{name}={text(value)}" for name, value in parameters.items() if name != CONFIG]


def text(value: Any) -> str:
    """A value as YAML reads it again."""
    return value if isinstance(value, str) else json.dumps(value)


def _pairs(parameters: Mapping[str, Any]) -> list[str]:
    return [word.removeprefix("--") for word in _flags(parameters)]


def _without_false(parameters: Mapping[str, Any]) -> list[str]:
    said = {name: value for name, value in parameters.items() if value is not False}
    return [
        f"--{name}" if said.get(name) is True else word
        for name, word in ((word[2:].partition("=")[0], word) for word in _flags(said))
    ]


_MACROS = {
    "${args}": _flags,
    "${args_no_hyphens}": _pairs,
    "${args_no_boolean_flags}": _without_false,
    "${args_json}": lambda parameters: [json.dumps(dict(parameters))],
}
_KNOWN = "${env}, ${interpreter}, ${program}, ${envvar:NAME}, " + ", ".join(_MACROS)
