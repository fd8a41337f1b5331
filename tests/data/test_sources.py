"""What lies at a path: its splits, its files, what is fetched once and hashed once."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import fsspec
import pytest

from ftlab.data import sources
from ftlab.data.records import RawRecord
from ftlab.data.sources import downloads_dir, open_source
from ftlab.errors import UserError


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


def _file(path: Path) -> Path:
    path.write_text('{"a": 1}\n')
    return path


def _touched(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text('{"a": 1}\n')


def _found(path: Path, pooled: bool = False) -> dict[str, list[str]]:
    opened = open_source(str(path))
    assert opened.pooled == pooled
    return {
        split: [file.relative_to(path).as_posix() for file in source.files] for split, source in opened.splits.items()
    }


def test_a_directory_is_recognised_by_its_files(tmp_path: Path) -> None:
    _touched(tmp_path, "test.csv.gz", "train.jsonl", "dev.json", "LICENSE", "README.md", "train.xml", "other.jsonl")
    assert _found(tmp_path) == {"train": ["train.jsonl"], "validation": ["dev.json"], "test": ["test.csv.gz"]}


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation", "Dev"])
def test_validation_has_four_names(tmp_path: Path, name: str) -> None:
    _touched(tmp_path, f"{name}.jsonl")
    assert list(open_source(str(tmp_path)).splits) == ["validation"]


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    parts = [f"data/train-{part:05}-of-00003.parquet" for part in range(3)]
    _touched(tmp_path, *reversed(parts), "test_002.jsonl", "test_001.jsonl")
    assert _found(tmp_path) == {"train": parts, "test": ["test_001.jsonl", "test_002.jsonl"]}


def test_sub_directories_are_splits(tmp_path: Path) -> None:
    _touched(
        tmp_path, "train/b.jsonl", "train/a/a.jsonl", "train/README.md", "train/note.txt", "valid/x.txt", ".git/x.txt"
    )
    assert _found(tmp_path) == {"train": ["train/a/a.jsonl", "train/b.jsonl"], "validation": ["valid/x.txt"]}
    assert open_source(str(tmp_path)).splits["train"].first().source == "train/a/a.jsonl:1"


def test_a_directory_without_split_names_is_a_pool(tmp_path: Path) -> None:
    _touched(tmp_path, "b.jsonl", "a/c.jsonl", "note.txt", "README.md", ".hidden.jsonl", "x.xml")
    assert _found(tmp_path, pooled=True) == {"train": ["a/c.jsonl", "b.jsonl"]}
    _touched(tmp_path / "texts", "b.txt", "a.md", "README.md")
    assert _found(tmp_path / "texts", pooled=True) == {"train": ["a.md", "b.txt"]}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["dev.jsonl", "val.csv"], r"has two validation files, dev\.jsonl and val\.csv; keep one"),
        (["train.jsonl", "train.jsonl.gz"], r"two train files, train\.jsonl and train\.jsonl\.gz"),
        (["train.jsonl", "train_1.jsonl"], r"two train files, train\.jsonl and train-\*\.jsonl"),
        (["train_0.csv", "train_1.jsonl"], r"two train files, train-\*\.csv and train-\*\.jsonl"),
        (["train.jsonl", "train/a.jsonl"], r"two train files, .*train\b.*train\.jsonl"),
        (["a/train.jsonl", "b/train.jsonl"], r"two train files, a/train\.jsonl and b/train\.jsonl"),
        (["train-0-of-3.jsonl", "train-2-of-3.jsonl"], r"train-\*-of-3\.jsonl are 2 files, not 3; fetch the others"),
        (["LICENSE", "a.xml"], r"has no file named train, dev .*, nor any other, that ends in \.jsonl"),
    ],
)
def test_a_directory_that_can_be_read_in_two_ways_or_in_none_is_refused(
    tmp_path: Path, names: list[str], sentence: str
) -> None:
    _touched(tmp_path, *names)
    with pytest.raises(UserError, match=sentence):
        open_source(str(tmp_path))


def test_a_glob_is_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touched(tmp_path, "x/b.jsonl", "x/y/a.jsonl", "x/c.csv", "train.jsonl", "x/LICENSE")
    assert _found_by_glob(f"{tmp_path}/**/*.jsonl") == ["train.jsonl:1", "x/b.jsonl:1", "x/y/a.jsonl:1"]
    monkeypatch.chdir(tmp_path)
    assert _found_by_glob("x/[ab]*") == ["b.jsonl:1"]
    assert _found_by_glob("*.jsonl") == ["train.jsonl:1"]
    with pytest.raises(UserError, match=r"none/\*\.jsonl matches no file that ends in"):
        open_source("none/*.jsonl")


def _found_by_glob(pattern: str) -> list[str]:
    return [record.source for record in _records(pattern)]


def test_a_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    _touched(tmp_path, "a[1].jsonl")
    assert _columns(tmp_path / "a[1].jsonl") == [{"a": 1}]


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_source("none.jsonl.gz")  # a file name, not that of a set on the hub


def test_a_set_saved_to_disk_is_read(tmp_path: Path) -> None:
    features = datasets.Features({"a": datasets.Value("string"), "arguments": datasets.Json()})
    rows = [{"a": "x", "arguments": {"n": [1, "2"]}}, {"a": "y", "arguments": None}]
    whole = datasets.Dataset.from_list(rows, features=features)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "valid": whole.select([1])}).save_to_disk(tmp_path / "two")
    assert [(record.columns, record.source) for record in _records(tmp_path / "one")] == [
        (rows[0], "one#1"),
        (rows[1], "one#2"),
    ]
    assert _columns(tmp_path / "one", limit=1) == rows[:1]
    opened = open_source(str(tmp_path / "two"))
    assert not opened.pooled
    assert [(record.columns, record.source) for record in opened.splits["validation"].records()] == [
        (rows[1], "two/valid#1")
    ]
    again = open_source(str(tmp_path / "two"))
    assert opened.splits["train"].fingerprint() == again.splits["train"].fingerprint()
    assert opened.splits["train"].fingerprint() != opened.splits["validation"].fingerprint()


def test_a_broken_set_on_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="is not a set that `datasets` can load"):
        open_source(str(tmp_path))


def test_a_set_on_the_hub_is_read_by_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None) -> datasets.DatasetDict:
        asked.append((name, subset))
        rows = datasets.Dataset.from_list([{"a": "x"}, {"a": "y"}])
        return datasets.DatasetDict({"train": rows, "valid": rows.select([1, 0]), "extra": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_source("org/no-such-set:part")
    opened = open_source("org/no-such-set")
    assert asked == [("org/no-such-set", "part"), ("org/no-such-set", None)]
    assert not opened.pooled
    assert list(opened.splits) == ["train", "validation"]
    assert [(record.columns, record.source) for record in opened.splits["validation"].records()] == [
        ({"a": "y"}, "org/no-such-set/valid#1"),
        ({"a": "x"}, "org/no-such-set/valid#2"),
    ]


def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, subset: str | None) -> None:
        raise ConnectionError(f"Couldn't reach {name!r}\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"neither a local file or directory nor a set .*Couldn't reach") as refusal:
        open_source("org/no-such-set")
    assert "\n" not in str(refusal.value)


def test_a_kind_of_files_is_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets would take whatever lies in the working directory for it."""
    monkeypatch.chdir(tmp_path)
    _file(tmp_path / "somebodys.jsonl")
    with pytest.raises(UserError, match=r"data\.path: json is a kind of files: give the path"):
        open_source("json")


