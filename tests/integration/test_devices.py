"""1, 2 and 4 processes with the same global batch: the same losses, gradients and weights; each record once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from ranks import on_ranks
from watching import Collectives, Seen

from ftlab.callbacks import Checkpoints, FrozenBase, Preemption
from ftlab.data import FinetuneData
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding
from ftlab.methods import Full, LoRA, Method
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network
from ftlab.runs import Run, RunOptions

Make = Callable[..., Any]
METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=4, dropout=0.0)}
WORLDS = (1, 2, 4)
GLOBAL_BATCH = 4
"""Of 15 records: the last global batch has three, so that of four processes one has none."""


def trained(method: str, network: Network, data_path: str, make_trainer: Make, devices: int) -> dict[str, Any]:
    """What one process of a training sees of it: two epochs, each validated, with an answer to every record."""
    made, seen = METHODS[method](), Seen()
    module = FinetuneModule(
        made, network, lambda groups: torch.optim.SGD(groups, lr=0.1), Constant(), decoding=Decoding(max_new_tokens=4)
    )
    data = FinetuneData(
        network, data_path, template="plain", batch_size=GLOBAL_BATCH // devices, eval_batch_size=2, batching="pad"
    )
    data.answers_in_validation = True
    trainer = make_trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[seen],
        limit_val_batches=1.0,
    )
    trainer.fit(module, data)
    assert module.network is not None
    return {
        "losses": seen.losses,
        "gradients": seen.gradients,
        "weights": {name: module.get_parameter(name).detach() for name in module.trained_names()},
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "answers": module.tally.answers,
    }


@pytest.mark.parametrize("method", METHODS)
def test_devices_share_the_work_of_one(method: str, network: Network, data_path: str, make_trainer: Make) -> None:
    wide = Network(network.path, dtype="float64")
    worlds = {
        devices: on_ranks(devices, partial(trained, method, wide, data_path, make_trainer, devices))
        for devices in WORLDS
    }
    alone = worlds[1][0]
    assert len(alone["losses"]) == len(alone["gradients"]) == 8
    assert set(alone["answers"]) == set(range(5))
    for devices in WORLDS[1:]:
        for rank in worlds[devices]:
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-6)
            assert rank["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)
            assert rank["answers"] == alone["answers"]
            for here, there in zip(rank["gradients"], alone["gradients"], strict=True):
                torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-6, atol=1e-9)


def crossed(
    network: Network, data_path: str, make_trainer: Make, place: Path, devices: int, accumulate: int
) -> tuple[Counter[tuple[str, int]], int]:
    """The collectives of a step, and the number of values that are trained."""
    collectives = Collectives()
    module = FinetuneModule(LoRA(r=4), network, schedule=Constant())
    data = FinetuneData(network, data_path, template="plain", batch_size=1, batching="pad")
    with Preemption(Checkpoints(Run(place / "run")), RunOptions()) as preemption:
        trainer = make_trainer(
            devices=devices,
            strategy="ddp",
            accumulate_grad_batches=accumulate,
            callbacks=[preemption, collectives],
            log_every_n_steps=100,
        )
        trainer.fit(module, data)
    return Counter(collectives.found), sum(module.get_parameter(name).numel() for name in module.trained_names())


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 2), (4, 1)])  # each has a third step in an epoch of 15 records
def test_gradients_of_what_is_trained_cross_once_a_step_and_nothing_else(
    devices: int, accumulate: int, network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    told = 1 + 2 + 1  # number of targets, wishes to save or to stop, loss
    work = partial(crossed, network, data_path, make_trainer, tmp_path, devices, accumulate)
    for found, trained_values in on_ranks(devices, work):
        assert found == {("all_reduce", trained_values): 1, ("all_reduce", told): 1}


def refused(networks: list[Network], data_path: str, make_trainer: Make, strategy: Any) -> str:
    """What a process says that opens the network of its rank and must not train it."""
    network = networks[int(os.environ["LOCAL_RANK"])]
    module = FinetuneModule(LoRA(r=4), network, schedule=Constant())
    data = FinetuneData(network, data_path, template="plain", batch_size=1, batching="pad")
    with pytest.raises(UserError) as caught:
        make_trainer(devices=2, strategy=strategy, callbacks=[FrozenBase()]).fit(module, data)
    return str(caught.value)


def test_processes_that_read_different_weights_are_refused(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    model = network.model()
    model.get_parameter("model.norm.weight").data[0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    network.tokenizer().save_pretrained(tmp_path / "other")
    networks = [network, Network(str(tmp_path / "other"))]
    for said in on_ranks(2, partial(refused, networks, data_path, make_trainer, "ddp")):
        assert said.startswith("the processes of this run have opened different weights under model.network.path")


def test_a_network_in_shards_is_refused(network: Network, data_path: str, make_trainer: Make) -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    for said in on_ranks(2, partial(refused, [network] * 2, data_path, make_trainer, strategy)):
        assert said.startswith("trainer.strategy: ModelParallelStrategy is none that ftlab can train")
