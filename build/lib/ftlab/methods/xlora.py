"""X-LoRA: a router that mixes trained LoRA adapters, layer by layer and token by token (Buehler & Buehler 2024)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.adapter_bits import PLAIN, is_quantised, plain
from ftlab.methods.belonging import check_base
from ftlab.methods.peft import Peft
from ftlab.methods.saved_config import order_config, read_config

ROUTER = "internal_xlora_classifier"


class XLoRA(Peft):
    """Trains a router over frozen LoRA adapters of the same base (X-LoRA, arXiv 2402.07148).

    It reads the hidden states of a first pass over the base, so that a step costs two forward passes, and answers are
    generated without a cache. It has no merged form, as the mixture depends on the text.

    Args:
        adapters: Directories of trained LoRA adapters in peft's layout, such as `model/` of runs.
        layerwise: A mixture of its own for every layer; otherwise one for all.
        depth: Linear layers of the router.
        size: Its hidden units, where `depth` is above 1.
        dropout: Share of its hidden units that are dropped in training.
    """

    sees_to = frozenset({"XLoraConfig"})

    def __init__(
        self,
        adapters: list[str],
        layerwise: bool = True,
        depth: int = 1,
        size: int = 2048,
        dropout: float = 0.2,
    ) -> None:
        missing = [adapter for adapter in adapters if not (Path(adapter) / peft.utils.CONFIG_NAME).is_file()]
        if missing or len(adapters) < 2:
            raise UserError(
                f"method.adapters: {missing[0]} holds no {peft.utils.CONFIG_NAME}: give directories of LoRA adapters"
                if missing
                else f"method.adapters has {len(adapters)}: there is nothing to mix with fewer than two"
            )
        rounded = [adapter for adapter in adapters if is_quantised(Path(adapter))]
        if rounded:  # they are read anew whenever the mixture is opened, and by peft itself
            raise UserError(
                f"method.adapters: {rounded[0]} is stored in few bits: give the adapter that it was made of"
            )
        self._adapters = adapters
        super().__init__(
            peft.XLoraConfig(
                hidden_size=1,  # that of the network: see config_for
                adapters={str(number): adapter for number, adapter in enumerate(adapters)},  # peft wants these names
                layerwise_scalings=layerwise,
                xlora_depth=depth,
                xlora_size=size,
                xlora_dropout_p=dropout,
            )
        )

    def config_for(self, network: PreTrainedModel) -> peft.PeftConfig:
        config: Any = super().config_for(network)
        config.hidden_size = network.config.get_text_config(decoder=True).hidden_size
        return config

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        if network.is_gradient_checkpointing:
            raise UserError(
                "model.gradient_checkpointing: X-LoRA's two passes cannot be computed again: set it to false"
            )
        for adapter in self._adapters:
            check_base(Path(adapter), network)
            read_config(Path(adapter))
        network.config.use_cache = False
        return super().adapt(network, batches)

    def save(self, network: nn.Module, directory: Path) -> None:
        """The router as peft does, whole: peft takes its first layer for the adapter "0" and leaves it out; and the
        adapters in directories 0, 1, …, where peft leaves a part of the base under other names."""
        assert isinstance(network, peft.PeftModel)
        super().save(network, directory)
        save_file(load_file(directory / PLAIN) | _lost(network), directory / PLAIN, metadata={"format": "pt"})
        experts: Any = network.base_model.lora_model
        for name, config in experts.peft_config.items():
            shutil.rmtree(directory / name, ignore_errors=True)
            config.save_pretrained(str(directory / name))
            order_config(directory / name, config)
            tensors = {f"base_model.{key}": tensor for key, tensor in _expert(experts, name).items()}
            save_file(tensors, directory / name / PLAIN, metadata={"format": "pt"})

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        network.config.use_cache = False
        loaded = super().load(network, directory)
        with plain(directory) as place:
            saved = load_file(place / PLAIN)
        for name, tensor in _lost(loaded).items():
            tensor.copy_(saved[name])
        return loaded

    def config_of(self, directory: Path) -> peft.PeftConfig:
        """With the adapters that were saved beside the router: those it was trained over may be gone, or others."""
        config: Any = super().config_of(directory)
        foreign = [name for name in config.adapters if not name.isdigit()]  # ftlab counts them; a path leads elsewhere
        if foreign:
            raise UserError(f"{directory}: {foreign[0]!r} is no adapter that ftlab has saved: save the mixture again")
        for name in config.adapters:
            read_config(directory / name)
        config.adapters = {name: str(directory / name) for name in config.adapters}
        return config

    def merge(self, network: nn.Module) -> PreTrainedModel:
        raise UserError("X-LoRA has no merged form, as its mixture depends on the text: export the adapter instead")


def _expert(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The matrices of one of the adapters, by the names that they have in peft's layout."""
    pattern = re.compile(rf"(model\..*\.lora_(?:embedding_)?[AB])\.{name}(\.weight)?")
    found = {key: (pattern.fullmatch(key), tensor) for key, tensor in network.state_dict().items()}
    return {match[1] + (match[2] or ""): tensor.contiguous() for match, tensor in found.values() if match}


def _lost(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the router, by the names under which the network holds them."""
    return {name: tensor.detach() for name, tensor in network.named_parameters() if ROUTER in name}
