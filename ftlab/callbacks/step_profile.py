"""Where a step goes: some steps under torch's profiler, a trace to open, and ten lines that say it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ftlab.runs import Run
from ftlab.runs.files import write_atomically

_WARM, _STEPS = 4, 4
_KERNELS = 3
_PARTS = {
    "data": "wait for the next batch",
    "forward": "forward pass, and its loss",
    "backward": "backward pass",
    "optimizer": "gradient norm, clipping, optimiser",
    "logging": "log lines, and what the method does after a step",
    "hooks": "callbacks: checkpoints, curves, …",
}


class StepProfile(pl.Callback):
    """Profiles four optimiser steps after the first four, in the first process, and goes on.

    Writes `profile/trace.json.gz` of the run, for chrome://tracing or Perfetto, and `profile/summary.txt`, which it
    prints, too. Steps take longer while they are profiled, and on a GPU the parts are the host's, which only asks for
    work: `device busy` says how much of the time the device did any.

    Args:
        run: Into whose directory they go.
    """

    def __init__(self, run: Run) -> None:
        self.directory = run.directory / "profile"
        self.last = StepEnd(self)
        """To be the last of the callbacks, where this is the first: what lies between them takes time of its own."""
        self._first = 0
        self._profiler: profile | None = None
        self._spent = dict.fromkeys(_PARTS, 0.0)
        self._since = 0.0

    @property
    def _steps(self) -> int:
        return self._first + _WARM + _STEPS

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = trainer.global_step
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._spend("optimizer"))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._first + _WARM and self._profiler is None and trainer.is_global_zero:
            self._profiler = profile(activities=_activities(trainer.strategy.root_device), acc_events=True)
            _wait(trainer.strategy.root_device)
            self._profiler.start()
            self._since = time.perf_counter()
        self._spend("data")

    def on_before_backward(self, *_: Any) -> None:
        self._spend("forward")

    def on_after_backward(self, *_: Any) -> None:
        self._spend("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._spend("logging")

    def on_validation_start(self, *_: Any) -> None:
        self._spend("hooks")

    def on_validation_end(self, *_: Any) -> None:
        if self._since:  # validation is no part of a step
            self._since = time.perf_counter()

    def end(self, trainer: pl.Trainer) -> None:
        """Is called after all other callbacks."""
        self._spend("hooks")
        if self._profiler is not None and self._since and trainer.global_step >= self._steps:
            self._conclude(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._profiler is not None and self._since and trainer.global_step > self._first + _WARM:
            self._conclude(trainer)  # of fewer steps
        elif self._profiler is None and trainer.is_global_zero:
            print(f"ftlab: nothing was profiled: training took no step after the first {_WARM}", file=sys.stderr)

    def _spend(self, part: str) -> None:
        if self._since:
            now = time.perf_counter()
            self._spent[part] += now - self._since
            self._since = now

    def _conclude(self, trainer: pl.Trainer) -> None:
        assert self._profiler is not None
        began = time.perf_counter()
        _wait(trainer.strategy.root_device)
        self._spent["optimizer"] += time.perf_counter() - began  # the device was still at work
        self._since = 0.0
        self._profiler.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        trace = self.directory / "trace.json.gz"
        self._profiler.export_chrome_trace(str(trace))
        summary = self._summary(trainer.global_step - self._first - _WARM, trace)
        write_atomically(self.directory / "summary.txt", summary + "\n")
        print(summary, flush=True)

    def _summary(self, steps: int, trace: Path) -> str:
        assert self._profiler is not None
        whole = sum(self._spent.values())
        lines = [f"a step of {steps} profiled: {whole / steps * 1e3:.1f} ms"]
        for part, meaning in _PARTS.items():
            seconds = self._spent[part]
            lines.append(f"  {seconds / steps * 1e3:8.1f} ms {seconds / whole:4.0%}  {meaning}")
        events = self._profiler.key_averages()
        # annotations on a device are about kernels that are told by themselves
        on_device = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        if on_device:
            busy = sum(event.self_device_time_total for event in on_device) / 1e6
            lines.append(f"  {busy / steps * 1e3:8.1f} ms {busy / whole:4.0%}  device busy")
        # on the CPU an operation and the kernel are one
        times = {e.key: e.self_device_time_total if on_device else e.self_cpu_time_total for e in on_device or events}
        total = sum(times.values()) or 1.0
        most = sorted(times.items(), key=lambda item: -item[1])[:_KERNELS]
        lines.append("  most: " + ", ".join(f"{name[:60]} {value / total:.0%}" for name, value in most))
        return "\n".join([*lines, f"  {trace}"])


class StepEnd(Checkpoint):
    """Tells a `StepProfile` that other callbacks are through: Lightning moves those that write checkpoints behind all.

    Args:
        of: It.
    """

    def __init__(self, of: StepProfile) -> None:
        self.of = of

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.of.end(trainer)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
