"""What processes hold and send, by the formulas, against what torch allocates and what crosses."""

from __future__ import annotations

from collections.abc import Callable
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
from ftlab.planning import Shape, ddp

METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=4, dropout=0.0)}
Make = Callable[..., Any]
SMALL = 8192
"""Bytes of what does not grow with the network: a batch, the state of random numbers, sums for the log."""


class Allocated(pl.Callback):
    """Bytes that torch has allocated since the network was there, and not let go, after the second step."""

    def __init__(self) -> None:
        self.bytes = 0
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.configure_model()
        self._profile.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self._profile.stop()
            events = self._profile.profiler.kineto_results.events()
            self.bytes = sum(event.nbytes() for event in events if event.name() == "[memory]")


def held(network: Network, data_path: str, make_trainer: Make, method: str, devices: int) -> tuple[int, Shape]:
    """What a process has allocated beside the network, and the shape of that."""
    module = FinetuneModule(METHODS[method](), network, torch.optim.AdamW, Constant())
    data = FinetuneData(network, data_path, template="plain", batch_size=1, batching="pad")
    allocated = Allocated()
    strategy = "ddp" if devices > 1 else "auto"
    make_trainer(devices=devices, strategy=strategy, max_steps=2, callbacks=[allocated]).fit(module, data)
    assert module.network is not None
    return allocated.bytes, Shape.of(module.network)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_memory_of_ddp(devices: int, method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    for found, shape in on_ranks(devices, partial(held, network, data_path, make_trainer, method, devices)):
        cost = ddp(shape, devices)
        assert 0 <= found - (cost.memory - cost.weights) <= SMALL
