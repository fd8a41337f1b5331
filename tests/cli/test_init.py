"""`ftlab init`: the project that it writes trains, and its own tests pass."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.cli import init, main

TOP = Path(init.__file__).parents[2]
FILES = {
    *("README.md", ".gitignore", "experiment.yaml", "data.csv", "network", "slurm"),
    *("my_method.py", "my_metric.py", "test_project.py", "conftest.py"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that was just written, and the working directory."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    monkeypatch.chdir("mine")
    return tmp_path / "mine"


def test_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftlab: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    answer = ftlab("init", "mine")
    assert answer.code == 0
    assert {path.name for path in Path("mine").iterdir()} == FILES
    assert {Path(line).name for line in answer.out.splitlines()} == FILES
    assert answer.err.startswith("ftlab: now cd mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_directory_in_which_one_stands_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftlab: Callable[..., Any]
) -> None:
    (tmp_path / "my own").mkdir()
    monkeypatch.chdir(tmp_path / "my own")
    before = os.stat(".").st_ino
    assert ftlab("init", ".").code == 0
    assert (
        os.stat(".").st_ino == os.stat(tmp_path / "my own").st_ino == before
    )  # or a shell would stand in a deleted one
    assert set(os.listdir()) == FILES
    monkeypatch.chdir(tmp_path)
    assert "now cd 'an other' and" in ftlab("init", "an other").err


def test_a_directory_that_is_not_empty_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/.hidden").write_text("mine")
    Path("file").write_text("mine")
    assert "full is not empty: give an empty directory" in refused("init", "full")
    assert "file is a file" in refused("init", "file")
    assert [path.name for path in Path("full").iterdir()] == [".hidden"]
    assert "cannot be written" in refused("init", "file/below")


def test_it_trains_and_is_scored_by_its_own_metric(project: Path, ftlab: Callable[..., Any]) -> None:
    short = ("--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--run.name", "a")
    answer = ftlab("fit", "-c", "experiment.yaml", *short, "--trainer.enable_progress_bar", "false")
    assert answer.code == 0, answer.err
    assert ftlab("test", "-c", "runs/experiment/a/config.yaml").code == 0
    scores = json.loads(Path("runs/experiment/a/scores.json").read_text())
    assert 0 <= scores["test_same_length"] <= 100
    assert (listed := json.loads(ftlab("ls", "--json").out)[0]["method"]) == "BlocksAndNorms", listed


@pytest.mark.slow
def test_its_own_tests_pass(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
