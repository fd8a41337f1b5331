"""Full, LoRA and QLoRA on the accelerator there is: train, go on, score, generate, export.

Marked `gpu`: the default run leaves them out. They use the demo's network and data, and run on a CPU too, so that they
can be tried before a GPU is at hand: `pytest -m gpu`.
"""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ftlab
from ftlab.cli import main
from ftlab.modules import FinetuneModule

pytestmark = pytest.mark.gpu

TOP = Path(ftlab.__file__).resolve().parent.parent
ASSETS = TOP / "ftlab" / "assets"
METHODS = ["full", "lora", "qlora"]


def command(verb: str, method: str, root: Path, *options: str) -> list[str]:
    return [
        *(verb, "-c", str(TOP / "experiments" / f"demo_{method}.yaml"), "--run.root", str(root), "--run.name", "run"),
        *("--model.network.path", str(ASSETS / "network"), "--data.path", str(ASSETS / "data")),
        *("--trainer.precision", "bf16-mixed", "--trainer.enable_progress_bar", "false", "--wandb.mode", "disabled"),
        *("--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--trainer.log_every_n_steps", "5"),
        *("--data.validation_limit", "32", "--data.test_limit", "8", "--run.checkpoints.every_n_steps", "10"),
        *options,
    ]


def losses(root: Path, method: str) -> list[float]:
    with (root / f"demo_{method}" / "run" / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


@pytest.mark.parametrize("method", METHODS)
def test_trains_scores_generates_and_exports(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("fit", method, tmp_path)) == 0
    first, *_, last = losses(tmp_path, method)
    assert last < first
    run = tmp_path / f"demo_{method}" / "run"
    if torch.cuda.is_available():
        cost = json.loads((run / "provenance.json").read_text())["cost"]
        assert 0 < cost["peak_memory_bytes"] < 200e6  # of tensors on the device, not of the process

    assert main(command("test", method, tmp_path)) == 0
    assert json.loads((run / "scores.json").read_text())["test_loss"] > 0
    capsys.readouterr()
    prompt = json.loads((ASSETS / "data" / "test.jsonl").read_text().splitlines()[0])["dialogue"]
    assert main(["generate", str(run), "--prompt", prompt, "--decoding.max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["export", str(run), str(tmp_path / "merged"), "--merge", "true"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_where_it_was_interrupted(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command("fit", method, tmp_path / "whole")) == 0
    step = FinetuneModule.on_train_batch_end

    def stop_at_step_12(module: FinetuneModule, *arguments: Any) -> None:
        step(module, *arguments)
        if module.global_step == 12:
            raise KeyboardInterrupt  # as Ctrl-C between two steps

    monkeypatch.setattr(FinetuneModule, "on_train_batch_end", stop_at_step_12)
    with contextlib.suppress(SystemExit):
        assert main(command("fit", method, tmp_path / "parts")) != 0
    monkeypatch.undo()
    assert main(command("fit", method, tmp_path / "parts")) == 0

    assert losses(tmp_path / "parts", method) == pytest.approx(losses(tmp_path / "whole", method), rel=1e-3)
