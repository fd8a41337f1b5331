"""Tokens, tokens a second and peak memory, taken on log steps only: nothing in between waits for the device."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import lightning.pytorch as pl
import torch

from ftlab.callbacks.energy import joules
from ftlab.modules.devices import summed
from ftlab.modules.finetune import FinetuneModule, log_interval


class Throughput(pl.Callback):
    """Logs, of all devices together, `supervised_tokens` and `total_tokens` since the start and `tokens_per_second`
    since the last log (all tokens, time of validation left out), and `peak_memory` in bytes on this device."""

    def __init__(self) -> None:
        self.supervised = 0
        self.total = 0
        """Tokens on this device; at the end, on all."""
        self.seconds = 0.0
        """Time spent in training steps, in seconds."""
        self.joules: float | None = None
        """Used by all devices from the start of training to its end, validation included; None where they do not tell,
        or did not all the time."""
        self._joules_before: float | None = 0.0
        self._joules_at_start: float | None = None
        self._since = time.perf_counter()
        self._step = 0
        self._device = torch.device("cpu")
        self._total_then = 0
        self._seconds_then = 0.0

    def state_dict(self) -> dict[str, Any]:
        supervised, total = self._over_devices()
        energy = {} if self.joules is None else {"joules": self.joules}
        return {"supervised": supervised, "total": total, "seconds": self.seconds} | energy

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.supervised, self.total = state_dict["supervised"], state_dict["total"]
        self.seconds = self._seconds_then = state_dict["seconds"]
        self._total_then = self.total
        self._joules_before = state_dict.get("joules")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()  # in mid-epoch no hook says that one begins
        self._step = trainer.global_step
        self._device = pl_module.device
        if trainer.global_rank:  # the first process goes on with what all had counted
            self.supervised = self.total = self._total_then = 0
            self._joules_before = self._joules_before and 0.0
        self._joules_at_start = joules(self._device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.supervised, self.total = self._over_devices()

    def _over_devices(self) -> tuple[int, int]:
        used = self._joules_here()
        counts = torch.tensor([self.supervised, self.total, math.nan if used is None else used], dtype=torch.float64)
        supervised, total, used = summed(counts, self._device).tolist()
        self.joules = None if math.isnan(used) else used
        return int(supervised), int(total)

    def _joules_here(self) -> float | None:
        """Of this device, and on the first of what all had used before."""
        now = joules(self._device)
        if now is None or self._joules_at_start is None or self._joules_before is None:
            return None
        return self._joules_before + now - self._joules_at_start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self.supervised += batch["target_tokens"]
        self.total += batch["tokens"]
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        if stepped and pl_module.global_step % log_interval(trainer) == 0:
            assert isinstance(pl_module, FinetuneModule)
            self._log(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def _log(self, pl_module: FinetuneModule) -> None:
        counts = torch.tensor([self.supervised, self.total, self.total - self._total_then], dtype=torch.float64)
        supervised, total, since = summed(counts, pl_module.device).tolist()
        rate = since / max(1e-9, self.seconds - self._seconds_then)
        self._total_then, self._seconds_then = self.total, self.seconds
        metrics = {
            "supervised_tokens": supervised,
            "total_tokens": total,
            "tokens_per_second": rate,
            "peak_memory": float(peak_memory(pl_module.device)),
        }
        pl_module.log_curves(metrics, pl_module.global_step)


def peak_memory(device: torch.device) -> int:
    """The most bytes held at once: by tensors on CUDA, by this whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
