"""What processes hold and send, by the formulas, against what torch allocates and what crosses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ranks import on_ranks

from ftlab.data import FinetuneData
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network
from ftlab.planning import Cost, Shape, Weights, ddp, fsdp2

METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=4, dropout=0.0)}
SMALL = 24_576
"""Bytes of what does not grow with the network: a batch, the state of random numbers, sums for the log."""
Make = Callable[..., Any]


@dataclass
class Found:
    """What a process saw of itself.

    Args:
        held: Bytes that torch has allocated and not let go, from the network on, after the second step.
        crossed: Bytes of float32 in the third step, by collective, of which the largest tensor is taken; sums of fewer
            values than any weight has are none.
        shape: Of the network, before its strategy had it.
    """

    held: int
    crossed: dict[str, int]
    shape: Shape


class Watch(pl.Callback):
    """Finds it out."""

    def __init__(self) -> None:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        self._memory = torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True)
        self._traffic = torch.profiler.profile(activities=cpu, record_shapes=True, acc_events=True)
        self.found = Found(0, {}, Shape((), Weights(0, 0)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._memory.start()
        pl_module.configure_model()
        assert isinstance(pl_module, FinetuneModule)
        assert pl_module.network is not None
        self.found.shape = Shape.of(pl_module.network)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.global_step == 2:
            self._memory.stop()
            events = self._memory.profiler.kineto_results.events()
            self.found.held = sum(event.nbytes() for event in events if event.name() == "[memory]")
            self._traffic.start()
        if trainer.global_step == 3:
            self._traffic.stop()
            sizes: Counter[str] = Counter()
            for event in self._traffic.events() or ():
                kind = "all_reduce" if event.name == "gloo:all_reduce" else event.name
                values = max((torch.Size(shape).numel() for shape in event.input_shapes if shape), default=0)
                if kind in ("all_reduce", "c10d::_allgather_base_", "c10d::_reduce_scatter_base_") and values > 64:
                    sizes[kind] += 4 * values
            self.found.crossed = dict(sizes)


def train(
    network: Network, data_path: str, make_trainer: Make, method: str, strategy: str, devices: int, accumulate: int
) -> Found:
    """Three steps, watched."""
    module = FinetuneModule(METHODS[method](), network, torch.optim.AdamW, Constant())
    data = FinetuneData(network, data_path, template="plain", batch_size=1, batching="pad")
    watch = Watch()
    trainer = make_trainer(
        devices=devices, strategy=strategy, max_steps=3, accumulate_grad_batches=accumulate, callbacks=[watch]
    )
    trainer.fit(module, data)
    return watch.found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ddp(devices: int, method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    strategy = "ddp" if devices > 1 else "auto"
    for found in on_ranks(devices, partial(train, network, data_path, make_trainer, method, strategy, devices, 1)):
        cost = ddp(found.shape, devices)
        assert 0 <= found.held - cost.memory <= SMALL
        assert found.crossed.get("all_reduce", 0) == cost.all_reduced


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("devices", "accumulate"), [(2, 2), (4, 1)])
def test_fsdp2(
    devices: int, accumulate: int, method: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    work = partial(train, network, data_path, make_trainer, method, "fsdp2", devices, accumulate)
    for found in on_ranks(devices, work):
        cost = fsdp2(found.shape, devices, accumulate)
        # torch may keep what it has gathered or summed last until it needs the room
        assert cost.memory - cost.buffers <= found.held <= cost.memory + SMALL
        # rows that do not go into the processes evenly are filled up
        assert found.crossed["c10d::_allgather_base_"] == pytest.approx(cost.all_gathered, rel=1e-3)
        assert found.crossed["c10d::_reduce_scatter_base_"] == pytest.approx(cost.reduce_scattered, rel=1e-3)


def test_a_ring() -> None:
    """Each of four sends three quarters of what is summed, and again of what comes of it."""
    assert Cost(4, 0, 0, 0, all_reduced=100).sent == 150
    assert Cost(4, 0, 0, 0, reduce_scattered=100, all_gathered=200).sent == 225
    assert Cost(1, 0, 0, 0, all_reduced=0).sent == 0
