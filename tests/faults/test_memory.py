"""Memory that runs out for real, in training and in judging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftlab.cli import main
from ftlab.cli.breakdowns import Situation, breakdowns
from ftlab.errors import UserError, out_of_memory


def impossible() -> Any:
    return torch.empty(1 << 50)


def test_in_training(fit: Any, undisturbed: Any) -> None:
    broken = fit(AT=4, BREAK="allocate")
    last = (fit.run / "checkpoints/last.ckpt").resolve()
    assert (broken.code, fit.state, torch.load(last)["global_step"]) == (1, "failed", 3)
    assert broken.said.startswith(
        "ftlab: out of memory in training, at step 4: 4,194,304.00 GiB more were asked for, on"
    )
    assert "on a batch of 3 rows of " in broken.said
    assert "lower data.batch_size (4) and raise trainer.accumulate_grad_batches (1) by as much, or" in broken.said
    config = fit.run / "config.yaml"
    again = f"ftlab fit -c {config} with that and --run.resume force goes on from {last}"
    assert broken.said.endswith(again)
    assert fit().code == 0
    assert fit.results == undisturbed()


@pytest.mark.parametrize(("verb", "doing", "remedy"), [
    ("validate", "validation, generating answers", "data.eval_batch_size (4), or model.decoding.max_new_tokens (4)"),
    ("test", "test", "lower data.eval_batch_size (4); the run is as it was"),
    ("predict", "prediction, generating answers", "model.decoding.max_new_tokens (4); the run is as it was"),
])  # fmt: skip
def test_in_judging(
    verb: str, doing: str, remedy: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.syspath_prepend(workplace)
    command = [
        "-c",
        "tiny.yaml",
        "--run.name",
        "judged",
        "--trainer.max_steps",
        "1",
        "--model.method",
        "ftlab.methods.LoRA",
    ]
    assert main(["fit", *command]) == 0
    capfd.readouterr()
    loss = "ftlab.modules.judging.JudgedModule._losses"
    monkeypatch.setattr("ftlab.modules.judging.generate" if "answers" in doing else loss, lambda *_: impossible())
    assert main([verb, *command]) == 1
    said = capfd.readouterr().err
    assert f"out of memory in {doing}: 4,194,304.00 GiB more were asked for, on a batch of " in said
    assert remedy in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
])  # fmt: skip
def test_what_is_told_of_other_errors(error: Exception) -> None:
    assert out_of_memory(error)
    with pytest.raises(UserError) as told, breakdowns(lambda: Situation("a test", (2, 3), ["lower x"], "", "y")):
        raise error
    which = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
    more = ": 2.50 GiB more were asked for" if "2.50" in str(error) else ""
    assert str(told.value) == f"out of {which} in a test{more}, on a batch of 2 rows of 3 tokens; lower x; y"


def test_other_errors_are_left_alone() -> None:
    assert not out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"), breakdowns(lambda: Situation("", None, [], "", "")):
        raise RuntimeError("shape mismatch")
