"""Prepared data on disk: once, whole or not at all, whoever is killed on the way and whatever the disk does."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.cache import built, key_of
from ftlab.data.corpus import Corpus
from ftlab.errors import UserError
from ftlab.networks import Network

FORK = multiprocessing.get_context("fork")
Write = Callable[..., str]
Make = Callable[..., FinetuneData]

COUNTED = """
import os, time

def counted(columns):
    with open({calls!r}, "a") as file:
        file.write(columns["prompt"] + "\\n")
    while columns["prompt"] == "wait" and not os.path.exists({go!r}):
        time.sleep(0.005)
    return columns
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Prompts that the user's function was called with, a line each."""
    return tmp_path / "calls"


@pytest.fixture
def make(network: Network, write: Write, cache: Path, calls: Path, tmp_path: Path, monkeypatch: Any) -> Make:
    """Six rows; the function that reads them notes each call, and waits at the prompt "wait" for the file `go`."""
    (tmp_path / "counting.py").write_text(COUNTED.format(calls=str(calls), go=str(tmp_path / "go")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    prompts = ["first", "a", "b", "wait", "c", "d"]
    path = write("set/train.jsonl", [{"prompt": prompt, "completion": prompt[::-1]} for prompt in prompts])

    def make_data(**options: Any) -> FinetuneData:
        defaults = {"path": str(Path(path).parent), "function": "counting.counted", "splits": Splits(0, 0)}
        return FinetuneData(network, **({"cache": str(cache)} | defaults | options))

    return make_data


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


def _directories(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "prepared").iterdir() if path.is_dir())


def _rows(data: FinetuneData) -> list[list[int]]:
    return [list(row.input_ids) for row in data.rows("train")]


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestOnce:
    def test_a_second_time_prepares_nothing(
        self, make: Make, go: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go.touch()
        first = make()
        rows = _rows(first)
        written = (first.prepared.directory / "rows.arrow").stat().st_mtime_ns
        before = calls.read_text()
        monkeypatch.setattr(Corpus, "_build", None)
        second = make(batch_size=3, seed=7)
        assert _rows(second) == rows
        assert second.prepared.directory == first.prepared.directory
        assert (first.prepared.directory / "rows.arrow").stat().st_mtime_ns == written
        assert calls.read_text() == before + "first\n"  # by which the format is recognised

    def test_two_that_start_at_once(self, make: Make, go: Path, calls: Path, cache: Path) -> None:
        go.touch()
        barrier, results = FORK.Barrier(3), FORK.SimpleQueue()

        def prepare() -> None:
            data = make()
            _ = data.encoder
            barrier.wait()
            results.put(_rows(data))

        processes = [FORK.Process(target=prepare) for _ in range(3)]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        assert found[0] == found[1] == found[2]
        assert len(found[0]) == 6
        others = [call for call in calls.read_text().split() if call != "first"]
        assert sorted(others) == ["a", "b", "c", "d", "wait"]
        assert len(_directories(cache)) == 1

    def test_who_comes_while_another_builds_waits_for_it(self, make: Make, go: Path, calls: Path) -> None:
        process = FORK.Process(target=lambda: make().prepared)
        process.start()
        _until(lambda: calls.exists() and "wait" in calls.read_text())
        waiting = FORK.Process(target=lambda: make().prepared)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        go.touch()
        process.join()
        waiting.join()
        assert (process.exitcode, waiting.exitcode) == (0, 0)
        assert calls.read_text().split().count("a") == 1


class TestTorn:
    @pytest.mark.parametrize(
        "tear",
        [
            lambda place: os.truncate(place / "rows.arrow", 100),
            lambda place: (place / "rows.arrow").write_bytes((place / "rows.arrow").read_bytes() + b"more"),
            lambda place: (place / "index.npz").unlink(),
            lambda place: (place / "records.jsonl").unlink(),
            lambda place: (place / "sealed.json").unlink(),
            lambda place: (place / "sealed.json").write_text('{"rows.arrow": 1'),
            lambda place: (place / "sealed.json").write_text("[]"),
            lambda place: (place / "sealed.json").write_text("{}"),
        ],
    )
    def test_what_is_not_whole_is_made_again(
        self, make: Make, go: Path, calls: Path, tear: Callable[[Path], None]
    ) -> None:
        go.touch()
        data = make()
        rows = _rows(data)
        contents = {file.name: file.read_bytes() for file in data.prepared.directory.iterdir()}
        tear(data.prepared.directory)
        assert _rows(make()) == rows
        assert {file.name: file.read_bytes() for file in data.prepared.directory.iterdir()} == contents
        assert calls.read_text().split().count("a") == 2

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_killed_preparation(self, make: Make, go: Path, calls: Path, cache: Path, workers: int) -> None:
        process = FORK.Process(target=lambda: make(preparation_workers=workers).prepared)
        process.start()
        _until(lambda: calls.exists() and "wait" in calls.read_text())
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (unfinished,) = _directories(cache)
        assert unfinished.endswith(".unfinished")
        go.touch()
        data = make()
        assert len(_rows(data)) == 6
        assert _directories(cache) == [data.prepared.directory.name]
        assert calls.read_text().split().count("a") == 2

    def test_an_exception_leaves_nothing_behind(self, make: Make, go: Path, cache: Path, write: Write) -> None:
        go.touch()
        write("set/train.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}])
        with pytest.raises(UserError, match=r"train\.jsonl:2"):
            make().rows("train")
        assert _directories(cache) == []


class TestDisk:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_full_disk(self, make: Make, write: Write, cache: Path, workers: int) -> None:
        """A limit on the size of files fails as a full disk does: in the middle of a write."""
        path = write("large/train.jsonl", [{"prompt": f"{n}", "completion": "x" * 40} for n in range(3000)])
        said = FORK.SimpleQueue()

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                make(path=path, function=None, preparation_workers=workers).rows("train")
            except UserError as error:
                said.put(str(error))
            finally:
                said.put("no sentence")

        process = FORK.Process(target=prepare)
        process.start()
        process.join()
        assert said.get() == (
            f"data.cache: prepared data cannot be kept in {cache / 'prepared'} (File too large); make room there or "
            "mend its rights, or set data.cache or FTLAB_CACHE to another directory"
        )
        assert _directories(cache) == []

    def test_a_place_that_cannot_be_made(self, make: Make, go: Path, tmp_path: Path) -> None:
        go.touch()
        (tmp_path / "file").touch()
        with pytest.raises(
            UserError, match=r"data\.cache: prepared data cannot be kept in .*file/under/prepared \(Not a"
        ):
            make(cache=str(tmp_path / "file" / "under")).rows("train")

    def test_the_environment_names_a_place_that_cannot_be_made(
        self, make: Make, go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go.touch()
        (tmp_path / "file").touch()
        monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "file"))
        with pytest.raises(
            UserError, match=r"data\.cache: .*file/prepared .* set data\.cache or FTLAB_CACHE to another"
        ):
            make(cache=None).rows("train")

    def test_the_environment_names_the_place(
        self, make: Make, go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go.touch()
        monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "named"))
        assert make(cache=None).prepared.directory.parent == tmp_path / "named" / "prepared"


class TestBuilt:
    def test_what_is_sealed_is_what_was_written(self, tmp_path: Path) -> None:
        place = built(tmp_path / "not" / "yet", "key", lambda directory: directory.joinpath("a").write_text("abc"))
        assert place == tmp_path / "not" / "yet" / "key"
        digest = hashlib.blake2b(b"abc", digest_size=8).hexdigest()
        assert json.loads((place / "sealed.json").read_text()) == {"a": [3, digest]}

    def test_a_user_error_passes_as_it_is(self, tmp_path: Path) -> None:
        def refuse(_: Path) -> None:
            raise UserError("no")

        with pytest.raises(UserError, match=r"^no$"):
            built(tmp_path, "key", refuse)
        assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]

    def test_keys_follow_contents(self) -> None:
        assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
        assert key_of({"a": 1}) != key_of({"a": "1"})
        assert len(key_of(None)) == 24
