"""Full fine-tuning: every weight, or those whose names match."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.base import Method


class Full(Method):
    """Trains the network's own weights.

    Args:
        trainable: Patterns (`*` matches anything) of the parameter names to train, such as `*.layers.3.*` or
            `*norm*`; all where none is given. A tied tensor is one parameter, trained under its first name.
    """

    def __init__(self, trainable: list[str] | None = None) -> None:
        self.trainable = trainable

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        network.requires_grad_(self.trainable is None)
        names = [name for name, _ in network.named_parameters()]
        for pattern in self.trainable or []:
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(
                    f"method.trainable: no parameter matches {pattern!r}; there are, among {len(names)}: "
                    + ", ".join(_one_of_each_kind(names))
                )
            for name in matched:
                network.get_parameter(name).requires_grad_(True)
        return network

    def save(self, network: nn.Module, directory: Path) -> None:
        """Writes the whole network in Hugging Face layout (safetensors), tied weights tied."""
        assert isinstance(network, PreTrainedModel)
        network.save_pretrained(directory)

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        wanted = {name for name, _ in network.named_parameters()}
        for shard in sorted(directory.glob("*.safetensors")):
            weights = load_file(shard)
            unknown = network.load_state_dict(weights, strict=False).unexpected_keys
            if unknown:
                raise UserError(f"{shard} holds weights that the network does not have, {unknown[0]!r} among them")
            wanted -= set(weights)
        if wanted:
            raise UserError(f"{directory} lacks weights that the network has, {min(wanted)!r} among them")
        network.tie_weights()
        return network

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, PreTrainedModel)
        return network


def _one_of_each_kind(names: list[str]) -> list[str]:
    """The names with their layer numbers starred, each once: what patterns are made of."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
