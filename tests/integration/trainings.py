"""What is trained in tests of networks in shards: two methods, by AdamW, with answers to judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftlab.data import FinetuneData
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.modules.shards import whole
from ftlab.networks import Network

METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=3, dropout=0.0)}


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


def make_module(method: Method, network: Network, **options: Any) -> FinetuneModule:
    defaults = {"optimizer": adamw, "schedule": Constant(), "decoding": Decoding(max_new_tokens=4)}
    return FinetuneModule(method, network, **(defaults | options))


def make_data(network: Network, path: str, batch_size: int, **options: Any) -> FinetuneData:
    defaults = {"eval_batch_size": 2, "batching": "pad", "preparation_workers": 1}
    data = FinetuneData(network, path, template="plain", batch_size=batch_size, **(defaults | options))
    data.answers_in_validation = True
    return data


def trained_weights(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: whole(module.get_parameter(name).detach()) for name in sorted(module.trained_names())}
