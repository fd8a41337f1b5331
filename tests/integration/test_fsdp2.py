"""Networks that are all in shards (FSDP2), on processes of the CPU: they train and answer what one process does."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from trainings import METHODS, make_data, make_module, train_and_judge, trained_weights
from watching import Collectives, Seen

from ftlab.callbacks import Checkpoints, FrozenBase, Preemption
from ftlab.methods import Full, LoRA, Method, Peft
from ftlab.modules import Constant, FinetuneModule
from ftlab.networks import Network
from ftlab.runs import Run, RunOptions

Make = Callable[..., Any]


class Parts(pl.Callback):
    """How many rows of each parameter lie in this process, and how many bytes."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}
        self.bytes: tuple[int, int] = (0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts = {n: p.to_local() for n, p in pl_module.named_parameters() if isinstance(p, DTensor)}
        self.rows = {name: (len(part), len(pl_module.get_parameter(name))) for name, part in parts.items()}
        all_bytes = sum(parameter.nbytes for parameter in pl_module.parameters())
        self.bytes = sum(part.nbytes for part in parts.values()), all_bytes


def trained(
    method: str, network: Network, data_path: str, make_trainer: Make, strategy: str, world: int, **options: Any
) -> dict[str, Any]:
    parts = Parts()
    found = train_and_judge(METHODS[method](), network, data_path, make_trainer, strategy, world, [parts], **options)
    return found | {"rows": parts.rows, "bytes": parts.bytes}


IN_PARTS = {"accumulate": 2, "checkpointing": True}


@pytest.mark.parametrize(
    ("strategy", "method", "world", "options"),
    [
        ("fsdp2", "full", 2, IN_PARTS),
        ("fsdp2", "lora", 4, {}),
        ("fsdp", "full", 2, {}),  # which leaves nothing frozen
        pytest.param("fsdp2", "full", 4, {}, marks=pytest.mark.slow),
        pytest.param("fsdp2", "lora", 2, IN_PARTS, marks=pytest.mark.slow),
        pytest.param("fsdp", "full", 4, IN_PARTS, marks=pytest.mark.slow),
    ],
)
def test_shards_come_to_what_one_process_does(
    strategy: str,
    method: str,
    world: int,
    options: dict[str, Any],
    network: Network,
    data_path: str,
    make_trainer: Make,
) -> None:
    wide = Network(network.path, dtype="float64")
    train = partial(trained, method, wide, data_path, make_trainer, gradient_clip_val=0.5)
    alone = on_ranks(1, partial(train, "auto", 1))[0]
    assert len(alone["losses"]) == len(alone["gradients"]) == 4
    assert max(alone["norms"]) > 0.5  # it is clipped
    assert set(alone["answers"]) == set(range(5))
    ranks = on_ranks(world, partial(train, strategy, world, **options))
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-6)
        assert rank["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)
        assert rank["answers"] == alone["answers"]
        for here, there in zip(rank["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-6, atol=1e-9)
    # every parameter is in shards, of as many rows as torch.chunk gives
    assert len(ranks[0]["rows"]) == len(list(_parameters(method, wide)))
    for name, (_, rows) in ranks[0]["rows"].items():
        share = math.ceil(rows / world)
        expected = [max(0, min(share, rows - share * number)) for number in range(world)]
        assert [rank["rows"][name][0] for rank in ranks] == expected
    assert sum(rank["bytes"][0] for rank in ranks) == ranks[0]["bytes"][1]
    assert max(rank["bytes"][0] for rank in ranks) <= 1.02 / world * ranks[0]["bytes"][1]


SOME = ["q_proj", "v_proj", "down_proj"]
VARIANTS: dict[str, Callable[[], Method]] = {
    "some blocks": lambda: Full(last_blocks=1),
    "norms": lambda: Full(only="norms"),
    "rates by depth": lambda: Full(layer_decay=0.8),
    "dora": lambda: LoRA(r=2, dora=True),
    "lora and the head": lambda: LoRA(r=2, ratio=4.0, modules_to_save=["lm_head"]),
    "ia3": lambda: Peft(peft.IA3Config(target_modules=SOME, feedforward_modules=["down_proj"])),
    "vera": lambda: Peft(peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "loha": lambda: Peft(peft.LoHaConfig(r=2, target_modules=SOME)),
    "lokr": lambda: Peft(peft.LoKrConfig(r=2, target_modules=SOME)),
    "oft": lambda: Peft(peft.OFTConfig(oft_block_size=8, target_modules=SOME)),
    "fourierft": lambda: Peft(peft.FourierFTConfig(n_frequency=20, target_modules=["q_proj"])),
    "hra": lambda: Peft(peft.HRAConfig(r=2, target_modules=["q_proj"])),
    "miss": lambda: Peft(peft.MissConfig(r=2, target_modules=["q_proj"])),
    "randlora": lambda: Peft(peft.RandLoraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "c3a": lambda: Peft(peft.C3AConfig(block_size=16, target_modules=["q_proj"])),
    "shira": lambda: Peft(peft.ShiraConfig(r=2, target_modules=["q_proj"])),
    "trainable tokens": lambda: Peft(peft.TrainableTokensConfig(token_indices=[3, 4, 5])),
}


def variant(name: str, network: Network, data_path: str, make_trainer: Make, world: int) -> dict[str, Tensor]:
    """The weights after two steps of plain gradient descent."""
    module = make_module(VARIANTS[name](), network, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    trainer = make_trainer(
        devices=world,
        strategy="fsdp2" if world > 1 else "auto",
        max_steps=2,
        gradient_clip_val=0.01,
        gradient_clip_algorithm="value",
        callbacks=[FrozenBase()],
    )
    trainer.fit(module, make_data(network, data_path, 4 // world))
    return trained_weights(module)


def judged(network: Network, data_path: str, make_trainer: Make, strategy: str) -> tuple[float, dict[int, str]]:
    """What a training on packs is judged by at its end, and its answers."""
    module = make_module(Full(), network)
    data = make_data(network, data_path, 1, eval_batch_size=1, batching="pack", max_length=64)
    trainer = make_trainer(
        devices=2, strategy=strategy, max_steps=2, val_check_interval=1, limit_val_batches=1.0, callbacks=[FrozenBase()]
    )
    trainer.fit(module, data)
    return float(trainer.callback_metrics["val_loss"]), module.tally.answers


def test_packs_and_processes_that_judge_more_than_others(network: Network, data_path: str, make_trainer: Make) -> None:
    """Of five records one process has three: the other goes along through the whole of an answer."""
    wide = Network(network.path, dtype="float64")
    shards, ddp = (on_ranks(2, partial(judged, wide, data_path, make_trainer, name)) for name in ("fsdp2", "ddp"))
    for loss, answers in shards:
        assert loss == pytest.approx(ddp[0][0], rel=1e-6)
        assert answers == ddp[0][1]
        assert set(answers) == set(range(5))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_other_methods_come_to_what_one_process_does(
    name: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    wide = Network(network.path, dtype="float64")
    alone, first, _ = (
        weights
        for world in (1, 2)
        for weights in on_ranks(world, partial(variant, name, wide, data_path, make_trainer, world))
    )
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-7)  # some compute in float32


def _parameters(method: str, network: Network) -> dict[str, Tensor]:
    return dict(METHODS[method]().adapt(network.model()).named_parameters())


def in_bfloat16(
    method: str, network: Network, data_path: str, make_trainer: Make, strategy: str
) -> tuple[list[float], dict[str, torch.dtype]]:
    """The losses of a training with bf16-mixed, and the types of the parts."""
    module, seen = make_module(METHODS[method](), network), Seen()
    trainer = make_trainer(
        devices=2, strategy=strategy, precision="bf16-mixed", max_steps=4, callbacks=[seen, FrozenBase()]
    )
    trainer.fit(module, make_data(network, data_path, 2))
    return seen.losses, {name: parameter.dtype for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    ("method", "base"), [pytest.param("full", "float32", marks=pytest.mark.slow), ("lora", "bfloat16")]
)
def test_computed_in_bfloat16_the_parts_keep_their_types(
    method: str, base: Any, network: Network, data_path: str, make_trainer: Make
) -> None:
    work = partial(in_bfloat16, method, Network(network.path, dtype=base), data_path, make_trainer)
    (losses, types), other = on_ranks(2, partial(work, "fsdp2"))
    ddp = on_ranks(2, partial(work, "ddp"))[0]
    assert (losses, types) == other
    assert types == ddp[1]
    assert losses == pytest.approx(ddp[0], rel=0.01)  # the stream between blocks is bfloat16, too


# -------------------------------------------------------------------- what is no number, and what crosses


class Poisoned(FinetuneModule):
    """Its second process comes to no loss in the second step."""

    def summed_loss(self, batch: dict[str, Any]) -> Tensor:
        loss = super().summed_loss(batch)
        return loss * math.nan if (self.global_rank, self.global_step) == (1, 1) else loss


def poisoned(network: Network, data_path: str, make_trainer: Make, strategy: str) -> tuple[bool, list[list[str]]]:
    """Whether the second step has left all as it was; and the records of what was left out. It is guarded."""
    module = Poisoned(Full(), network, partial(torch.optim.AdamW, lr=1e-2, fused=True), Constant(), skip_nonfinite=1)
    after: list[dict[str, Tensor]] = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            after.append({name: tensor.clone() for name, tensor in trained_weights(module).items()})

    trainer = make_trainer(
        devices=2, strategy=strategy, max_epochs=1, max_steps=3, log_every_n_steps=100, callbacks=[Weights()]
    )
    trainer.fit(module, make_data(network, data_path, 2))
    same = [all(torch.equal(after[n][name], after[n + 1][name]) for name in after[n]) for n in (0, 1)]
    assert all(tensor.isfinite().all() for tensor in after[2].values())
    return same == [True, False], [step.records for step in module.soundness.left_out]


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_a_step_that_is_no_number_in_one_process_is_left_out_in_all(
    strategy: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    first, second = on_ranks(2, partial(poisoned, network, data_path, make_trainer, strategy))
    assert first == second
    assert first[0]
    assert [len(records) for records in first[1]] == [2]  # of the one process's micro-batch alone


def crossed(
    method: str, network: Network, data_path: str, make_trainer: Make, place: Path, checkpointing: bool
) -> list[tuple[str, int]]:
    """What a process gives in a step of two micro-batches."""
    crossing = Collectives()
    module = make_module(METHODS[method](), network, gradient_checkpointing=checkpointing)
    with Preemption(Checkpoints(Run(place / "run")), RunOptions()) as preemption:
        trainer = make_trainer(
            devices=2,
            strategy="fsdp2",
            max_steps=4,
            accumulate_grad_batches=2,
            callbacks=[preemption, crossing],
            log_every_n_steps=100,
        )
        trainer.fit(module, make_data(network, data_path, 1))
    return crossing.found


@pytest.mark.parametrize(
    ("method", "checkpointing"), [("full", True), pytest.param("lora", False, marks=pytest.mark.slow)]
)
def test_blocks_are_gathered_forward_and_backward_and_gradients_summed_once(
    method: str, checkpointing: bool, network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    """What docs/how-to/scale.md says of a step, in values: gloo sums gradients where nccl reduces and scatters them."""
    units: dict[str, list[int]] = {"outside": [0, 0], "0": [0, 0], "1": [0, 0]}  # values that are there, and trained
    tensors = 0
    for name, parameter in _parameters(method, network).items():
        values = 2 * math.ceil(len(parameter) / 2) * parameter[0].numel()  # rows go evenly into two processes
        unit = units[name.split(".layers.")[1][0] if ".layers." in name else "outside"]
        unit[0] += values
        unit[1] += values if parameter.requires_grad else 0
        tensors += parameter.requires_grad
    (outside, head), (first, trained_first), (second, trained_second) = units.values()
    there = [outside, first, second, second, first]
    sums = [trained_second, trained_first, *([head] if head else [])]
    micro_batch = [*(("all_gather", values // 2) for values in there), *(("all_reduce", values) for values in sums)]
    told = [("all_reduce", 1 + 2 + 1), ("all_reduce", tensors)]  # targets, wishes and loss; parts of the norm
    work = partial(crossed, method, network, data_path, make_trainer, tmp_path, checkpointing)
    for found in on_ranks(2, work):
        assert sorted(found) == sorted([*micro_batch, *micro_batch, *told])
