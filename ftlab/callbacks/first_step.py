"""What is told of a training as it starts: which slower ways it takes, and when its first optimiser step has ended."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from ftlab.modules import FinetuneModule
from ftlab.modules.ways import slower, ways
from ftlab.runs import Run


class FirstStep(pl.Callback):
    """Says it once, and notes it for the session in provenance.json: in `ways` how the network is computed; in
    `first_step` the `seconds` since the process was started, which tell what starting costs, and compiling, and of them
    its `own`, from the step's first batch on.

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
            assert isinstance(pl_module, FinetuneModule)
            if trainer.is_global_zero:
                for sentence in slower(pl_module):
                    print(f"ftlab: {sentence}", file=sys.stderr)

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
        assert isinstance(pl_module, FinetuneModule)
        own, seconds = time.perf_counter() - self._began, seconds_of_process()
        first_step = {"seconds": round(seconds, 2), "own": round(own, 2)}
        self.run.note_of_session(first_step=first_step, ways=ways(pl_module))
        print(f"ftlab: the first step had ended after {seconds:.1f} s, {own:.1f} s of them its own", file=sys.stderr)


def seconds_of_process() -> float:
    """Since this process was started, before Python was there (proc(5): `starttime`)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
