"""`ftlab sweep stop`, `resume` and `retry-failed` as commands, on trials of milliseconds."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.cli import main

SWEEP = Path("runs/square")


@pytest.fixture
def ftlab(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Gives a command of `ftlab sweep` in this process, and returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        code = main(["sweep", *map(str, words)])
        return code, "".join(capfd.readouterr())

    return command


def states() -> dict[str, int]:
    """Trials by what has become of them, those that there are."""
    done = subprocess.run(
        [sys.executable, "-m", "ftlab", "sweep", "status", str(SWEEP), "--json"], capture_output=True, check=True
    )
    return {state: count for state, count in json.loads(done.stdout)["states"].items() if count}


def starts() -> list[int]:
    """How often each run was started."""
    return sorted(len(path.read_text().splitlines()) for path in SWEEP.glob("*/starts"))


def test_a_changed_budget(ftlab: Callable[..., Any], sweep_file: Callable[..., Path]) -> None:
    code, said = ftlab("run", sweep_file(), "--max-trials", 2)
    assert (code, "2 finished of 2" in said) == (0, True)
    code, said = ftlab("resume", SWEEP, "--max-trials", 3, "--workers", 2)
    assert (code, "3 finished of 3" in said) == (0, True)
    code, said = ftlab("resume", SWEEP)  # the budget stays what it was said to be
    assert (code, "3 finished of 3" in said) == (0, True)
    code, said = ftlab("run", sweep_file())  # as the file has it: the whole grid
    assert (code, "4 finished of 4" in said) == (0, True)
    assert starts() == [1, 1, 1, 1]


def test_a_target_and_a_better_one(
    ftlab: Callable[..., Any], sweep_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = ftlab("run", sweep_file(), "--target", 1.5)
    assert code == 0
    assert "1 finished of 4" in said
    assert "nothing more is trained: val_loss has come to 1.5" in said
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, said = ftlab("resume", tmp_path / SWEEP, "--target", 0.3)
    assert code == 0
    assert "3 finished of 4" in said
    assert "best val_loss 0.25" in said


def test_stopped_and_gone_on_with(ftlab: Callable[..., Any], sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    path = sweep_file(parameters={"x": {"values": [1.0, 2.0, 3.0]}, "waits_for": {"value": str(gate)}})
    launcher = subprocess.Popen(
        [sys.executable, "-m", "ftlab", "sweep", "run", str(path), "--workers", "2"], stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while len(list(SWEEP.glob("*/metrics.csv"))) < 2:
        assert launcher.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    assert states() == {"running": 2}
    code, said = ftlab("stop", SWEEP)
    assert code == 0
    assert "the workers of runs/square save their trials and end; ftlab sweep resume goes on" in said
    assert launcher.wait(120) == 0
    assert states() == {"waiting": 2}
    gate.touch()
    code, said = ftlab("resume", SWEEP)
    assert (code, "3 finished of 3" in said) == (0, True)
    assert starts() == [1, 2, 2]


def test_failed_ones_again_once_what_they_need_is_there(
    ftlab: Callable[..., Any], sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    needed = tmp_path / "data"
    needs = {"needs": {"values": [str(tmp_path), str(needed)]}}
    code, said = ftlab("run", sweep_file(parameters={"x": {"values": [1.0, 2.0]}, **needs}))
    assert code == 1
    assert "2 finished, 2 failed of 4" in said
    code, said = ftlab("resume", SWEEP)  # does not try them again, and says that they are there
    assert code == 1
    assert "2 finished, 2 failed of 4" in said
    needed.touch()
    code, said = ftlab("retry-failed", SWEEP, "--workers", 2)
    assert code == 0
    assert "2 failed trials will be tried again" in said
    assert "4 finished of 4" in said
    assert starts() == [1, 1, 2, 2]
    code, said = ftlab("retry-failed", SWEEP)
    assert (code, "0 failed trials" in said) == (0, True)
