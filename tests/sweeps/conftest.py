"""Sweeps whose trials are a program of milliseconds, which leaves what a run leaves."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.sweeps import Plan, Study, SweepDirectory, read_sweep_file
from ftlab.sweeps.commands import resolved_command

OBJECTIVE = Path(__file__).with_name("objective.py")


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file of the square of `x`; what is given replaces its keys, and None takes one out."""

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "method": "grid",
            "metric": {"name": "val_loss", "goal": "minimize"},
            "parameters": {"x": {"values": [1.0, -2.0, 0.5, 3.0]}},
            "command": [sys.executable, str(OBJECTIVE), "${args}"],
        }
        content |= changes
        path = tmp_path / "square.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


@pytest.fixture
def make_sweep(sweep_file: Callable[..., Path], tmp_path: Path) -> Callable[..., SweepDirectory]:
    """The directory of a new sweep, as `ftlab sweep run` makes it."""

    def make(devices: int = 1, **changes: Any) -> SweepDirectory:
        path = sweep_file(**changes)
        file = read_sweep_file(path)
        directory = SweepDirectory(tmp_path / "runs" / file.name)
        directory.found(path, Plan(resolved_command(file.command, path), str(path), str(tmp_path), devices))
        directory.begin(file.budgets)
        return directory

    return make


@pytest.fixture
def make_study(make_sweep: Callable[..., SweepDirectory]) -> Callable[..., Study]:
    """The study of a new sweep."""
    return lambda **changes: Study(make_sweep(**changes))
