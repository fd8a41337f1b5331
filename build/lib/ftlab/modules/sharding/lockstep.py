"""Judging with a network in shards: every forward gathers from all processes, so all must take part in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ftlab.networks import language_model


@contextmanager
def without_gradients() -> Iterator[None]:
    """As torch.no_grad, within inference mode too: torch keeps the tensors into which it gathers a block, and those of
    inference mode cannot be trained."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Lockstep:
    """Has all processes take part in every forward without gradients: a block is gathered from all of them.

    Each process judges records of its own, more or less of them, and generates answers of other lengths. One that has
    nothing left goes on with a token of its own until all are through: see `finish`. Before each such forward they tell
    each other whether they have something left. In training all have the same number of batches.

    Args:
        network: In shards.
        device: By way of which they tell each other.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._model: Any = language_model(network)
        self._device = device
        self._waiting = False
        self._model.register_forward_pre_hook(self._before_forward, prepend=True)

    def _before_forward(self, *_: Any) -> None:
        if not torch.is_grad_enabled() and not self._waiting:
            self._someone(works=True)

    def _someone(self, works: bool) -> bool:
        working = torch.tensor([float(works)], device=self._device)
        dist.all_reduce(working)
        return bool(working.item())

    def finish(self) -> None:
        """Goes along until all processes are here."""
        token = torch.zeros((1, 1), dtype=torch.long, device=self._device)
        self._waiting = True
        try:
            with without_gradients():
                while self._someone(works=False):
                    self._model(input_ids=token, use_cache=False)
        finally:
            self._waiting = False
