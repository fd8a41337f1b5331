"""Configuration files that include others: a named experiment holds only its differences.

    include: [base.yaml, network/demo.yaml, data/demo.yaml, method/lora.yaml]
    trainer: {max_steps: 300}

Paths are relative to the file that includes; a .jinja file that data.template names is looked for there first, too.
Each included file is applied in the order given, then the file itself; options on the command line come last. Secrets
are refused wherever they stand: a run keeps its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ftlab.errors import UserError
from ftlab.runs.identity import flat
from ftlab.runs.redaction import secret_in
from ftlab.yaml_files import read_mapping

_FLAGS = ("-c", "--config")
_HASH = re.compile(r"(?=.{7})\d+e\d+")
"""As short as git gives them; a number is not written so."""


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The configuration files that a command names, in order."""
    files, take = [], False
    for argument in arguments:
        if take:
            files.append(Path(argument))
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
        take = argument in _FLAGS
    return files


def expand(arguments: Sequence[str]) -> list[str]:
    """Replaces each `-c FILE` by one for every file that it includes and one for its own content.

    Raises:
        UserError: A file that cannot be read, that is not a mapping, or that includes itself; a value holds a secret.
    """
    expanded: list[str] = []
    take = False
    for argument in arguments:
        if take:
            expanded += _as_options(Path(argument))
        elif argument.startswith("--config="):
            expanded += _as_options(Path(argument.removeprefix("--config=")))
        elif argument not in _FLAGS:
            expanded.append(argument)
        take = argument in _FLAGS
    if take:
        raise UserError("-c needs a configuration file after it")
    _refuse_secrets(expanded)
    return expanded


def experiment_name(files: Sequence[Path], otherwise: str) -> str:
    """What results of these configuration files are called: as the last, without dots that would lead elsewhere."""
    return files[-1].stem.lstrip(".") or otherwise if files else otherwise


def _refuse_secrets(expanded: Sequence[str]) -> None:
    for before, word in zip(["", *expanded], expanded, strict=False):
        values = flat(yaml.safe_load(word)) if before == "--config" else {_option(before, word): word}
        for key, value in values.items():
            if found := secret_in(str(value)):
                raise UserError(
                    f"{key} holds {found}, and a run keeps its configuration: give secrets in the environment, where "
                    "the library that needs them looks for them, or fetch the file before"
                )


def _option(before: str, word: str) -> str:
    """The option that a word of the command line belongs to."""
    option = word if word.startswith("--") else before
    return option.lstrip("-").partition("=")[0] or "the command line"


def _as_options(path: Path) -> list[str]:
    return [word for part in _parts(path, ()) for word in ("--config", as_text(part))]


def as_text(config: Mapping[str, Any]) -> str:
    """A configuration as jsonargparse reads it back.

    Names that are hashes are quoted where all of their digits but one e are decimal: it would take 815e48999382 for a
    number. PyYAML, which quotes what itself would take for one, needs a dot in it; so does not `lr: 1e-4`.
    """
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes hashes that look like numbers."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _HASH.fullmatch(text) else None)


_Dumper.add_representer(str, _represented)


def _parts(path: Path, above: tuple[Path, ...]) -> list[dict[str, Any]]:
    if path.resolve() in [file.resolve() for file in above]:
        raise UserError(f"{above[-1]} includes {path}, which includes it: take one of the two out")
    if above and not path.is_file():
        raise UserError(
            f"{above[-1]} includes {path}, which is not there: paths are relative to the file that includes"
        )
    content = read_config(path)
    included = content.pop("include", [])
    if not (isinstance(included, list) and all(isinstance(name, str) for name in included)):
        raise UserError(f"{path}: include is a list of files, such as [base.yaml, method/lora.yaml]")
    parts = [part for name in included for part in _parts(path.parent / name, (*above, path))]
    data = content.get("data")
    template = data.get("template") if isinstance(data, dict) else None
    if isinstance(template, str) and template.endswith(".jinja") and (path.parent / template).is_file():
        content["data"]["template"] = str(path.parent / template)
    return [*parts, content] if content else parts


def read_config(path: Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        UserError: It is not there, is not YAML, holds no mapping, or says a key twice.
    """
    return read_mapping(path, "configuration file", "a configuration is a mapping such as 'trainer: {max_steps: 100}'")
