"""What `ftlab plan` says of memory, beside what was measured.

    python scripts/plan_accuracy.py cpu [--tokenizer DIR]   # measures on this machine's CPU, a process each
    python scripts/plan_accuracy.py gpu docs/results/gpu_memory.jsonl   # what scripts/gpu.sh has measured

On a CPU the measure is torch's profiler, which is told of every allocation: the most bytes at once from the second
optimiser step on, beside the network's weights, which are mapped from their file. On a GPU it is max_memory_allocated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from training_cost import SHAPES, network_directory

from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.networks import Network
from ftlab.planning import Batch, Rehearsal, Step, rehearse

ASSETS = Path(__file__).resolve().parents[1] / "ftlab" / "assets" / "network"
METHODS: dict[str, Any] = {"full": Full, "lora": lambda: LoRA(r=16), "qlora": lambda: QLoRA(r=16)}
PRECISIONS: dict[str, Any] = {
    "32-true": Precision,
    "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
    "bf16-true": lambda: HalfPrecision("bf16-true"),
}
ROWS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    cpu = parts.add_parser("cpu")
    cpu.add_argument("--tokenizer", type=Path, default=ASSETS, help="of the Llama of hidden 256; its vocabulary counts")
    cpu.add_argument("--measure", help=argparse.SUPPRESS)  # this process is one measurement
    gpu = parts.add_parser("gpu")
    gpu.add_argument("measured", type=Path, help="lines of scripts/gpu.sh's part memory")
    gpu.add_argument("--whole-logits", action="store_true", help="as ftlab was up to 27 November 2026: all logits, and "
                     "gradients that stay through the forward pass")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.part == "gpu":
        on_gpu(arguments.measured, arguments.whole_logits)
    elif arguments.measure:
        print(measured(**json.loads(arguments.measure)))
    else:
        on_cpu(arguments.tokenizer)


def say(case: dict[str, Any], found: float, planned: Rehearsal) -> float:
    """A line of the table; returns by how much the plan is off."""
    ratio = planned.memory / found
    again = "yes" if case["checkpointing"] else "no"
    print(
        f"| {case['network']} | {case['method']} | {case['precision']} | {case['length']:,} | {again} "
        f"| {found / 1e9:.3f} | {planned.memory / 1e9:.3f} | {ratio:.3f} |",
        flush=True,
    )
    return abs(ratio - 1)


def head() -> None:
    print("| network | method | precision | tokens | computed again | measured, GB | planned, GB | ratio |")
    print("|---|---|---|---|---|---|---|---|")


# ---------------------------------------------------------------- a GPU


def on_gpu(file: Path, whole_logits: bool) -> None:
    """Of lines with network, method, precision, length, batch_size, checkpointing, and memory in bytes."""
    from transformers import LlamaConfig

    head()
    off = []
    with tempfile.TemporaryDirectory() as place:
        for case in map(json.loads, file.read_text().splitlines()):
            directory = Path(place) / case["network"]
            LlamaConfig(**SHAPES[case["network"]], max_position_embeddings=8192).save_pretrained(directory)
            mixed_full = case["method"] == "full" and case["precision"] == "bf16-mixed"
            network = Network(str(directory), dtype="float32" if mixed_full else "bfloat16")
            batch = Batch(case["batch_size"], case["length"] - 6)  # as long as gpu.sh's rows are
            planned = rehearse(step(network, case, batch, True, whole_logits), all_logits if whole_logits else None)
            off.append(say(case, case["memory"], planned))
    print(f"\nfurthest off: {max(off):.1%}; median: {sorted(off)[len(off) // 2]:.1%}")


def step(network: Network, case: dict[str, Any], batch: Batch, on_gpu: bool, accumulate: bool = False) -> Step:
    method: Method = METHODS[case["method"]]()
    precision = PRECISIONS[case["precision"]]()
    return Step(network, method, adamw, precision, batch, case["checkpointing"], accumulate, on_gpu, counted=False)


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


def all_logits(network: nn.Module, batch: Batch) -> Tensor:
    """The loss of all logits in float32, and the gradients of the step before let go after it alone."""
    inputs, *_ = batch.tensors()
    logits = network(**inputs).logits[:, :-1].flatten(0, 1).float()
    loss = nn.functional.cross_entropy(logits, inputs["input_ids"][:, 1:].flatten(), reduction="sum")
    for parameter in network.parameters():
        parameter.grad = None
    return loss


# ---------------------------------------------------------------- this machine's CPU


def on_cpu(tokenizer: Path) -> None:
    """Measures, plans and tells."""
    head()
    off = []
    with tempfile.TemporaryDirectory() as place:
        for directory in (ASSETS, network_directory("llama-256", tokenizer, Path(place))):
            for method, checkpointing, length in (
                (method, checkpointing, length)
                for method in METHODS
                for length in (64, 256) + (() if directory == ASSETS else (1024,))  # its context is 512
                for checkpointing in (False, True)
            ):
                case = {"network": str(directory), "method": method, "precision": "32-true", "length": length}
                case["checkpointing"] = checkpointing
                command = [sys.executable, __file__, "cpu", "--measure", json.dumps(case)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                planned = rehearse(step(Network(str(directory)), case, Batch(ROWS, length), on_gpu=False))
                name = "demo" if directory == ASSETS else directory.name
                found = float(done.stdout.splitlines()[-1]) + planned.peak["weights"]
                off.append(say(case | {"network": name}, found, planned))
    print(f"\nfurthest off: {max(off):.1%}; median: {sorted(off)[len(off) // 2]:.1%}")


def measured(network: str, method: str, precision: str, length: int, checkpointing: bool) -> int:
    """The most bytes that a step of training takes beside weights and optimiser's state, and these states, by the
    profiler."""
    from torch.profiler import ProfilerActivity, profile

    from ftlab.modules.activations import checkpoint_blocks
    from ftlab.modules.head import Head

    pretrained, how = Network(network), METHODS[method]()
    opened = pretrained.model(how.quantization)
    checkpoint_blocks(opened, checkpointing)
    torch.manual_seed(0)
    trained = how.adapt(opened).train()
    optimizer = adamw(how.param_groups(trained))
    lossy = Head(trained)
    inputs, places, targets = Batch(ROWS, length).tensors()

    def one_step() -> None:
        lossy.summed_loss(inputs, length, places, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    one_step()
    states = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_step()
    with tempfile.TemporaryDirectory() as place:
        profiler.export_chrome_trace(f"{place}/trace.json.gz")
        with gzip.open(f"{place}/trace.json.gz") as file:
            events = json.load(file)["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    held = most = 0
    for event in memory:
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most + states


if __name__ == "__main__":
    main()
