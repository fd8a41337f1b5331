"""The configuration beside a saved adapter: read as what it says or not at all, and written alike every time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from ftlab.errors import UserError, one_line
from ftlab.methods.adapter_bits import CONFIG


def read_config(directory: Path) -> peft.PeftConfig:
    """What an adapter's directory says of it.

    Raises:
        UserError: It holds no adapter, or one of which the installed peft would leave something out with a warning.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{directory} holds no adapter: there is no {CONFIG} in it")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): save the adapter again") from error
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(said.get("peft_type"))
    unknown = set(said) - {field.name for field in dataclasses.fields(known)} - {"runtime_config"} if known else set()
    if known is None or unknown:
        what = f"fields {', '.join(sorted(unknown))}" if known else f"peft_type {said.get('peft_type')}"
        raise UserError(
            f"{path} was written by peft {said.get('peft_version')}, and {what} means nothing to the installed "
            f"{peft.__version__}: install the newer one"
        )
    _refuse_code(directory, said)
    try:
        return peft.PeftConfig.from_pretrained(str(directory))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{path} was written by peft {said.get('peft_version')} and cannot be read by the installed "
            f"{peft.__version__} ({one_line(error)}): install the one that wrote it"
        ) from error


def _refuse_code(directory: Path, said: Mapping[str, Any]) -> None:
    """Refuses what would have more done than tensors read."""
    pickled, plain = directory / WEIGHTS_NAME, directory / SAFETENSORS_WEIGHTS_NAME
    if pickled.is_file() and not plain.is_file():
        raise UserError(
            f"{pickled} is pickled, and a pickle can hold a program: convert it, with safetensors.torch.save_file("
            f"torch.load('{pickled.name}', weights_only=True), '{plain.name}')"
        )
    if said.get("megatron_config"):  # peft imports whatever module it names
        raise UserError(f"{directory / CONFIG} has a megatron_config, which names a module to import: take it out")


def order_config(directory: Path, config: peft.PeftConfig) -> None:
    """Puts the names that peft keeps in sets in order: it writes them as they come, otherwise in every process."""
    path = directory / CONFIG
    said = json.loads(path.read_text(encoding="utf-8"))
    for name, value in vars(config).items():
        if isinstance(value, set) and name in said:
            said[name] = sorted(value)
    path.write_text(json.dumps(said, indent=2, sort_keys=True), encoding="utf-8")
