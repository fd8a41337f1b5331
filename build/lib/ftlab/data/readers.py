"""From one file, or one set of `datasets`, to chunks of raw records: a function for each kind of file.

Files are read as streams: what is in memory at once is a chunk, but for `.json` and text by document, whose text is.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from ftlab.data.chunks import (
    CHUNK_BYTES,
    DECODER,
    JSON_ERRORS,
    Chunk,
    LineChunk,
    RowChunk,
    as_record,
    batched,
    decoded,
    first_line,
    json_error,
    kind_of_value,
    table_chunks,
)
from ftlab.data.records import RawRecord
from ftlab.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow

SampleBy = Literal["document", "paragraph", "line"]

_BUFFER_BYTES = 1 << 20
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BOM = b"\xef\xbb\xbf"
_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON's own


def kind_of(path: str | Path) -> str | None:
    """The ending by which a file is read, without that of its compression; None if it cannot be read."""
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def endings() -> str:
    """The endings that can be read, for messages."""
    return ", ".join(KINDS) + ", each also with .gz or .zst"


def read_file(
    path: Path, label: str, size: int = 1000, limit: int | None = None, sample_by: SampleBy = "document"
) -> Iterator[Chunk]:
    """Reads a file as chunks of at most `size` records and, but for a larger record, 4 MB.

    Args:
        path: The file.
        label: What messages call it.
        size: Records in a chunk.
        limit: Only the first so many records.
        sample_by: What of a text file is one record.

    Raises:
        UserError: The file is missing, unreadable, empty, broken, of an unknown kind, or not made of objects.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path} is of no kind that can be read; convert it to {endings()}")
    chunks: Iterator[Chunk]
    if kind in _LINES:
        chunks = _line_chunks(path, label, size, limit)
    elif kind in _TABLES:
        chunks = table_chunks(_TABLES[kind](path, size), label, size, limit)
    else:
        rows = _read_text(path, label, sample_by) if kind in TEXTS else _ROWS[kind](path, label)
        batches = batched(islice(rows, limit), size, lambda row: row[0])
        chunks = (RowChunk([row.columns for _, row in part], [row.source for _, row in part]) for part in batches)
    empty = True
    try:
        for chunk in chunks:
            empty = False
            yield chunk
    except OSError as error:
        if error.errno is None:  # so speaks pyarrow of what it cannot decompress or decode
            raise _unreadable(path, error) from error
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path and its rights") from error
    if empty:
        raise UserError(f"{path} holds no records; give a file with at least one")


def read_dataset(dataset: datasets.Dataset, label: str, size: int = 1000, limit: int | None = None) -> Iterator[Chunk]:
    """Reads a set of `datasets`, whose rows stay on disk until their turn comes, as `read_file` does a file."""
    view = dataset.with_format("arrow")
    tables = (view[start : start + size] for start in range(0, len(dataset), size))
    empty = True
    for chunk in table_chunks(tables, label, size, limit):
        empty = False
        yield chunk
    if empty:
        raise UserError(f"{label} holds no records; give a set with at least one")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed."""
    with path.open("rb") as file:
        if path.suffix not in _COMPRESSIONS:
            yield file
            return
        import pyarrow

        compressed = pyarrow.input_stream(file, compression=_COMPRESSIONS[path.suffix])
        yield cast(BinaryIO, io.BufferedReader(compressed, _BUFFER_BYTES))


@contextmanager
def _mappable(path: Path) -> Iterator[str]:
    """The path of a file in which one can jump about: itself, or what it is decompressed to for the time being."""
    if path.suffix not in _COMPRESSIONS:
        yield str(path)
        return
    with _opened(path) as file, tempfile.NamedTemporaryFile(suffix=path.stem) as plain:
        shutil.copyfileobj(file, plain, _BUFFER_BYTES)
        plain.flush()
        yield plain.name


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, cut at line feeds alone: U+2028 may stand inside a JSON string."""
    for number, line in enumerate(file, start=1):
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _texts(file: BinaryIO, path: Path, label: str) -> Iterator[tuple[int, str]]:
    """Lines as text, with their ends as they are."""
    for number, line in _lines(file):
        yield number, decoded(line, f"{label}:{number}", path)


def _line_chunks(path: Path, label: str, size: int, limit: int | None) -> Iterator[LineChunk]:
    with _opened(path) as file:
        filled = ((number, line) for number, line in _lines(file) if line and not line.isspace())
        for batch in batched(islice(filled, limit), size, lambda row: len(row[1])):
            yield LineChunk([line for _, line in batch], [number for number, _ in batch], path, label)


