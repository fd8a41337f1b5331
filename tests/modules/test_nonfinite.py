"""Steps whose loss or gradient is NaN or infinite: the optimiser never sees them, and the records are named."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from ftlab.callbacks import Checkpoints, NonfiniteSteps
from ftlab.data import FinetuneData
from ftlab.data.leaks import Leaks
from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, Full, LoRA
from ftlab.methods.lisa import LISA
from ftlab.modules import Cosine, FinetuneModule
from ftlab.modules.nonfinite import Soundness
from ftlab.modules.outcomes import can_be_guarded
from ftlab.runs import CheckpointOptions, Run

Make = Callable[..., Any]


class Poison(pl.Callback):
    """Multiplies what the network answers to a batch with a certain token, or the gradient of it."""

    def __init__(self, token: int, factor: float = math.nan, of: str = "loss") -> None:
        self.token = token
        self.factor = factor
        self.of = of

    def on_fit_start(self, trainer: pl.Trainer, pl_module: FinetuneModule) -> None:
        pl_module.network.register_forward_hook(self._spoil, with_kwargs=True)

    def _spoil(self, network: Any, args: Any, inputs: dict[str, Tensor], output: Any) -> Any:
        if network.training and (inputs["input_ids"] == self.token).any():
            if self.of == "loss":
                output.logits = output.logits * self.factor
            else:
                output.logits.register_hook(lambda gradient: gradient * self.factor)
        return output


class Watch(pl.Callback):
    """The trained weights after each step, and the records of each micro-batch."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.records: list[list[str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: FinetuneModule) -> None:
        self.on_train_batch_end(trainer, pl_module, None, {"records": []}, 0)
        self.records.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.records.append(batch["records"])
        names = pl_module.trained_names()
        self.weights[trainer.global_step] = {
            name: p.detach().clone() for name, p in pl_module.named_parameters() if name in names
        }


@pytest.fixture
def poisonous(make_data: Make) -> tuple[int, str]:
    """A token that one training record alone has, and where that record stands."""
    rows = make_data().rows("train")
    holders = Counter(token for row in rows for token in set(row.input_ids.tolist()))
    place, token = next((n, t) for n, row in enumerate(rows) for t in row.input_ids.tolist() if n and holders[t] == 1)
    return token, f"train.jsonl:{place + 1}"


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


