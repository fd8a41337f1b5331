"""Weights & Biases for a run: on by default, offline with one line of hint where nobody is logged in."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ftlab.cli.compose import expand
from ftlab.errors import UserError
from ftlab.runs import Run

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

Session = Any
"""wandb.Run: jsonargparse would import W&B to look at it."""


@dataclass
class WandbOptions:
    """How a run is logged to Weights & Biases.

    Args:
        mode: auto is online where somebody is logged in, offline otherwise.
        project: Project of the run.
        entity: Team or user; by default the logged-in one's.
        group: Group of the run; by default the experiment.
        job_type: What the run is for, such as sweep.
        tags: Tags of the run.
        notes: What the run is about, in words.
        samples: Validation prompts whose answers go into a table at each validation.
        log_model: Whether the saved model becomes an artifact when training has come to its end: none, best (`model/`),
            or all (the kept checkpoints, too).
        log_predictions: Whether `ftlab test` and `ftlab validate` make an artifact of the answers.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "ftlab"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    samples: int = 0
    log_model: Literal["none", "best", "all"] = "none"
    log_predictions: bool = False

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UserError(f"wandb.samples is {self.samples}: give a number of prompts, from 0 on")


def import_first(arguments: Sequence[str]) -> None:
    """Imports W&B where `ftlab fit` with these arguments will log to it, to be called before torch is imported.

    W&B's classes look for their own source in all modules that are there: after torch that takes three times as long.
    """
    if {"--help", "-h", "--print_config", "--on"} & {word.partition("=")[0] for word in arguments}:
        return
    first = all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if first and _mode(_asked(arguments)) != "disabled":
        import wandb.apis.public  # noqa: F401  (wandb.init wants it, too)


def _asked(arguments: Sequence[str]) -> str:
    """wandb.mode in the arguments of an experiment: the last that is said."""
    mode = "auto"
    for before, word in pairwise(["", *expand(arguments)]):
        if before == "--config":
            options = yaml.safe_load(word).get("wandb")
            mode = options.get("mode", mode) if isinstance(options, dict) else mode
        elif before == "--wandb.mode" or word.startswith("--wandb.mode="):
            mode = word.removeprefix("--wandb.mode=")
    return mode


def _mode(asked: str) -> str:
    return os.environ.get("WANDB_MODE", "auto") if asked == "auto" else asked


JOURNAL: dict[str, Any] = {
    "console": "off",
    "silent": True,
    # its copies of git's diff and of the command line would hold the secrets that are in these: provenance.json has
    # both without
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
}
"""Settings of each session."""


def settled_mode(asked: str, place: Path, hint: str = "(wandb login changes that)") -> str:
    """online, offline or disabled; of auto what is possible, and why it is offline is said.

    Args:
        asked: auto, or one of these.
        place: Where it logs offline.
        hint: How that is changed.
    """
    mode = _mode(asked)
    if mode != "auto":
        return mode
    if _logged_in():
        return "online"
    print(f"ftlab: W&B logs offline into {place}: nobody is logged in {hint}", file=sys.stderr)
    return "offline"


def open_session(options: WandbOptions, run: Run, config: Mapping[str, Any]) -> Session | None:
    """The W&B run of a run, or None where it is off. A run that goes on, or is scored, keeps its id."""
    mode = settled_mode(
        options.mode, run.directory / "wandb", "(wandb login changes that, --wandb.mode disabled turns it off)"
    )
    if mode == "disabled":
        return None
    experiment, name = run.directory.parent.name, run.directory.name
    of_agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # what W&B takes in any case
    run_id = run.record().get("wandb_id") or of_agent or secrets.token_hex(4)
    run.note(wandb_id=run_id)
    import wandb

    session = wandb.init(
        mode=mode,  # type: ignore[arg-type]
        dir=run.directory.resolve(),  # W&B's own process may have been started elsewhere
        id=run_id,
        resume="allow",
        project=options.project,
        entity=options.entity,
        name=f"{experiment}/{name}",
        group=options.group or experiment,
        job_type=options.job_type,
        tags=options.tags,
        notes=options.notes,
        config=dict(config),
        settings=wandb.Settings(**JOURNAL),
    )
    session.define_metric("trainer/global_step")
    session.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return session


def logger_of(session: Session) -> WandbLogger:
    """By which Lightning logs to it."""
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(experiment=session)


def _logged_in() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)
