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
from ftlab.modules import Cosine, FinetuneModule
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
def test_stops_leave_each_line_once(
    stop: int, poisonous: tuple[int, str], make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Three steps are left out; training is killed around them, with a checkpoint every second."""

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                raise InterruptedError

    def train(run: Run, *callbacks: pl.Callback) -> Watch:
        data: FinetuneData = make_data()
        module = make_module(LoRA(r=2, dropout=0.3), optimizer=adam, skip_nonfinite=3)
        watch = Watch()
        trainer = make_trainer(
            max_epochs=3,
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
