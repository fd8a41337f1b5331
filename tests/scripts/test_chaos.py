"""The short form of scripts/chaos.py: a few faults of each cheap kind, on real runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ["kill -9 at a random moment", "kill -9 while a checkpoint is written", "newest checkpoint with a bit flipped"]


def test_faults_are_survived_to_the_bit(tmp_path: Path) -> None:
    page = tmp_path / "chaos.md"
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--kills", "3", "--output", str(page), "--only", *FAULTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines() if "|" in line
    ]
    assert [row[:4] for row in rows[2:]] == [
        [FAULTS[0], "3", "3", "0"],
        [FAULTS[1], "1", "1", "0"],
        [FAULTS[2], "1", "1", "0"],
    ]
