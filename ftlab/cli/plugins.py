"""Methods of other packages and files: what a short name, a dotted path, or `my.py:MyMethod` stands for.

An installed package offers a method under a short name in its pyproject.toml:

    [project.entry-points."ftlab.methods"]
    LoRAXS = "mypkg.lora_xs:LoRAXS"

It is imported only where the name is asked for, so that a package that is broken disturbs nobody else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml

import ftlab.methods
from ftlab.errors import UserError
from ftlab.methods import Method

GROUP = "ftlab.methods"
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
            replaced.append(_dotted(argument))
        elif equals and option in _OPTIONS:
            replaced.append(f"{option}={_dotted(value)}")
        else:
            replaced.append(argument)
    return replaced


def method_class(name: str) -> type[Method]:
    """The class that `my.py:MyMethod`, a dotted path, or a short name stands for.

    Raises:
        UserError: There is none, or it is no method.
    """
    file, colon, attribute = name.rpartition(":")
    path = _dotted(name)
    if colon:
        module = _module_of_file(Path(file))
    elif "." in path:
        place, _, attribute = path.rpartition(".")
        module = _imported(place, name)
    else:
        module, attribute = ftlab.methods, name
    there = {key: value for key, value in vars(module).items() if Method in getattr(value, "__mro__", ())}
    if attribute not in there:
        own = [key for key, value in there.items() if value.__module__ == module.__name__]
        raise UserError(f"{name}: there is no method {attribute}; there are {', '.join(own or there)}")
    return there[attribute]


def _of_config(text: str) -> str:
    """A configuration with the short name replaced."""
    config = yaml.safe_load(text)
    model = config.get("model")
    said = model.get("method") if isinstance(model, dict) else None
    if isinstance(said, str):
        model["method"] = _dotted(said)
    elif isinstance(said, dict) and isinstance(said.get("class_path"), str):
        said["class_path"] = _dotted(said["class_path"])
    return yaml.safe_dump(config, sort_keys=False)


def _dotted(name: str) -> str:
    """The dotted path behind a short name that an installed package offers; any other name as it is."""
    if "." in name or name in ftlab.methods.__all__:
        return name
    offered: list[EntryPoint] = list(entry_points(group=GROUP, name=name))
    if len({entry.value for entry in offered}) > 1:
        packages = " and ".join(sorted(entry.dist.name for entry in offered if entry.dist))
        raise UserError(f"method {name} is offered by {packages}: give the dotted path of the one that is meant")
    if not offered:
        return name
    entry = offered[0]
    try:
        entry.load()
    except Exception as error:  # whatever a package raises when it is imported
        package = entry.dist.name if entry.dist else entry.module
        raise UserError(
            f"method {name} is {entry.value} of the package {package}, which cannot be imported "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return f"{entry.module}.{entry.attr}"


def _module_of_file(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"there is no file {file}: give my.py:MyMethod, or the dotted path of a class")
    sys.path.insert(0, str(file.resolve().parent))  # other processes, and what it imports, find it there too
    module = _imported(file.stem, str(file))
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise UserError(f"{file} has the name of the module {file.stem}, which is imported already: rename it")
    return module


def _imported(module: str, asked: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{asked} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
