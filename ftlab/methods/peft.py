"""Every method of the peft library, by its own configuration class."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.base import Method
from ftlab.networks import Quantization


class Peft(Method):
    """Adapts the network as a `peft.PeftConfig` says.

    Args:
        config: The configuration, by the class that peft documents, such as `peft.IA3Config` with its fields.
        quantization: Hold the frozen base in few bits, where the configuration can.
    """

    bases = frozenset({"full", "nf4", "fp4", "int8"})

    def __init__(self, config: peft.PeftConfig, quantization: Quantization | None = None) -> None:
        self.config = config
        self.quantization = quantization

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        config = self.config_for(network)
        config.task_type = config.task_type or peft.TaskType.CAUSAL_LM
        _names_must_exist(config, network)
        try:
            return peft.get_peft_model(network, config)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"method: {type(self.config).__name__} cannot adapt {type(network).__name__} ({_sentence(error)}); "
                f"its linear layers are {', '.join(linear_layers(network))}"
            ) from error

    def config_for(self, network: PreTrainedModel) -> peft.PeftConfig:
        """The configuration by which `network` is adapted: a copy, as peft writes into the one that it is given."""
        return copy.deepcopy(self.config)

    def save(self, network: nn.Module, directory: Path) -> None:
        """Writes the adapter alone, in peft's layout."""
        assert isinstance(network, peft.PeftModel)
        # "auto" would ask the hub whether the vocabulary was resized
        network.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                return peft.PeftModel.from_pretrained(network, str(directory))
        except (ValueError, RuntimeError, OSError, UserWarning) as error:
            raise UserError(f"{directory} holds no adapter that fits the network ({_sentence(error)})") from error

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, peft.PeftModel)
        tuner: Any = network.base_model
        if not hasattr(tuner, "merge_and_unload"):
            raise UserError(f"{type(self.config).__name__} has no merged form: export the adapter instead")
        if self.quantization:
            return self._merge_dequantised(network)
        return tuner.merge_and_unload()

    def _merge_dequantised(self, network: peft.PeftModel) -> PreTrainedModel:
        """Merges into the weights that the few bits stand for: in place the sum would be rounded to few bits again."""
        weights = peft.get_peft_model_state_dict(network)
        config = network.peft_config[network.active_adapter]
        tuner: Any = network.base_model
        base = tuner.unload().dequantize()
        base = base.to(next(iter(weights.values())).dtype)
        adapted = peft.get_peft_model(base, config)
        peft.set_peft_model_state_dict(adapted, weights)
        merged: Any = adapted.base_model
        return merged.merge_and_unload()


def _names_must_exist(config: peft.PeftConfig, network: nn.Module) -> None:
    """Of several names, peft leaves out in silence those that match nothing."""
    modules = [name for name, _ in network.named_modules()]
    for field, option in {"target_modules": "targets", "modules_to_save": "modules_to_save"}.items():
        wanted = getattr(config, field, None)
        for name in sorted(wanted) if isinstance(wanted, list | set | tuple) else ():
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                there = linear_layers(network) if option == "targets" else _last_names(modules)
                raise UserError(f"method.{option}: the network has no {name!r}; there are {', '.join(there)}")


def linear_layers(network: nn.Module) -> list[str]:
    """The distinct last names of the linear layers, in the order in which they stand."""
    return _last_names(name for name, module in network.named_modules() if isinstance(module, nn.Linear))


def _last_names(names: Iterable[str]) -> list[str]:
    last = (name.rsplit(".", 1)[-1] for name in names)
    return list(dict.fromkeys(name for name in last if name and not name.isdigit()))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
