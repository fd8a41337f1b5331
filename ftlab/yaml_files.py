"""YAML files that people write: configurations, sweeps, profiles of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ftlab.errors import UserError, one_line


def read_mapping(path: Path, what: str, such_as: str) -> dict[str, Any]:
    """The content of a YAML file; empty where the file is.

    Args:
        path: The file.
        what: What it is called, such as "configuration file".
        such_as: What one holds, for the sentence where this one holds something else.

    Raises:
        UserError: It is not there, is not YAML, holds no mapping, or says a key twice, of which YAML's readers take the
            last without a word.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except FileNotFoundError:
        raise UserError(f"there is no {what} {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read ({one_line(error)})") from error
    except _SaidTwiceError as error:
        raise UserError(f"{path}, {error}: take one of the two out") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({one_line(error)})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys: {such_as}")
    return content


class _SaidTwiceError(Exception):
    pass


class _Once(yaml.SafeLoader):
    """Refuses a key that its mapping has already. What `<<` merges in is another mapping's, and may be said anew."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if before := lines.get((key.tag, key.value)):
                raise _SaidTwiceError(f"line {line}: {key.value} is there already, in line {before}")
            lines[key.tag, key.value] = line
        return node
