"""Loss and gradients of packed batches beside padded ones, on a real network and real records; and whether a sample of
a pack sees another.

`scripts/benchmark.py packing` runs it. Told are the relative difference of the summed loss and, over all weights, of
the gradient, with packs in the order they come and with their samples turned round, in float32 and in float64; how far
float32 itself is from float64, on padded batches; and by how much the logits of every second sample change when all
others are replaced by other tokens. Samples are computed one by one, as `ftlab fit` does by itself, and once by a mask.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benching import ASSETS, data_module

ROWS = 64
ORDERS = ("as they come", "turned round")
MASKED = "by a mask"
COMPARED = (*ORDERS, MASKED, *(f"{order}, float64" for order in ORDERS), "float32 beside float64, padded")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", type=Path, default=ASSETS / "network", help="directory")
    parser.add_argument("--data", type=Path, default=ASSETS / "data" / "train.jsonl")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return benchmark_packing(args.network, args.data)


def benchmark_packing(network: Path, data: Path, length: int = 512) -> dict[str, Any]:
    """Prints the figures and returns them; `length` is a pack's."""
    command = [sys.executable, __file__, str(network), str(data), str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"packed beside padded failed:\n{done.stderr}")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{figures['records']} records in {figures['packs']} packs of {length}; summed loss {figures['loss']:.4f}")
    for what in COMPARED:
        loss, gradient = figures[what]["loss"], figures[what]["gradient"]
        print(f"  {what}: loss differs by {loss:.1e}, gradient by {gradient:.1e}")
    print(f"  logits, when the other samples are replaced, by {figures['seen']}")
    return figures


def compare(path: str, file: Path, length: int) -> dict[str, Any]:
    """The figures, all relative but `seen`, which is the largest difference of a logit."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftlab.attention import PACKED, SDPA
    from ftlab.data.collators import PackCollator, PadCollator
    from ftlab.data.packing import best_fit

    data = data_module(file, path, max_length=length, overflow="drop")
    rows = [data.rows("train")[place] for place in range(ROWS)]
    bins = best_fit(data.rows("train").lengths[:ROWS], length)
    packs = [[rows[place] for place in pack] for pack in bins]
    pad = data.encoder.pad_id
    orders = dict(zip(ORDERS, (packs, [pack[::-1] for pack in packs]), strict=True))
    padded, figures = [], {"records": ROWS, "packs": len(packs)}
    for dtype, named in ((torch.float64, ", float64"), (torch.float32, "")):
        network = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=PACKED)
        padded.append(_step(network, PadCollator(pad)(rows)))
        for name, order in orders.items():
            figures[name + named] = _apart(_step(network, PackCollator(pad)(order)), padded[-1])
    network.set_attn_implementation(SDPA)
    figures[MASKED] = _apart(_step(network, PackCollator(pad)(packs)), padded[1])
    network.set_attn_implementation(PACKED)
    figures |= {COMPARED[-1]: _apart(padded[1], padded[0]), "loss": padded[1][0]}
    batch = PackCollator(pad)(packs)
    kept = (batch["position_ids"] == 0).cumsum(1) % 2 == 1  # every second sample, the first among them
    noise = torch.randint(network.config.vocab_size, kept.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, others = (
            network(**_inputs(network, batch) | {"input_ids": ids}).logits[kept]
            for ids in (batch["input_ids"], torch.where(kept, batch["input_ids"], noise))
        )
    return figures | {"seen": float((logits - others).abs().max()), "replaced": int((~kept).sum())}


def _apart(mine: tuple[float, Any], other: tuple[float, Any]) -> dict[str, float]:
    gradient = other[1].double()
    return {
        "loss": abs(mine[0] - other[0]) / other[0],
        "gradient": float((mine[1] - gradient).norm() / gradient.norm()),
    }


def _step(network: Any, batch: Any) -> tuple[float, Any]:
    """The summed loss, and the gradient of all weights in one vector."""
    import torch

    network.zero_grad()
    logits = network(**_inputs(network, batch)).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()]).clone()


def _inputs(network: Any, batch: Any) -> dict[str, Any]:
    from ftlab.attention import PACKED, mask_of

    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name] for name in names if name in batch} | {"use_cache": False}
    if "bounds" in batch and network.config._attn_implementation == PACKED:
        inputs["attention_mask"] = mask_of(batch["bounds"], network.device)
    return inputs


if __name__ == "__main__":
    network, data, length = sys.argv[1:]
    print(json.dumps(compare(network, Path(data), int(length))))
