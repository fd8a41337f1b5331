"""Methods under the short names that installed packages give them, in the arguments of an experiment."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from ftlab.cli.compose import as_text
from ftlab.methods.lookup import dotted_path

_OPTIONS = tuple(f"--model.method{part}" for part in ("", ".class_path", ".help"))


def with_methods(arguments: Sequence[str]) -> list[str]:
    """The arguments of an experiment, its configurations expanded, with the dotted path of a method in place of the
    short name that a package gives it.

    Raises:
        UserError: The package that offers the name cannot be imported, or several offer it.
    """
    replaced: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        option, equals, value = argument.partition("=")
        if before == "--config":
            replaced.append(_of_config(argument))
        elif before in _OPTIONS:
            replaced.append(dotted_path(argument))
        elif equals and option in _OPTIONS:
            replaced.append(f"{option}={dotted_path(value)}")
        else:
            replaced.append(argument)
    return replaced


def _of_config(text: str) -> str:
    """A configuration with the short name replaced."""
    config = yaml.safe_load(text)
    model = config.get("model")
    said = model.get("method") if isinstance(model, dict) else None
    if isinstance(said, str):
        model["method"] = dotted_path(said)
    elif isinstance(said, dict) and isinstance(said.get("class_path"), str):
        said["class_path"] = dotted_path(said["class_path"])
    return as_text(config)
