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
    for column in ("method", "trained", "on disk", "peak memory", "val loss", "ROUGE-L", "seconds"):
        assert column in done.stdout
    for method in ("zero-shot", "full", "LoRA", "QLoRA"):
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"│ {method} ")]
        assert len(rows) == 1
        answers = [line for line in done.stdout.splitlines() if line.startswith(f"  {method} ")]
        assert len(answers) == 3
    assert done.stdout.count("\n  reference ") == 3
    for name in ("zeroshot", "full", "lora", "qlora"):
        assert f"{tmp_path}/runs/demo_{name}/demo" in done.stdout.splitlines()[-1]
        assert (tmp_path / f"runs/demo_{name}/demo/scores.json").is_file()
