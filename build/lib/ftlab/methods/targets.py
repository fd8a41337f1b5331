"""Which layers a peft configuration means: refused where they are not there, or are not what anybody asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import peft
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftlab.errors import UserError
from ftlab.methods.traits import rank_is_of_the_layer


def check_targets(config: peft.PeftConfig, network: PreTrainedModel) -> None:
    """Refuses names that match nothing, a pattern that also takes the embeddings or the head, and too large a rank.

    Raises:
        UserError: One of these.
    """
    _names_exist(config, network)
    _no_embedding_by_accident(config, network)
    _nothing_tied(config, network)
    _rank_fits(config, network)


def linear_layers(network: nn.Module) -> list[str]:
    """The distinct last names of the linear layers, in the order in which they stand."""
    return _last_names(name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D))


def name_all_linear(config: Any, network: PreTrainedModel) -> None:
    """Writes `all-linear` out as names, for what in peft takes names only. The head is not among them."""
    if config.target_modules == "all-linear":
        heads = head_names(network)
        config.target_modules = [name for name in linear_layers(network) if name not in heads]


def keep_tied(config: Any, network: PreTrainedModel) -> None:
    """Has peft train tied embeddings as the one matrix that they are, where either is trained whole beside LoRA.

    Raises:
        UserError: Beside anything else it cannot.
    """
    wanted = getattr(config, "modules_to_save", None) or ()
    tied = [name for name in _tied_names(network) if _last(name) in wanted]
    if not tied:
        return
    if not isinstance(config, peft.LoraConfig):
        raise UserError(
            f"method: modules_to_save {_last(tied[0])} beside {type(config).__name__}: {tied[0]} shares its matrix "
            "with the other end of the network (tied embeddings), and peft would train a copy of it; leave it out, or "
            "take LoRA, beside which the one matrix is trained"
        )
    config.ensure_weight_tying = True


def head_names(network: PreTrainedModel) -> set[str]:
    """The name of the output layer, in a set; none where the network has none."""
    head = network.get_output_embeddings()
    return {name for name, module in network.named_modules() if module is head}


def _names_exist(config: peft.PeftConfig, network: nn.Module) -> None:
    """Of several names, peft leaves out in silence those that match nothing."""
    modules = [name for name, _ in network.named_modules()]
    for field, option in {"target_modules": "targets", "modules_to_save": "modules_to_save"}.items():
        wanted = getattr(config, field, None)
        for name in sorted(wanted) if isinstance(wanted, list | set | tuple) else ():
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                there = linear_layers(network) if option == "targets" else _last_names(modules)
                raise UserError(f"method.{option}: the network has no {name!r}; there are {', '.join(there)}")


def _no_embedding_by_accident(config: peft.PeftConfig, network: PreTrainedModel) -> None:
    """A list of names asks for what it names; a regular expression must name it too."""
    pattern = getattr(config, "target_modules", None)
    if not isinstance(pattern, str) or pattern == "all-linear":
        return
    head = network.get_output_embeddings()
    for name, module in network.named_modules():
        last = _last(name)
        embeds = isinstance(module, nn.Embedding) or module is head
        if embeds and re.fullmatch(pattern, name) and last not in pattern:
            raise UserError(
                f"method.targets: {pattern!r} also matches {name}, which is {'the head' if module is head else 'an'}"
                f"{'' if module is head else ' embedding'}; write {last} into the expression if that is meant, or make "
                "the expression narrower"
            )


def _nothing_tied(config: peft.PeftConfig, network: PreTrainedModel) -> None:
    """An update beside one use of a shared matrix is none of the other: it could never be folded in."""
    if isinstance(config, peft.TrainableTokensConfig):  # rows of it, which peft changes at both ends
        return
    tied = _tied_names(network)
    for name, _ in _adapted(config, network):
        if name in tied:
            raise UserError(
                f"method.targets: {name} shares its matrix with the other end of the network (tied embeddings), and "
                "an update of one is not one of both: leave it out, or train it whole with modules_to_save "
                f"[{_last(name)}]"
            )


def _tied_names(network: PreTrainedModel) -> list[str]:
    """The names of the embeddings and of the head, where they share a matrix."""
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    if None in ends or getattr(ends[0], "weight", 0) is not getattr(ends[1], "weight", 1):
        return []
    return [name for name, module in network.named_modules() if any(module is end for end in ends)]


def _rank_fits(config: peft.PeftConfig, network: PreTrainedModel) -> None:
    """W + B A is of full rank at min(in, out): a larger one stores numbers that add nothing."""
    field = next((field for field in ("init_r", "r") if hasattr(config, field)), "")
    if not rank_is_of_the_layer(config) or not field:
        return
    for name, layer in _adapted(config, network):
        ranks = getattr(config, "rank_pattern", None) or {}
        rank: Any = ranks.get(get_pattern_key(list(ranks), name), getattr(config, field))
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        inputs, outputs = layer.weight.shape if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        if rank > min(inputs, outputs):
            raise UserError(
                f"method.{field} is {rank}, and {name} has {inputs} inputs and {outputs} outputs: give at most "
                f"{min(inputs, outputs)}, or leave {_last(name)} out of the targets"
            )


def _adapted(config: peft.PeftConfig, network: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    targets, heads = getattr(config, "target_modules", None), head_names(network)
    for name, module in network.named_modules():
        if targets == "all-linear":
            taken: object = isinstance(module, nn.Linear | Conv1D) and name not in heads
        else:
            taken = targets is not None and check_target_module_exists(config, name)
        if taken and not list(module.children()):
            yield name, module


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _last_names(names: Iterable[str]) -> list[str]:
    last = (_last(name) for name in names)
    return list(dict.fromkeys(name for name in last if name and not name.isdigit()))
