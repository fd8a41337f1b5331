"""What the processes of a distributed run tell each other."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# Gradients stand in the buckets that cross, instead of beside them: 4 bytes less for each trained parameter.
StrategyRegistry.register(
    "ddp",
    DDPStrategy,
    description="DistributedDataParallel, gradients in its buckets",
    override=True,
    start_method="popen",
    gradient_as_bucket_view=True,
)


def distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized()


def share_only(module: nn.Module, names: set[str]) -> None:
    """Has DistributedDataParallel send these parameters alone from one process to the others.

    It would send the frozen base when it is made, and every buffer again at each forward. All processes read them from
    the same files; `FrozenBase` compares what they have read.
    """
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    own = [name for name, _ in tensors if name not in names]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, own)


def summed(values: Tensor, device: torch.device) -> Tensor:
    """`values` (any shape) added over all processes, by way of `device`, on the CPU. To be called by all of them."""
    return summed_there(values.to(device)).cpu() if distributed() else values


def summed_there(values: Tensor) -> Tensor:
    """`values` (any shape), which are changed, added over all processes on their device, for which nobody waits. To be
    called by all of them, where there are others."""
    dist.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """The value of every process, by rank; of a single process, its own. To be called by all of them."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
