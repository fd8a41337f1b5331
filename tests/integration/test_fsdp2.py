"""Networks in shards (FSDP2), on several processes of the CPU: what one process trains, saves and answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from ftlab.data import FinetuneData
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.modules.shards import whole
from ftlab.networks import Network

Make = Callable[..., Any]
METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=3, dropout=0.0)}


def trained(
    method: str, network: Network, data_path: str, make_trainer: Make, devices: int, strategy: str, **options: Any
) -> dict[str, Any]:
    """What one process of a training sees of it: two epochs, each validated, with an answer to every record."""
    module = FinetuneModule(
        METHODS[method](),
        network,
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        Constant(),
        decoding=Decoding(max_new_tokens=4),
        gradient_checkpointing=options.pop("checkpointing", False),
    )
    data = FinetuneData(
        network,
        data_path,
        template="plain",
        batch_size=8 // devices // options.get("accumulate_grad_batches", 1),
        eval_batch_size=2,
        batching="pad",
    )
    data.answers_in_validation = True
    trainer = make_trainer(
        devices=devices, strategy=strategy, max_epochs=2, limit_val_batches=1.0, num_sanity_val_steps=1, **options
    )
    trainer.fit(module, data)
    weights = {name: whole(module.get_parameter(name).detach()) for name in module.trained_names()}
    return {
        "weights": weights,
        "losses": float(trainer.callback_metrics["train_loss"]),
        "norm": float(trainer.callback_metrics["grad_norm"]),
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "answers": module.tally.answers,
    }


@pytest.mark.parametrize("method", METHODS)
def test_one_two_and_four(method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    wide = Network(network.path, dtype="float64")
    alone = on_ranks(1, partial(trained, method, wide, data_path, make_trainer, 1, "auto"))[0]
    for devices in (2, 4):
        for rank in on_ranks(devices, partial(trained, method, wide, data_path, make_trainer, devices, "fsdp2")):
            torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-6, atol=1e-9)
            assert rank["answers"] == alone["answers"]
