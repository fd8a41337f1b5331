"""Networks in shards (`fsdp2`, `fsdp`) over the accelerators there are, one or two: train, go on, score, generate.

Marked `gpu`: the default run leaves them out. They use the demo's network and data, and run on a CPU too, so that they
can be tried before a GPU is at hand: `pytest -m gpu`.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ftlab

pytestmark = pytest.mark.gpu

TOP = Path(ftlab.__file__).resolve().parent.parent
ASSETS = TOP / "ftlab" / "assets"
METHODS = [("full", "fsdp2"), ("lora", "fsdp2"), ("full", "fsdp")]  # of which all is in shards
DEVICES = min(2, max(1, torch.cuda.device_count()))
BATCH = 16 if torch.cuda.is_available() else 2


def answer(*words: str) -> tuple[int, str]:
    """What a command says that has a process, and a process group, of its own; and its exit code."""
    done = subprocess.run([sys.executable, "-m", "ftlab", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def command(verb: str, method: str, root: Path, *options: str) -> None:
    code, said = answer(
        *(verb, "-c", str(TOP / "experiments" / f"demo_{method}.yaml"), "--run.root", str(root), "--run.name", "run"),
        *("--model.network.path", str(ASSETS / "network"), "--data.path", str(ASSETS / "data")),
        *("--trainer.enable_progress_bar", "false", "--wandb.mode", "disabled"),
        *("--trainer.val_check_interval", "10", "--trainer.log_every_n_steps", "5"),
        *("--data.validation_limit", "8", "--data.test_limit", "8", "--model.decoding.max_new_tokens", "8"),
        *("--run.checkpoints.every_n_steps", "10"),
        *("--model.optimizer.init_args.lr", "1e-4"),  # at the demo's own rates, rounding alone moves a loss by a tenth
        *options,
    )
    assert code == 0, said


def shards(precision: str, strategy: str) -> list[str]:
    return [
        *("--trainer.strategy", strategy, "--trainer.devices", str(DEVICES), "--trainer.precision", precision),
        *("--data.batch_size", str(BATCH // DEVICES)),
    ]


ALONE = ["--trainer.devices", "1", "--trainer.precision", "32-true", "--data.batch_size", str(BATCH)]


def losses(root: Path, method: str) -> list[float]:
    with (root / f"demo_{method}" / "run" / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


@pytest.mark.parametrize(("method", "strategy"), METHODS)
def test_trains_as_one_process_does_goes_on_and_is_judged(method: str, strategy: str, tmp_path: Path) -> None:
    command("fit", method, tmp_path / "alone", *ALONE, "--trainer.max_steps", "20")
    whole, parts, bfloat16 = (tmp_path / name for name in ("whole", "parts", "bfloat16"))
    command("fit", method, whole, *shards("32-true", strategy), "--trainer.max_steps", "20")
    assert losses(whole, method) == pytest.approx(losses(tmp_path / "alone", method), rel=1e-3)
    for steps in ("10", "20"):  # a later end is the same run
        constant = ["--model.schedule", "ftlab.modules.Constant", "--trainer.max_steps", steps]
        command("fit", method, parts, *shards("32-true", strategy), *constant)
    command("fit", method, bfloat16, *shards("bf16-mixed", strategy), "--trainer.max_steps", "20")
    # later steps follow what was rounded before
    assert losses(bfloat16, method)[0] == pytest.approx(losses(whole, method)[0], rel=1e-2)
    assert len(losses(parts, method)) == 4
    command("test", method, bfloat16, *shards("bf16-mixed", strategy), "--trainer.max_steps", "20")
    run = bfloat16 / f"demo_{method}" / "run"
    assert len((run / "predictions" / "test.jsonl").read_text().splitlines()) == 8
    code, said = answer("generate", str(run), "--prompt", "A: Hello", "--decoding.max_new_tokens", "8")
    assert code == 0, said


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_frozen_base_in_shards(method: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command("fit", method, tmp_path / "alone", *ALONE, "--trainer.max_steps", "20")
    command("fit", method, whole, *shards("32-true", "fsdp"), "--trainer.max_steps", "20")
    assert losses(whole, method) == pytest.approx(losses(tmp_path / "alone", method), rel=1e-3)
    for steps in ("10", "20"):
        constant = ["--model.schedule", "ftlab.modules.Constant", "--trainer.max_steps", steps]
        checkpointing = ["--model.gradient_checkpointing", "true"]
        command("fit", method, parts, *shards("bf16-mixed", "fsdp"), *constant, *checkpointing)
    assert len(losses(parts, method)) == 4
    command("test", method, whole, *shards("32-true", "fsdp"), "--trainer.max_steps", "20")
    assert len((whole / f"demo_{method}" / "run" / "predictions" / "test.jsonl").read_text().splitlines()) == 8
