"""Which parameters are matrices of hidden layers, for optimisers that treat these in their own way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftlab.errors import UserError

Groups = list[dict[str, Any]]


def mark_hidden(network: nn.Module) -> None:
    """Has every parameter of `network` say whether it is a matrix of a hidden layer, in its attribute `hidden`.

    An optimiser is given parameters without names, and no shape tells an embedding of positions, or a head, from a
    layer. Not hidden are embeddings and the head with all that an adapter holds beside them, vectors (also those
    that an adapter stores as a matrix with one row or column), and stacks of matrices.
    """
    outside: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            outside.append(module)
        if isinstance(module, PreTrainedModel):
            ends = module.get_input_embeddings(), module.get_output_embeddings()
            outside += [end for end in ends if end is not None]
    apart = {id(parameter) for module in outside for parameter in module.parameters()}
    for parameter in network.parameters():
        parameter.hidden = parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in apart  # type: ignore[attr-defined]


def split(groups: Iterable[dict[str, Any]], rank: int, name: str) -> tuple[Groups, Groups]:
    """Each group's matrices of hidden layers with both sides above `rank`, and each group's other parameters; what
    else a group carries goes into both halves, and empty halves are left out.

    Raises:
        UserError: There is no such matrix, nobody has called `mark_hidden`, or these are no groups.
    """
    groups = list(groups)
    if not all(isinstance(group, dict) for group in groups):
        raise UserError(f"model.optimizer: {name} wants groups of parameters, as method.param_groups(network) gives")
    matrices: Groups = []
    rest: Groups = []
    for group in groups:
        chosen = [p for p in group["params"] if _is_hidden(p, name) and min(p.shape) > rank]
        ids = {id(parameter) for parameter in chosen}
        others = [parameter for parameter in group["params"] if id(parameter) not in ids]
        matrices += [group | {"params": chosen}] if chosen else []
        rest += [group | {"params": others}] if others else []
    if not matrices:
        above = f" with more than {rank} rows and columns" if rank > 1 else ""
        raise UserError(
            f"model.optimizer: {name} is for matrices of hidden layers{above}, and this method trains none; "
            + ("lower its rank or give torch.optim.AdamW" if rank > 1 else "give torch.optim.AdamW")
        )
    return matrices, rest


def _is_hidden(parameter: Tensor, name: str) -> bool:
    if not hasattr(parameter, "hidden"):
        raise UserError(
            f"model.optimizer: {name} does not know which parameters are matrices of hidden layers; call "
            "ftlab.modules.optimizers.mark_hidden(network) before it is made"
        )
    return bool(parameter.hidden)
