"""Rows and records on disk: what is written is what is read, and reading costs no memory."""

import multiprocessing
import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.building import _created
from ftlab.data.records import Message, Record, pair
from ftlab.data.store import NAMES, ROWS, Prepared, Rows, record_from_json, record_to_json
from ftlab.networks import Network

ALL = [([1, 2, 3], [1, 3]), ([4], []), ([5, 6], [0, 1, 1, 2]), ([7, 8, 9, 10], [2, 4]), ([11, 12], [1, 2])]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Five rows in batches of two, none and three; rows 0, 2 and 3 train, of which 3 has a worse answer."""
    with pyarrow.ipc.new_file(str(tmp_path / "rows.arrow"), ROWS) as writer:
        for part in (ALL[:2], [], ALL[2:]):
            rejected = [([7, 8, 13], [2, 3]) if ids == [7, 8, 9, 10] else (None, None) for ids, _ in part]
            columns = [*zip(*part, strict=True)] if part else [(), ()]
            columns += [*zip(*rejected, strict=True)] if part else [(), ()]
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=ROWS))
    _write_names(tmp_path, [["a:1", "a:2"], [], ["b:1", "b:1", "b:2"]])
    numpy.savez(
        tmp_path / "index.npz",
        split=numpy.array([0, 1, 0, 0, -1], dtype=numpy.int8),
        lengths=numpy.array([3, 1, 2, 4, 2], dtype=numpy.int32),
        targets=numpy.array([2, 0, 1, 2, 1], dtype=numpy.int32),
        records=numpy.array([0, 1, 2, 2, 3]),
        origins=numpy.array([0, 0, 1, 1, 1], dtype=numpy.int16),
    )
    return tmp_path


def _write_names(directory: Path, parts: list[list[str]]) -> None:
    with pyarrow.ipc.new_file(str(directory / "names.arrow"), NAMES) as writer:
        for part in parts:
            writer.write_batch(pyarrow.RecordBatch.from_arrays([pyarrow.array(part, pyarrow.string())], schema=NAMES))


class TestRows:
    def test_a_split_in_the_order_of_the_file(self, directory: Path) -> None:
        rows = Prepared(directory).rows("train")
        assert [row.input_ids.tolist() for row in rows] == [[1, 2, 3], [5, 6], [7, 8, 9, 10]]
        assert [row.spans.tolist() for row in rows] == [[[1, 3]], [[0, 1], [1, 2]], [[2, 4]]]
        assert [rows.lengths.tolist(), rows.targets.tolist()] == [[3, 2, 4], [2, 1, 2]]
        assert [rows.origins.tolist(), rows.records.tolist()] == [[0, 1, 1], [0, 2, 2]]
        assert [row.source for row in rows] == ["a:1", "b:1", "b:1"]
        assert rows[0].rejected is rows[1].rejected is None
        assert (rows[2].rejected.input_ids.tolist(), rows[2].rejected.spans.tolist()) == ([7, 8, 13], [[2, 3]])

    def test_a_row_without_learned_tokens(self, directory: Path) -> None:
        (row,) = Prepared(directory).rows("validation")
        assert (row.input_ids.tolist(), row.spans.shape, row.labels.tolist()) == ([4], (0, 2), [-100])

    def test_sizes(self, directory: Path) -> None:
        prepared = Prepared(directory)
        assert [prepared.size(split) for split in ("train", "validation", "test")] == [3, 1, 0]
        assert list(prepared.rows("test")) == []

    def test_indices(self, directory: Path) -> None:
        rows = Prepared(directory).rows("train")
        assert rows[-1].input_ids.tolist() == rows[numpy.int64(2)].input_ids.tolist() == [7, 8, 9, 10]
        with pytest.raises(IndexError):
            rows[3]

    def test_some_of_them(self, directory: Path) -> None:
        rows = Prepared(directory).rows("train")
        by_mask, by_index = rows.chosen(numpy.array([True, False, True])), rows.chosen(numpy.array([2, 0, 2]))
        assert [row.input_ids.tolist() for row in by_mask] == [[1, 2, 3], [7, 8, 9, 10]]
        assert [row.input_ids.tolist() for row in by_index] == [[7, 8, 9, 10], [1, 2, 3], [7, 8, 9, 10]]
        assert (by_index.lengths.tolist(), by_index.records.tolist()) == ([4, 3, 4], [2, 0, 2])
        assert len(rows.chosen(numpy.zeros(0, dtype=numpy.int64))) == 0

    def test_a_worker_opens_the_file_itself(self, directory: Path) -> None:
        rows = Prepared(directory).rows("train")
        _ = rows[0]
        assert len(pickle.dumps(rows)) < 3000
        assert pickle.loads(pickle.dumps(rows))[1].input_ids.tolist() == [5, 6]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert [ids.tolist() for ids in pool.map(_ids, [rows, rows.chosen(numpy.array([1]))])] == [
                [1, 2, 3],
                [5, 6],
            ]

    def test_rows_stay_on_disk(self, tmp_path: Path) -> None:
        """Ten megabytes of ids are read without a copy of them."""
        flat = pyarrow.array(numpy.arange(2_500_000, dtype=numpy.int32))
        lists = pyarrow.ListArray.from_arrays(pyarrow.array(numpy.arange(0, 2_500_001, 2500, dtype=numpy.int32)), flat)
        none = pyarrow.nulls(1000, ROWS.field("rejected_ids").type)
        spans = pyarrow.array([[0, 2500]] * 1000, ROWS.field("spans").type)
        with pyarrow.ipc.new_file(str(tmp_path / "rows.arrow"), ROWS) as writer:
            writer.write_batch(pyarrow.RecordBatch.from_arrays([lists, spans, none, none], schema=ROWS))
        _write_names(tmp_path, [["a"] * 1000])
        zeros = numpy.zeros(1000, dtype=numpy.int64)
        rows = Rows(tmp_path, numpy.arange(1000), zeros, zeros, zeros, zeros)
        del flat, lists, none, spans
        before = pyarrow.total_allocated_bytes()
        total = sum(int(row.input_ids.sum()) for row in rows)
        assert total == 2_500_000 * 2_499_999 // 2
        assert pyarrow.total_allocated_bytes() - before < 10_000


def _ids(rows: Rows) -> Any:
    return rows[0].input_ids


CHARACTERS = st.characters(codec=None)  # halves of surrogate pairs, too
TEXTS = st.text(CHARACTERS, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.dictionaries(TEXTS, JSON, max_size=2)
MESSAGES = st.builds(Message, TEXTS, TEXTS, st.none() | st.booleans(), FIELDS)
NUMBERS = st.none() | st.lists(st.integers(-100, 2**31), min_size=1, max_size=3).map(tuple)
RECORDS = st.builds(
    Record,
    st.lists(MESSAGES, max_size=3).map(tuple),
    st.lists(MESSAGES, max_size=2).map(tuple),
    TEXTS,
    st.lists(FIELDS, max_size=2).map(tuple),
    st.none() | MESSAGES,
    NUMBERS,
    NUMBERS,
    st.none() | TEXTS,
    st.none() | TEXTS,
)


class TestRecords:
    @settings(max_examples=100)
    @given(RECORDS)
    def test_what_is_written_is_read(self, record: Record) -> None:
        line = record_to_json(record)
        assert "\n" not in line
        assert record_from_json(line) == record

    @settings(max_examples=50)
    @given(st.lists(RECORDS, max_size=3))
    def test_through_a_file(self, tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
        """A file of UTF-8, whatever halves of surrogate pairs there are."""
        path = tmp_path_factory.getbasetemp() / "records.jsonl"
        with _created(path) as file:
            file.writelines(record_to_json(record) + "\n" for record in records)
        with path.open(encoding="utf-8", newline="\n") as file:
            assert [record_from_json(line) for line in file] == records

    def test_what_json_does_not_know_is_text(self) -> None:
        record = Record((Message("user", "a", fields={"day": date(2026, 1, 2)}),), (), "x:1")
        assert record_from_json(record_to_json(record)).context[0].fields == {"day": "2026-01-02"}

    def test_only_those_of_the_split(self, network: Network, write: Callable[..., str]) -> None:
        """Of training there are none on disk; validation and test are told apart."""
        for split in ("train", "dev", "test"):
            write(f"set/{split}.jsonl", [{"prompt": f"{split} {n}", "completion": ["b", "c"]} for n in range(3)])
        path = str(Path(write("set/unread.txt", [])).parent)
        prepared = FinetuneData(network, path, splits=Splits(0, 0)).prepared
        assert list(prepared.records("train")) == []
        assert list(prepared.records("validation")) == [
            (number, pair(f"dev {number - 3}", ("b", "c"), f"dev.jsonl:{number - 2}")) for number in (3, 4, 5)
        ]
        assert [number for number, _ in prepared.records("test")] == [6, 7, 8]


def test_the_fingerprint_is_that_of_the_rows(network: Network, write: Callable[..., str], tmp_path: Path) -> None:
    """Not of the options: what changes no row changes no batch, and a run may go on."""
    path = write("train.jsonl", [{"prompt": f"a{n}", "completion": "b"} for n in range(30)])
    options = ({}, {"format": "pairs"}, {"splits": Splits(2, 3)}, {"learn": "all"}, {"max_length": 60})
    prepared = [FinetuneData(network, path, **({"splits": Splits(1, 1)} | some)).prepared for some in options]  # type: ignore[arg-type]
    assert len({each.directory for each in prepared}) == 5
    assert prepared[0].fingerprint == prepared[1].fingerprint == prepared[4].fingerprint
    assert len({each.fingerprint for each in prepared}) == 3
