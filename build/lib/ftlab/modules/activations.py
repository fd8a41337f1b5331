"""What is kept of a decoder block's forward pass for its backward pass: all of it, what its products come to, or its
input, here or in the host's memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from ftlab.errors import UserError

GradientCheckpointing = bool | Literal["selective", "offloaded"]
WAYS: tuple[GradientCheckpointing, ...] = (False, "selective", True, "offloaded")
"""From the fastest to the one that takes the least memory."""

_LONG = 256
"""Terms of a sum from which a product is worth keeping: a shorter one is computed again in about the time in which its
result is read from memory, as on a card that multiplies 200 times for each byte that it reads."""

Host = Callable[[], AbstractContextManager[Any]]


def checkpoint_blocks(network: PreTrainedModel, way: GradientCheckpointing, host: Host | None = None) -> None:
    """Has a network's decoder blocks keep less in the forward pass, and compute the rest again in the backward pass:
    the same numbers to the bit (Chen et al. 2016, arXiv 1604.06174).

    Args:
        network: Not yet adapted.
        way: False leaves it as it is. True keeps the inputs of blocks. "selective" also what matrix products and
            attention come to (Korthikanti et al. 2022, arXiv 2205.05198). "offloaded" keeps inputs in the host's
            memory.
        host: Makes the context in which tensors that are kept go elsewhere; by default to the host's memory.

    Raises:
        UserError: The network's blocks cannot be computed again.
    """
    if not way:
        return
    if not network.supports_gradient_checkpointing:
        raise UserError(
            f"model.gradient_checkpointing: blocks of {type(network).__name__} cannot be computed again: set it to "
            "false"
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if way == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_products)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if way == "offloaded":
        module: Any
        for module in network.modules():
            if computed_again := getattr(module, "_gradient_checkpointing_func", None):
                module._gradient_checkpointing_func = _away(computed_again, host or _host)


def refuse_offloading(way: GradientCheckpointing, device: torch.device) -> None:
    """Refuses to offload where activations are in the host's memory already."""
    if way == "offloaded" and device.type == "cpu":
        raise UserError(
            "model.gradient_checkpointing offloaded moves activations from a GPU to the host's memory, and this run "
            "has no GPU: set it to true"
        )


def _away(computed_again: Callable[..., Any], host: Host) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with host():  # of what is within, the inputs alone are kept
            return computed_again(*args, **kwargs)

    return call


def _host() -> AbstractContextManager[Any]:
    return save_on_cpu(pin_memory=torch.cuda.is_available())


def _keep_products(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    name = str(operation)
    place = _FACTORS.get(name)
    kept = name in _ATTENTION or (place is not None and args[place].shape[-1] >= _LONG)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_FACTORS = {
    "aten.mm.default": 0,
    "aten.bmm.default": 0,
    "aten.addmm.default": 1,
    "bitsandbytes.gemm_4bit.default": 0,
}
"""Products, and the place among their arguments of the first factor, whose last dimension is summed over."""

_ATTENTION = {
    f"aten._scaled_dot_product_{kernel}.default"
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
}
