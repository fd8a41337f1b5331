"""What a run has logged offline, read back from its .wandb file, as `wandb sync` would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """Its records: blocks of 32 KiB, in which pieces have a checksum, a length and a kind (LevelDB's log format)."""
    data, place, piece = path.read_bytes(), _HEADER, b""
    while place + _PREFIX <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PREFIX:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + _PREFIX + size > len(data):
            return  # it is being written
        piece += data[place + _PREFIX : place + _PREFIX + size]
        place += _PREFIX + size
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(piece)
            yield record
            piece = b""


def of_kind(path: Path, kind: str) -> list[Any]:
    """The records of one kind, such as run, history, summary or artifact."""
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]


def rows(path: Path) -> list[dict[str, Any]]:
    """What was logged, step by step."""
    return [values(row.item) for row in of_kind(path, "history")]


def values(items: Any) -> dict[str, Any]:
    """Items with dotted keys."""
    return {".".join([*item.nested_key, item.key]).strip("."): json.loads(item.value_json) for item in items}


def logged(run: str, exits: int = 1) -> list[Path]:
    """The files of W&B, whose own process may still write the last of them."""
    files = sorted(Path(run).glob("wandb/offline-run-*/*.wandb"))
    until = time.monotonic() + 60
    while sum(len(of_kind(file, "exit")) for file in files) < exits and time.monotonic() < until:
        time.sleep(0.1)
    return files
