"""What a user says about the directory of a run, its checkpoints, and how it is stopped and goes on."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ftlab.errors import UserError


@dataclass
class CheckpointOptions:
    """When checkpoints are written, and which are kept; `last` also at the end of each epoch and of training.

    Args:
        every_n_steps: Optimiser steps between writes of `last`.
        every_n_minutes: Minutes between writes of `last`, on the next optimiser step: what a run loses at the most that
            is killed with no time to write; null writes none by the clock.
        best: How many of the best are kept; `best.ckpt` is the best of them.
        best_by: The validation metric by which the best are told.
        best_is: Whether lower or higher is better.
        asynchronous: Write in a thread beside training: a step then waits for a copy in memory, not for the disk.
        in_parts: With trainer.strategy fsdp2, and with fsdp where a method leaves nothing frozen, each process writes a
            file with its part of the tensors, in place of the first one gathering them all. Any number of processes
            goes on from it likewise.
    """

    every_n_steps: int | None = None
    every_n_minutes: float | None = 30.0
    best: int = 1
    best_by: str = "val_loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    asynchronous: bool = False
    in_parts: bool = False

    def __post_init__(self) -> None:
        for name, value in {"every_n_steps": self.every_n_steps, "best": self.best}.items():
            if value is not None and value < 1:
                raise UserError(f"run.checkpoints.{name} is {value}: give a number from 1 on")
        if self.asynchronous and self.in_parts:
            raise UserError("run.checkpoints: in_parts is not asynchronous, as all parts must be there: give one")
        if self.every_n_minutes is not None and not self.every_n_minutes > 0:
            raise UserError(f"run.checkpoints.every_n_minutes is {self.every_n_minutes}: give more than 0")


@dataclass
class Seeds:
    """Seeds of their own for what is drawn; each is `seed_everything` where nothing else is said.

    Args:
        order: The order of the training records, and the draws of a mixture.
        weights: New weights, and what else a method draws.
        dropout: Dropout and whatever else is drawn while training.
    """

    order: int | None = None
    weights: int | None = None
    dropout: int | None = None

    def __post_init__(self) -> None:
        for name, value in {"order": self.order, "weights": self.weights, "dropout": self.dropout}.items():
            if value is not None and not 0 <= value < 2**32:
                raise UserError(f"seeds.{name} is {value}: give a whole number from 0 to {2**32 - 1}")


@dataclass
class RunOptions:
    """Where a run is kept, and how it is stopped and goes on.

    Args:
        root: Directory of all runs.
        experiment: Directory of the runs of one experiment; by default the name of the configuration file.
        name: The run's own directory; by default a hash of the configuration: the same configuration is the same run.
        resume: What is done where the directory holds a run that was interrupted: go on only where the configuration is
            the same, so that it ends with the same bits (exact), or with another one, too, as far as its tensors fit
            (force): the order of the data goes on where it stood.
        checkpoints: When checkpoints are written, and which are kept.
        signals: Signals at which training writes a checkpoint at the next optimiser step and ends, to be started
            again: with exit code 75, at SIGINT with 130. A second SIGINT ends at once.
        grace_seconds: Seconds from such a signal until the process is killed, where that is known: what cannot be
            saved in time is said.
        profile: Say where the time of a step goes, of four steps after the first four, and write a trace into
            `profile/`; `ftlab fit --profile` for short.
    """

    root: str = "runs"
    experiment: str | None = None
    name: str | None = None
    resume: Literal["exact", "force"] = "exact"
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    signals: list[str] = field(default_factory=lambda: ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
    grace_seconds: float | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        for key, name in {"experiment": self.experiment, "name": self.name}.items():
            if name and (Path(name).name != name or name.startswith(".")):
                raise UserError(f"run.{key} is {name!r}: give the name of one directory, without / or a leading dot")
        for name in self.signals:
            if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
                raise UserError(f"run.signals: {name!r} is no signal that can be caught, such as SIGTERM or SIGUSR1")
        if self.grace_seconds is not None and not self.grace_seconds > 0:
            raise UserError(f"run.grace_seconds is {self.grace_seconds}: give more than 0")
