"""docs/tutorial.md as it stands: its commands in their order, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks

PAGE = ROOT / "docs/tutorial.md"
INSTALL, *STEPS = [block.text for block in blocks(PAGE) if block.language == "console"]


def test_every_step_is_one_that_a_shell_reads() -> None:
    for text in STEPS:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    verbs = {line.split()[1] for text in STEPS for line in text.splitlines() if line.startswith("ftlab ")}
    assert verbs >= {"prepare", "fit", "test", "compare", "generate", "export"}
    assert "pip install" in INSTALL  # which installs what these tests run


@pytest.mark.slow
def test_it_goes_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for command, words in {"ftlab": " -m ftlab", "python": ""}.items():
        program = tmp_path / "bin" / command
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        program.chmod(0o755)
    (tmp_path / "work").mkdir()
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FTLAB_CACHE": str(tmp_path / "cache"),
    }
    said = []
    for text in STEPS:
        place = tmp_path / "work"
        done = subprocess.run(["bash", "-e"], input=text, capture_output=True, text=True, cwd=place, env=environment)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    compared = next(out for text, out in zip(STEPS, said, strict=True) if "ftlab compare" in text)
    assert "is better than" in " ".join(compared.split())
    merged, adapter = said[-1].splitlines()
    assert merged == adapter
    assert " must " in merged
    assert (tmp_path / "work/compare.html").is_file()
