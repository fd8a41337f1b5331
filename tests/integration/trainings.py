"""What is trained in tests of networks in shards: two methods, by AdamW, with answers to judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops import utilities
from torch import Tensor
from watching import Seen

from ftlab.callbacks import FrozenBase
from ftlab.data import FinetuneData
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.modules.sharding.tensors import whole
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


GLOBAL_BATCH = 8
"""Of 15 records: the last global batch has seven, and one process of several a record less than the others."""


def train_and_judge(
    method: Method,
    network: Network,
    data_path: str,
    make_trainer: Callable[..., Any],
    strategy: str,
    world: int,
    callbacks: list[pl.Callback],
    accumulate: int = 1,
    checkpointing: bool = False,
    compile: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """What one process of a training sees of it: two epochs, each validated, with an answer to every record."""
    # over nccl Lightning judges in inference mode, over gloo not: as over nccl
    utilities._distributed_is_initialized = lambda: False  # type: ignore[attr-defined]
    module = make_module(method, network, gradient_checkpointing=checkpointing, compile=compile)
    seen = Seen()
    trainer = make_trainer(
        devices=world,
        strategy=strategy,
        accumulate_grad_batches=accumulate,
        max_epochs=2,
        callbacks=[seen, *callbacks, FrozenBase()],
        limit_val_batches=1.0,
        num_sanity_val_steps=1,
        **options,
    )
    trainer.fit(module, make_data(network, data_path, GLOBAL_BATCH // world // accumulate))
    return {
        **{name: getattr(seen, name) for name in ("losses", "norms", "gradients")},
        "weights": trained_weights(module),
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "answers": module.tally.answers,
    }


def trained_weights(module: FinetuneModule) -> dict[str, Tensor]:
    return {name: whole(module.get_parameter(name).detach()) for name in sorted(module.trained_names())}
