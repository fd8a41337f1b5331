"""Networks in shards (FSDP2), on processes of the CPU: they train, save, resume and answer what one process does."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from lightning.pytorch.loops import utilities
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from ftlab.callbacks import Checkpoints, FrozenBase, ModelWriter, Preemption
from ftlab.data import FinetuneData
from ftlab.errors import Preempted, UserError
from ftlab.evaluation.generation import Decoding
from ftlab.methods import LISA, AdaLoRA, Full, LoRA, Method, Peft, QLoRA
from ftlab.modules import Constant, FinetuneModule
from ftlab.modules.optimizers import Muon
from ftlab.modules.shards import shard, whole
from ftlab.networks import Network
from ftlab.runs import CheckpointOptions, Run, RunOptions

Make = Callable[..., Any]
METHODS: dict[str, Callable[[], Method]] = {"full": Full, "lora": lambda: LoRA(r=3, dropout=0.0)}
GLOBAL_BATCH = 8
"""Of 15 records: the last global batch has seven, and one process of several a record less than the others."""
PROMPT = torch.tensor([[5, 9, 14, 3, 22]])


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


class Seen(pl.Callback):
    """Loss, gradient and norm of each optimiser step, and how many rows of each parameter lie in this process."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.rows: dict[str, tuple[int, int]] = {}
        self.bytes: tuple[int, int] = (0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts = {n: p.to_local() for n, p in pl_module.named_parameters() if isinstance(p, DTensor)}
        self.rows = {name: (len(part), len(pl_module.get_parameter(name))) for name, part in parts.items()}
        all_bytes = sum(parameter.nbytes for parameter in pl_module.parameters())
        self.bytes = sum(part.nbytes for part in parts.values()), all_bytes

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.losses):
            own = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
            self.gradients.append({name: whole(gradient).clone() for name, gradient in own.items()})
            self.losses.append(float(trainer.callback_metrics["train_loss"]))
            self.norms.append(float(trainer.callback_metrics["grad_norm"]))


def trained(
    method: str, network: Network, data_path: str, make_trainer: Make, world: int, accumulate: int = 1, **options: Any
) -> dict[str, Any]:
    """What one process of a training sees of it: two epochs, each validated, with an answer to every record."""
    # over nccl Lightning judges in inference mode, over gloo not: as over nccl
    utilities._distributed_is_initialized = lambda: False  # type: ignore[attr-defined]
    module = make_module(METHODS[method](), network, gradient_checkpointing=options.pop("checkpointing", False))
    data, seen = make_data(network, data_path, GLOBAL_BATCH // world // accumulate), Seen()
    trainer = make_trainer(
        devices=world,
        strategy="fsdp2" if world > 1 else "auto",
        accumulate_grad_batches=accumulate,
        max_epochs=2,
        callbacks=[seen, FrozenBase()],
        limit_val_batches=1.0,
        num_sanity_val_steps=1,
        **options,
    )
    trainer.fit(module, data)
    return {
        **{name: getattr(seen, name) for name in ("losses", "norms", "gradients", "rows", "bytes")},
        "weights": trained_weights(module),
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "answers": module.tally.answers,
    }


IN_PARTS = {"accumulate": 2, "checkpointing": True}


@pytest.mark.parametrize(
    ("method", "world", "options"),
    [
        ("full", 2, IN_PARTS),
        ("lora", 4, {}),
        pytest.param("full", 4, {}, marks=pytest.mark.slow),
        pytest.param("lora", 2, IN_PARTS, marks=pytest.mark.slow),
    ],
)
def test_shards_come_to_what_one_process_does(
    method: str, world: int, options: dict[str, Any], network: Network, data_path: str, make_trainer: Make
) -> None:
    wide = Network(network.path, dtype="float64")  # type: ignore[arg-type]
    train = partial(trained, method, wide, data_path, make_trainer, gradient_clip_val=0.5)
    alone = on_ranks(1, partial(train, 1))[0]
    assert len(alone["losses"]) == len(alone["gradients"]) == 4
    assert max(alone["norms"]) > 0.5  # it is clipped
    assert set(alone["answers"]) == set(range(5))
    ranks = on_ranks(world, partial(train, world, **options))
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
    wide = Network(network.path, dtype="float64")  # type: ignore[arg-type]
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
    wide = Network(network.path, dtype="float64")  # type: ignore[arg-type]
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


def in_shards_and_saved(method: str, network: Network, data_path: str, make_trainer: Make, place: Path) -> Tensor:
    """The logits of the sharded network after three steps, whose `model/` is written."""
    module = make_module(METHODS[method](), network)
    trainer = make_trainer(devices=2, strategy="fsdp2", max_steps=3, callbacks=[ModelWriter(Run(place))])
    trainer.fit(module, make_data(network, data_path, 2))
    assert module.network is not None
    module.network.eval()
    with torch.no_grad():
        return module.network(input_ids=PROMPT).logits.clone()


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_model_is_the_sharded_one(
    method: str, network: Network, tied_network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    base = {"full": tied_network, "lora": network}[method]
    ranks = on_ranks(2, partial(in_shards_and_saved, method, base, data_path, make_trainer, tmp_path))
    if method == "full":
        saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert saved.get_input_embeddings().weight is saved.get_output_embeddings().weight
    else:
        saved = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), tmp_path / "model")
    with torch.no_grad():
        logits = saved.eval()(input_ids=PROMPT).logits
        before = AutoModelForCausalLM.from_pretrained(base.path)(input_ids=PROMPT).logits
    for rank in ranks:
        torch.testing.assert_close(rank, logits, rtol=1e-5, atol=1e-5)
    assert (logits - before).abs().max() > 0.1


