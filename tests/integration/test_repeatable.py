"""The same configuration gives the same bits, in whatever process, and whatever does not belong to the training."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from ftlab.callbacks import Checkpoints, MetricsCSV
from ftlab.methods import LoRA
from ftlab.modules import Cosine, FinetuneModule
from ftlab.runs import CheckpointOptions, Run

Make = Callable[..., Any]

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
DAILY = ["full", "lora", "qlora"]
# what has no tensor to train on the demo's network, or needs adapters that are trained
ELSEWHERE = {"bitfit", "xlora"}

TRAINER = """
import contextlib, io, json, sys
from pathlib import Path
from ftlab.cli import main
from ftlab.runs import Run

experiments, place, *choices = sys.argv[1:]
answers = {}
for choice in choices:
    parts = ["base", "network/demo", "data/demo", f"method/{choice}"]
    files = [word for part in parts for word in ("-c", f"{experiments}/{part}.yaml")]
    options = {
        "run.root": place, "run.name": choice, "wandb.mode": "disabled", "data.batch_size": 4, "data.test_limit": 4,
        "data.cache": f"{place}/cache", "data.validation_limit": 8, "trainer.max_steps": 3,
        "trainer.log_every_n_steps": 1,
        "model.decoding.max_new_tokens": 8, "trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        codes = [main([verb, *files, *words]) for verb in ("fit", "test")]
    run = Run(next(Path(place).glob(f"*/{choice}")))
    header, *rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
    kept = [i for i, name in enumerate(header) if name not in ("tokens_per_second", "peak_memory")]
    answers[choice] = {
        "codes": codes,
        "weights": run.model_digests(),
        "metrics": [[row[i] for i in kept] for row in [header, *rows]],
        "scores": run.scores.read_text(),
        "predictions": run.predictions("test").read_text(),
    }
Path(place, "answers.json").write_text(json.dumps(answers))
"""


def of_two_processes(choices: list[str], place: Path) -> list[dict[str, Any]]:
    """What training and scoring come to in two fresh processes with different hash seeds, side by side."""
    processes = []
    for number in range(2):
        command = [sys.executable, "-c", TRAINER, str(EXPERIMENTS), str(place / str(number)), *choices]
        environment = os.environ | {"PYTHONHASHSEED": str(number + 1), "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, env=environment, cwd=EXPERIMENTS.parent, stderr=subprocess.PIPE))
    for process in processes:
        assert process.wait() == 0, process.stderr and process.stderr.read().decode()
    return [json.loads((place / str(number) / "answers.json").read_text()) for number in range(2)]


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    for choice, answer in one.items():
        assert answer["codes"] == [0, 0], choice
        assert answer == other[choice], choice


def test_two_processes_end_with_the_same_bits(tmp_path: Path) -> None:
    assert_alike(*of_two_processes(DAILY, tmp_path))


@pytest.mark.slow
def test_two_processes_end_with_the_same_bits_by_every_method(tmp_path: Path) -> None:
    choices = sorted(path.stem for path in (EXPERIMENTS / "method").glob("*.yaml"))
    assert_alike(*of_two_processes([choice for choice in choices if choice not in ELSEWHERE], tmp_path))


@pytest.fixture
def digest(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Digests of the weights before and after a training with dropout, and of the batches' order."""
    count = 0

    def train(
        trainer: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        every: int | None = None,
        **module: Any,
    ) -> dict[str, str]:
        nonlocal count
        count += 1
        run = Run(tmp_path / f"run{count}")
        curves, checkpoints = MetricsCSV(run), Checkpoints(run, CheckpointOptions(every_n_steps=every))
        made: FinetuneModule = make_module(LoRA(r=2, dropout=0.3, init="gaussian"), schedule=Cosine(), **module)
        order = _Order()
        options = {"max_epochs": 2, "callbacks": [curves, checkpoints, order], "logger": curves} | (trainer or {})
        torch.manual_seed(int.from_bytes(os.urandom(4)))
        make_trainer(**options).fit(made, make_data(**({"batch_size": 2} | (data or {}))))
        assert order.first
        return {"first": order.first, "order": _hash(order.batches), "last": _weights(made)}

    return train


class _Order(pl.Callback):
    def __init__(self) -> None:
        self.first = ""
        self.batches: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = _weights(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch["input_ids"].tolist())


def _weights(module: FinetuneModule) -> str:
    names = module.trained_names()
    return _hash([(name, p.detach().tolist()) for name, p in module.named_parameters() if name in names])


def _hash(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


@pytest.mark.parametrize("otherwise", [
    {"data": {"workers": 2}},
    {"trainer": {"log_every_n_steps": 3}},
    {"trainer": {"limit_val_batches": 1.0, "val_check_interval": 3}},
    {"trainer": {"limit_val_batches": 1.0, "num_sanity_val_steps": 2}},
    {"trainer": {"enable_progress_bar": True}},
    {"every": 1},
])  # fmt: skip
def test_what_is_watched_does_not_change_what_is_trained(
    otherwise: dict[str, Any], digest: Callable[..., dict[str, str]]
) -> None:
    assert digest(**otherwise) == digest()


@pytest.mark.parametrize(("seed", "first", "order"), [
    ({"data": {"seed": 1}}, True, False),
    ({"seed": 1, "dropout_seed": 42}, False, True),
    ({"dropout_seed": 1}, True, True),
])  # fmt: skip
def test_each_seed_draws_its_own(
    seed: dict[str, Any], first: bool, order: bool, digest: Callable[..., dict[str, str]]
) -> None:
    one, other = digest(), digest(**seed)
    assert (one["first"] == other["first"]) is first
    assert (one["order"] == other["order"]) is order
    assert one["last"] != other["last"]
