"""Weights & Biases beside a run: offline with one line of hint where nobody is logged in, nothing where it is off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_offline_with_a_hint_where_nobody_is_logged_in(
    workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    answer = ftlab("fit", "-c", "tiny.yaml", "--run.name", "logged")
    assert answer.code == 0
    hint, first_step, done = answer.err.splitlines()
    assert first_step.startswith("ftlab: the first step had ended after ")
    assert "W&B logs offline into runs/tiny/logged/wandb" in hint
    assert "--wandb.mode disabled" in hint
    assert done.startswith("ftlab: runs/tiny/logged: ")
    assert list(Path("runs/tiny/logged/wandb").glob("offline-run-*/*.wandb"))


def test_disabled_it_leaves_no_trace(
    workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    answer = ftlab("fit", "-c", "tiny.yaml", "--run.name", "quiet", "--wandb.mode", "disabled")
    assert answer.code == 0
    assert "W&B" not in answer.err
    assert not Path("runs/tiny/quiet/wandb").exists()