FUSED: dict[str, Make] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=True),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2, weight_decay=0.1, amsgrad=True, fused=True),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2, weight_decay=0.1, fused=True),
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "pad": {"batching": "pad"},
    "bucket": {"batching": "bucket"},
    "pack": {"batching": "pack", "max_length": 30},
    "streaming": {"streaming": True, "leaks": Leaks(ngram=None)},
    "workers": {"batching": "pad", "workers": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_training_ends_before_the_step(
    layout: str, factor: float, poisonous: tuple[int, str], make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    token, name = poisonous
    watch, module = Watch(), make_module(LoRA(r=2), optimizer=adam)
    trainer = make_trainer(
        max_epochs=-1, max_steps=50, accumulate_grad_batches=3, callbacks=[Poison(token, factor), watch]
    )
    with pytest.raises(UserError) as refusal:
        trainer.fit(module, make_data(batch_size=1, **LAYOUTS[layout]))
    found = module.soundness.refused
    assert found.step == trainer.global_step + 1
    assert name in found.records
    assert found.records == [name] or layout == "pack"  # whose micro-batch is a pack of several
    assert str(refusal.value).startswith(f"training has diverged: at step {found.step} the loss is nan")
    assert f"on the records {', '.join(found.records)}; training ends before this step" in str(refusal.value)
    names = watch.weights[trainer.global_step]
    assert same({n: p for n, p in module.named_parameters() if n in names}, names)
    assert all(int(state["step"]) == trainer.global_step for state in trainer.optimizers[0].state.values())


def test_a_gradient_alone_names_all_records_of_the_step(
    poisonous: tuple[int, str], make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    watch, module = Watch(), make_module(LoRA(r=2))
    trainer = make_trainer(accumulate_grad_batches=2, callbacks=[Poison(poisonous[0], of="gradient"), watch])
    with pytest.raises(UserError, match="the gradient norm nan"):
        trainer.fit(module, make_data(batch_size=2))
    found = module.soundness.refused
    assert math.isfinite(found.loss)
    assert len(found.records) == 4
    assert poisonous[1] in found.records
    assert not set(found.records) & {record for batch in watch.records[: 2 * trainer.global_step] for record in batch}


@pytest.mark.parametrize("make_method", [LoRA, Full, lambda: AdaLoRA(init_r=4, target_r=1, warmup=0.0, final=0.1)])
def test_a_step_that_is_left_out_changes_nothing_and_counts(
    make_method: Make, poisonous: tuple[int, str], make_module: Make, make_data: Make, make_trainer: Make, curves: Any
) -> None:
    watch, module = Watch(), make_module(make_method(), optimizer=adam, schedule=Cosine(), skip_nonfinite=3)
    trainer = make_trainer(max_epochs=3, logger=curves, callbacks=[Poison(poisonous[0]), watch])
    trainer.fit(module, make_data(batch_size=4))
    out = [found.step for found in module.soundness.left_out]
    assert [(step - 1) // 4 for step in out] == [0, 1, 2]  # once in each epoch of four steps
    if not isinstance(module.method, AdaLoRA):  # which prunes between steps
        assert [step for step in range(1, 13) if same(watch.weights[step], watch.weights[step - 1])] == out
    assert all(torch.isfinite(p).all() for p in watch.weights[12].values())
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {12 - 3}
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == trainer.global_step == 12
    losses = {step for step, row in curves.rows.items() if "train_loss" in row}
    assert {step for step, row in curves.rows.items() if "lr" in row} - losses == set(out)
    assert all(math.isfinite(value) for row in curves.rows.values() for value in row.values())


def test_the_step_after_those_that_are_allowed(
    poisonous: tuple[int, str], make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module = make_module(LoRA(), skip_nonfinite=2)
    with pytest.raises(UserError, match="training ends before this step after 2 that were left out: look"):
        make_trainer(max_epochs=5, callbacks=[Poison(poisonous[0])]).fit(module, make_data())
    assert module.global_step // 4 == 2
    with pytest.raises(UserError, match=r"model\.skip_nonfinite is -1"):
        make_module(LoRA(), skip_nonfinite=-1)


@pytest.mark.parametrize("stop", [2, 3, 8, 9])
@pytest.mark.parametrize("fused", [False, True])
def test_stops_leave_each_line_once(
    stop: int,
    fused: bool,
    poisonous: tuple[int, str],
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    tmp_path: Path,
) -> None:
    """Three steps are left out; training is killed around them, with a checkpoint every second."""

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                raise InterruptedError

    def train(run: Run, *callbacks: pl.Callback) -> Watch:
        data: FinetuneData = make_data()
        module = make_module(LoRA(r=2, dropout=0.3), optimizer=FUSED["AdamW"] if fused else adam, skip_nonfinite=3)
        watch = Watch()
        trainer = make_trainer(
            max_epochs=3,
            log_every_n_steps=100 if fused else 1,
            callbacks=[
                Poison(poisonous[0]),
                NonfiniteSteps(run),
                watch,
                Checkpoints(run, CheckpointOptions(every_n_steps=2)),
                *callbacks,
            ],
        )
        trainer.fit(module, data, ckpt_path=run.checkpoints.to_go_on_from()[0])
        return watch

    whole, stopped = Run(tmp_path / "whole"), Run(tmp_path / "stopped")
    expected = train(whole).weights[12]
    with pytest.raises(InterruptedError):
        train(stopped, Kill())
    assert same(train(stopped).weights[12], expected)
    assert stopped.nonfinite.read_text() == whole.nonfinite.read_text()
    rows = [json.loads(line) for line in whole.nonfinite.read_text().splitlines()]
    assert [row.keys() for row in rows] == [{"step", "loss", "gradient_norm", "records"}] * 3
    assert all((row["loss"], row["gradient_norm"]) == ("nan", "nan") for row in rows)
    assert all(poisonous[1] in row["records"] for row in rows)


# -------------------------------------------------------------------- known on the device first, and here a step later


class States(Watch):
    """And those of the optimiser."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.weights[trainer.global_step] |= {
            f"{number} {name}": torch.as_tensor(value).clone()
            for number, state in enumerate(trainer.optimizers[0].state.values())
            for name, value in state.items()
        }


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimiser steps that were taken before they were looked at."""
    steps: list[int] = []
    later = Soundness.later
    monkeypatch.setattr(Soundness, "later", lambda self, step: (steps.append(step.number), later(self, step))[1])
    return steps


@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_looking_later_changes_nothing(
    optimizer: str,
    of: str,
    late: list[int],
    poisonous: tuple[int, str],
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    curves: Any,
) -> None:
    """A training that looks at every step before it is taken, and one that does at some."""

    def train(every: int) -> tuple[FinetuneModule, States, Any]:
        watch, kept = States(), type(curves)()
        module = make_module(LoRA(r=2, dropout=0.1), optimizer=FUSED[optimizer], skip_nonfinite=3)
        trainer = make_trainer(
            max_epochs=3,
            logger=kept,
            log_every_n_steps=every,
            gradient_clip_val=1.0,
            limit_val_batches=1.0,
            callbacks=[Poison(poisonous[0], of=of), watch],
        )
        trainer.fit(module, make_data(batch_size=2))
        return module, watch, kept

    now, watched_now, curves_now = train(1)
    assert not late
    later, watched_later, curves_later = train(5)
    assert late == [step for step in range(1, 25) if step % 5]
    assert [step.row() for step in later.soundness.left_out] == [step.row() for step in now.soundness.left_out]
    assert {step.step for step in now.soundness.left_out} & set(late)
    assert watched_now.weights.keys() == watched_later.weights.keys() == set(range(25))
    for step, expected in watched_now.weights.items():
        there = watched_later.weights[step]
        made = {
            name for name in there if name not in expected
        }  # a guarded optimiser makes its states where it is left out
        assert not any(there[name].any() for name in made)
        assert same(there, expected), step
    for step in range(5, 25, 5):
        row = dict(curves_now.rows[step])
        window = [curves_now.rows[n].get("train_loss") for n in range(step - 4, step + 1)]
        row.pop("train_loss", None)
        logged = dict(curves_later.rows[step])
        assert min(x for x in window if x) <= logged.pop("train_loss") <= max(x for x in window if x)
        assert logged == row


@pytest.mark.parametrize("ends", ["the next step", "the epoch", "validation", "a checkpoint"])
def test_a_step_that_is_looked_at_later_ends_training_as_it_was_before(
    ends: str,
    late: list[int],
    poisonous: tuple[int, str],
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    run: Run,
    curves: Any,
) -> None:
    watch, module = States(), make_module(LoRA(r=2), optimizer=FUSED["AdamW"])
    judged: list[int] = []

    class Judged(pl.Callback):
        def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            judged.append(trainer.global_step)

    now = make_module(LoRA(r=2), optimizer=FUSED["AdamW"])
    with pytest.raises(UserError) as expected:
        make_trainer(callbacks=[Poison(poisonous[0])]).fit(now, make_data(batch_size=1))
    step = now.soundness.refused.step
    assert now.global_step == step - 1
    options: dict[str, Any] = {
        "the next step": {},
        "the epoch": {"limit_train_batches": step},
        "validation": {"val_check_interval": step, "limit_val_batches": 1.0},
        "a checkpoint": {},
    }[ends]
    callbacks = [Poison(poisonous[0]), watch, Judged(), NonfiniteSteps(run)]
    if ends == "a checkpoint":
        callbacks.append(Checkpoints(run, CheckpointOptions(every_n_steps=step)))
    trainer = make_trainer(log_every_n_steps=1000, logger=curves, callbacks=callbacks, **options)
    with pytest.raises(UserError) as refusal:
        trainer.fit(module, make_data(batch_size=1))
    assert step in late
    assert str(refusal.value) == str(expected.value)
    assert module.soundness.refused.row() == now.soundness.refused.row()
    assert [json.loads(line)["step"] for line in run.nonfinite.read_text().splitlines()] == [step]
    assert trainer.global_step == step
    assert max(watch.weights) == step or ends == "a checkpoint"
    before = watch.weights[step - 1]
    weights = {name: tensor for name, tensor in before.items() if name.startswith("network.")}
    assert same(dict(module.named_parameters()), weights)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {step - 1}
    assert not judged
    assert not curves.rows
    assert not run.last.exists()


def test_which_optimisers_are_guarded() -> None:
    """Those that take a step of their own, or have states that begin with one, are not."""

    class Own(torch.optim.AdamW):
        pass

    def groups() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.ones(2))]

    assert all(can_be_guarded(make(groups())) for make in FUSED.values())
    assert not can_be_guarded(adam(groups()))
    assert not can_be_guarded(torch.optim.SGD(groups(), momentum=0.9, fused=True))
    assert not can_be_guarded(Own(groups(), fused=True))
    assert not can_be_guarded(
        torch.optim.AdamW([{"params": groups()}, {"params": groups(), "fused": False}], fused=True)
    )


@pytest.mark.parametrize("make_method", [lambda: AdaLoRA(init_r=4, target_r=1, warmup=0.0, final=0.1), LISA])
def test_a_hook_after_the_step_sees_zeros(
    make_method: Make,
    late: list[int],
    poisonous: tuple[int, str],
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
) -> None:
    module, seen = make_module(make_method(), optimizer=FUSED["AdamW"], skip_nonfinite=3), {}
    after_step = module.method.after_step

    def look(network: torch.nn.Module, step: int) -> None:
        seen[step] = [float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None]
        after_step(network, step)

    module.method.after_step = look
    make_trainer(max_epochs=3, log_every_n_steps=100, callbacks=[Poison(poisonous[0])]).fit(module, make_data())
    assert not late
    out = [found.step for found in module.soundness.left_out]
    assert len(out) == 3
    assert [step for step, gradients in seen.items() if not any(gradients)] == out
    assert all(math.isfinite(value) for gradients in seen.values() for value in gradients)
