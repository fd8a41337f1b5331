"""docs/tutorial.md as it stands: its commands in their order, in an empty directory."""

from __future__ import annotations

import os
import re
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
    verbs = set(re.findall(r"(?:^|\$\()ftlab ([\w-]+)", "\n".join(STEPS), re.MULTILINE))
    assert verbs >= {"init", "prepare", "fit", "ls", "test", "compare", "generate", "export"}


@pytest.mark.slow
def test_it_goes_as_the_page_says(tmp_path: Path) -> None:
    """From a wheel, by pip alone; the versions are those of the lock."""
    python, home = sys.executable, tmp_path / "home"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "source")], check=True)  # setuptools builds within
    build = [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("ftlab-*.whl")
    home.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(python)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = kept | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "FTLAB": str(wheel),
        "FTLAB_CACHE": str(tmp_path / "cache"),
    }
    said, place = [], home
    for text in (INSTALL, *STEPS):
        script = f"[ ! -e {home}/.venv ] || . {home}/.venv/bin/activate\n{text}\npwd >{tmp_path}/place\n"
        done = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, cwd=place, env=environment)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        place = Path((tmp_path / "place").read_text().strip())
        said.append(done.stdout)
    compared = next(out for text, out in zip((INSTALL, *STEPS), said, strict=True) if "ftlab compare" in text)
    assert "is better than" in " ".join(compared.split())
    merged, adapter = said[-1].splitlines()
    assert merged == adapter
    assert " must " in merged
    assert (home / "errands/compare.html").is_file()
