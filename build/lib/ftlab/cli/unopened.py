"""An experiment on a machine that does not run it: all that can be refused without its devices, network and data."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn

from ftlab.cli.experiment import Experiment, trainer_refusals
from ftlab.errors import UserError
from ftlab.modules import FinetuneModule
from ftlab.modules.activations import GradientCheckpointing
from ftlab.modules.optimizers.hidden import mark_hidden
from ftlab.modules.refusals import refuse_scaled_gradients

_ON_ANY_MACHINE = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,
    "sync_batchnorm": False,
}
_SIDE = 4096
"""Rows and columns of the matrix that stands for what a method trains: more than the ranks of optimisers."""


class Unopened(Experiment):
    """An experiment whose classes have taken their values, and whose run directory is known: the machine that submits
    may have neither the GPUs nor the memory to open it."""

    def largest_micro_batch(self) -> int:
        """Is found on the machine that trains."""
        raise UserError("data.micro_batch auto asks the device that trains, which is not here: give a number")

    def first_way(self) -> GradientCheckpointing:
        """Is found on the machine that trains."""
        raise UserError(
            "model.gradient_checkpointing auto asks the device that trains, which is not here: give false, selective, "
            "true or offloaded (ftlab plan --checkpointing all shows them)"
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """One that takes the same steps on this machine's CPU."""
        config = self.config_init["trainer"]
        for key, value in _ON_ANY_MACHINE.items():
            config[key] = value
        config["plugins"] = [LightningEnvironment()]  # this process may be part of a job of its own
        with trainer_refusals():
            return super().instantiate_trainer(**kwargs)


def refuse_what_would_fail(experiment: Experiment) -> None:
    """What the classes of an experiment take, and training refuses at its start.

    Raises:
        UserError: Nothing says when training ends, or precision or optimiser cannot be as they are asked for.
    """
    experiment.refuse_endless()
    if experiment.model.method.trains:
        refuse_scaled_gradients(experiment.config.trainer.precision)
        _try_optimizer(experiment.model)


def _try_optimizer(module: FinetuneModule) -> None:
    """Makes the optimiser over a matrix that takes no memory."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(1).expand(_SIDE, _SIDE))
    mark_hidden(layer)
    try:
        module.optimizer_over([{"params": [layer.weight]}])
    except UserError:
        raise
    except Exception:  # it wants a device that is not here: no word on what it was given
        return
