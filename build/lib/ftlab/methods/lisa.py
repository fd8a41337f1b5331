"""LISA: embeddings and head train throughout, of the blocks a few at a time (Pan et al. 2024, arXiv 2403.17919)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.full import Full
from ftlab.networks import decoder_blocks


class LISA(Full):
    """Trains all that is not a block at every step, and of the blocks `active` at a time, drawn anew now and then.

    A resting block has no gradients, is not stepped and does not decay. The optimiser keeps its moments and goes on
    with them when the block is drawn again, as in the authors' LMFlow: of a full fine-tuning's memory, the gradients of
    the resting blocks are saved, and the moments only of blocks that were never drawn. For less, take an optimiser of
    8 bits or one that pages.

    Which blocks are drawn is a function of the seed under which `adapt` was called and of the step, so that a resumed
    run draws the same.

    On several devices DDP waits for the gradients of resting blocks, too: give `trainer.strategy
    ddp_find_unused_parameters_true`.

    Args:
        active: Blocks that train at a time.
        interval: Optimiser steps between draws.
    """

    def __init__(self, active: int = 2, interval: int = 20) -> None:
        super().__init__()
        for name, value in {"active": active, "interval": interval}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}: give 1 or more")
        self.active = active
        self.interval = interval
        self._seed = 0

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        count = len(decoder_blocks(network))
        if self.active > count:
            raise UserError(f"method.active is {self.active}: {type(network).__name__} has {count} blocks")
        self._seed = int(torch.randint(2**31, ()))
        # none rests before `begin`: DDP passes over for good what is frozen when it wraps the network
        return super().adapt(network)

    def trained(self, network: nn.Module) -> set[str]:
        """All: every block may be drawn."""
        return {name for name, _ in network.named_parameters()}

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """As for `Full`, with all blocks: the optimiser passes over those that have no gradient."""
        network.requires_grad_(True)
        return super().param_groups(network)

    def begin(self, network: nn.Module, steps: int, step: int = 0) -> None:
        self._draw(network, step // self.interval)

    def after_step(self, network: nn.Module, step: int) -> None:
        if step % self.interval == 0:
            self._draw(network, step // self.interval)

    def _draw(self, network: nn.Module, interval: int) -> None:
        assert isinstance(network, PreTrainedModel)
        blocks = decoder_blocks(network)
        drawn = numpy.random.default_rng([self._seed, interval]).choice(len(blocks), self.active, replace=False)
        for number, block in enumerate(blocks):
            block.requires_grad_(number in drawn)
            if number not in drawn:
                block.zero_grad()  # to None: what has no gradient is not stepped, and takes no memory
