"""What is passed from those who read files to those who work on records: chunks, small, picklable, parsed late.

A chunk is cut where the file is read and parsed where it is used, so that parsing can be a worker's. The rules for JSON
are here, since lines of it are parsed late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ftlab.data.records import RawRecord
from ftlab.errors import UserError

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

CHUNK_BYTES = 4_000_000  # a thousand records of 10 MB must not pile up


@dataclass(frozen=True)
class LineChunk:
    """Lines of JSONL as they stand in the file.

    Args:
        lines: The lines that are not blank.
        numbers: Their numbers in the file, from 1.
        file: The file.
        label: What messages call it.
    """

    lines: list[bytes]
    numbers: list[int]
    file: Path
    label: str

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def bytes(self) -> int:
        """Of the file, but for blank lines."""
        return sum(map(len, self.lines))

    def records(self) -> list[RawRecord]:
        """Parses the lines.

        Raises:
            UserError: A line is not UTF-8, not JSON, no object, or names a key twice.
        """
        found = []
        for number, line in zip(self.numbers, self.lines, strict=True):
            source = f"{self.label}:{number}"
            text = decoded(line, source, self.file).rstrip("\r\n")  # else an error at its end is in the next line
            try:
                row = DECODER.decode(text)
            except JSON_ERRORS as error:
                raise json_error(error, source, self.file) from error
            found.append(as_record(row, source, self.file))
        return found


@dataclass(frozen=True)
class RowChunk:
    """Rows that had to be parsed to be found: of CSV, JSON lists and text.

    Args:
        rows: Their columns.
        sources: Where each stands.
    """

    rows: list[dict[str, Any]]  # not RawRecords, which take five times as long to pass to a worker
    sources: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """About how many of the file: characters of its texts."""
        return sum(len(value) for row in self.rows for value in row.values() if isinstance(value, str))

    def records(self) -> list[RawRecord]:
        """The rows as records."""
        return list(map(RawRecord, self.rows, self.sources))


@dataclass(frozen=True)
class TableChunk:
    """Rows of an Arrow table.

    Args:
        table: The rows as an Arrow IPC stream.
        length: How many they are.
        first: The place of the first, from 1.
        label: What messages call the table.
    """

    table: bytes
    length: int
    first: int
    label: str

    def __len__(self) -> int:
        return self.length

    @property
    def bytes(self) -> int:
        """Of the stream: a file that is packed has fewer."""
        return len(self.table)

    def records(self) -> list[RawRecord]:
        """Turns the rows into Python's values."""
        import pyarrow

        table = pyarrow.ipc.open_stream(self.table).read_all()
        rows = table.to_pylist()
        if b'"Json"' in (table.schema.metadata or {}).get(b"huggingface", b""):
            import datasets  # it keeps what has no fixed schema, such as tools' arguments, as text

            features = datasets.Features.from_arrow_schema(table.schema)
            rows = [features.decode_example(row) for row in rows]
        return [RawRecord(row, f"{self.label}#{place}") for place, row in enumerate(rows, start=self.first)]


Chunk = LineChunk | RowChunk | TableChunk


def batched(items: Iterable[T], size: int, weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of at most `size` items and, but for a heavier item, CHUNK_BYTES."""
    batch: list[T] = []
    weight = 0
    for item in items:
        more = weigh(item)
        if batch and (len(batch) == size or weight + more > CHUNK_BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += more
    if batch:
        yield batch


def table_chunks(tables: Iterable[pyarrow.Table], label: str, size: int, limit: int | None) -> Iterator[TableChunk]:
    import pyarrow

    place = 0
    for table in tables:
        if len(set(table.column_names)) < len(table.column_names):
            raise UserError(f"{label} names a column twice ({', '.join(table.column_names)}); rename one")
        for part in _slices(table if limit is None else table.slice(0, limit - place), size):
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            yield TableChunk(sink.getvalue().to_pybytes(), part.num_rows, place + 1, label)
            place += part.num_rows
        if limit is not None and place >= limit:
            return


def _slices(table: pyarrow.Table, size: int) -> Iterator[pyarrow.Table]:
    """The table in parts of at most `size` rows and, but for a larger row, CHUNK_BYTES; none is empty."""
    for start in range(0, table.num_rows, size):
        part = table.slice(start, size)
        if part.nbytes > CHUNK_BYTES and part.num_rows > 1:
            yield from _slices(part, (part.num_rows + 1) // 2)
        else:
            yield part


def decoded(line: bytes, source: str, path: Path) -> str:
    """The line as text.

    Raises:
        UserError: It is not UTF-8; the sentence names the byte.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 (byte 0x{line[error.start]:02x}); convert {path} to UTF-8") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


class _KeyTwiceError(Exception):
    """An object names a key twice, of which json would silently keep the last."""


DECODER = json.JSONDecoder(object_pairs_hook=_once)
# ValueError: broken, or an integer of thousands of digits; RecursionError: brackets in brackets
JSON_ERRORS = (ValueError, RecursionError, _KeyTwiceError)


def json_error(error: Exception, source: str, path: Path, place: str | None = None, hint: str = "") -> UserError:
    """The sentence for one of JSON_ERRORS: `source` is the record's name, `place` that of the line if it is another."""
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{place or source} is broken JSON ({error.msg} at column {error.colno}); mend {path}{hint}")
    if isinstance(error, _KeyTwiceError):
        return UserError(f'{source} names "{error}" twice in one object; keep one and mend {path}')
    return UserError(f"{source} is JSON that cannot be read ({first_line(error)}); mend {path}")


def as_record(row: Any, source: str, path: Path) -> RawRecord:
    """The row as a record.

    Raises:
        UserError: It is no object.
    """
    if not isinstance(row, dict):
        raise UserError(f"{source} is {kind_of_value(row)}, not an object with columns; mend {path}")
    return RawRecord(row, source)


def kind_of_value(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {list: "a list", dict: "an object", str: "a string", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).strip().split("\n")[0] or type(error).__name__
