"""Prepared rows on disk: written once as they come, then read through a memory map, so that they cost no memory.

A directory holds `rows.arrow` (token ids and learned spans), `names.arrow` (where each row's record stands),
`index.npz` (a few bytes a row: length, targets, record, source, split), `records.jsonl` (what is scored, as text),
`dropped.jsonl` (what was left out, and why), `leaks.jsonl` (evaluation records that are also in training) and
`report.json` (what became of every record).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from ftlab.data.collators import Row
from ftlab.data.records import SPLITS, Message, Record, Split

ROWS = pyarrow.schema(
    {
        "input_ids": pyarrow.list_(pyarrow.int32()),
        "spans": pyarrow.list_(pyarrow.int32()),  # start, end, start, end, …
        "rejected_ids": pyarrow.list_(pyarrow.int32()),  # null where there is no rejected answer
        "rejected_spans": pyarrow.list_(pyarrow.int32()),
    }
)
NAMES = pyarrow.schema({"source": pyarrow.string()})
ABSENT = -1
"""The split of a record that was read and then left out, because it leaked."""


def split_number(split: Split) -> int:
    """How a split is written in arrays."""
    return SPLITS.index(split)


class Rows(Sequence[Row]):
    """Rows of one split, in the order in which they were read; indexing opens the memory map.

    Args:
        directory: Where `rows.arrow` and `names.arrow` are.
        places: Which rows of the file, (rows,).
        lengths: Tokens of each, (rows,).
        targets: Learned tokens of each, from the second position on, (rows,).
        origins: Number of the source that each came from, (rows,).
        records: Number of the record that each came from, (rows,).
    """

    def __init__(
        self,
        directory: Path,
        places: numpy.ndarray,
        lengths: numpy.ndarray,
        targets: numpy.ndarray,
        origins: numpy.ndarray,
        records: numpy.ndarray,
    ) -> None:
        self._directory = directory
        self._places = places
        self.lengths = lengths
        self.targets = targets
        self.origins = origins
        self.records = records

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        batches, names, starts = self._opened
        place = int(self._places[index])
        number = int(numpy.searchsorted(starts, place, side="right")) - 1
        place -= int(starts[number])
        return row_at(batches[number], place, names[number].column(0)[place].as_py())

    def __getstate__(self) -> dict[str, Any]:
        # a worker that is spawned opens the file itself
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def chosen(self, mask: numpy.ndarray) -> Rows:
        """The rows where `mask` holds (or of these indices), in that order."""
        arrays = (self._places, self.lengths, self.targets, self.origins, self.records)
        return Rows(self._directory, *(array[mask] for array in arrays))

    @cached_property
    def _opened(self) -> tuple[list[pyarrow.RecordBatch], list[pyarrow.RecordBatch], numpy.ndarray]:
        rows, names = (_mapped(self._directory / name) for name in ("rows.arrow", "names.arrow"))
        return rows, names, numpy.cumsum([0, *(batch.num_rows for batch in rows)])[:-1]


def _mapped(file: Path) -> list[pyarrow.RecordBatch]:
    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def row_at(batch: pyarrow.RecordBatch, place: int, source: str) -> Row:
    """One row of a batch of ROWS, without copying; `source` is where its record stands."""

    def values(column: int) -> numpy.ndarray:
        return numpy.from_dlpack(batch.column(column)[place].values)  # pyarrow's own way imports pandas

    rejected = None
    if batch.column(2)[place].is_valid:
        rejected = Row(values(2), values(3).reshape(-1, 2))
    return Row(values(0), values(1).reshape(-1, 2), rejected, source)


class Prepared:
    """What a preparation has left in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def report(self) -> dict[str, Any]:
        """What was read, dropped, found twice, leaked, split and encoded: `report.json`."""
        report: dict[str, Any] = json.loads((self.directory / "report.json").read_text(encoding="utf-8"))
        return report

    @property
    def fingerprint(self) -> str:
        """A hash of the rows themselves: the same where another version of the code has prepared the same."""
        return str(self.report["fingerprint"])

    @cached_property
    def _index(self) -> dict[str, numpy.ndarray]:
        with numpy.load(self.directory / "index.npz") as arrays:
            return dict(arrays)

    def summary(self) -> dict[str, Any]:
        """Sizes of the splits and what was left out; `prepared` names the directory."""
        sizes: dict[str, Any] = {"prepared": self.directory.name, "read": self.report["read"]}
        for split in SPLITS:
            rows = self.rows(split)
            if len(rows):
                sizes[f"{split}_rows"] = len(rows)
                sizes[f"{split}_tokens"] = int(rows.lengths.sum())
                sizes[f"{split}_target_tokens"] = int(rows.targets.sum())
                sizes[f"{split}_longest"] = int(rows.lengths.max())
        return sizes | {"dropped": self.report["dropped"], "truncated": self.report["truncated"]}

    def size(self, split: Split) -> int:
        """Rows of a split."""
        return int((self._index["split"] == split_number(split)).sum())

    def rows(self, split: Split) -> Rows:
        """The rows of a split, in the order in which they were read."""
        index = self._index
        places = numpy.flatnonzero(index["split"] == split_number(split))
        arrays = (index[name][places] for name in ("lengths", "targets", "origins", "records"))
        return Rows(self.directory, places, *arrays)

    def records(self, split: Split) -> Iterator[tuple[int, Record]]:
        """Numbers and records of a split that is scored; none of train, unless it was carved out of the same file."""
        wanted = set(numpy.unique(self.rows(split).records).tolist())
        with (self.directory / "records.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                number, _, text = line.partition("\t")
                if int(number) in wanted:
                    yield int(number), record_from_json(text)


def record_to_json(record: Record) -> str:
    """One line; what is not there is left out. What JSON does not know, as a date among a tool's arguments, is text."""
    content = {name: value for name, value in asdict(record).items() if value not in (None, (), {})}
    return json.dumps(content, ensure_ascii=False, default=str)


def record_from_json(line: str) -> Record:
    """The record that `record_to_json` wrote."""
    content = json.loads(line)
    for name in ("context", "answers"):
        content[name] = tuple(Message(**message) for message in content.get(name, ()))
    if "rejected" in content:
        content["rejected"] = Message(**content["rejected"])
    for name in ("tools", "tokens", "labels"):
        if name in content:
            content[name] = tuple(content[name])
    return Record(**content)
