"""What training costs by ftlab and by its peers: seconds, tokens, memory and floating-point operations of a step.

`scripts/benchmark.py training` runs it. An arm is a tool and how it lays rows out (training_arms.py). Each is a process
of its own, arms take turns, ratios are within a turn. A figure counts only where losses are those of the bare loop.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benching import spread

TOP = Path(__file__).resolve().parents[1]
ARMS = ("bare", "ftlab", "hf", "trl", "ftlab:pack", "trl:pack")
PEAKS = {"H200": 989e12, "H100": 989e12}
"""Dense bfloat16 operations a second, by the makers' datasheets."""

SHAPES = {
    "llama-256": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
    "llama-512": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "llama-3.2-1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "llama-3.1-8b": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    },
}
"""Of Llamas with random weights: all but the vocabulary, which is the tokenizer's where none is given."""


@dataclass(frozen=True)
class Work:
    """What every arm does.

    Args:
        network: Directory of network and tokenizer.
        data: JSONL file with prompt and completion, or with dialogue and summary.
        method: full, lora or qlora.
        length: Longer rows are dropped, or cut where `cut`.
        batch_size: Rows of a step; packs, where an arm packs.
        warm: Steps that are not measured.
        steps: All steps.
        precision: 32-true, bf16-mixed (adapters and optimiser in float32), or bf16-true.
        checkpointing: Compute activations again in the backward pass.
        attention: Kernel, as transformers names it.
        profiled: Whether the last three steps are profiled, which makes their seconds useless.
    """

    network: str
    data: str
    method: str = "lora"
    length: int = 1024
    batch_size: int = 8
    warm: int = 4
    steps: int = 16
    precision: str = "32-true"
    checkpointing: bool = False
    attention: str = "sdpa"
    profiled: bool = False

    @property
    def rate(self) -> float:
        return 1e-5 if self.method == "full" else 1e-4

    @property
    def dtype(self) -> str:
        """Of the weights in memory: a base that is frozen needs no more than the precision it is computed in."""
        mixed_full = self.method == "full" and self.precision == "bf16-mixed"
        return "float32" if self.precision == "32-true" or mixed_full else "bfloat16"


def benchmark_training(work: Work, arms: list[str], repeats: int) -> dict[str, Any]:
    """Prints a table and returns the figures; of an arm that failed, or did other work than the bare loop, why."""
    turns = [{arm: _run(arm, work) for arm in arms} for _ in range(repeats)]
    first = turns[0]
    flops = operations(work)
    figures: dict[str, Any] = {
        "work": asdict(work) | {"network": Path(work.network).name, "data": Path(work.data).name}
    }
    print(f"{first[arms[0]].get('device')}; {figures['work']}; {repeats} turns: median (smallest to largest)")
    wrong = {arm: said for arm in arms for turn in turns if (said := objection(turn[arm], turn.get("bare"), arm))}
    for arm in arms:
        if arm in wrong:
            figures[arm] = {"refused": wrong[arm]}
            print(f"  {arm:<11} does not count: {wrong[arm]}")
            continue
        measured = work.steps - work.warm
        tokens, targets = first[arm]["tokens"] / measured, first[arm]["targets"] / measured
        mine = figures[arm] = {
            "ms": spread([1e3 * turn[arm]["seconds"] for turn in turns]),
            "tokens/s": spread([tokens / turn[arm]["seconds"] for turn in turns]),
            "targets/s": spread([targets / turn[arm]["seconds"] for turn in turns]),
            "tokens": tokens,
            "targets": targets,
            "memory": spread([turn[arm]["memory"] for turn in turns]),
            "first_step": spread([turn[arm]["first_step"] for turn in turns]),
            "losses": first[arm]["losses"],
            "norm": first[arm]["norm"],
        }
        if "bare" in arms and "bare" not in wrong and not arm.endswith(":pack"):
            mine["over bare"] = spread([turn[arm]["seconds"] / turn["bare"]["seconds"] for turn in turns])
        peak = next((peak for name, peak in PEAKS.items() if name in first[arm]["device"]), None)
        if peak and tokens > 0.95 * work.batch_size * work.length:  # the formula is of rows that are all as long
            mine["mfu"] = spread([flops * tokens / turn[arm]["seconds"] / peak for turn in turns])
        print(
            f"  {arm:<11}" + "  ".join(f"{name} {_said(value)}" for name, value in mine.items() if name not in UNSAID)
        )
    return figures


