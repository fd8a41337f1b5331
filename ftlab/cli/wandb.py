"""Weights & Biases for a run: on by default, offline with one line of hint where nobody is logged in."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger

from ftlab.runs import Run


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
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "ftlab"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)


def wandb_logger(options: WandbOptions, run: Run, config: Mapping[str, Any]) -> WandbLogger | None:
    """The logger of a run, or None where it is off. A run that goes on keeps its id."""
    mode = os.environ.get("WANDB_MODE", "auto") if options.mode == "auto" else options.mode
    if mode == "disabled":
        return None
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
        if mode == "offline":
            print(
                f"ftlab: W&B logs offline into {run.directory / 'wandb'}: nobody is logged in "
                "(wandb login changes that, --wandb.mode disabled turns it off)",
                file=sys.stderr,
            )
    experiment, name = run.directory.parent.name, run.directory.name
    of_agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # what W&B takes in any case
    run_id = run.record().get("wandb_id") or of_agent or secrets.token_hex(4)
    run.note(wandb_id=run_id)
    session = wandb.init(
        mode=mode,  # type: ignore[arg-type]
        dir=run.directory,
        id=run_id,
        resume="allow",
        project=options.project,
        entity=options.entity,
        name=f"{experiment}/{name}",
        group=options.group or experiment,
        job_type=options.job_type,
        tags=options.tags,
        config=dict(config),
        # its copies of git's diff and of the command line would hold the secrets that are in these: provenance.json has
        # both without
        settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True),
    )
    return WandbLogger(experiment=session)


def _logged_in() -> bool:
    return wandb.login(prompt=False, verify=False)
