"""Training that is told to stop: a checkpoint at the next optimiser step, by all processes together, and out."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Literal

import lightning.pytorch as pl

from ftlab.callbacks.checkpoints import Checkpoints, is_fitting
from ftlab.callbacks.restarts import validation_is_due
from ftlab.errors import Preempted
from ftlab.modules import FinetuneModule
from ftlab.runs import RunOptions

SLACK = 1.0
"""Seconds before the end of the grace in which to say that nothing was saved."""


_BEFORE = "before training began: the same command starts it"


class Preemption(pl.Callback):
    """Listens to signals while its context lasts.

    The handler only takes a note: Lightning's own would write a checkpoint from within it, in the middle of a step. At
    the next optimiser step all processes learn that one of them was told to stop, and do. In a validation a process
    that is alone stops at the next batch, and others when it is over. Before training a signal ends the process at
    once, and after it training is brought to its end.

    Args:
        checkpoints: Write the checkpoint.
        options: Which signals, and how long until the process is killed.
    """

    def __init__(self, checkpoints: Checkpoints, options: RunOptions) -> None:
        self.checkpoints = checkpoints
        self.options = options
        self.signal: signal.Signals | None = None
        """The one that has come."""
        self._phase: Literal["before", "training", "after"] = "before"
        self._asked: set[Any] = set()  # the module's
        self._agreed = False
        self._step = 0
        self._between_steps = True
        self._timer: threading.Timer | None = None
        self._pid = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():  # nobody else may
            self._before = {number: signal.getsignal(number) for number in self._signals}
            self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal is not None and self._phase == "before" and isinstance(error, Exception):
            # it was raised within a library that made another error of it
            raise self._stopped_before() from error

    @property
    def _signals(self) -> list[signal.Signals]:
        return [signal.Signals[name] for name in self.options.signals]

    def _listen(self) -> None:
        for number in self._signals:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker, which ends with its parent
            return
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = signal.Signals(number)
        if self._phase == "before":
            raise self._stopped_before()
        if self._phase == "training":
            self._ask()

    def _ask(self) -> None:
        self._asked.add("stop")
        if self.options.grace_seconds is not None:
            self._timer = threading.Timer(max(0.0, self.options.grace_seconds - SLACK), self._too_late)
            self._timer.daemon = True
            self._timer.start()

    def _stopped_before(self) -> BaseException:
        kind = KeyboardInterrupt if self.signal == signal.SIGINT else Preempted
        return kind(self._said(_BEFORE))

    def _said(self, what: str) -> str:
        by = self.signal.name if self.signal else "a signal to another of its processes"
        return f"stopped by {by} {what}"

    def _too_late(self) -> None:
        print(
            f"ftlab: {self._said('')}and no optimiser step ended within {self.options.grace_seconds:g} s: nothing was "
            f"saved since the last checkpoint; {self.checkpoints.run.next_start()}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(Preempted.EXIT_CODE)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FinetuneModule)
        self._asked, self._phase, self._step = pl_module.asked, "training", trainer.global_step
        if self.signal is not None:  # and some library has swallowed it
            self._ask()
        if self._before:
            self._listen()  # Lightning has put its own handlers there
            # its processes ask each other at every batch whether one of these was called (Lightning #21487)
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _ask_nobody  # type: ignore[method-assign]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._phase = "after"
        if self._timer:
            self._timer.cancel()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FinetuneModule)
        self._agreed = "stop" in pl_module.agreed
        self._between_steps, self._step = trainer.global_step != self._step, trainer.global_step
        if self._agreed and not validation_is_due(trainer):
            self._stop(trainer)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agreed and self._may_be_broken_off(trainer):
            self._stop(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        alone = trainer.world_size == 1  # others would wait for this one when the validation is over
        if self.signal is not None and alone and self._may_be_broken_off(trainer):
            self._stop(trainer)

    def _may_be_broken_off(self, trainer: pl.Trainer) -> bool:
        """Not within an accumulation window, whose gradients are in no checkpoint; nor at the end: training that goes
        on after its last step validates no more."""
        return (
            self._phase == "training"
            and is_fitting(trainer)
            and self._between_steps
            and trainer.global_step != trainer.max_steps
        )

    def _stop(self, trainer: pl.Trainer) -> None:
        self.checkpoints.save_last(trainer)
        try:
            self.checkpoints.wait()
        finally:
            # the first process alone may be writing, and is ended soon after one of its companions has left
            trainer.strategy.barrier()
            if self._timer:
                self._timer.cancel()
        raise Preempted(self._said(f"at step {trainer.global_step}: {self.checkpoints.run.next_start()}"))


def _ask_nobody() -> None:
    """What processes have to tell each other goes along with the step's own collective."""
