"""How far a long work is: said on a terminal, from the second second on, and to nobody else."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terminals import Terminal, without_codes

from ftlab import progress
from ftlab.data.progress import counted
from ftlab.progress import Progress
from ftlab.runs import files


@pytest.mark.parametrize("forks", [False, True])
def test_a_terminal_sees_count_rate_and_time_left(terminal: Terminal, at_once: None, forks: bool) -> None:
    with Progress("working", "things", 4, forks=forks) as bar:
        for _ in range(3):
            time.sleep(0.15)
            bar.advance()
        time.sleep(0.0 if forks else 0.3)
    seen = without_codes(terminal.read())
    assert "working" in seen
    assert "3/4 things" in seen
    assert re.search(r"/s  0:00:\d\d left", seen)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_numbers_are_whole_and_some_columns_are_free(
    columns: int, terminal: Terminal, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress("train_loss 0.3326, val_loss 0.3375", "steps", 1500, forks=True) as bar:
        bar.advance(150)
        bar.advance()
    drawn = [line for line in re.split(r"[\r\n]+", without_codes(terminal.read())) if "steps" in line]
    assert all(re.search(r" 15[01]/1,500 steps  \S+/s  \d:\d\d:\d\d left$", line) for line in drawn)
    assert {len(line) for line in drawn} == {columns - 3}


@pytest.mark.parametrize("forks", [False, True])
def test_of_short_work_nothing_is_said(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    monkeypatch.setattr(progress, "_SOON", 60.0)  # short, whatever else the machine does
    with Progress("working", "things", 100, forks=forks) as bar:
        for _ in range(100):
            bar.advance()
    assert terminal.read() == ""


@pytest.mark.parametrize("forks", [False, True])
def test_of_long_work_much_is_said(terminal: Terminal, forks: bool) -> None:
    with Progress("working", "things", forks=forks) as bar:
        for _ in range(13):
            time.sleep(0.1)
            bar.advance()
    assert "things" in terminal.read()


@pytest.mark.parametrize("forks", [False, True])
def test_the_bar_is_gone_at_the_end_and_after_an_error(terminal: Terminal, at_once: None, forks: bool) -> None:
    def interrupted() -> None:
        with Progress("working", "things", 4, forks=forks) as bar:
            bar.advance()
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    seen = terminal.read()
    assert seen.endswith(("\x1b[2K", "\r"))  # the line is empty
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1  # the cursor is there again


def test_nobody_else_sees_anything(at_once: None, capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("working", "things", 4) as bar:
        bar.advance()
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["TERM", "FORCE_COLOR"])
def test_no_bar_where_the_cursor_cannot_be_moved(
    name: str, at_once: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "TERM":
        stream: Any = request.getfixturevalue("terminal")
        monkeypatch.setenv("TERM", "dumb")
    else:
        stream = io.StringIO()  # no terminal, whatever is said of its colours
        stream.read = stream.getvalue
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    with Progress("working", "things", 4, forks=True) as bar:
        bar.advance()
    assert stream.read() == ""


def test_of_a_work_within_another_nothing_is_drawn(terminal: Terminal, at_once: None) -> None:
    with Progress("outer", "things", forks=True) as outer:
        with Progress("inner", "things", forks=True) as inner:
            inner.advance()
        outer.advance()
    with Progress("later", "things", forks=True) as later:
        later.advance()
    seen = terminal.read()
    assert "outer" in seen
    assert "later" in seen
    assert "inner" not in seen


def test_what_was_done_before_is_not_of_the_rate(terminal: Terminal, at_once: None) -> None:
    with Progress("working", "things", 1010, done=1000, forks=True) as bar:
        time.sleep(1)
        bar.advance()
    (rate,) = re.findall(r"1,001/1,010 things  (\S+)/s", without_codes(terminal.read()))[-1:]
    assert float(rate) <= 1


def part(read: int, size: int) -> Any:
    return SimpleNamespace(read=read, task=SimpleNamespace(chunk=SimpleNamespace(bytes=size)))


@pytest.mark.parametrize(
    ("limits", "size", "said"),
    [
        ((None, None), 1000, "200/1,000 records"),  # 200 bytes of 2,000 have been 200/1,000 of the records
        ((None, None), 175, "200 records"),  # packed: nobody can tell
        ((300, 200), 1000, "200/500 records"),
        ((300, None), 1000, "200 records"),
    ],
)
def test_records_to_come_are_told_from_bytes(
    limits: tuple[int | None, ...], size: int, said: str, terminal: Terminal, at_once: None
) -> None:
    splits = {str(n): SimpleNamespace(limit=limit, bytes=size) for n, limit in enumerate(limits)}
    with counted("reviews [a]", [SimpleNamespace(files=SimpleNamespace(splits=splits))]) as count:  # type: ignore[list-item]
        count(part(150, 300))
        count(part(50, 100))
    seen = without_codes(terminal.read())
    assert "preparing reviews [a]" in seen
    assert f"{said}  " in seen


def test_digests_of_large_files_are_counted_in_bytes(
    terminal: Terminal, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PART", 2**20)
    for name, size in {"a": 2_500_000, "b": 0, "c": 7_500_000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    read = files._digest_of_part
    monkeypatch.setattr(files, "_digest_of_part", lambda part: (time.sleep(0.1), read(part))[1])
    files.digests(files.files_under(tmp_path))
    seen = without_codes(terminal.read())
    assert "digests" in seen
    assert "/10.0 MB" in seen
    assert re.search(r"[kM]B/s", seen)
