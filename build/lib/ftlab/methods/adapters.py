"""Several saved adapters on one base, each answering as if it stood there alone.

They may come from anywhere that writes peft's layout. What a method does beyond that layout belongs to the method.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import peft
import torch
from peft.tuners import lora
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ftlab.errors import UserError, first_misfit, one_line
from ftlab.methods import starts
from ftlab.methods.adapter_bits import plain
from ftlab.methods.belonging import Base, check_base, check_noted
from ftlab.methods.saved_config import order_config, read_config

Combination = Literal[
    "cat",
    "linear",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
"""How peft's `add_weighted_adapter` combines. `cat` is the weighted sum of the updates itself, of the ranks' sum;
`svd` its best approximation of the largest rank; `linear` sums A and B each by itself, and B A then has products of
one's B with another's A. TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2024, arXiv 2311.03099) and
pruning act on A and B, with `_svd` on the updates."""

# Starts that leave the base as it is when peft begins the adapter anew, as it does before it reads the weights.
_STARTS_BESIDE_THE_BASE = ("", "gaussian", "orthogonal", "eva")

# Of a LoRA configuration: what a combination takes into account, or does not need. Anything else that is set (whole
# layers, biases, magnitudes) peft would leave out of it or take from the first adapter.
_COMBINED = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
}

# Parts of names of tensors that layers share: peft reports them missing where they are not.
_SHARED = ("prompt_encoder", "vblora_vector_bank")


class Adapters:
    """A base with adapters that are switched, or mixed within a batch.

    Args:
        base: Freshly opened, as the adapters want it.
        directories: Where each adapter lies, in peft's layout or in few bits, by a name of the caller's choice.

    Attributes:
        network: The base with all of them, in evaluation mode.

    Raises:
        UserError: One is no adapter of this base, or does not stand beside the others.
    """

    network: peft.PeftModel

    def __init__(self, base: PreTrainedModel, directories: Mapping[str, Path]) -> None:
        _must_go_together({name: read_config(directory) for name, directory in directories.items()})
        for directory in directories.values():
            check_base(directory, base)
        self._base = Base.of(base)
        # Names of our own for peft, which takes some of a user's for its own: "a" is a part of "lora_".
        self._inside: dict[str, str] = {}
        own = self._own = {name for name, _ in base.named_parameters()}
        for name, directory in directories.items():
            with plain(directory) as place:
                self._load(base, name, directory, place)
                self._must_leave_the_base(name, directory, place, own)
        self.use(self.names[0])
        self.network.eval()

    @property
    def names(self) -> list[str]:
        """All adapters, in the order in which they came."""
        return list(self._inside)

    @property
    def mixes(self) -> bool:
        """Whether rows of one batch may be for different adapters.

        peft can for plain LoRA. Beside layers that are trained whole (modules_to_save) it cannot, unless all have them.
        """
        if type(self.network.base_model) is not lora.LoraModel:
            return False
        modules, mixing = list(self.network.modules()), _mixing()
        layers: list[Any] = [module for module in modules if isinstance(module, lora.LoraLayer)]
        return all(isinstance(layer, mixing) and not layer.lora_variant for layer in layers) and not any(
            isinstance(module, AuxiliaryTrainingWrapper) for module in modules
        )

    def add(self, name: str, directory: Path) -> None:
        """Puts one more adapter beside the others, which answer as before whatever comes of it.

        Args:
            name: Of the caller's choice.
            directory: Where it lies, in peft's layout or in few bits.

        Raises:
            UserError: As for the first ones; also where it holds layers trained whole or tensors of the base, which
                peft would put where the others have theirs.
        """
        if name in self._inside:
            raise UserError(f"there is an adapter {name!r} already: give another name")
        given = {mine: self.network.peft_config[inside] for mine, inside in self._inside.items()}
        _must_go_together({**given, name: read_config(directory)})
        check_noted(directory, self._base)
        with plain(directory) as place:
            try:
                keys = list(load_peft_weights(str(place), device="cpu"))
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(f"{name}: {directory} cannot be read ({one_line(error)}): get it anew") from error
            for key in keys:
                if key.removeprefix("base_model.model.") in self._own:
                    raise UserError(f"{name}: {directory} also holds {key!r} of the base: give it from the start")
            inside = self._next()
            try:
                self._load(None, name, directory, place)
            except UserError:
                if inside in self.network.peft_config:  # or peft would take the next of this name for loaded
                    self.network.delete_adapter(inside)
                raise
        self.network.eval()

    def use(self, name: str) -> None:
        """Switches to one adapter for whatever `network` is asked next."""
        self.network.set_adapter(self._inside[name], inference_mode=True)

    def rows(self, names: Sequence[str]) -> list[str]:
        """The names by which the network's own `adapter_names` knows these: for a mixed batch."""
        return [self._inside[name] for name in names]

    def combine(
        self, name: str, weights: Mapping[str, float], kind: Combination = "cat", density: float | None = None
    ) -> None:
        """Makes one more adapter out of several.

        Args:
            name: Of the new one.
            weights: What each takes part with; they need not sum to 1.
            kind: How they are combined.
            density: Share of the values that TIES, DARE and pruning keep. DARE draws them at random, always alike.

        Raises:
            UserError: These adapters cannot be combined so.
        """
        if name in self._inside:
            raise UserError(f"the combination {name!r} has the name of an adapter: give it another")
        _check_density(kind, density)
        configs = self._combinable(weights)
        patterned = [mine for mine, config in configs.items() if config.rank_pattern]
        if patterned and kind != "cat" and not kind.endswith("svd"):
            raise UserError(
                f"{patterned[0]} has layers of different ranks, which {kind} cannot combine: take cat or an svd"
            )
        inside, device = self._next(), self.network.device
        given = dict(self.network.peft_config)
        try:
            self.network.peft_config.update({self._inside[mine]: config for mine, config in configs.items()})
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(0)
                tuner: Any = self.network.base_model
                tuner.add_weighted_adapter(
                    [self._inside[mine] for mine in weights],
                    list(weights.values()),
                    inside,
                    kind,
                    svd_full_matrices=False,
                    density=density,
                )
        except ValueError as error:
            self.network.peft_config.pop(inside, None)  # or else peft takes the next of this name for made
            raise UserError(
                f"{', '.join(weights)} cannot be combined by {kind} ({one_line(error)}): take cat or svd"
            ) from error
        finally:
            self.network.peft_config.update(given)
        self._inside[name] = inside
        self.use(name)
        self.network.eval()

    def save(self, name: str, directory: Path) -> None:
        """Writes one adapter into a new directory, in peft's layout.

        Raises:
            UserError: The directory exists.
        """
        if directory.exists():
            raise UserError(f"{directory} exists: give a new directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        inside = self._inside[name]
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as place:
            # "auto" would ask the hub whether the vocabulary was resized
            self.network.save_pretrained(place, selected_adapters=[inside], save_embedding_layers=False)
            order_config(Path(place) / inside, self.network.peft_config[inside])
            self._base.write(Path(place) / inside)
            shutil.move(Path(place) / inside, directory)

    def _load(self, base: PreTrainedModel | None, name: str, directory: Path, place: Path) -> None:
        """Puts the adapter of `directory`, which lies at `place` in peft's layout, beside the others."""
        inside = self._next()
        beside = f" beside {', '.join(self._inside)}" if self._inside else ""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                if base is not None and not self._inside:
                    self.network = peft.PeftModel.from_pretrained(base, str(place), adapter_name=inside)
                # the first once more: only this tells what was left over
                result = self.network.load_adapter(str(place), inside)
        except (ValueError, RuntimeError, OSError, KeyError, TypeError, UserWarning, SafetensorError) as error:
            raise UserError(
                f"{name}: {directory} holds no adapter that fits the network{beside} ({first_misfit(error)})"
            ) from error
        missing = [key for key in result.missing_keys if not any(part in key for part in _SHARED)]
        if missing:
            raise UserError(f"{name}: {directory} lacks {missing[0]!r} and {len(missing) - 1} more tensors")
        # Of layers: a prompt's own peft reads apart, and reports. peft loads without what has no place, such as the
        # layers of another network, or the output embeddings of a second adapter that trains tied ones whole.
        foreign = [key for key in result.unexpected_keys if key.startswith("base_model.")]
        if foreign:
            raise UserError(f"{name}: {directory} has {foreign[0]!r}, which has no place in the network{beside}")
        self._inside[name] = inside

    def _must_leave_the_base(self, name: str, directory: Path, place: Path, own: set[str]) -> None:
        """Refuses embeddings that peft saved beside the adapter: they are put into the base, for all of them."""
        adapter = peft.get_peft_model_state_dict(
            self.network, adapter_name=self._inside[name], save_embedding_layers=False
        )
        for key in load_peft_weights(str(place), device="cpu"):
            if key not in adapter and key.removeprefix("base_model.model.") in own:
                raise UserError(f"{name}: {directory} also holds {key!r} of the base, which all adapters share")

    def _next(self) -> str:
        return f"adapter_{len(self._inside)}"

    def _combinable(self, names: Mapping[str, float]) -> dict[str, lora.LoraConfig]:
        """Configurations of these adapters from which peft makes the right one for their combination."""
        unknown = [name for name in names if name not in self._inside]
        if unknown:
            raise UserError(f"there is no adapter {unknown[0]!r} to combine: there are {', '.join(self.names)}")
        configs: dict[str, Any] = {name: self.network.peft_config[self._inside[name]] for name in names}
        for name, config in configs.items():
            if type(config) is not lora.LoraConfig:
                raise UserError(f"{name} is {_kind(config)}, and only LORA adapters can be combined")
            for field in dataclasses.fields(config):
                default = field.default_factory() if callable(field.default_factory) else field.default
                value = getattr(config, field.name)
                if field.name not in _COMBINED and value != default and (value or default):
                    raise UserError(f"{name} has {field.name}, which peft leaves out of a combination")
        named = all(
            isinstance(config.target_modules, set)
            and not (config.layers_to_transform or config.layers_pattern or config.exclude_modules)
            for config in configs.values()
        )
        return {
            name: dataclasses.replace(
                config,
                # peft takes both from the first: a scale by the root of the rank, and a start that may change the base
                use_rslora=False,
                init_lora_weights=True,
                # it joins names; which layers they mean, numbers and exceptions, it takes from the first too
                target_modules=config.target_modules if named else self._layers(name),
                layers_to_transform=None,
                layers_pattern=None,
                exclude_modules=None,
            )
            for name, config in configs.items()
        }

    def _layers(self, name: str) -> set[str]:
        """The full names of the layers that an adapter changes."""
        inside, base = self._inside[name], self.network.get_base_model()
        return {
            where
            for where, module in base.named_modules()
            if isinstance(module, lora.LoraLayer) and (inside in module.lora_A or inside in module.lora_embedding_A)
        }


def _must_go_together(configs: Mapping[str, peft.PeftConfig]) -> None:
    (first, one), *others = configs.items()
    for name, other in others:
        if other.peft_type != one.peft_type:
            raise UserError(
                f"{first} is {_kind(one)} and {name} is {_kind(other)}: one base holds adapters of one method"
            )
    for name, config in configs.items():
        if others and starts.kind(config) not in _STARTS_BESIDE_THE_BASE:
            raise UserError(
                f"{name} changes the base that the others stand on (init_lora_weights is {starts.kind(config)}): "
                "convert it to plain LoRA, as ftlab saves it, or use it alone"
            )


def _mixing() -> tuple[Any, ...]:
    """Layers of LoRA that look at which adapter each row is for."""
    of_few_bits = (getattr(lora, name, None) for name in ("Linear4bit", "Linear8bitLt"))
    return (lora.Linear, lora.Embedding, *(layer for layer in of_few_bits if layer))


def _kind(config: peft.PeftConfig) -> str:
    return peft.PeftType(config.peft_type).value


def _check_density(kind: str, density: float | None) -> None:
    prunes = kind.startswith(("ties", "dare", "magnitude_prune"))
    if prunes and density is None:
        raise UserError(f"{kind} needs a density: the share of values that is kept, above 0 and at most 1")
    if density is not None and not prunes:
        raise UserError(f"{kind} keeps every value: leave the density out, or take a kind that prunes")
    if density is not None and not 0 < density <= 1:
        raise UserError(f"the density is {density}: it is the share of values that is kept, above 0 and at most 1")
