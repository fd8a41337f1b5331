"""Reading: every kind of file gives the same records, and every broken one a sentence with file and line."""

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ftlab.data.records import find_splits, open_source, read_file
from ftlab.errors import UserError

ROWS = [{"mr": "a", "ref": "b\nc"}, {"mr": "d", "ref": "é\u2028€"}]


def _columns(path: Path) -> list[dict]:
    return [record.columns for record in read_file(path)]


def test_jsonl_csv_json_and_parquet_give_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "a.csv").write_text('mr,ref\na,"b\nc"\nd,é\u2028€\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for kind in ["jsonl", "json", "csv", "parquet"]:
        assert _columns(tmp_path / f"a.{kind}") == ROWS, kind


def test_a_record_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "dev.json").write_text('[{"a": 1}, {"a": 2}]')
    (tmp_path / "dev.csv").write_text('a\n"1\n1"\n2\n')
    assert [record.source for record in read_file(tmp_path / "dev.jsonl")] == ["dev.jsonl:1", "dev.jsonl:3"]
    assert [record.source for record in read_file(tmp_path / "dev.json")] == ["dev.json#1", "dev.json#2"]
    assert [record.source for record in read_file(tmp_path / "dev.csv")] == ["dev.csv:3", "dev.csv:4"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_bom_and_crlf_are_accepted(tmp_path: Path, name: str) -> None:
    text = {"a.jsonl": '{"x": "y"}\r\n', "a.json": '[\r\n{"x": "y"}\r\n]\r\n', "a.csv": "x\r\ny\r\n"}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert _columns(tmp_path / name) == [{"x": "y"}]


def test_a_record_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n" + "y" * 10_000_000 + "\n")
    assert len(_columns(tmp_path / "a.csv")[0]["x"]) == 10_000_000


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2 is broken JSON .*mend"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2 is a list, not an object"),
        ("a.jsonl", b'{"a": 1}\n17\n', r"a\.jsonl:2 is a number, not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2 is not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", b"", r"a\.jsonl holds no records"),
        ("a.jsonl", b"\n  \n", r"a\.jsonl holds no records"),
        ("a.jsonl", b"[" * 200_000, r"a\.jsonl:1 is JSON that cannot be read"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"a\.jsonl:1 is JSON that cannot be read"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2 is broken JSON"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', r"broken JSON \(Extra data.*called \.jsonl"),
        ("a.json", b'{"data": []}', r"a\.json holds an object, not a list of objects"),
        ("a.json", b'[{"a": 1}, "b"]', r"a\.json#2 is a string, not an object"),
        ("a.json", b"[]", r"a\.json holds no records"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3 has not as many fields as the header \(2\)"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2 has not as many fields"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2 is not CSV"),
        ("a.csv", b"a,a\n1,2\n", r"names a column twice"),
        ("a.csv", b"a,b\n", r"a\.csv holds no records"),
        ("a.csv", b"", r"a\.csv holds no records"),
        ("a.parquet", b"PAR1 not at all", r"a\.parquet is not a Parquet file"),
        ("a.txt", b"text", r"a\.txt is of no kind that can be read; convert it to \.jsonl"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_file(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()  # permissions would not stop root, who runs tests in containers
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read \(Is a directory\)"):
        read_file(tmp_path / "a.jsonl")


def test_a_directory_is_recognised_by_its_files(tmp_path: Path) -> None:
    for name in ["test.csv", "train.jsonl", "dev.json", "LICENSE", "train.md", "other.jsonl"]:
        (tmp_path / name).touch()
    found = find_splits(tmp_path)
    assert [(split, path.name) for split, path in found.items()] == [
        ("train", "train.jsonl"),
        ("validation", "dev.json"),
        ("test", "test.csv"),
    ]


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation"])
def test_validation_has_four_names(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.jsonl").touch()
    assert list(find_splits(tmp_path)) == ["validation"]


def test_a_single_file_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").touch()
    assert find_splits(tmp_path / "test.jsonl") == {"train": tmp_path / "test.jsonl"}


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_source("none.jsonl")  # a file name, not that of a set on the hub
    with pytest.raises(UserError, match="has no file named train, dev"):
        open_source(str(tmp_path))
    (tmp_path / "dev.jsonl").touch()
    (tmp_path / "val.csv").touch()
    with pytest.raises(UserError, match=r"has two validation files, dev\.jsonl and val\.csv"):
        open_source(str(tmp_path))


def test_a_set_on_the_hub_is_read_by_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None) -> datasets.DatasetDict:
        asked.append((name, subset))
        rows = datasets.Dataset.from_list([{"a": "x"}, {"a": "y"}])
        return datasets.DatasetDict({"train": rows, "valid": rows, "extra": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_source("org/no-such-set:part")
    readers = open_source("org/no-such-set")
    assert asked == [("org/no-such-set", "part"), ("org/no-such-set", None)]
    assert list(readers) == ["train", "validation"]
    assert [(record.columns, record.source) for record in readers["validation"]()] == [
        ({"a": "x"}, "org/no-such-set/valid#1"),
        ({"a": "y"}, "org/no-such-set/valid#2"),
    ]


def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, subset: str | None) -> None:
        raise ConnectionError(f"Couldn't reach {name!r}\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"neither a local file or directory nor a set .*Couldn't reach") as refusal:
        open_source("org/no-such-set")
    assert "\n" not in str(refusal.value)


def test_a_set_on_the_hub_without_known_splits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"a": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict({"unsupervised": rows}))
    with pytest.raises(UserError, match="has the splits unsupervised"):
        open_source("org/no-such-set")
