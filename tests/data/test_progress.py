"""How far a preparation is, said on a terminal or once a minute, and to nobody else."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ftlab.data import progress
from ftlab.data.progress import watched

PARTS: Any = [SimpleNamespace(read=1000), SimpleNamespace(read=234)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_parts_pass_and_nothing_is_said_where_nobody_waits(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(watched(PARTS, "reviews")) == PARTS
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    list(watched(PARTS, "reviews [a]"))
    assert "preparing reviews [a]: 1,234 records read" in terminal.getvalue()


def test_a_log_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 59.0, 61.0, 61.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    list(watched(PARTS, "reviews"))
    assert capfd.readouterr().err == "ftlab: preparing reviews: 1,234 records read\n"
