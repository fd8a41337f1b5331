"""Files that people write in YAML, or as JSON: configurations, sweeps, profiles of clusters."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ftlab.errors import UserError, one_line


def read_mapping(path: Path, what: str, such_as: str) -> dict[str, Any]:
    """The content of a file; empty where the file is.

    Args:
        path: The file: JSON where its name says so, else YAML.
        what: What it is called, such as "configuration file".
        such_as: What one holds, for the sentence where this one holds something else.

    Raises:
        UserError: It is not there, is not what it is called, holds no mapping, or says a key twice, of which readers
            take the last without a word.
    """
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_once) if is_json else yaml.load(text, _Once)
    except FileNotFoundError:
        raise UserError(f"there is no {what} {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read ({one_line(error)})") from error
    except _SaidTwiceError as error:
        raise UserError(f"{path}, {error}: take one of the two out") from None
    # PyYAML lets through what Python says of a date, of a number or of a tag that makes no sense
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not {'JSON' if is_json else 'YAML'} ({one_line(error)})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys: {such_as}")
    return content


class _SaidTwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _SaidTwiceError(f"in one mapping: {key} is there twice")
    return mapping


class _Once(yaml.SafeLoader):
    """Refuses a key that its mapping has already. What `<<` merges in is another mapping's, and may be said anew."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if before := lines.get((key.tag, key.value)):
                raise _SaidTwiceError(f"line {line}: {key.value} is there already, in line {before}")
            lines[key.tag, key.value] = line
        return node
