"""Compiled blocks on several processes: what uncompiled ones come to, whatever is in shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch._dynamo.backends.registry import lookup_backend
from trainings import METHODS, train_and_judge

from ftlab.methods import Method, QLoRA
from ftlab.modules import compiling
from ftlab.networks import Network

Make = Callable[..., Any]

QLORA: dict[str, Callable[[], Method]] = {"qlora": lambda: QLoRA(r=3, compute_dtype="float32")}


def trained(
    method: str, compile: bool, network: Network, data_path: str, make_trainer: Make, strategy: str, **options: Any
) -> dict[str, Any]:
    made: list[Any] = []
    without_code = lookup_backend("aot_eager")  # torch traces and differentiates; no C++ is made of it

    def make(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made.append(graph)
        return without_code(graph, inputs)

    compiling._make = make  # in a process of its own
    adapted = (METHODS | QLORA)[method]()
    found = train_and_judge(adapted, network, data_path, make_trainer, strategy, 2, [], compile=compile, **options)
    return found | {"made": len(made)}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "strategy", "options"), [
    ("lora", "ddp", {"accumulate": 2}),
    ("full", "ddp", {}),
    ("lora", "fsdp", {"checkpointing": True}),
    ("qlora", "fsdp", {"checkpointing": True}),
    ("full", "fsdp2", {"checkpointing": True}),
    ("lora", "fsdp2", {"precision": "bf16-mixed"}),
])  # fmt: skip
def test_in_processes(
    method: str, strategy: str, options: dict[str, Any], network: Network, data_path: str, make_trainer: Make
) -> None:
    train = partial(trained, method)
    plain, compiled = (
        on_ranks(2, partial(train, compile, network, data_path, make_trainer, strategy, **options))
        for compile in (False, True)
    )
    tolerance = 2e-2 if "precision" in options else 1e-4
    for there, here in zip(plain, compiled, strict=True):
        assert (there["made"], here["made"] > 0) == (0, True)
        for name in ("losses", "norms", "val_loss", "weights"):
            torch.testing.assert_close(here[name], there[name], rtol=tolerance, atol=tolerance)
