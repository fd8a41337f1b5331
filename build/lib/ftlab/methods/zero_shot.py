"""Train nothing: the baseline that every table needs, judged exactly as the methods are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.methods.base import Method
from ftlab.methods.belonging import Base, check_base
from ftlab.networks import base_kind, dequantised


class ZeroShot(Method):
    """The pretrained network as it is."""

    trains: ClassVar[bool] = False
    bases = frozenset({"full", "nf4", "fp4", "int8", "torchao", "torchao-dynamic", "hqq", "gptq", "awq"})

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        return network.requires_grad_(False)

    def save(self, network: nn.Module, directory: Path) -> None:
        """Names the base; there is nothing else to keep."""
        assert isinstance(network, PreTrainedModel)
        Base.of(network).write(directory)

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        check_base(directory, network)
        return network.requires_grad_(False)

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, PreTrainedModel)
        return network if base_kind(network) == "full" else dequantised(network)
