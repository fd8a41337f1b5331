"""`fsdp` on processes of the CPU: with a frozen base in shards, whatever that is held in, what DDP comes to, to the
digit; and where nothing is frozen, what fsdp2 does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from ranks import on_ranks
from torch.distributed.tensor import DTensor
from trainings import adamw, make_data, make_module, train_and_judge

from ftlab.callbacks import Checkpoints
from ftlab.errors import UserError
from ftlab.methods import LISA, AdaLoRA, Full, LoRA, Method, Peft, QLoRA
from ftlab.modules import FinetuneModule
from ftlab.modules.optimizers import Muon
from ftlab.modules.sharding.frozen import FrozenShards
from ftlab.networks import Network, Quantization
from ftlab.runs import CheckpointOptions, Run

Make = Callable[..., Any]

SOME = ["q_proj", "v_proj", "down_proj"]
METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(r=3, dropout=0.1),
    "qlora": lambda: QLoRA(r=3),
    "other type": lambda: Peft(
        peft.LoraConfig(r=3, target_modules="all-linear"), Quantization("fp4", double=False, storage_dtype="bfloat16")
    ),
    "dora": lambda: LoRA(r=2, dora=True, targets="all-linear"),
    "head": lambda: LoRA(r=2, modules_to_save=["lm_head"]),
    "adalora": lambda: AdaLoRA(init_r=4, target_r=2),
    "oft": lambda: Peft(peft.OFTConfig(oft_block_size=8, target_modules=SOME)),
    "ia3": lambda: Peft(peft.IA3Config(target_modules=SOME, feedforward_modules=["down_proj"])),
    "vblora": lambda: Peft(peft.VBLoRAConfig(r=2, num_vectors=16, vector_length=16, topk=2, target_modules=["q_proj"])),
    "prompt": lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=2)),
    "adaption": lambda: Peft(peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2)),
    "last block": lambda: Full(last_blocks=1),
}


class Held(pl.Callback):
    """Bytes of blocks' frozen tensors that a process holds between two batches, and how many are gathered."""

    def __init__(self) -> None:
        self.own, self.whole, self.gathered = 0, 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FinetuneModule)
        if pl_module.sharded:
            assert isinstance(pl_module.sharded, FrozenShards)
            units = pl_module.sharded._units
            self.own = sum(unit.own.nbytes for unit in units)
            self.whole = sum(view.nbytes for unit in units for view in unit._views)
            self.gathered = sum(unit._whole.untyped_storage().nbytes() for unit in units)


def trained(
    method: str, network: Network, data_path: str, make_trainer: Make, strategy: str, world: int, **options: Any
) -> dict[str, Any]:
    held = Held()
    found = train_and_judge(METHODS[method](), network, data_path, make_trainer, strategy, world, [held], **options)
    return found | {"held": (held.own, held.whole, held.gathered)}


@pytest.mark.parametrize(
    ("method", "world", "options"),
    [
        ("lora", 2, {"accumulate": 2, "checkpointing": True, "gradient_clip_val": 0.5}),
        ("qlora", 2, {}),
        pytest.param("lora", 4, {}, marks=pytest.mark.slow),
        pytest.param("qlora", 4, {"checkpointing": True, "precision": "bf16-mixed"}, marks=pytest.mark.slow),
        *(pytest.param(name, 2, {}, marks=pytest.mark.slow) for name in METHODS if name not in ("lora", "qlora")),
    ],
)
def test_to_the_digit_as_ddp(
    method: str, world: int, options: dict[str, Any], network: Network, data_path: str, make_trainer: Make
) -> None:
    train = partial(trained, method, network, data_path, make_trainer)
    ddp, fsdp = (on_ranks(world, partial(train, strategy, world, **options)) for strategy in ("ddp", "fsdp"))
    for there, here in zip(ddp, fsdp, strict=True):
        assert len(here["losses"]) == 4
        for name in ("losses", "norms", "val_loss", "answers"):
            assert here[name] == there[name]
        for name in ("weights", "gradients"):
            torch.testing.assert_close(here[name], there[name], rtol=0, atol=0)
        own, whole, gathered = here["held"]
        assert not gathered
        assert whole / world <= own <= 1.01 * whole / world  # filled up
        assert whole > 10_000


