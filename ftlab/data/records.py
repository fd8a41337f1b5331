"""Read raw records from where people keep them: JSONL, JSON, CSV and Parquet files, or a set on the hub.

A raw record is a row's columns as they stand, and where it came from, so that every later complaint can name
file and line. What the columns mean is decided in `templates`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ftlab.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")  # owner/name:subset


@dataclass(frozen=True)
class RawRecord:
    """One row as it was found.

    Args:
        columns: The row's values by column name.
        source: Where it stands: `dev.jsonl:17` by line, `demo.json#17` by place in a list or table.
    """

    columns: dict[str, Any]
    source: str


def find_splits(path: str | Path) -> dict[Split, Path]:
    """Says which files under `path` hold which split.

    A directory is recognised by its files `train.*`, `dev|val|valid|validation.*` and `test.*`; a single file is
    all there is and comes back as "train".

    Raises:
        UserError: Nothing is there, no file is named after a split, or two are named after the same.
    """
    path = Path(path)
    if path.is_file():
        _reader(path)
        return {"train": path}
    if not path.is_dir():
        raise UserError(f"data.path: {path} is neither a file nor a directory; give the path of one that exists")
    found: dict[Split, Path] = {}
    for file in sorted(path.iterdir()):
        split = _SPLIT_NAMES.get(file.stem)
        if split is None or file.suffix not in _READERS or not file.is_file():
            continue
        if split in found:
            raise UserError(f"data.path: {path} has two {split} files, {found[split].name} and {file.name}; keep one")
        found[split] = file
    if not found:
        raise UserError(
            f"data.path: {path} has no file named train, dev (or val, valid, validation) or test "
            f"that ends in {_endings()}; rename its files or give the path of one"
        )
    return {split: found[split] for split in SPLITS if split in found}


def open_source(path: str) -> dict[Split, Callable[[], list[RawRecord]]]:
    """Gives, for each split that `path` has, the function that reads it.

    Local files come first; only a path that does not exist here and looks like `name` or `org/name` is asked for on
    the hub.

    Raises:
        UserError: As `find_splits`, or the hub has no such set, or none of its splits is known.
    """
    local = Path(path)
    if local.exists() or not _HUB_NAME.fullmatch(path) or local.suffix in _READERS:
        # file=file: a closure would see only the loop's last file
        return {split: lambda file=file: read_file(file) for split, file in find_splits(path).items()}  # type: ignore[misc]
    return _open_hub(path)


def read_file(path: str | Path) -> list[RawRecord]:
    """Reads every record of one file.

    Raises:
        UserError: The file is missing, unreadable, empty, broken, of an unknown kind, or not made of objects.
    """
    path = Path(path)
    read = _reader(path)
    try:
        records = list(read(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path and its rights") from error
    if not records:
        raise UserError(f"{path} holds no records; give a file with at least one")
    return records


def _reader(path: Path) -> Callable[[Path], Iterator[RawRecord]]:
    if path.suffix not in _READERS:
        raise UserError(f"{path} is of no kind that can be read; convert it to {_endings()}")
    return _READERS[path.suffix]


def _endings() -> str:
    return ", ".join(_READERS)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, cut at line feeds alone: U+2028 may stand inside a JSON string."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path.name}:{number} is not UTF-8 (byte 0x{line[error.start]:02x}); convert {path} to UTF-8"
                ) from error


def _read_jsonl(path: Path) -> Iterator[RawRecord]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        source = f"{path.name}:{number}"
        yield _record(_parse_json(line, source, path), source, path)


def _read_json(path: Path) -> Iterator[RawRecord]:
    rows = _parse_json("".join(line for _, line in _lines(path)), path.name, path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds {_kind(rows)}, not a list of objects; wrap it in [ ] or give one object a line as .jsonl"
        )
    for place, row in enumerate(rows, start=1):
        source = f"{path.name}#{place}"
        yield _record(row, source, path)


def _read_csv(path: Path) -> Iterator[RawRecord]:
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        header = reader.fieldnames or ()
        if len(set(header)) < len(header):
            raise UserError(f"{path} names a column twice in its header ({', '.join(header)}); rename one")
        for row in reader:
            source = f"{path.name}:{reader.line_num}"
            # DictReader files surplus values under the key None, and fills missing ones with None
            if None in row or None in row.values():
                raise UserError(f"{source} has not as many fields as the header ({len(header)}); mend this line")
            yield RawRecord(row, source)
    except csv.Error as error:
        raise UserError(
            f"{path.name}:{reader.reader.line_num} is not CSV ({error}); mend this line of {path}"
        ) from error


def _read_parquet(path: Path) -> Iterator[RawRecord]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise UserError(
            f"{path} is not a Parquet file that can be read ({_first_line(error)}); write it again"
        ) from error
    for place, row in enumerate(rows, start=1):
        yield RawRecord(row, f"{path.name}#{place}")


_READERS: dict[str, Callable[[Path], Iterator[RawRecord]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _parse_json(text: str, source: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = source if path.suffix == ".jsonl" else f"{source}:{error.lineno}"
        hint = "; one object a line is called .jsonl" if path.suffix == ".json" and error.msg == "Extra data" else ""
        raise UserError(f"{place} is broken JSON ({error.msg} at column {error.colno}); mend {path}{hint}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets in brackets
        raise UserError(f"{source} is JSON that cannot be read ({_first_line(error)}); mend {path}") from error


def _record(row: Any, source: str, path: Path) -> RawRecord:
    if not isinstance(row, dict):
        raise UserError(f"{source} is {_kind(row)}, not an object with columns; mend {path}")
    return RawRecord(row, source)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")


def _open_hub(name: str) -> dict[Split, Callable[[], list[RawRecord]]]:
    import datasets

    bars_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        repository, _, subset = name.partition(":")
        found = datasets.load_dataset(repository, subset or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.path: {name} is neither a local file or directory nor a set that can be fetched from the hub "
            f"({_first_line(error)}); check the name"
        ) from error
    finally:
        if bars_shown:
            datasets.enable_progress_bars()
    splits = {_SPLIT_NAMES[key]: key for key in found if key in _SPLIT_NAMES}
    if not splits:
        raise UserError(
            f"data.path: {name} on the hub has the splits {', '.join(found)}; give a set with train, validation or test"
        )

    def read(key: str) -> list[RawRecord]:
        return [RawRecord(row, f"{name}/{key}#{place}") for place, row in enumerate(found[key], start=1)]

    return {split: lambda key=splits[split]: read(key) for split in SPLITS if split in splits}  # type: ignore[misc]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
