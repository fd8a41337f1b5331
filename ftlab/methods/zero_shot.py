"""Train nothing: the baseline that every table needs, judged exactly as the methods are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.methods.base import Method
from ftlab.networks import base_kind


class ZeroShot(Method):
    """The pretrained network as it is."""

    trains: ClassVar[bool] = False
    bases = frozenset({"full", "nf4", "fp4", "int8", "torchao", "torchao-dynamic", "hqq", "gptq", "awq"})

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        return network.requires_grad_(False)

    def save(self, network: nn.Module, directory: Path) -> None:
        """Names the base; there is nothing else to keep."""
        directory.mkdir(parents=True, exist_ok=True)
        base = {"base_model_name_or_path": network.name_or_path}
        (directory / "base.json").write_text(json.dumps(base, indent=2) + "\n")

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        return network.requires_grad_(False)

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, PreTrainedModel)
        return network if base_kind(network) == "full" else network.dequantize()