def trained_whole(
    network: Network, data_path: str, make_trainer: Make, strategy: str
) -> tuple[str, dict[str, Any], set[tuple[bool, int]]]:
    """Which kind of shards a training of all weights had, what it came to, and the rows of a matrix that are here."""
    looked = Looked()
    method = Full(trainable=["*"])  # of which nobody knows that it is all until the network is there
    found = train_and_judge(method, network, data_path, make_trainer, strategy, 2, [looked])
    return looked.kind, found, looked.rows


class Looked(pl.Callback):
    """The kind of shards, and of matrices: whether they are in parts, and the rows that a process holds."""

    kind = ""

    def __init__(self) -> None:
        self.rows: set[tuple[bool, int]] = set()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, FinetuneModule)
        self.kind = type(pl_module.sharded).__name__
        for parameter in pl_module.parameters():
            if parameter.shape == (96, 64):
                tensors = (parameter, parameter.grad, *optimizer.state[parameter].values())
                parts = [tensor for tensor in tensors if tensor is not None and tensor.ndim]
                self.rows |= {(isinstance(part, DTensor), len(part.to_local())) for part in parts}  # type: ignore[attr-defined]


def test_a_network_that_is_trained_whole_is_all_in_shards(network: Network, data_path: str, make_trainer: Make) -> None:
    work = partial(trained_whole, network, data_path, make_trainer)
    fsdp, fsdp2 = (on_ranks(2, partial(work, strategy)) for strategy in ("fsdp", "fsdp2"))
    for here, there in zip(fsdp, fsdp2, strict=True):
        assert here[0] == there[0] == "Sharded"
        assert here[2] == there[2] == {(True, 48)}  # weights, gradients and moments
        for name in ("losses", "norms", "val_loss", "answers"):
            assert here[1][name] == there[1][name]
        for name in ("weights", "gradients"):
            torch.testing.assert_close(here[1][name], there[1][name], rtol=0, atol=0)


def refused(
    method: Method,
    change: Callable[[Any], None],
    network: Network,
    data_path: str,
    make_trainer: Make,
    optimizer: Any = adamw,
    callbacks: Sequence[pl.Callback] = (),
) -> str:
    """What training says that is refused before its first step."""
    module = make_module(method, network, optimizer=optimizer)
    module.trainer = make_trainer(strategy="fsdp", max_steps=1, callbacks=list(callbacks))
    opened = Network.model

    def changed(*args: Any, **kwargs: Any) -> Any:
        model = opened(*args, **kwargs)
        change(model)
        return model

    Network.model = changed  # type: ignore[method-assign]  # in a process of its own
    with pytest.raises(UserError) as caught:
        module.trainer.fit(module, make_data(network, data_path, 1))
    return str(caught.value)


def nothing(network: Any) -> None:
    pass


def hide_the_blocks(network: Any) -> None:
    network.config.num_hidden_layers = 3


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        (LISA(), nothing, "LISA looks at weights between steps"),
        (
            QLoRA(r=2, kind="int8"),
            nothing,
            "a base in int8 keeps its weights where they cannot",
        ),
        (
            LoRA(r=2),
            hide_the_blocks,
            "a network is sharded by its decoder blocks, and those of Llama",
        ),
    ],
    ids=["frozen by turns", "8 bits", "no blocks"],
)
def test_what_it_cannot_shard_is_refused(
    method: Method, change: Callable[[Any], None], says: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    said = on_ranks(1, partial(refused, method, change, network, data_path, make_trainer))[0]
    assert said.startswith(f"trainer.strategy fsdp: {says}")


def test_a_network_that_is_trained_whole_wants_an_optimiser_that_goes_value_by_value(
    network: Network, data_path: str, make_trainer: Make
) -> None:
    work = partial(refused, Full(), nothing, network, data_path, make_trainer, Muon)
    said = on_ranks(1, work)[0]
    assert said.startswith("model.optimizer: Muon is not known to go value by value, and with trainer.strategy fsdp a")


def test_what_is_trained_beside_a_frozen_base_has_no_parts_to_save(
    network: Network, data_path: str, make_trainer: Make, run: Run
) -> None:
    checkpoints = Checkpoints(run, CheckpointOptions(in_parts=True))
    work = partial(refused, LoRA(r=2), nothing, network, data_path, make_trainer, callbacks=[checkpoints])
    said = on_ranks(1, work)[0]
    assert said.startswith(
        "run.checkpoints.in_parts: LoRA leaves tensors of decoder blocks frozen, and trainer.strategy"
    )