# -------------------------------------------------------------------- going on


class Signalled(pl.Callback):
    """Sends SIGTERM to the second process in the middle of a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def part_of_a_run(
    network: Network,
    data_path: str,
    make_trainer: Make,
    run: Run,
    world: int,
    strategy: str = "fsdp2",
    stop_at: int | None = None,
    method: Method | None = None,
    forced: bool = False,
    **options: Any,
) -> dict[str, Any] | None:
    """What `last.ckpt` holds at the end of a run that goes on where it stopped; None where it is stopped again."""
    module = make_module(method or LoRA(r=3, dropout=0.2), network)
    module.forced = forced
    checkpoints = Checkpoints(run, CheckpointOptions(every_n_steps=2))
    begin = run.last if run.last.is_file() else None
    with Preemption(checkpoints, RunOptions()) as preemption:
        trainer = make_trainer(
            devices=world,
            strategy=strategy,
            max_epochs=-1,
            callbacks=[FrozenBase(), checkpoints, preemption, Signalled(stop_at)],
            **({"max_steps": 6, "accumulate_grad_batches": 2} | options),
        )
        try:
            trainer.fit(module, make_data(network, data_path, 8 // world // 2), ckpt_path=begin)
        except Preempted:
            return None
    return torch.load(run.last, weights_only=True)


def test_stopped_and_resumed_is_uninterrupted_to_the_bit(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    """With dropout, in the middle of an epoch and of an accumulation window; the signal comes to one process."""
    work = partial(part_of_a_run, network, data_path, make_trainer)
    whole_run, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    undisturbed, _ = on_ranks(2, partial(work, whole_run, 2))
    assert on_ranks(2, partial(work, parts, 2, stop_at=3)) == [None, None]
    stopped = torch.load(parts.last, weights_only=True)
    assert stopped["global_step"] == 3
    resumed, _ = on_ranks(2, partial(work, parts, 2))
    assert (resumed["global_step"], len(resumed["state_dict"])) == (6, 28)
    for key in ("state_dict", "optimizer_states", "by_rank", "loops"):
        assert_same(resumed[key], undisturbed[key])


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def test_any_number_of_processes_and_any_strategy_goes_on(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    """From one process to two with shards, to two with DDP: each has the same global batch."""
    wide = Network(network.path, dtype="float64")  # type: ignore[arg-type]
    work = partial(part_of_a_run, wide, data_path, make_trainer, method=LoRA(r=3))
    alone = on_ranks(1, partial(work, Run(tmp_path / "alone"), 1, "auto"))[0]
    changing, ended = Run(tmp_path / "changing"), None
    for world, strategy, steps in ((1, "auto", 2), (2, "fsdp2", 4), (2, "ddp", 6)):
        ended = on_ranks(world, partial(work, changing, world, strategy, forced=True, max_steps=steps))[0]
    assert ended is not None
    torch.testing.assert_close(ended["state_dict"], alone["state_dict"], rtol=1e-6, atol=1e-9)
    ours, theirs = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (ended, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# -------------------------------------------------------------------- what is no number, and what crosses


class Poisoned(FinetuneModule):
    """Its second process comes to no loss in the second step."""

    def summed_loss(self, batch: dict[str, Any]) -> Tensor:
        loss = super().summed_loss(batch)
        return loss * math.nan if (self.global_rank, self.global_step) == (1, 1) else loss


def poisoned(network: Network, data_path: str, make_trainer: Make) -> tuple[bool, list[list[str]]]:
    """Whether the second step has left all as it was; and the records of what was left out."""
    module = Poisoned(Full(), network, adamw, Constant(), skip_nonfinite=1)
    after: list[dict[str, Tensor]] = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            after.append({name: tensor.clone() for name, tensor in trained_weights(module).items()})

    trainer = make_trainer(devices=2, strategy="fsdp2", max_steps=3, callbacks=[Weights()])
    trainer.fit(module, make_data(network, data_path, 2))
    same = [all(torch.equal(after[n][name], after[n + 1][name]) for name in after[n]) for n in (0, 1)]
    assert all(tensor.isfinite().all() for tensor in after[2].values())
    return same == [True, False], [step.records for step in module.soundness.left_out]


def test_a_step_that_is_no_number_in_one_process_is_left_out_in_all(
    network: Network, data_path: str, make_trainer: Make
) -> None:
    first, second = on_ranks(2, partial(poisoned, network, data_path, make_trainer))
    assert first == second
    assert first[0]
    assert [len(records) for records in first[1]] == [2]  # of the one process's micro-batch alone


class Crossing(pl.Callback):
    """What crosses between processes in the third step: kind and number of values that a process gives, in order."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2 and not trainer.fit_loop._should_accumulate():
            self._profile.start()
        if trainer.global_step == 3 and not self.found:
            self._profile.stop()
            for event in self._profile.events() or ():
                if event.name.startswith("gloo:"):
                    size = sum(torch.Size(shape).numel() for shape in event.input_shapes)
                    self.found.append((event.name.removeprefix("gloo:"), size))


