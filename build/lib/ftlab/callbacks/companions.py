"""The processes of a run on one machine: none waits for ever for one that has been killed."""

from __future__ import annotations

import os
import sys
import threading
from subprocess import Popen

import lightning.pytorch as pl

from ftlab.runs import Run

_FIRST = "FTLAB_FIRST_PROCESS"
PERIOD = 0.5
"""Seconds between looks at the others."""
GRACE = 3.0
"""Seconds in which a process whose companion has ended may end by itself, with what it has to say."""


class Companions(pl.Callback):
    """Ends a process that one of its companions has left: over NCCL it would wait for it for half an hour.

    The first process looks at those that it has started, and these look at the first. Processes that a launcher such as
    srun or torchrun has started are that launcher's.

    Args:
        run: Whose directory says that it has failed.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._over = threading.Event()
        if "LOCAL_RANK" not in os.environ:  # those that Lightning starts from here are told so
            os.environ[_FIRST] = str(os.getpid())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        started: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        if not started and (trainer.local_rank == 0 or os.environ.get(_FIRST) != str(os.getppid())):
            return
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":  # Lightning's: it would kill this process without a word
                thread._child_processes = []  # type: ignore[attr-defined]
        self._over.clear()
        threading.Thread(target=self._watch, args=(started, os.getppid()), name="companions", daemon=True).start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._over.set()  # it has something of its own to say, and ends

    def _watch(self, started: list[Popen[bytes]], parent: int) -> None:
        while not self._over.wait(PERIOD):
            if started:
                ended = [process for process in started if process.poll()]
                who = f"process {ended[0].pid} of this run has ended with code {ended[0].returncode}" if ended else ""
            else:
                who = "the first process of this run has ended" if os.getppid() != parent else ""
            if who and not self._over.wait(GRACE):
                self._leave(who, first=bool(started))

    def _leave(self, who: str, first: bool) -> None:
        if first and self.run.record().get("state") == "running":
            self.run.end("failed")
        print(f"ftlab: {who}, and this one with it; {self.run.next_start()}", file=sys.stderr, flush=True)
        os._exit(1)
