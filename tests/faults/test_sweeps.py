"""A sweep on a disk that is full: one sentence, nothing half-written; with room the same command comes to its end."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.cli import main

OBJECTIVE = Path(__file__).parents[1] / "sweeps" / "objective.py"


@pytest.fixture
def sweep(disk: Any) -> list[str]:
    """A sweep of four trials of milliseconds, on a disk of its own."""
    content = {
        "method": "grid",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": {"x": {"values": [1.0, -2.0, 0.5, 3.0]}},
        "command": [sys.executable, str(OBJECTIVE), "${args}"],
    }
    Path("square.yaml").write_text(yaml.safe_dump(content))
    return ["sweep", "run", "square.yaml", "--root", str(disk.place)]


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.mark.parametrize("when", ["before it begins", "when it has begun"])
def test_full(when: str, sweep: list[str], disk: Any, capfd: pytest.CaptureFixture[str]) -> None:
    if when == "when it has begun":
        assert main([*sweep, "--max-trials", "1"]) == 0
    filler = fill(disk.place)
    capfd.readouterr()
    assert main(sweep) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("ftlab: ")
    assert "No space left on device" in said[-1]
    assert str(disk.place) in said[-1]
    assert not any("Traceback" in line for line in said)
    filler.unlink()
    assert main(sweep) == 0
    assert "4 finished of 4" in capfd.readouterr().out
