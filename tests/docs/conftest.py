"""A place in which the commands of the documentation make sense: the files of the repository and those of a page."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT, named_files

from ftlab.cli import main


@pytest.fixture(scope="session")
def configuration() -> str:
    """The configuration of a run, as its config.yaml holds it."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.chdir(ROOT):
        assert main(["fit", "-c", "experiments/demo_lora.yaml", "--print_config"]) == 0
    return out.getvalue()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Makes a working directory with the repository's files and those that a page shows, and goes there."""

    def make(page: Path) -> Path:
        shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
        for name in ("ftlab", "slurm"):
            (tmp_path / name).symlink_to(ROOT / name)
        for example in (ROOT / "docs/examples").glob("*.py"):
            shutil.copy(example, tmp_path)
        for name, text in named_files(page).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setenv("FTLAB_CACHE", os.environ.get("FTLAB_CACHE", str(tmp_path / "cache")))
        return tmp_path

    return make
