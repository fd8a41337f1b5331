"""The most memory of a run is that of its training steps: neither validation nor a checkpoint takes more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ftlab.callbacks import Checkpoints
from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.runs import CheckpointOptions, Run

Make = Callable[..., Any]
VALIDATION, CHECKPOINT = "a validation of the run", "a checkpoint of the run"


class Ranges(pl.Callback):
    """Names validations, with what is generated in them."""

    def on_validation_start(self, *_: Any) -> None:
        self.range = record_function(VALIDATION)
        self.range.__enter__()

    def on_validation_end(self, *_: Any) -> None:
        self.range.__exit__(None, None, None)


class Named(Checkpoints):
    """Names what it writes."""

    def save_last(self, trainer: pl.Trainer) -> None:
        with record_function(CHECKPOINT):
            super().save_last(trainer)


@pytest.mark.parametrize("method", [Full, LoRA, QLoRA])
def test_no_more_than_a_training_step_takes(
    method: type[Method], make_module: Make, make_data: Make, make_trainer: Make, run: Run
) -> None:
    module = make_module(method(), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4))
    callbacks = [Ranges(), Named(run, CheckpointOptions(every_n_steps=2))]
    trainer = make_trainer(max_steps=3, limit_val_batches=1.0, val_check_interval=3, callbacks=callbacks)
    data = make_data()
    data.answers_in_validation = True
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.fit(module, data)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    ranges = [(event.name(), event.start_ns(), event.end_ns()) for event in events if event.name().endswith("the run")]
    assert {name for name, *_ in ranges} == {VALIDATION, CHECKPOINT}
    most = {"training": 0, VALIDATION: 0, CHECKPOINT: 0}
    held = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            now = event.start_ns()
            where = next((name for name, start, end in ranges if start <= now <= end), "training")
            most[where] = max(most[where], held)
    assert most[VALIDATION] > 0
    assert max(most[VALIDATION], most[CHECKPOINT]) <= most["training"], most  # a checkpoint of tensors copies none
