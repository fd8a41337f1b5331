"""Every method of the peft library, by its own configuration class."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import peft
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError, first_misfit, one_line
from ftlab.methods import starts
from ftlab.methods.adapter_bits import plain
from ftlab.methods.base import Method
from ftlab.methods.belonging import Base, check_base
from ftlab.methods.saved_config import order_config, read_config
from ftlab.methods.targets import check_targets, keep_tied, linear_layers
from ftlab.methods.traits import CHECKPOINTS, bases_of, refusal, starts_as_the_base
from ftlab.networks import Quantization, base_kind, dequantised


class Peft(Method):
    """Adapts the network as a `peft.PeftConfig` says.

    Args:
        config: The configuration, by the class that peft documents, such as `peft.IA3Config` with its fields.
        quantization: Hold the frozen base in few bits, where the configuration can.
    """

    sees_to: ClassVar[frozenset[str]] = frozenset()
    """Configuration classes for which a subclass itself does what `Peft` refuses them for the lack of."""

    def __init__(self, config: peft.PeftConfig, quantization: Quantization | None = None) -> None:
        why = refusal(config)
        if why and type(config).__name__ not in self.sees_to:
            raise UserError(f"method.config {type(config).__name__}: {why}")
        _refuse_dropouts(config)
        self.config = config
        self.bases = bases_of(config)
        if quantization:
            self._quantise(quantization)
        self.rewrites_base = starts.rewrites_the_base(config)
        self.needs_batches = starts.needs_batches(config)
        self.identity_at_start = starts_as_the_base(config)
        self._base: Base | None = None
        self._start: dict[str, Tensor] = {}

    def _quantise(self, quantization: Quantization) -> None:
        if quantization.kind not in self.bases:
            raise UserError(
                f"method: {self.described} does not work on a base in {quantization.kind}, only on "
                f"{', '.join(sorted(self.bases - CHECKPOINTS))}: take one of these, or another method"
            )
        self.quantization = quantization

    @property
    def described(self) -> str:
        """What it is, with the options that decide on which base it works."""
        start, dora = starts.kind(self.config), getattr(self.config, "use_dora", False)
        options = [option for option, given in (("dora", dora), (f"init {start}", start)) if given]
        name = type(self.config if type(self) is Peft else self).__name__
        return f"{name} with {' and '.join(options)}" if options else name

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        config = self.config_for(network)
        config.task_type = config.task_type or peft.TaskType.CAUSAL_LM
        check_targets(config, network)
        keep_tied(config, network)
        self._base = Base.of(network)
        layers = linear_layers(network)  # before peft puts some of its own in their places
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Invalid `")  # OFT: it would take another block size
                adapted = starts.adapted(network, config, batches)
        except UserError:
            raise
        except Exception as error:  # peft says with whatever comes what it cannot do
            has_targets = hasattr(config, "target_modules") and not isinstance(config, peft.TrainableTokensConfig)
            hint = f"; its linear layers are {', '.join(layers)}" if has_targets else ""
            raise UserError(
                f"method: {type(config).__name__} cannot adapt {type(network).__name__} ({one_line(error)}){hint}"
            ) from error
        if starts.rewrites_the_base(config):
            self._start = {n: t.detach().cpu().clone() for n, t in peft.get_peft_model_state_dict(adapted).items()}
        return adapted

    def config_for(self, network: PreTrainedModel) -> peft.PeftConfig:
        """The configuration by which `network` is adapted: a copy, as peft writes into the one that it is given."""
        return copy.deepcopy(self.config)

    def save(self, network: nn.Module, directory: Path) -> None:
        """Writes the adapter alone, for the original base, in peft's layout.

        Where the start moved B0 A0 out of the base, the update on the original base is B A - B0 A0: a plain LoRA of
        twice the rank (peft, `subtract_mutated_init`).
        """
        assert isinstance(network, peft.PeftModel)
        with TemporaryDirectory() as start:
            if self._start:
                self._write_start(network, Path(start))
            network.save_pretrained(
                str(directory),
                save_embedding_layers=False,  # "auto" would ask the hub whether the vocabulary was resized
                path_initial_model_for_weight_conversion=start if self._start else None,
            )
        order_config(directory, network.peft_config[network.active_adapter])
        (directory / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        if self._base:
            self._base.write(directory)

    def _write_start(self, network: peft.PeftModel, directory: Path) -> None:
        config: Any = network.peft_config[network.active_adapter]
        mutated, config.init_lora_weights = config.init_lora_weights, False
        config.save_pretrained(str(directory))
        config.init_lora_weights = mutated
        save_file(self._start, str(directory / "adapter_model.safetensors"))

    def load(self, network: PreTrainedModel, directory: Path) -> nn.Module:
        check_base(directory, network)
        read_config(directory)
        self._base = Base.of(network)
        try:
            with plain(directory) as place, warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                return peft.PeftModel.from_pretrained(network, str(place), config=self.config_of(place))
        except (ValueError, RuntimeError, OSError, UserWarning) as error:
            raise UserError(f"{directory} holds no adapter that fits the network ({first_misfit(error)})") from error

    def config_of(self, directory: Path) -> peft.PeftConfig:
        """The configuration by which a saved adapter is opened."""
        return read_config(directory)

    def merge(self, network: nn.Module) -> PreTrainedModel:
        assert isinstance(network, peft.PeftModel)
        tuner: Any = network.base_model
        if not hasattr(tuner, "merge_and_unload"):
            raise UserError(f"{type(self.config).__name__} has no merged form: export the adapter instead")
        try:
            return tuner.merge_and_unload() if base_kind(network) == "full" else self._merge_dequantised(network)
        except (ValueError, NotImplementedError, TypeError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{type(self.config).__name__} cannot be folded into the weights ({one_line(error)}): export the "
                "adapter instead"
            ) from error

    def _merge_dequantised(self, network: peft.PeftModel) -> PreTrainedModel:
        """Merges into the weights that the few bits stand for: in place the sum would be rounded to few bits again."""
        weights = peft.get_peft_model_state_dict(network)
        config = network.peft_config[network.active_adapter]
        tuner: Any = network.base_model
        base = dequantised(tuner.unload())
        base = base.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
        adapted = peft.get_peft_model(base, config)
        peft.set_peft_model_state_dict(adapted, weights)
        merged: Any = adapted.base_model
        return merged.merge_and_unload()


def _refuse_dropouts(config: peft.PeftConfig) -> None:
    """Said here, and not where the network is open: a sweep is refused before it begins."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "dropout" in field.name and isinstance(value, int | float) and not 0 <= value < 1:
            raise UserError(f"method: {field.name} is {value}: it is a share, from 0 to below 1")
