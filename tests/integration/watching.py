"""What tests of several processes see of a training: losses and gradients of its steps, and what crosses in one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ftlab.modules.sharding.tensors import whole


class Seen(pl.Callback):
    """Loss, norm and gradient of each optimiser step, the gradient as the optimiser has had it, and whole."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.losses):
            own = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            self.gradients.append({name: whole(gradient).clone() for name, gradient in own.items()})
            self.losses.append(float(trainer.callback_metrics["train_loss"]))
            self.norms.append(float(trainer.callback_metrics["grad_norm"]))


class Collectives(pl.Callback):
    """What crosses between processes in the third step: kind, and number of values that a process gives, in order.

    In the second, DistributedDataParallel once says in what order gradients come. Where nccl reduces and scatters, gloo
    reduces all.
    """

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
                    values = sum(torch.Size(shape).numel() for shape in event.input_shapes)
                    self.found.append((event.name.removeprefix("gloo:"), values))
