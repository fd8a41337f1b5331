"""Networks in shards: what they save is one process's, and any number of processes goes on from it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from ranks import on_ranks
from torch import Tensor
from trainings import make_data, make_module
from transformers import AutoModelForCausalLM

from ftlab.callbacks import Checkpoints, FrozenBase, ModelWriter, Preemption
from ftlab.callbacks.checkpoint_io import tensor_bytes
from ftlab.errors import Preempted, UserError
from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.modules.sharding.checkpoint_parts import PARTED, read
from ftlab.networks import Network
from ftlab.runs import CheckpointOptions, Run, RunOptions
from ftlab.runs.checkpoint_files import step_of

Make = Callable[..., Any]

PROMPT = torch.tensor([[5, 9, 14, 3, 22]])


def in_shards_and_saved(
    method: Method, strategy: str, network: Network, data_path: str, make_trainer: Make, place: Path
) -> Tensor:
    """The logits of the sharded network after three steps, whose `model/` is written."""
    module = make_module(method, network)
    trainer = make_trainer(devices=2, strategy=strategy, max_steps=3, callbacks=[ModelWriter(Run(place))])
    trainer.fit(module, make_data(network, data_path, 2))
    assert module.network is not None
    module.network.eval()
    with torch.no_grad():
        return module.network(input_ids=PROMPT).logits.clone()


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        (Full(), "fsdp2"),
        (Full(), "fsdp"),
        (LoRA(r=3, dropout=0.0), "fsdp2"),
        (LoRA(r=3, dropout=0.0), "fsdp"),
        (Full(last_blocks=1), "fsdp"),  # saved with its frozen block
    ],
    ids=["fsdp2 full", "fsdp full", "fsdp2 lora", "fsdp lora", "fsdp last block"],
)
def test_the_saved_model_is_the_sharded_one(
    method: Method,
    strategy: str,
    network: Network,
    tied_network: Network,
    data_path: str,
    make_trainer: Make,
    tmp_path: Path,
) -> None:
    base = tied_network if isinstance(method, Full) else network
    ranks = on_ranks(2, partial(in_shards_and_saved, method, strategy, base, data_path, make_trainer, tmp_path))
    if isinstance(method, Full):
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
    kept: CheckpointOptions | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """What `last.ckpt` holds at the end of a run that goes on where it stopped; None where it is stopped again."""
    module = make_module(method or LoRA(r=3, dropout=0.2), network)
    module.forced = forced
    checkpoints = Checkpoints(run, kept or CheckpointOptions(every_n_steps=2))
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
    return read(run.last)


IN_PARTS = CheckpointOptions(every_n_steps=2, in_parts=True)


@pytest.mark.parametrize(
    ("strategy", "method", "kept", "tensors"),
    [
        ("fsdp2", LoRA(r=3, dropout=0.2), None, 28),
        ("fsdp2", LoRA(r=3, dropout=0.2), IN_PARTS, 28),
        ("fsdp", QLoRA(r=3, dropout=0.2), None, 28),
        ("fsdp", Full(), None, 21),
        ("fsdp", Full(), IN_PARTS, 21),
    ],
    ids=["fsdp2", "fsdp2 in parts", "fsdp", "fsdp full", "fsdp full in parts"],
)
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(
    strategy: str,
    method: Method,
    kept: CheckpointOptions | None,
    tensors: int,
    network: Network,
    data_path: str,
    make_trainer: Make,
    tmp_path: Path,
) -> None:
    """With dropout, in the middle of an epoch and of an accumulation window; the signal comes to one process."""
    work = partial(part_of_a_run, network, data_path, make_trainer, world=2, strategy=strategy, method=method)
    whole_run, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    undisturbed, _ = on_ranks(2, partial(work, whole_run))
    assert on_ranks(2, partial(work, parts, stop_at=3, kept=kept)) == [None, None]
    stopped = read(parts.last)
    assert stopped["global_step"] == 3
    resumed, _ = on_ranks(2, partial(work, parts, kept=kept))
    assert (resumed["global_step"], len(resumed["state_dict"])) == (6, tensors)
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


@pytest.mark.parametrize(
    ("method", "in_parts"), [(LoRA(r=3), ["fsdp2"]), (Full(), ["fsdp2", "fsdp"])], ids=["lora", "full"]
)
def test_any_number_of_processes_and_any_strategy_goes_on(
    method: Method, in_parts: list[str], network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    """From one process to two with shards of either kind, to two with DDP: each has the same global batch."""
    wide = Network(network.path, dtype="float64")
    work = partial(part_of_a_run, wide, data_path, make_trainer, method=method)
    alone = on_ranks(1, partial(work, Run(tmp_path / "alone"), 1, "auto"))[0]
    changing, ended = Run(tmp_path / "changing"), None
    for world, strategy, steps in ((1, "auto", 2), (2, "fsdp2", 3), (2, "fsdp", 4), (2, "ddp", 6)):
        kept = replace(IN_PARTS, in_parts=strategy in in_parts)
        ended = on_ranks(world, partial(work, changing, world, strategy, forced=True, max_steps=steps, kept=kept))[0]
    assert ended is not None
    torch.testing.assert_close(ended["state_dict"], alone["state_dict"], rtol=1e-6, atol=1e-9)
    ours, theirs = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (ended, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_each_process_writes_its_part_and_one_that_is_torn_is_passed_over(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    run, kept = Run(tmp_path / "run"), IN_PARTS
    work = partial(part_of_a_run, network, data_path, make_trainer, run, method=Full())
    ended = on_ranks(2, partial(work, world=2, kept=kept))[0]
    assert ended is not None
    parts = sorted(run.checkpoints.directory.glob("*.part"))
    assert [part.name.split("-")[1] for part in parts] == ["00000004"] * 2 + ["00000006"] * 2
    all_bytes = tensor_bytes([ended[name] for name in PARTED])
    for part in parts:
        assert part.stat().st_size == pytest.approx(all_bytes / 2, rel=0.05)
    assert run.last.stat().st_size < all_bytes / 20

    content = bytearray(parts[-1].read_bytes())
    content[len(content) // 2] ^= 1
    parts[-1].write_bytes(content)
    newest, damaged = run.checkpoints.to_go_on_from()
    assert newest is not None
    assert (step_of(newest), [step_of(path) for path in damaged]) == (4, [6])
    run.checkpoints.set_aside(damaged)
    run.last.unlink()
    run.last.symlink_to(newest.name)
    again = on_ranks(2, partial(work, world=2, kept=kept))[0]
    assert again is not None
    for key in ("state_dict", "optimizer_states", "by_rank", "loops"):
        assert_same(again[key], ended[key])
    next(run.checkpoints.directory.glob("last-00000006-*.1of2.part")).unlink()
    with pytest.raises(UserError, match=r"part 1 of 2 of the checkpoint last of step 6 is not in"):
        read(run.last)


def test_parts_are_not_written_in_a_thread() -> None:
    with pytest.raises(UserError, match=r"run.checkpoints: in_parts is not asynchronous"):
        replace(IN_PARTS, asynchronous=True)


def no_room(network: Network, data_path: str, make_trainer: Make, place: Path) -> str:
    """What each process says where the second has no room for its part."""
    run = Run(place)
    checkpoints = Checkpoints(run, IN_PARTS)

    class NoRoom(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.global_rank == 1:
                run.checkpoints.check_room = partial(refuse, 1)  # type: ignore[method-assign]

    def refuse(*_: Any) -> None:
        raise UserError("no room")

    trainer = make_trainer(devices=2, strategy="fsdp2", max_steps=3, callbacks=[checkpoints, NoRoom()])
    with pytest.raises(UserError) as caught:
        trainer.fit(make_module(LoRA(r=3), network), make_data(network, data_path, 2))
    return str(caught.value)


def test_where_one_process_has_no_room_none_waits_for_it(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    first, second = on_ranks(2, partial(no_room, network, data_path, make_trainer, tmp_path / "run"))
    assert first.startswith("the checkpoint of step 2 is not whole: another process could not write its part")
    assert second == "no room"
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_only_networks_in_shards_are_saved_in_parts(
    network: Network, data_path: str, make_trainer: Make, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=1, callbacks=[Checkpoints(Run(tmp_path), IN_PARTS)])
    with pytest.raises(UserError, match=r"run.checkpoints.in_parts: with trainer.strategy fsdp2 or fsdp alone"):
        trainer.fit(make_module(LoRA(r=3), network), make_data(network, data_path, 2))
