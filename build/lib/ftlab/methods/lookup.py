"""Which class a method's name stands for: a short name, a dotted path, or `my.py:MyMethod`.

An installed package offers a method under a short name in its pyproject.toml:

    [project.entry-points."ftlab.methods"]
    LoRAXS = "mypkg.lora_xs:LoRAXS"

It is imported only where the name is asked for, so that a package that is broken disturbs nobody else.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import ftlab.methods
from ftlab.errors import UserError, one_line
from ftlab.methods.base import Method

GROUP = "ftlab.methods"


def method_class(name: str) -> type[Method]:
    """The class that `my.py:MyMethod`, a dotted path, or a short name stands for.

    Raises:
        UserError: There is none, or it is no method.
    """
    file, colon, attribute = name.rpartition(":")
    path = dotted_path(name)
    if colon:
        module = _module_of_file(Path(file))
    elif "." in path:
        place, _, attribute = path.rpartition(".")
        module = _imported(place, name)
    else:
        module, attribute = ftlab.methods, name
    there = {key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Method)}
    if attribute not in there:
        own = [key for key, value in there.items() if value.__module__ == module.__name__]
        raise UserError(f"{name}: there is no method {attribute}; there are {', '.join(own or there)}")
    return there[attribute]


def dotted_path(name: str) -> str:
    """The dotted path behind a short name that an installed package offers; any other name as it is.

    Raises:
        UserError: The package that offers the name cannot be imported, or several offer it.
    """
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
            f"({type(error).__name__}: {one_line(error)})"
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
        raise UserError(f"{asked} cannot be imported ({type(error).__name__}: {one_line(error)})") from error
