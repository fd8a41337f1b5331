"""What checkpoints cost: the steps of a training that writes them beside one that does not, and how long a step waits.

`scripts/benchmark.py checkpoints` runs it. Each arm is a process of its own, arms take turns, ratios are within a turn.
A step's seconds go from its batch to the next one, so that they hold what is written at its end. Whole trainings
scatter by more than checkpoints cost, so that what steps wait is set against their time as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benching import ASSETS, spread

WARM = 5
"""Steps that are not counted."""


@dataclass(frozen=True)
class Arm:
    """A training.

    Args:
        method: lora, of the network that ships; or full, of a Llama of `width` with weights drawn here.
        every: Steps between checkpoints; None writes none but the last.
        asynchronous: Whether they are written in a thread.
        steps: How many there are.
    """

    method: str
    every: int | None
    asynchronous: bool = False
    steps: int = 100
    width: int = 640


ARMS = {
    "lora, none": Arm("lora", None),
    "lora, every 50": Arm("lora", 50),
    "lora, every 50 in a thread": Arm("lora", 50, True),
    "full, none": Arm("full", None, steps=40),
    "full, every 20": Arm("full", 20, steps=40),
    "full, every 20 in a thread": Arm("full", 20, True, steps=40),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    return benchmark_checkpoints(args.repeats)


def adapter_bytes() -> dict[str, float]:
    """Bytes of a checkpoint of the network that ships with LoRA, and of its tensors."""
    figures = _run(Arm("lora", 2, steps=4))
    return {"bytes": figures["bytes"], "tensors": figures["tensors"]}


def benchmark_checkpoints(repeats: int) -> dict[str, Any]:
    """Prints a table and returns the figures."""
    turns = [{name: _run(arm) for name, arm in ARMS.items()} for _ in range(repeats)]
    figures: dict[str, Any] = {}
    for name, arm in ARMS.items():
        none = f"{name.split(',')[0]}, none"
        figures[name] = {
            "step": spread([turn[name]["step"] for turn in turns]),
            "steps over none": spread([turn[name]["mean"] / turn[none]["mean"] for turn in turns]),
            "waits over none": spread(
                [1 + turn[name]["wait"] / ((arm.every or 1) * turn[none]["step"]) for turn in turns]
            ),
            "wait": spread([turn[name]["wait"] for turn in turns]),
            "longest wait": spread([turn[name]["longest"] for turn in turns]),
            "bytes": turns[0][name]["bytes"],
            "bytes over tensors": turns[0][name]["bytes"] / turns[0][name]["tensors"],
        }
    print(f"{repeats} turns: median (smallest to largest)")
    for name, figure in figures.items():
        print(f"  {name}: {figure['bytes'] / 1e6:.1f} MB, {figure['bytes over tensors']:.3f} of its tensors")
        for what in ("step", "steps over none", "waits over none", "wait", "longest wait"):
            median, low, high = figure[what]
            print(f"    {what:<18}{median:9.4f}   ({low:.4f} to {high:.4f})")
    return figures


def _run(arm: Arm) -> dict[str, Any]:
    command = [sys.executable, __file__, json.dumps(asdict(arm))]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def train(arm: Arm) -> dict[str, Any]:
    """Trains and measures, in seconds: a median step, the mean, and what a step waits for its checkpoint."""
    import lightning.pytorch as pl
    import torch

    from ftlab.callbacks import Checkpoints, MetricsCSV
    from ftlab.callbacks.checkpoint_io import tensor_bytes
    from ftlab.data import FinetuneData
    from ftlab.methods import Full, LoRA
    from ftlab.modules import FinetuneModule
    from ftlab.networks import Network
    from ftlab.runs import CheckpointOptions, Run

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.began: list[float] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.began.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        network = Network(str(ASSETS / "network") if arm.method == "lora" else str(_llama(place / "llama", arm.width)))
        data = FinetuneData(
            network,
            str(ASSETS / "data"),
            prompt="{dialogue}",
            response="{summary}",
            batch_size=16 if arm.method == "lora" else 1,
            batching="pad",
            max_length=256 if arm.method == "lora" else 64,
            overflow="truncate",
            cache=str(place / "cache"),
        )
        run, clock = Run(place / "runs/bench/run"), Clock()
        curves = MetricsCSV(run)
        waits: list[float] = []

        class Timed(Checkpoints):
            def save_last(self, trainer: pl.Trainer) -> None:
                began = time.perf_counter()
                super().save_last(trainer)
                waits.append(time.perf_counter() - began)

        checkpoints = Timed(run, CheckpointOptions(every_n_steps=arm.every, asynchronous=arm.asynchronous))
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=arm.steps + WARM + 1,
            max_epochs=-1,
            limit_val_batches=0,
            logger=curves,
            callbacks=[curves, clock, checkpoints],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        method = LoRA(r=16) if arm.method == "lora" else Full()
        module = FinetuneModule(
            method, network, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True)
        )
        trainer.fit(module, data)
        steps = [after - before for before, after in zip(clock.began, clock.began[1:], strict=False)][WARM:]
        saved = run.checkpoints.last.resolve()
        waits = waits[:-1] or [0.0]  # the last is that of the end
        return {
            "step": statistics.median(steps),
            "mean": statistics.mean(steps),
            "wait": statistics.mean(waits),
            "longest": max(waits),
            "bytes": saved.stat().st_size,
            "tensors": tensor_bytes(torch.load(saved, weights_only=True)),
        }


def _llama(directory: Path, width: int) -> Path:
    """A network of some ten million parameters with random weights, and the tokenizer that ships."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "network")
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 6, "num_attention_heads": 10}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    print(json.dumps(train(Arm(**json.loads(sys.argv[1])))))
