"""How long a process takes to the end of its first optimiser step: what starting costs, and compiling."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from ftlab.runs import Run


class FirstStep(pl.Callback):
    """Says so once, and notes it for the session in provenance.json: `first_step`, with `seconds` since the process was
    started, and of them `own`, from the step's first batch on.

    Args:
        run: Whose provenance it is.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._began: float | None = None
        self._done = False
        self._steps = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._began is None:
            self._began, self._steps = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._done or trainer.global_step == self._steps:
            return
        self._done = True
        if not trainer.is_global_zero:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        assert self._began is not None
        own, seconds = time.perf_counter() - self._began, seconds_of_process()
        self.run.note_of_session(first_step={"seconds": round(seconds, 2), "own": round(own, 2)})
        print(f"ftlab: the first step had ended after {seconds:.1f} s, {own:.1f} s of them its own", file=sys.stderr)


def seconds_of_process() -> float:
    """Since this process was started, before Python was there (proc(5): `starttime`)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
