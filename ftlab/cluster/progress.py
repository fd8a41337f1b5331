"""How far a run has come, from what lies in its directory."""

from __future__ import annotations

import contextlib
import csv
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.errors import UserError
from ftlab.runs import Run
from ftlab.runs.checkpoint_files import step_of
from ftlab.runs.lock import owner_of


@dataclass(frozen=True)
class Progress:
    """How far a run has come, as of its last written curves; None where nothing says.

    Args:
        step: Optimiser steps that are done.
        steps: Optimiser steps until the end.
        tokens_per_second: Of all devices together.
        seconds_left: Of training, validations not counted.
        loss: The last training loss.
    """

    step: int = 0
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    loss: float | None = None


def progress(run: Run) -> Progress:
    """How far `run` has come: from metrics.csv, checkpoints, provenance.json and config.yaml."""
    rows = _rows(run.metrics)
    saved = step_of(run.last.resolve()) if run.last.is_file() else 0
    step = max(saved, int(rows[-1]["step"]) if rows else 0)
    steps = _steps(run)
    rate, loss = _last(rows, "tokens_per_second"), _last(rows, "train_loss")
    return Progress(step, steps, rate, _seconds_left(rows, step, steps, rate), loss)


def at_work_here(run: Run) -> bool:
    """Whether a process of this machine works in the run's directory.

    Its lock is looked at and not tried, or it would be refused to a process that begins just now.
    """
    try:
        words = (owner_of(run.directory) or "").split()
        number, host = int(words[1]), words[3]
    except (ValueError, IndexError):
        return False
    if host != socket.gethostname():
        return False
    try:
        files = list(Path(f"/proc/{number}/fd").iterdir())
    except PermissionError:  # another user's
        return True
    except OSError:
        return False
    return any(_same(file, run.directory / ".lock") for file in files)  # the number may be another process's by now


def _same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:
        return False


def _rows(metrics: Path) -> list[dict[str, str]]:
    with (
        contextlib.suppress(OSError, csv.Error, UnicodeDecodeError),
        metrics.open(newline="", encoding="utf-8") as file,
    ):
        return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
    return []


def _last(rows: list[dict[str, str]], name: str) -> float | None:
    for row in reversed(rows):
        if row.get(name):
            with contextlib.suppress(ValueError):
                return float(row[name])
    return None


def _steps(run: Run) -> int | None:
    """What the last start has counted; before the first, what the configuration says."""
    with contextlib.suppress(UserError):
        config: Mapping[str, Any] = run.configuration() if run.config.is_file() else {}
        said = (config.get("trainer") or {}).get("max_steps")
        counted = run.record().get("steps")
        return counted or (said if isinstance(said, int) and said > 0 else None)
    return None


def _seconds_left(rows: list[dict[str, str]], step: int, steps: int | None, rate: float | None) -> float | None:
    tokens = _last(rows, "total_tokens")
    if not (steps and rate and tokens and rows):
        return None
    counted = max((int(row["step"]) for row in rows if row.get("total_tokens")), default=0)
    return (steps - step) * tokens / counted / rate if counted else None
