"""Reading: every kind of file gives the same records, and every broken one a sentence with file and line."""

import gzip
import json
import os
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data.records import RawRecord
from ftlab.data.sources import open_source
from ftlab.errors import UserError

ROWS = [{"mr": "a", "ref": "b\nc"}, {"mr": "d", "ref": "é\u2028€"}]
KINDS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


def _records(path: Path | str, **options: object) -> list[RawRecord]:
    opened = open_source(str(path), **options)  # type: ignore[arg-type]
    assert opened.pooled
    assert list(opened.splits) == ["train"]
    return list(opened.splits["train"].records())


def _columns(path: Path | str, **options: object) -> list[dict]:
    return [record.columns for record in _records(path, **options)]


def _written(path: Path, rows: list[dict]) -> Path:
    """Writes rows as the kind that the path's ending says, compressed if it says so."""
    kind, *compression = path.suffixes
    table = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    if kind == ".parquet":
        pyarrow.parquet.write_table(table, sink)
    elif kind == ".arrow":
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind in [".csv", ".tsv"]:
        gap = "," if kind == ".csv" else "\t"
        cells = [list(rows[0]), *([f'"{value}"' for value in row.values()] for row in rows)]
        sink.write("".join(gap.join(row) + "\n" for row in cells).encode())
    elif kind == ".json":
        sink.write(json.dumps(rows, indent=1).encode())
    else:
        sink.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    content = sink.getvalue().to_pybytes()
    path.write_bytes(_compressed(content, compression[0]) if compression else content)
    return path


def _compressed(content: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(content, mtime=0)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_records(tmp_path: Path, kind: str, compression: str) -> None:
    path = _written(tmp_path / f"a.{kind}{compression}", ROWS)
    assert _columns(path) == ROWS
    assert _columns(path, limit=1) == ROWS[:1]


def test_an_arrow_file_with_a_table_of_contents_is_read(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert _columns(tmp_path / "a.arrow") == ROWS


def test_nested_columns_come_as_they_are(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "é"}], "n": None}, {"messages": [], "n": 1.5}]
    for kind in ["jsonl", "json", "parquet", "arrow"]:
        assert _columns(_written(tmp_path / f"a.{kind}", rows)) == rows, kind


def test_compressed_parts_may_be_joined(tmp_path: Path) -> None:
    for ending in [".gz", ".zst"]:
        (tmp_path / f"a.jsonl{ending}").write_bytes(b"".join(_compressed(b'{"a": 1}\n', ending) for _ in range(3)))
        assert _columns(tmp_path / f"a.jsonl{ending}") == [{"a": 1}] * 3


def test_a_record_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "dev.json").write_text('[{"a": 1}, {"a": 2}]')
    (tmp_path / "dev.csv").write_text('a\n"1\n1"\n\n2\n')
    _written(tmp_path / "dev.parquet", ROWS)
    for name, places in {
        "jsonl": [":1", ":3"],
        "json": ["#1", "#2"],
        "csv": [":3", ":5"],
        "parquet": ["#1", "#2"],
    }.items():
        found = [record.source for record in _records(tmp_path / f"dev.{name}")]
        assert found == [f"dev.{name}{place}" for place in places]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_bom_and_crlf_are_accepted(tmp_path: Path, name: str) -> None:
    texts = {"a.jsonl": '{"text": "y"}\r\n', "a.json": '[\r\n{"text": "y"}\r\n]\r\n', "a.csv": "text\r\ny\r\n"}
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + texts.get(name, "y\r\n").encode())
    assert _columns(tmp_path / name, sample_by="line") == [{"text": "y"}]


def test_text_is_read_by_document_paragraph_or_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\r\none\r\ntwo\x0c\r\n \r\n\r\nthree")
    expected = {
        "document": [("\none\ntwo\x0c\n \n\nthree", "a.txt")],
        "paragraph": [("one\ntwo\x0c", "a.txt:2"), ("three", "a.txt:6")],
        "line": [("one", "a.txt:2"), ("two\x0c", "a.txt:3"), ("three", "a.txt:6")],
    }
    for sample_by, records in expected.items():
        assert _records(path, sample_by=sample_by) == [RawRecord({"text": text}, place) for text, place in records]


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_ten_megabytes_is_a_chunk_of_its_own(tmp_path: Path, kind: str) -> None:
    rows = [{"x": "y"}, {"x": "z" * 10_000_000}, {"x": "y"}]
    source = open_source(str(_written(tmp_path / f"a.{kind}", rows))).splits["train"]
    assert [len(chunk) for chunk in source.chunks()] == [1, 1, 1]
    assert [record.columns for record in source.records()] == rows


@given(st.integers(1, 60), st.integers(1, 20), st.none() | st.integers(1, 80), st.sampled_from(KINDS))
@settings(max_examples=40)
def test_chunks_hold_every_record_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, limit: int | None, kind: str
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    for part in range(2):
        numbers = range(part * rows, (part + 1) * rows)
        _written(directory / f"train-{part}.{kind}", [{"n": str(number)} for number in numbers])
    source = open_source(str(directory), limit=limit).splits["train"]
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in source.chunks(size)]
    assert all(0 < len(chunk) == len(chunk.records()) <= size for chunk in chunks)
    found = [record.columns["n"] for chunk in chunks for record in chunk.records()]
    assert found == [str(number) for number in range(2 * rows)][:limit]
    assert source.first().columns == {"n": "0"}


_SHORT = st.text(max_size=5)
_VALUES = st.none() | st.booleans() | _SHORT | st.lists(_SHORT | st.lists(_SHORT, max_size=2), max_size=3)