def test_a_set_on_the_hub_without_known_splits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"a": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict({"unsupervised": rows}))
    with pytest.raises(UserError, match="has the splits unsupervised"):
        open_source("org/no-such-set")


# URLs


@pytest.fixture
def memory() -> Callable[[str, bytes], str]:
    """Puts a file where fsspec finds it under memory://."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()

    def put(name: str, content: bytes) -> str:
        filesystem.pipe(f"/{name}", content)
        return f"memory://{name}"

    return put


def test_a_url_is_fetched_once(memory: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    get_file = fsspec.implementations.memory.MemoryFileSystem.get_file

    def counted(filesystem: object, path: str, *rest: object) -> None:
        fetched.append(path)
        get_file(filesystem, path, *rest)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", counted)
    url = memory("some/a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0))
    for _ in range(2):
        assert _records(url) == [RawRecord({"a": 1}, "a.jsonl.gz:1")]
    assert fetched == ["/some/a.jsonl.gz"]
    memory("some/a.jsonl.gz", gzip.compress(b'{"a": 2}\n', mtime=0))
    assert _columns(url) == [{"a": 2}]
    assert not [entry for entry in downloads_dir().iterdir() if entry.name.startswith(".")]


def test_a_url_may_be_a_directory_or_a_glob(memory: Callable[[str, bytes], str]) -> None:
    for name in ["d/train.jsonl", "d/test/b.jsonl", "d/LICENSE"]:
        memory(name, json.dumps({"a": name}).encode())
    opened = open_source("memory://d")
    assert {split: source.first().columns["a"] for split, source in opened.splits.items()} == {
        "train": "d/train.jsonl",
        "test": "d/test/b.jsonl",
    }
    assert [row["a"] for row in _columns("memory://d/**/*.jsonl")] == ["d/test/b.jsonl", "d/train.jsonl"]


def test_a_url_of_a_local_file_is_that_file(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl")
    assert open_source(f"file://{path}").splits["train"].files == (path,)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("memory://none.jsonl", r"memory://none\.jsonl cannot be fetched .*check the address and the connection"),
        ("nosuch://a/b.jsonl", r"nosuch://a/b\.jsonl cannot be fetched \(Protocol not known: nosuch"),
        ("http://127.0.0.1:9/a.jsonl", r"http://127\.0\.0\.1:9/a\.jsonl cannot be fetched"),
        ("memory://none/*.jsonl", r"holds no file that ends in \.jsonl"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(memory: Callable[[str, bytes], str], url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        open_source(url)
    assert "\n" not in str(refusal.value)
    assert not downloads_dir().exists() or not list(downloads_dir().iterdir())


def test_a_torn_download_leaves_nothing_behind(
    memory: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(filesystem: object, path: str, local: str, *rest: object) -> None:
        Path(local).write_text("{")
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", torn)
    with pytest.raises(UserError, match="reset by peer"):
        open_source(memory("a.jsonl", b'{"a": 1}\n'))
    assert list(downloads_dir().iterdir()) == []


# fingerprints


def _fingerprint(path: Path | str, **options: object) -> str:
    return open_source(str(path), **options).splits["train"].fingerprint()  # type: ignore[arg-type]


def test_a_fingerprint_says_what_records_come(tmp_path: Path) -> None:
    _touched(tmp_path, "a/x.jsonl", "b/y.jsonl")
    same = _fingerprint(tmp_path / "a")
    assert _fingerprint(tmp_path / "b") == same  # wherever they lie
    assert _fingerprint(tmp_path / "a", limit=1) != same
    assert _fingerprint(tmp_path / "a", sample_by="line") == same  # which is for text alone
    (tmp_path / "b" / "y.jsonl").write_text('{"a": 2}\n')
    assert _fingerprint(tmp_path / "b") != same
    (tmp_path / "a" / "y.jsonl").write_text('{"a": 2}\n')
    assert _fingerprint(tmp_path / "a") not in [same, _fingerprint(tmp_path / "b")]
    _touched(tmp_path, "a.txt")
    assert _fingerprint(tmp_path / "a.txt", sample_by="line") != _fingerprint(tmp_path / "a.txt")


def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    sha256 = sources._sha256
    monkeypatch.setattr(sources, "_sha256", lambda file, size: hashed.append(1) or sha256(file, size))
    path = _file(tmp_path / "a.jsonl")
    fresh = [_fingerprint(path) for _ in range(2)]
    assert len(hashed) == 2  # a second write within the clock's resolution would not be seen
    os.utime(path, (0, time.time() - 10))
    assert [_fingerprint(path) for _ in range(2)] == fresh
    assert len(hashed) == 3
    path.write_text(path.read_text().replace("1", "2"))
    os.utime(path, (0, time.time() - 5))
    assert _fingerprint(path) != fresh[0]
    assert len(hashed) == 4


def test_a_fingerprint_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path / "a.jsonl")
    os.utime(path, (0, 0))
    (tmp_path / "file").touch()
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "file"))
    assert _fingerprint(path) == _fingerprint(path)


def test_bytes_are_those_of_the_files_and_more_of_compressed_ones(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jsonl").write_bytes(b"0123456789")
    (tmp_path / "train/b.jsonl.gz").write_bytes(b"012")
    (tmp_path / "train/c.jsonl.zst").write_bytes(b"01")
    assert open_source(str(tmp_path)).splits["train"].bytes == 10 + 4 * 3 + 4 * 2


def test_bytes_of_a_set_of_datasets(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"a": list(range(1000))}).save_to_disk(str(tmp_path / "set"))  # int64
    assert open_source(str(tmp_path / "set")).splits["train"].bytes == 8000


def test_a_saved_set_is_known_by_its_rows(tmp_path: Path) -> None:
    """`datasets` gives the same fingerprint to what an edited function has made."""
    for place, word in (("one", "a"), ("other", "b"), ("again", "a")):
        rows = datasets.Dataset.from_list([{"text": "x"}] * 3)
        rows = rows.map(lambda row, word=word: {"text": word}, new_fingerprint="same")
        rows.save_to_disk(tmp_path / place)
    one, other, again = (
        open_source(str(tmp_path / place)).splits["train"].fingerprint() for place in ("one", "other", "again")
    )
    assert one == again != other
