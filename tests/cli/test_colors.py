"""Colours of tables: there on a terminal, and no code at all with NO_COLOR."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import terminals
from written_runs import write_method

import ftlab
from ftlab.cli import main


@pytest.fixture(params=["", "1"], ids=["colours", "NO_COLOR"])
def on_a_terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives a command whose standard output is a terminal, and looks for codes in what it prints."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", request.param)

    def give(*words: Any) -> None:
        with terminals.opened() as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal.file)
            assert main([str(word) for word in words]) == 0
            seen = terminal.read()
        assert seen.strip()
        assert ("\x1b" in seen) == (not request.param), seen

    return give


def test_of_verbs_that_read_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_a_terminal: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    (one, *_), (other, *_) = (
        write_method(Path("runs/full"), 70, method="ftlab.methods.Full"),
        write_method(Path("runs/lora"), 74),
    )
    for words in (["ls"], ["show", one], ["diff", one, other], ["compare", "runs/*", "--resamples", 100]):
        on_a_terminal(*words)


def test_of_verbs_that_open_a_network(
    finished: Callable[[str], Path], on_a_terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    run = finished("lora")
    for words in (
        ["plan", "-c", "tiny.yaml", "--device", "16 GB", "--batches", "1,2"],
        ["prepare", "-c", "tiny.yaml", "--show", 1],
        ["test", "-c", run / "config.yaml"],
        ["export", run, "out"],
    ):
        on_a_terminal(*words)
    assert "\x1b" not in capfd.readouterr().err


def test_every_console_is_one_that_knows_of_it() -> None:
    """So that it holds for the verbs that are not given here, too: jobs, sweep status, check-method, test --harness."""
    package = Path(ftlab.__file__).parent
    made = [file.name for file in package.rglob("*.py") if re.search(r"\bConsole\(", file.read_text(encoding="utf-8"))]
    assert made == ["console.py"]
