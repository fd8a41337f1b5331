"""The first thing that a user sees: `make demo`, with fewer steps and records."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"
LIMITS = {
    "--trainer.max_steps": "4",
    "--trainer.val_check_interval": "2",
    "--data.validation_limit": "8",
    "--data.test_limit": "4",
    "--model.decoding.max_new_tokens": "8",
    "--wandb.mode": "disabled",
}


def test_the_demo_ends_with_the_table_and_the_answers(tmp_path: Path) -> None:
    options = [word for option in LIMITS.items() for word in option]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--root", tmp_path / "runs", *options],
        cwd=tmp_path,
        env={"PATH": "", "COLUMNS": "160", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    answers, _, compared = done.stdout.partition("\nftlab compare ")
    for column in ("method", "test_rougeL", "trained", "on disk", "peak memory", "training"):
        assert column in compared
    for method, tables in {"zero-shot": 3, "full": 2, "LoRA-PiSSA": 3, "QLoRA": 3}.items():  # full is the baseline
        rows = [line for line in compared.splitlines() if line.startswith(f"{method}  ")]
        assert len(rows) == tables
        assert f"{method}={tmp_path}/runs/demo_" in compared.splitlines()[0]
        assert len([line for line in answers.splitlines() if line.startswith(f"  {method} ")]) == 3
    assert answers.count("\n  reference ") == 3
    for name in ("zeroshot", "full", "lora", "qlora"):
        assert (tmp_path / f"runs/demo_{name}/demo/scores.json").is_file()
