"""What processes hold and send, by the formulas, against the tensors that are there and what crosses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from ranks import on_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM
from watching import Collectives

from ftlab.data import FinetuneData
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.modules.sharding.frozen import FrozenShards
from ftlab.networks import Network
from ftlab.planning import Cost, Shape, Weights, ddp, fsdp, fsdp2

METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "lora": lambda: LoRA(r=4, dropout=0.0),
    "last block": lambda: Full(last_blocks=1),
}
Make = Callable[..., Any]


@dataclass
class Found:
    """What a process saw of itself.

    Args:
        shape: Of the network, before its strategy had it.
        held: Bytes of weights, gradients and moments before the third step.
        gathered: Bytes that came out of all-gathers in the third step.
        reduced: Bytes that went into sums, but for those of fewer values than any weight has.
    """

    shape: Shape
    held: int
    gathered: int
    reduced: int


class Held(pl.Callback):
    """What the network is, and the storages of weights, gradients and moments before the third step, each once."""

    def __init__(self) -> None:
        self.shape = Shape((), Weights(0, 0))
        self.bytes = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.configure_model()
        assert isinstance(pl_module, FinetuneModule)
        assert pl_module.network is not None
        self.shape = Shape.of(pl_module.network)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 2:
            weights = list(pl_module.parameters())
            if isinstance(pl_module.sharded, FrozenShards):
                weights.extend(part for _, part in pl_module.sharded.parts(set()))
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            states = trainer.optimizers[0].state.values()
            moments = [value for state in states for value in state.values() if value.ndim]
            tensors = [own_part(tensor) for tensor in (*weights, *gradients, *moments)]
            storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
            self.bytes = sum(storages.values())


def own_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(
    network: Network, data_path: str, make_trainer: Make, method: str, strategy: str, devices: int, accumulate: int
) -> Found:
    """Three steps, watched."""
    module = FinetuneModule(METHODS[method](), network, torch.optim.AdamW, Constant())
    data = FinetuneData(network, data_path, template="plain", batch_size=1, batching="pad")
    held, crossing = Held(), Collectives()
    trainer = make_trainer(
        devices=devices,
        strategy=strategy,
        max_steps=3,
        accumulate_grad_batches=accumulate,
        callbacks=[held, crossing],
    )
    trainer.fit(module, data)
    size = 1 if isinstance(module.sharded, FrozenShards) else 4  # it gathers bytes
    gathered = sum(size * devices * values for kind, values in crossing.found if kind == "all_gather")
    reduced = sum(4 * values for kind, values in crossing.found if kind == "all_reduce" and values > 64)
    return Found(held.shape, held.bytes, gathered, reduced)


@pytest.mark.parametrize(("devices", "method"), [(1, "full"), (2, "lora"), (4, "full")])
def test_ddp(devices: int, method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    strategy = "ddp" if devices > 1 else "auto"
    for found in on_ranks(devices, partial(train, network, data_path, make_trainer, method, strategy, devices, 1)):
        cost = ddp(found.shape, devices)
        assert found.held == cost.memory
        assert found.reduced == cost.all_reduced
        assert found.gathered == cost.all_gathered == 0


@pytest.mark.parametrize(("devices", "accumulate", "method"), [(2, 2, "full"), (4, 1, "lora")])
def test_fsdp2(
    devices: int, accumulate: int, method: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    work = partial(train, network, data_path, make_trainer, method, "fsdp2", devices, accumulate)
    for found in on_ranks(devices, work):
        cost = fsdp2(found.shape, devices, accumulate)
        # rows that do not go into the processes evenly are filled up
        assert found.held == pytest.approx(cost.memory - cost.buffers, rel=1e-3)
        assert found.gathered == pytest.approx(cost.all_gathered, rel=1e-3)
        assert found.reduced == pytest.approx(cost.reduce_scattered, rel=1e-3)


@pytest.mark.parametrize(("devices", "accumulate", "method"), [(2, 2, "lora"), (4, 1, "last block")])
def test_fsdp(devices: int, accumulate: int, method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    work = partial(train, network, data_path, make_trainer, method, "fsdp", devices, accumulate)
    for found in on_ranks(devices, work):
        cost = fsdp(found.shape, devices, accumulate)
        # blocks' bytes that do not go into the processes evenly are filled up
        assert found.held == pytest.approx(cost.memory - cost.buffers, rel=1e-3)
        assert found.gathered == pytest.approx(cost.all_gathered, rel=1e-3)
        assert found.reduced == pytest.approx(cost.all_reduced, rel=1e-3)


def test_fsdp_of_a_network_that_is_trained_whole_is_fsdp2(network: Network, data_path: str, make_trainer: Make) -> None:
    work = partial(train, network, data_path, make_trainer, "full", "fsdp", 2, 2)
    for found in on_ranks(2, work):
        cost = fsdp(found.shape, 2, 2)
        assert cost == fsdp2(found.shape, 2, 2)
        assert found.held == pytest.approx(cost.memory - cost.buffers, rel=1e-3)
        assert found.gathered == pytest.approx(cost.all_gathered, rel=1e-3)
        assert found.reduced == pytest.approx(cost.reduce_scattered, rel=1e-3)


def test_a_ring() -> None:
    """Each of four sends three quarters of what is summed, and again of what comes of it."""
    assert Cost(4, 0, 0, 0, all_reduced=100).sent == 150
    assert Cost(4, 0, 0, 0, reduce_scattered=100, all_gathered=200).sent == 225
    assert Cost(1, 0, 0, 0, all_reduced=0).sent == 0


SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
}


def adapted(size: str, method: str) -> torch.nn.Module:
    """Llama 3 of this size, without memory: trained whole in float32, or by LoRA of rank 16 over bfloat16."""
    config = LlamaConfig(vocab_size=128_256, num_key_value_heads=8, tie_word_embeddings=size == "1B", **SHAPES[size])
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
        if method == "full":
            return network
        return peft.get_peft_model(network.bfloat16(), peft.LoraConfig(r=16, target_modules="all-linear"))


@pytest.mark.parametrize("method", ["full", "LoRA"])
@pytest.mark.parametrize("size", SHAPES)
def test_the_how_to_shows_the_formulas(size: str, method: str) -> None:
    shape = Shape.of(adapted(size, method))
    lines = (Path(__file__).parents[2] / "docs/how-to/scale.md").read_text().splitlines()
    for strategy, cost_of in {"ddp": ddp, "fsdp": fsdp, "fsdp2": fsdp2}.items():
        costs = [cost_of(shape, processes) for processes in (2, 8, 16)]
        memory = " | ".join(f"{cost.memory / 1e9:.1f}" for cost in costs)
        sent = " | ".join(f"{cost.sent / 1e9:.2f}" for cost in costs)
        line = f"| {size} {method} | {strategy} | {memory} | {sent} |"
        assert line in lines, line
