"""A network in shards: every process keeps a part of each tensor, and sees a block whole while it computes it.

At torch's level (`fully_shard`, FSDP2: Zhao et al. 2023, arXiv 2304.11277, rewritten over DTensor); of Lightning
`ftlab.modules.sharding.fsdp` knows.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ftlab.errors import UserError
from ftlab.modules.sharding.lockstep import Lockstep
from ftlab.modules.sharding.tensors import gather
from ftlab.networks import decoder_blocks, frozen_tensors, language_model


def shard(network: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, strategy: str) -> None:
    """Leaves each process its part of every parameter: rows of the first dimension, as torch.chunk gives them.

    Each decoder block is gathered by itself, before it is computed, and let go afterwards; all else (embeddings, final
    norm, head) is gathered before the first block and kept until the gradients are there.

    Args:
        network: On the CPU or the mesh's device, the same in all processes. Parameters are replaced.
        mesh: One dimension, all processes.
        policy: In which types blocks are gathered, and gradients summed.
        strategy: By which it is sharded, for what is refused.

    Raises:
        UserError: The network cannot be taken apart in this way.
    """
    model = language_model(network)
    blocks = blocks_of(model, strategy)
    _refuse_what_is_shared(model, blocks, strategy)
    _refuse_a_way_past(network, model, strategy)
    _refuse_hooks_on_gradients(network, strategy)
    scalars = {parameter for parameter in model.parameters() if not parameter.ndim}  # torch cannot
    for unit in (*blocks, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=scalars)
    whole = [name for name, p in network.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if whole:
        raise UserError(
            f"trainer.strategy {strategy}: {whole[0]} is trained and cannot be sharded, as it "
            f"{'has no dimension' if network.get_parameter(whole[0]) in scalars else 'lies outside the base network'}: "
            "take ddp, or another method"
        )


def policy_for(precision: str) -> MixedPrecisionPolicy:
    """In which types blocks are gathered and computed, and gradients summed, for a trainer's precision.

    With bf16-mixed the parts stay float32, and cross in bfloat16. Gradients of bfloat16 are summed in float32.
    """
    if precision == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if precision in ("bf16-true", "16-true"):
        return MixedPrecisionPolicy(reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def blocks_of(model: PreTrainedModel, strategy: str) -> list[nn.Module]:
    """Its decoder blocks.

    Raises:
        UserError: They cannot be told, and `strategy` takes a network apart by them.
    """
    try:
        return list(decoder_blocks(model))
    except UserError as error:
        raise UserError(
            f"trainer.strategy {strategy}: a network is sharded by its decoder blocks, and those of "
            f"{type(model).__name__} cannot be told: take ddp"
        ) from error


def used_by_several(model: PreTrainedModel, blocks: list[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a block, by name, that another block or something outside of the blocks has, too."""
    owners = Counter(parameter for block in blocks for parameter in block.parameters())
    inside = {module for block in blocks for module in block.modules()}
    outside = {p for module in model.modules() if module not in inside for p in module.parameters(recurse=False)}
    return [(n, p) for n, p in model.named_parameters() if owners[p] > 1 or (owners[p] and p in outside)]


def _refuse_what_is_shared(model: PreTrainedModel, blocks: list[nn.Module], strategy: str) -> None:
    """A tensor of two blocks would be in two places, and have two gradients; and the gradients of a block are summed in
    one type."""
    for name, _ in used_by_several(model, blocks):
        raise UserError(
            f"trainer.strategy {strategy}: {name} is a tensor of several decoder blocks, which are sharded apart: take "
            "ddp, or another method"
        )
    for block in blocks:
        types = {str(p.dtype).removeprefix("torch.") for p in block.parameters() if p.requires_grad}
        if len(types) > 1:
            raise UserError(
                f"trainer.strategy {strategy}: a decoder block trains tensors in {' and '.join(sorted(types))}: set "
                "model.network.dtype float32, so that all are of one type"
            )


def _refuse_a_way_past(network: nn.Module, model: PreTrainedModel, strategy: str) -> None:
    """A wrapper that calls the model's `forward` instead of the model has nothing gathered."""
    for module in network.modules():
        if module is not model and getattr(vars(module).get("forward"), "__self__", None) is model:
            raise UserError(
                f"trainer.strategy {strategy}: {type(module).__name__} calls the network past the hooks that gather "
                "it: take ddp, or another method"
            )


def _refuse_hooks_on_gradients(network: nn.Module, strategy: str) -> None:
    """Parameters are replaced, and what was to be done with their gradients is lost, or would be done with a part."""
    for name, parameter in network.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UserError(
                f"trainer.strategy {strategy}: the method changes the gradient of {name}, of which a process has its "
                "part alone: take ddp, or another method"
            )


class Skeleton:
    """A network's modules without its parameters, so that there is something to put these into when they are gathered:
    a sharded network cannot be copied, and only the first process has use for a whole one.

    Args:
        network: Not sharded yet.
    """

    def __init__(self, network: nn.Module) -> None:
        bones = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in network.parameters()}
        self.network: nn.Module = copy.deepcopy(network, dict(bones))

    def filled(self, network: nn.Module, keep: bool) -> nn.Module | None:
        """The network on the CPU with the parameters of `network`, in the mode that it is in; None where not `keep`. To
        be called by all processes."""
        full = gather(dict(network.named_parameters()), keep)
        if not keep:
            return None
        flesh = {id(p): nn.Parameter(full[name], p.requires_grad) for name, p in self.network.named_parameters()}
        for module in self.network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # tied ones stay one
                    module._parameters[name] = flesh[id(parameter)]
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
        return self.network.train(network.training)


def _refuse_inference_mode(*_: Any) -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError("a network in shards computes under torch.no_grad(), and not torch.inference_mode()")


class Sharded:
    """A network in shards, with what is needed to judge it and to have it whole again.

    Args:
        network: Not sharded yet, the same in all processes.
        mesh: One dimension, all processes.
        policy: In which types blocks are gathered, and gradients summed.
        device: This process's.
        strategy: By which it is sharded, for what is refused.
    """

    what = "weights, gradients and moments"

    def __init__(
        self, network: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, device: torch.device, strategy: str
    ) -> None:
        self.strategy = strategy
        self._network = network
        self._skeleton = Skeleton(network)
        shard(network, mesh, policy, strategy)
        self._lockstep = Lockstep(network, device)
        language_model(network).register_forward_pre_hook(_refuse_inference_mode, prepend=True)

    def parts(self, trained: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """What this process holds of the tensors not named in `trained`."""
        return frozen_tensors(self._network, trained)

    def finish_judging(self) -> None:
        """To be called by all processes when each has judged its own records: see `Lockstep`."""
        self._lockstep.finish()
        model: Any = language_model(self._network)
        model.reshard()  # no backward pass has done it: whole tensors would stand in the place of parts

    def whole_network(self, keep: bool) -> nn.Module | None:
        """All of it as it stands, on the CPU; None where not `keep`. To be called by all processes."""
        return self._skeleton.filled(self._network, keep)
