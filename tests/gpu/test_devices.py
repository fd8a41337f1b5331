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
from transformers import masking_utils

import ftlab
from ftlab.cli import main
from ftlab.modules import FinetuneModule
from ftlab.modules.nonfinite import Soundness, Step
from ftlab.modules.outcomes import Outcome, guard

pytestmark = pytest.mark.gpu

TOP = Path(ftlab.__file__).resolve().parent.parent
ASSETS = TOP / "ftlab" / "assets"
METHODS = ["full", "lora", "qlora"]


def command(verb: str, method: str, root: Path, *options: str) -> list[str]:
    own = method if method in METHODS else "lora"
    more = [] if method in METHODS else ["-c", str(TOP / "experiments" / "method" / f"{method}.yaml")]
    return [
        *(verb, "-c", str(TOP / "experiments" / f"demo_{own}.yaml"), *more, "--run.root", str(root)),
        *("--run.experiment", f"demo_{method}", "--run.name", "run"),
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


@pytest.mark.parametrize("method", [*METHODS, "adalora"])  # which has tensors of its own to take up again
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_nobody_waits_for_the_device_between_logs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers reads of its masks at every forward pass is its own."""
    known: dict[int, int] = {}  # at which step, of each, what it came to
    start, end, judge = FinetuneModule.on_train_batch_start, FinetuneModule.on_train_batch_end, Soundness.judge

    def starts(module: FinetuneModule, *arguments: Any) -> None:
        step = module.global_step + 1
        waits(is_error=step > 1 and step % 5 != 0)
        start(module, *arguments)
        known[0] = step  # the one under way

    def ends(module: FinetuneModule, *arguments: Any) -> None:
        waits(is_error=False)  # checkpoints and validation may come next
        end(module, *arguments)

    def judged(soundness: Soundness, step: Step) -> bool:
        known[step.number] = known[0]
        return judge(soundness, step)

    monkeypatch.setattr(FinetuneModule, "on_train_batch_start", starts)
    monkeypatch.setattr(FinetuneModule, "on_train_batch_end", ends)
    monkeypatch.setattr(Soundness, "judge", judged)
    for name in ("_ignore_causal_mask_sdpa", "find_packed_sequence_indices"):
        monkeypatch.setattr(masking_utils, name, unwatched(getattr(masking_utils, name)))
    assert main(command("fit", method, tmp_path, "--trainer.accumulate_grad_batches", "1")) == 0
    assert [known[step] for step in range(1, 11)] == [2, 3, 4, 5, 5, 7, 8, 9, 10, 10]


def waits(is_error: bool) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error" if is_error else "default")


def unwatched(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        before = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
        waits(is_error=False)
        try:
            return function(*args, **kwargs)
        finally:
            waits(is_error=bool(before))

    return call


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_a_fused_optimiser_leaves_out_what_came_to_no_number(make: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        make([weight], lr=0.0, fused=True).step()
    except RuntimeError as error:
        pytest.skip(f"not fused on this device: {error}")
    optimizer = make([weight], lr=0.1, weight_decay=0.1, fused=True)
    for value in (1.0, float("nan"), 2.0):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), value, device=device)
        outcome = Outcome(weight.grad[:1], weight.grad.norm())
        guard(optimizer, outcome.unsound())
        optimizer.step()
        assert torch.equal(weight, before) == (value != value)
        assert outcome.read()[0] == pytest.approx(value, nan_ok=True)
    assert all(int(state["step"]) == 2 for state in optimizer.state.values() if "step" in state)