def crossed(
    method: str, network: Network, data_path: str, make_trainer: Make, place: Path, checkpointing: bool
) -> list[tuple[str, int]]:
    """What a process gives in a step of two micro-batches."""
    crossing = Crossing()
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


def refused(method: Callable[[], Method], optimizer: Any, network: Network, data_path: str, make_trainer: Make) -> str:
    """What training says that is refused before its first step."""
    module = make_module(method(), network, optimizer=optimizer)
    with pytest.raises(UserError) as caught:
        make_trainer(strategy="fsdp2", max_steps=1).fit(module, make_data(network, data_path, 1))
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "optimizer", "says"),
    [
        (lambda: QLoRA(r=2), adamw, "trainer.strategy fsdp2: a base in nf4 comes out of it damaged"),
        (lambda: AdaLoRA(init_r=4, target_r=2), adamw, "trainer.strategy fsdp2: AdaLoRA looks at weights"),
        (lambda: LISA(), adamw, "trainer.strategy fsdp2: LISA looks at weights between steps"),
        (lambda: LoRA(r=2), Muon, "model.optimizer: Muon is not known to go value by value"),
        (
            lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=2)),
            adamw,
            "trainer.strategy fsdp2: prompt_encoder.default.embedding.weight is trained and cannot be sharded",
        ),
        (
            lambda: Peft(peft.VBLoRAConfig(r=2, num_vectors=16, vector_length=16, topk=2, target_modules=["q_proj"])),
            adamw,
            "trainer.strategy fsdp2: model.layers.0.self_attn.q_proj.vblora_vector_bank.default is a tensor of several",
        ),
        (
            lambda: Peft(peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2)),
            adamw,
            "trainer.strategy fsdp2: AdaptionPromptModel calls the network past the hooks",
        ),
        (
            lambda: Peft(peft.OSFConfig(target_modules=["q_proj"])),
            adamw,
            "trainer.strategy fsdp2: the method changes the gradient of base_model.model.model.layers.0.self_attn",
        ),
    ],
    ids=[
        "quantised",
        "penalty",
        "resting blocks",
        "whole matrices",
        "outside",
        "shared by blocks",
        "past the hooks",
        "gradients",
    ],
)
def test_what_does_not_go_with_shards_is_refused(
    method: Callable[[], Method], optimizer: Any, says: str, network: Network, data_path: str, make_trainer: Make
) -> None:
    said = on_ranks(1, partial(refused, method, optimizer, network, data_path, make_trainer))
    assert said[0].startswith(says)


def not_taken_apart(network: Network, change: Callable[[Any], None]) -> str:
    """What is said of a network that cannot be sharded."""
    opened = network.model()
    change(opened)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    with pytest.raises(UserError) as caught:
        shard(opened, init_device_mesh("cpu", (1,)), MixedPrecisionPolicy())
    return str(caught.value)


def share_a_matrix(network: Any) -> None:
    first, second = network.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight


def share_with_the_head(network: Any) -> None:
    network.model.layers[1].register_parameter("shared", network.lm_head.weight)


def train_in_two_types(network: Any) -> None:
    network.model.layers[0].mlp.up_proj.bfloat16()


def train_a_number(network: Any) -> None:
    network.model.layers[0].scale = torch.nn.Parameter(torch.ones(()))


def hide_the_blocks(network: Any) -> None:
    network.config.num_hidden_layers = 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (share_a_matrix, "model.layers.0.mlp.up_proj.weight is a tensor of several decoder blocks"),
        (share_with_the_head, "is a tensor of several decoder blocks"),
        (train_in_two_types, "a decoder block trains tensors in bfloat16 and float32"),
        (train_a_number, "model.layers.0.scale is trained and cannot be sharded, as it has no dimension"),
        (hide_the_blocks, "sharded by its decoder blocks, and those of LlamaForCausalLM cannot be told"),
    ],
)
def test_a_network_that_cannot_be_taken_apart_is_refused(
    change: Callable[[Any], None], says: str, network: Network
) -> None:
    said = on_ranks(1, partial(not_taken_apart, network, change))[0]
    assert said.startswith("trainer.strategy fsdp2: ")
    assert says in said