def _read_json(path: Path, label: str) -> Iterator[tuple[int, RawRecord]]:
    """One list of objects; each with its length in characters. Its text is in memory, its objects one by one."""
    with _opened(path) as file:
        text = "".join(line for _, line in _texts(file, path, label))
    source = label
    try:
        start = _past_blanks(text, 0)
        if start == len(text):
            return
        if text[start] != "[":
            raise UserError(
                f"{path} holds {kind_of_value(DECODER.decode(text))}, not a list of objects; "
                "wrap it in [ ] or give one object a line as .jsonl"
            )
        place, start = 1, _past_blanks(text, start + 1)
        more = text[start : start + 1] != "]"
        while more:
            source = f"{label}#{place}"
            row, end = DECODER.raw_decode(text, start)
            yield end - start, as_record(row, source, path)
            place, start = place + 1, _past_blanks(text, end)
            more = text[start : start + 1] != "]"
            if more and text[start : start + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
            start = _past_blanks(text, start + 1) if more else start
        if (end := _past_blanks(text, start + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except JSON_ERRORS as error:
        line, hint = None, ""
        if isinstance(error, json.JSONDecodeError):
            line = f"{label}:{error.lineno}"
            hint = "; one object a line is called .jsonl" if error.msg == "Extra data" else ""
        raise json_error(error, source, path, line, hint) from error


def _past_blanks(text: str, start: int) -> int:
    return _BLANKS.match(text, start).end()  # type: ignore[union-attr]  # it matches no blanks, too


def _read_separated(path: Path, label: str, delimiter: str) -> Iterator[tuple[int, RawRecord]]:
    """CSV and TSV, quoted as Excel does; each row with its length in characters."""
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB
    with _opened(path) as file:
        lines = (line for _, line in _texts(file, path, label))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] = []
        before = 0
        try:
            for row in reader:
                source, before = f"{label}:{reader.line_num}", reader.line_num
                if not row:
                    continue
                if not header:
                    header = row
                    if len(set(header)) < len(header):
                        raise UserError(f"{path} names a column twice in its header ({', '.join(header)}); rename one")
                elif len(row) != len(header):
                    raise UserError(f"{source} has not as many fields as the header ({len(header)}); mend this line")
                else:
                    yield sum(map(len, row)), RawRecord(dict(zip(header, row, strict=True)), source)
        except csv.Error as error:
            # a quote that is never closed is found at the end of the file: the row's first line is what helps
            raise UserError(f"{label}:{before + 1} is not CSV ({error}); mend this line of {path}") from error


def _read_text(path: Path, label: str, sample_by: SampleBy) -> Iterator[tuple[int, RawRecord]]:
    """Text in a column `text`: a whole file, its parts between blank lines, or its lines; each with its length."""
    with _opened(path) as file:
        lines = ((number, line.replace("\r\n", "\n")) for number, line in _texts(file, path, label))
        if sample_by == "document":
            whole = "".join(line for _, line in lines)
            if whole and not whole.isspace():
                yield len(whole), RawRecord({"text": whole}, label)
        elif sample_by == "paragraph":
            for blank, group in groupby(lines, key=lambda line: not line[1].strip()):
                if not blank:
                    numbers, parts = zip(*group, strict=True)
                    text = "".join(parts).removesuffix("\n")
                    yield len(text), RawRecord({"text": text}, f"{label}:{numbers[0]}")
        else:
            for number, line in lines:
                if line.strip():
                    yield len(line), RawRecord({"text": line.removesuffix("\n")}, f"{label}:{number}")


def _parquet_tables(path: Path, size: int) -> Iterator[pyarrow.Table]:
    import pyarrow.parquet

    try:
        # pre_buffer would hold a whole row group, which often is the whole file
        with (
            _mappable(path) as plain,
            pyarrow.parquet.ParquetFile(plain, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
            for batch in file.iter_batches(min(size, max(1, CHUNK_BYTES // max(row_bytes, 1)))):
                yield pyarrow.Table.from_batches([batch])
    except pyarrow.lib.ArrowException as error:
        raise _unreadable(path, error) from error


def _arrow_tables(path: Path, size: int) -> Iterator[pyarrow.Table]:
    import pyarrow

    try:
        with _mappable(path) as plain, pyarrow.memory_map(plain) as source:
            magic = source.read(6)
            source.seek(0)
            if magic == b"ARROW1":  # an IPC file, which ends in a table of contents; else it is an IPC stream
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                yield pyarrow.Table.from_batches([batch])
    except pyarrow.lib.ArrowException as error:
        raise _unreadable(path, error) from error


_LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md")
_ROWS: dict[str, Callable[[Path, str], Iterator[tuple[int, RawRecord]]]] = {
    ".json": _read_json,
    ".csv": partial(_read_separated, delimiter=","),
    ".tsv": partial(_read_separated, delimiter="\t"),
}
_TABLES: dict[str, Callable[[Path, int], Iterator[pyarrow.Table]]] = {
    ".parquet": _parquet_tables,
    ".arrow": _arrow_tables,
}
KINDS = (*_LINES, *_ROWS, *_TABLES, *TEXTS)


def _unreadable(path: Path, error: Exception) -> UserError:
    names = {".gz": "a gzip", ".zst": "a Zstandard", ".parquet": "a Parquet", ".arrow": "an Arrow"}
    name = names.get(path.suffix, "a whole")
    return UserError(f"{path} is not {name} file that can be read ({first_line(error)}); write it again")
