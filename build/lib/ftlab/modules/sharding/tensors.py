"""Whole tensors and the parts of them that a process has, of which FSDP2 makes `DTensor`s."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process has a part; any other as it is. To be called by all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of `tensor`, which all have whole, cut as `like` is. Nothing crosses between processes."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    mine = tensor.to(like.device)
    return distribute_tensor(mine, like.device_mesh, like.placements, src_data_rank=None)


def gather(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors whole, on the CPU, one after the other; nothing where not `keep`. To be called by all processes."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu()
    return found


def whole_state(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """The optimiser's state as a single process would have it, on the CPU; nothing where not `keep`. To be called by
    all processes."""
    state = optimizer.state_dict()
    moments: dict[Any, dict[str, Any]] = {}
    for number, values in state["state"].items():
        tensors = gather({name: value for name, value in values.items() if isinstance(value, Tensor)}, keep)
        moments[number] = {name: tensors.get(name, value) for name, value in values.items()}
    return state | {"state": moments} if keep else {}


def parts_of(content: Any) -> Any:
    """Nested values with this process's parts of tensors in place of these."""
    return apply_to_collection(content, DTensor, lambda tensor: tensor.detach().to_local())


def own_state(state: dict[str, Any], optimizer: Optimizer, is_own: bool = False) -> dict[str, Any]:
    """This process's part of what `whole_state` gave, as `optimizer` can load it.

    Args:
        state: Whole, or this process's part as `parts_of` gave it.
        optimizer: Over parameters in shards.
        is_own: Whether it is the part.
    """
    cut = _as_part if is_own else part_of
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))
    moments = {
        number: {
            name: cut(value, by_number[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return state | {"state": moments}


def _as_part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor of the shape of `like`, as part of that; any other as it is."""
    if not isinstance(like, DTensor) or tensor.shape != like.to_local().shape:
        return tensor
    own = tensor.to(like.device)
    return DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