UNSAID = {"losses", "tokens", "targets"}


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:.4g}"
    median, low, high = value
    return f"{median:.4g}" if low == high else f"{median:.4g} ({low:.4g} to {high:.4g})"


def objection(mine: dict[str, Any], bare: dict[str, Any] | None, arm: str) -> str | None:
    """Why a figure does not count, or None."""
    if "failed" in mine:
        return mine["failed"]
    if not (math.isfinite(mine["norm"]) and mine["norm"] > 0):
        return f"the first gradient's norm is {mine['norm']}"
    if bare is None or "failed" in bare or arm.endswith(":pack"):
        return None
    if (mine["tokens"], mine["targets"]) != (bare["tokens"], bare["targets"]):
        return f"{mine['tokens']} tokens, {mine['targets']} targets; the bare loop {bare['tokens']}, {bare['targets']}"
    for step, (loss, wanted) in enumerate(zip(mine["losses"], bare["losses"], strict=True), 1):
        if not abs(loss - wanted) <= 0.01 * wanted:  # NaN is neither
            return f"the loss of step {step} is {loss:.5f}, the bare loop's {wanted:.5f}"
    return None


def operations(work: Work) -> float:
    """Floating-point operations that a token needs where rows are `work.length` long: full 6 N + 6 L d s, with adapters
    4 N + 6 L d s + 6 of theirs; N are weights that are multiplied, without the input embedding (PaLM, Chowdhery et al.
    2022, arXiv 2204.02311, appendix B, halved for attention that is causal)."""
    shape = json.loads((Path(work.network) / "config.json").read_text())
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    keys = head * (shape.get("num_key_value_heads") or heads)
    layer = [(hidden, heads * head), (hidden, keys), (hidden, keys), (heads * head, hidden)]
    layer += 3 * [(hidden, shape["intermediate_size"])]
    layers = shape["num_hidden_layers"]
    weights = layers * sum(a * b for a, b in layer) + hidden * shape["vocab_size"]
    adapters = layers * sum(16 * (a + b) for a, b in layer) if work.method != "full" else 0
    attention = 6 * layers * heads * head * work.length
    return (6 if work.method == "full" else 4) * weights + 6 * adapters + attention


def _run(arm: str, work: Work) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as scratch:
        environment |= {"FTLAB_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": scratch}
        script = Path(__file__).with_name("training_arms.py")
        command = [sys.executable, str(script), arm, json.dumps(asdict(work))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        return {"failed": (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1][:300]}
    *before, figures = done.stdout.splitlines()
    if work.profiled:
        print("\n".join(before))
    return json.loads(figures)


def network_directory(name: str, tokenizer: Path, place: Path) -> Path:
    """`name` where that is a directory; else a Llama of that shape in bfloat16 with random weights, made in `place`."""
    if Path(name).is_dir():
        return Path(name).resolve()
    directory = place / name
    if (directory / "done").exists():
        return directory
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    words.eos_token = words.eos_token or "<|endoftext|>"  # GPT-2's files do not say it
    shape = {"vocab_size": len(words), "max_position_embeddings": 8192} | SHAPES[name]
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=words.eos_token_id, rope_theta=500000.0)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), default_dtype(torch.bfloat16):
        LlamaForCausalLM(config).save_pretrained(directory)
    words.save_pretrained(directory)
    (directory / "done").touch()
    return directory


@contextlib.contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
