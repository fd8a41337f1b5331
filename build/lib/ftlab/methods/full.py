"""Full fine-tuning: every weight, or some: by name, the last blocks, biases or norms alone; and rates by depth."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods.base import Method
from ftlab.networks import decoder_blocks


class Full(Method):
    """Trains the network's own weights: all, or what `trainable` and `last_blocks` choose, and of that `only` a kind.

    A tied tensor is one parameter, trained under its first name: of tied embeddings, that of the input.

    Args:
        trainable: Patterns (`*` matches anything) of the parameter names to train, such as `*.layers.3.*` or
            `*norm*`.
        last_blocks: Number of decoder blocks to train, counted from the last (Lee et al. 2019, arXiv 1911.03090). The
            blocks alone, as in LLaMA-Factory's freeze tuning: final norm and head where `trainable` names them too.
        only: `biases` trains the bias vectors (BitFit, Zaken et al. 2021, arXiv 2106.10199), `norms` the weights and
            biases of the normalisation layers (Zhao et al. 2023, arXiv 2312.11420).
        layer_decay: Share of the rate of the block above at which a block learns (Howard & Ruder 2018, arXiv
            1801.06146, take 1/2.6; ELECTRA, Clark et al. 2020, arXiv 2003.10555, 0.8 and 0.9). Head and final norm
            learn at the full rate, the last block at `layer_decay` of it; the embeddings, tied ones too, come last.
    """

    def __init__(
        self,
        trainable: list[str] | None = None,
        last_blocks: int | None = None,
        only: Literal["all", "biases", "norms"] = "all",
        layer_decay: float = 1.0,
    ) -> None:
        if not 0 < layer_decay <= 1:
            raise UserError(f"method.layer_decay is {layer_decay}: give a share above 0 and up to 1, which is no decay")
        self.trainable = trainable
        self.last_blocks = last_blocks
        self.only = only
        self.layer_decay = layer_decay

    def adapt(self, network: PreTrainedModel, batches: Iterable[dict[str, Tensor]] | None = None) -> nn.Module:
        chosen = self._chosen(network)
        trained = {name for name, parameter in chosen.items() if self._is_wanted_kind(network, name, parameter)}
        if not trained:
            raise UserError(
                f"method.only {self.only}: {type(network).__name__} has none among "
                f"{', '.join(_one_of_each_kind(chosen))}; choose others, or a network that has some"
            )
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)
        return network

    def _chosen(self, network: PreTrainedModel) -> dict[str, nn.Parameter]:
        """What `trainable` and `last_blocks` choose, by its first name."""
        if self.trainable is None and self.last_blocks is None:
            return dict(network.named_parameters())
        chosen = self._matched(network)
        if self.last_blocks is not None:
            blocks = decoder_blocks(network)
            if not 1 <= self.last_blocks <= len(blocks):
                raise UserError(
                    f"method.last_blocks is {self.last_blocks}: {type(network).__name__} has {len(blocks)} blocks, "
                    f"give 1 to {len(blocks)}"
                )
            chosen |= {id(p) for block in blocks[-self.last_blocks :] for p in block.parameters()}
        if not chosen:
            raise UserError("method.trainable is empty, so nothing would be trained: leave it out to train all")
        return {name: p for name, p in network.named_parameters() if id(p) in chosen}

    def _matched(self, network: PreTrainedModel) -> set[int]:
        """The ids of the parameters that `trainable` matches."""
        patterns = self.trainable or []
        first_names = {id(p): name for name, p in network.named_parameters()}
        every_name = list(network.named_parameters(remove_duplicate=False))
        matched = set()
        for pattern in patterns:
            found = {name: id(p) for name, p in every_name if fnmatchcase(name, pattern)}
            if not found:
                raise UserError(
                    f"method.trainable: no parameter matches {pattern!r}; there are, among {len(first_names)}: "
                    + ", ".join(_one_of_each_kind(first_names.values()))
                )
            for name, parameter in found.items():
                first = first_names[parameter]
                # trained in silence, both would be: whoever names the head alone does not expect that
                if not any(fnmatchcase(first, other) for other in patterns):
                    raise UserError(
                        f"method.trainable: {name}, which {pattern!r} matches, is tied with {first}: name that to "
                        "train the one tensor that they are"
                    )
            matched |= set(found.values())
        return matched

    def _is_wanted_kind(self, network: nn.Module, name: str, parameter: nn.Parameter) -> bool:
        owner, _, last = name.rpartition(".")
        if self.only == "biases":
            return last.endswith("bias")
        if self.only == "norms":
            return "norm" in type(network.get_submodule(owner)).__name__.lower()
        return True

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """As for every method, each split by depth where rates decay: the full rate first, the embeddings' last."""
        groups = super().param_groups(network)
        if self.layer_decay == 1.0:
            return groups
        assert isinstance(network, PreTrainedModel)
        depths = _depths(network)
        split = [
            group
            | {"params": [p for p in group["params"] if depths[id(p)] == depth], "lr_scale": self.layer_decay**depth}
            for depth in sorted(set(depths.values()))
            for group in groups
        ]
        return [group for group in split if group["params"]]

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


def _depths(network: PreTrainedModel) -> dict[int, int]:
    """How far from the top, by the id of a parameter: 0 head and final norm, 1 the last block, most the embeddings."""
    blocks = decoder_blocks(network)
    depths = {id(p): 0 for p in network.parameters()}
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            depths |= {id(p): len(blocks) + 1 for p in module.parameters()}
    for number, block in enumerate(blocks):
        depths |= {id(p): len(blocks) - number for p in block.parameters()}
    return depths


def _one_of_each_kind(names: Iterable[str]) -> list[str]:
    """The names with their layer numbers starred, each once: what patterns are made of."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