@given(st.lists(st.dictionaries(_SHORT, _VALUES, max_size=3), min_size=1, max_size=4))
@settings(max_examples=50)
def test_a_json_list_is_read_as_json_reads_it(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    for indent in [None, 2]:
        path.write_text(json.dumps(rows, indent=indent) + "\n")
        assert _columns(path) == rows


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2 is broken JSON .*mend"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1} {}\n', r"a\.jsonl:2 is broken JSON \(Extra data at column 10\)"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2 is a list, not an object"),
        ("a.jsonl", b'{"a": 1}\n17\n', r"a\.jsonl:2 is a number, not an object"),
        ("a.jsonl", b'{"a": 1}\n{"b": [{"a": 1, "c": 2, "a": 1}]}\n', r'a\.jsonl:2 names "a" twice in one object'),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2 is not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", b"", r"a\.jsonl holds no records"),
        ("a.jsonl", b"\xef\xbb\xbf\n  \n", r"a\.jsonl holds no records"),
        ("a.jsonl", b"[" * 200_000, r"a\.jsonl:1 is JSON that cannot be read"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"a\.jsonl:1 is JSON that cannot be read"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2 is broken JSON"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', r"a\.json:2 is broken JSON \(Expecting ',' delimiter at column 1\)"),
        ("a.json", b'[{"a": 1},]', r"a\.json:1 is broken JSON \(Expecting value at column 11\)"),
        ("a.json", b'[{"a": 1}, ', r"a\.json:1 is broken JSON \(Expecting value"),
        ("a.json", b'[{"a": 1}', r"a\.json:1 is broken JSON \(Expecting ',' delimiter"),
        ("a.json", b"[", r"a\.json:1 is broken JSON \(Expecting value"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', r"broken JSON \(Extra data.*called \.jsonl"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]\n', r"a\.json:2 is broken JSON \(Extra data.*called \.jsonl"),
        ("a.json", b'[{"a": 1}, {"a": 1, "a": 2}]', r'a\.json#2 names "a" twice in one object'),
        ("a.json", b'[{"a": 1}, ' + b"[" * 200_000, r"a\.json#2 is JSON that cannot be read"),
        ("a.json", b'[{"a": 1}, "\n\xff"]', r"a\.json:2 is not UTF-8 \(byte 0xff\)"),
        ("a.json", b'{"data": []}', r"a\.json holds an object, not a list of objects"),
        ("a.json", b'[{"a": 1}, "b"]', r"a\.json#2 is a string, not an object"),
        ("a.json", b"[ ]", r"a\.json holds no records"),
        ("a.json", b"", r"a\.json holds no records"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3 has not as many fields as the header \(2\)"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2 has not as many fields"),
        ("a.csv", b'a,b\n1,2\n1,"2\n3,4\n5,6\n', r"a\.csv:3 is not CSV \(unexpected end of data\)"),
        ("a.csv", b'a\n1\n"2"3\n', r"a\.csv:3 is not CSV \(',' expected"),
        ("a.csv", b"a,a\n1,2\n", r"names a column twice"),
        ("a.csv", b"a\n\xff\n", r"a\.csv:2 is not UTF-8"),
        ("a.csv", b"a,b\n", r"a\.csv holds no records"),
        ("a.csv", b"", r"a\.csv holds no records"),
        ("a.tsv", b"a\tb\n1,2\n", r"a\.tsv:2 has not as many fields as the header \(2\)"),
        ("a.txt", b"one\n\xfftwo", r"a\.txt:2 is not UTF-8 \(byte 0xff\)"),
        ("a.md", b" \n\n", r"a\.md holds no records"),
        ("a.parquet", b"PAR1 not at all", r"a\.parquet is not a Parquet file"),
        ("a.parquet", b"", r"a\.parquet is not a Parquet file"),
        ("a.arrow", b"ARROW1 not at all", r"a\.arrow is not an Arrow file"),
        ("a.arrow", b"not at all", r"a\.arrow is not an Arrow file"),
        ("a.arrow", b"", r"a\.arrow is not an Arrow file"),
        ("a.jsonl.gz", b"not at all", r"a\.jsonl\.gz is not a gzip file"),
        ("a.jsonl.zst", b"not at all", r"a\.jsonl\.zst is not a Zstandard file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-3], r"a\.jsonl\.gz is not a gzip file .*Truncated"),
        ("a.jsonl.zst", _compressed(b'{"a": 1}\n', ".zst")[:-3], r"a\.jsonl\.zst is not a Zstandard file .*Truncated"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{', mtime=0), r"a\.jsonl\.gz:2 is broken JSON"),
        ("a.parquet.gz", gzip.compress(b"not at all", mtime=0), r"a\.parquet\.gz is not a .* file that can be read"),
        ("a.xml", b"text", r"a\.xml is of no kind that can be read; convert it to \.jsonl"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        _records(tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_torn_table_is_refused(tmp_path: Path, kind: str) -> None:
    path = _written(tmp_path / f"a.{kind}", [{"a": os.urandom(500).hex()} for _ in range(100)])
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"a\.{kind} is not an? {kind.title()} file that can be read"):
        _records(path)


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet names a column twice \(a, a\)"):
        _records(tmp_path / "a.parquet")


def test_a_file_that_goes_away_is_refused(tmp_path: Path) -> None:
    for kind in ["jsonl", "parquet", "arrow"]:
        path = _written(tmp_path / f"a.{kind}", ROWS)
        source = open_source(str(path)).splits["train"]
        path.unlink()
        with pytest.raises(UserError, match=rf"a\.{kind} cannot be read \(.*No such file or directory.*\)"):
            source.first()
        with pytest.raises(UserError, match="cannot be read"):
            source.fingerprint()


def test_nan_and_infinity_are_left_to_whoever_understands_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": NaN, "b": -Infinity}\n')
    assert repr(_columns(tmp_path / "a.jsonl")) == "[{'a': nan, 'b': -inf}]"
