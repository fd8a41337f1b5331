"""The random numbers of training, dropout's above all: they go on where the last batch left them, resumed or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Randomness:
    """Where torch's generators stand after a backward pass, on the host and on the device of this process.

    Loaders draw, too, whenever they start, and only some do on a resume: so generators are set before each batch.
    """

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}
        """By the kind of device; what a checkpoint keeps."""

    def begin(self, seed: int, device: torch.device) -> None:
        """Starts from a seed, where no checkpoint said otherwise."""
        if not self.states:
            torch.manual_seed(seed)
            self.note(device)

    def note(self, device: torch.device) -> None:
        """Notes where they stand."""
        self.states = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            self.states["cuda"] = torch.cuda.get_rng_state()

    def go_on(self) -> None:
        """Sets them to what was noted."""
        torch.set_rng_state(self.states["cpu"])
        if "cuda" in self.states:
            torch.cuda.set_rng_state(self.states["cuda"])

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Has training go on from a checkpoint's."""
        self.states = {name: state.cpu() for name, state in states.items()}
