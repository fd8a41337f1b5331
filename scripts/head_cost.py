"""Time and memory of the loss, from hidden states on: all logits at once, torch's own fused loss, and ftlab's.

`scripts/benchmark.py head` runs it. Each arm is a process of its own, arms take turns, ratios are within a turn. Extra
memory is the most that was held, by the process or of a GPU, beyond what was with hidden states, matrix and their
gradients. On a GPU all is in bfloat16, Liger's kernel is an arm more, and `ftlab:ROWS` takes so many rows at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benching import said, spread

ARMS = ("all logits", "torch", "ftlab")
"""Of torch from 2.13 on."""
Case = tuple[int, int, int]
CASES: tuple[Case, ...] = ((2048, 32_000, 512), (2048, 50_257, 512))
"""Rows, words, width."""
GPU_CASES: tuple[Case, ...] = ((8192, 128_256, 2048), (8192, 128_256, 4096))
MATRICES = {"frozen": False, "trained": True}
_TIMES = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    told = f"of {', '.join(ARMS)}, liger, ftlab:ROWS; the first is what others are held to"
    parser.add_argument("--arms", nargs="+", default=ARMS, help=told)
    parser.add_argument("--gpu-cases", action="store_true", help=f"rows, words, width: {GPU_CASES}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return benchmark_head(args.repeats, args.arms, GPU_CASES if args.gpu_cases else CASES)


def benchmark_head(repeats: int, arms: Sequence[str] = ARMS, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Prints a line for each case, of a frozen matrix and of a trained one, and returns the figures."""
    print("| rows | words | width | matrix | arm | ms | over all logits | extra MB | over all logits |")
    print("|---:|---:|---:|---|---|---:|---:|---:|---:|")
    found: dict[str, Any] = {}
    for rows, words, width in cases:
        for matrix, trained in MATRICES.items():
            turns = [{arm: _run(arm, rows, words, width, trained) for arm in arms} for _ in range(repeats)]
            plain = arms[0]
            near = 1e-3 if (rows, words, width) in GPU_CASES else 1e-4
            if not all(abs(turn[arm]["loss"] / turn[plain]["loss"] - 1) <= near for turn in turns for arm in arms):
                sys.exit(f"losses differ: {turns}")
            for arm in arms:
                figures = {
                    "ms": spread([turn[arm]["seconds"] * 1e3 for turn in turns]),
                    "time": spread([turn[arm]["seconds"] / turn[plain]["seconds"] for turn in turns]),
                    "MB": spread([turn[arm]["bytes"] / 1e6 for turn in turns]),
                    "memory": spread([turn[arm]["bytes"] / turn[plain]["bytes"] for turn in turns]),
                }
                found[f"{rows} {words} {width} {matrix} {arm}"] = figures
                ms, ratio, size, share = map(said, figures.values(), (0, 2, 0, 2))
                print(f"| {rows:,} | {words:,} | {width} | {matrix} | {arm} | {ms} | {ratio} | {size} | {share} |")
    return found


def _run(arm: str, rows: int, words: int, width: int, trained: bool) -> dict[str, float]:
    if (rows, words, width) in GPU_CASES:  # its memory is told anew in a process, too
        return _arm(arm, rows, words, width, trained)
    command = [sys.executable, __file__, arm, str(rows), str(words), str(width), str(int(trained))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _arm(arm: str, rows: int, words: int, width: int, trained: bool) -> dict[str, float]:
    """Seconds of forward and backward pass, the best of some, and the most bytes beyond those at the start."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    there: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if cuda else {}
    layer = nn.Linear(width, words, bias=False, **there).requires_grad_(trained)
    hidden = torch.randn(rows, width, **there, requires_grad=True)
    targets = torch.randint(words, (rows,), device=hidden.device)
    loss = _loss(arm, layer)
    hidden.grad = torch.zeros_like(hidden)
    if trained:
        layer.weight.grad = torch.zeros_like(layer.weight)
    for tensor in (hidden.grad, layer.weight.grad):
        if tensor is not None:
            tensor.add_(1).zero_()  # touched, so that it is there
    small = loss(hidden[:8], targets[:8])
    small.backward()
    del small
    before = torch.cuda.memory_allocated() if cuda else _status("VmRSS")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the most from here on
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        value = loss(hidden, targets)
        value.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    most = torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")
    return {"seconds": min(seconds), "bytes": most - before, "loss": value.item()}


def _loss(arm: str, layer: Any) -> Callable[[Any, Any], Any]:
    import torch
    from torch import nn

    def all_logits(hidden: Any, targets: Any) -> Any:
        return nn.functional.cross_entropy(layer(hidden).float(), targets, reduction="sum")

    def of_torch(hidden: Any, targets: Any) -> Any:
        options = torch.nn.LinearCrossEntropyOptions()
        return nn.functional.linear_cross_entropy(hidden, layer.weight, targets, reduction="sum", options=options)

    def ours(hidden: Any, targets: Any) -> Any:
        from ftlab.modules.head import fused_cross_entropy

        return fused_cross_entropy(layer, layer.parameters(), hidden, targets)

    def ligers(hidden: Any, targets: Any) -> Any:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(layer.weight, hidden, targets)

    name, _, size = arm.partition(":")

    def rows(*_: Any, **__: Any) -> int:
        return int(size)

    def in_pieces(hidden: Any, targets: Any) -> Any:
        with mock.patch("ftlab.modules.head._rows_at_a_time", new=rows):  # a mock would keep the logits it is asked for
            return ours(hidden, targets)

    if size:
        return in_pieces
    return {"all logits": all_logits, "torch": of_torch, "ftlab": ours, "liger": ligers}[name]


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    rows, words, width, trained = map(int, numbers)
    print(json.dumps(_arm(name, rows, words, width, bool(trained))))
