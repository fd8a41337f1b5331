"""The frozen base in shards: every process keeps a part of each decoder block's frozen tensors, and has a block whole
while it computes it. What is trained stays whole in every process, as with DDP.

This is stage 3 of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) for parameters that have no gradient. They are
gathered as bytes, whatever they stand for, so that a base in 4 bits goes as any other: torch's FSDP2 damages one
(bitsandbytes #1945), and FSDP1 gives modules other names, wants one type for all, and is no longer developed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from ftlab.modules.sharding.lockstep import Lockstep
from ftlab.modules.sharding.network import blocks_of, used_by_several
from ftlab.networks import decoder_blocks, frozen_tensors, language_model, plain_parts

_ALIGNED = 16
"""Bytes at a multiple of which each tensor begins, so that any type may stand there."""


def frozen_in_blocks(network: nn.Module, trained: Collection[str]) -> list[list[nn.Parameter]]:
    """Of each decoder block, the tensors that are never trained, and that nothing outside of it has.

    Args:
        network: As its method has adapted it.
        trained: Names of the parameters of `network` that are ever trained.

    Raises:
        UserError: The network's decoder blocks cannot be told.
    """
    model = language_model(network)
    blocks = blocks_of(model, "fsdp")
    whole = {parameter for name, parameter in network.named_parameters() if name in trained}
    whole.update(parameter for _, parameter in used_by_several(model, blocks))
    return [[parameter for parameter in block.parameters() if parameter not in whole] for block in blocks]


class FrozenShards:
    """A network whose blocks' frozen tensors are in shards; what is outside of its blocks stays whole.

    Args:
        network: On the CPU, or on `device`; the same in all processes. Its frozen tensors are replaced: until a block
            is gathered, those of floats are NaN.
        trained: Names of the parameters of `network` that are ever trained.
        device: This process's.

    Raises:
        UserError: The network's decoder blocks cannot be told.
    """

    what = "frozen tensors of decoder blocks"

    def __init__(self, network: nn.Module, trained: Collection[str], device: torch.device) -> None:
        self._network = network
        self._units = [_Unit(frozen, device) for frozen in frozen_in_blocks(network, trained)]
        for number, block in enumerate(decoder_blocks(language_model(network))):
            block.register_forward_pre_hook(partial(self._before, number), with_kwargs=True, prepend=True)
            block.register_forward_hook(partial(self._after, number))
        self._lockstep = Lockstep(network, device)

    def parts(self, trained: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """What this process holds of the frozen tensors: parts of blocks, and whole what is not in shards."""
        sharded = {parameter for unit in self._units for parameter in unit.parameters}
        for number, unit in enumerate(self._units):
            yield f"block {number}", unit.own
        for name, tensor in frozen_tensors(self._network, trained):
            if tensor in sharded:
                yield from ((name, part) for part in plain_parts(tensor) if part is not tensor)  # scales stay whole
            else:
                yield name, tensor

    # ---------------------------------------------------------------- forward and backward

    def _before(self, number: int, block: nn.Module, args: Any, kwargs: Any) -> None:
        unit = self._units[number]
        unit.gather()
        if unit.in_backward:  # computed again, for a checkpoint
            return
        if number + 1 < len(self._units):
            self._units[number + 1].start()
        inputs = _with_gradients((args, kwargs))
        if inputs:
            register_multi_grad_hook(inputs, lambda *_: unit.release(), mode="all")

    def _after(self, number: int, block: nn.Module, args: Any, output: Any) -> None:
        unit = self._units[number]
        if unit.in_backward:
            return
        unit.release()
        outputs = _with_gradients(output)
        if outputs:
            register_multi_grad_hook(outputs, lambda *_: self._before_backward(number), mode="any")

    def _before_backward(self, number: int) -> None:
        self._units[number].gather()
        self._units[number].in_backward = True
        if number:
            self._units[number - 1].start()

    def release(self) -> None:
        """Lets go what is still gathered: blocks of whose inputs none has a gradient do not see the end of their
        backward pass. To be called after it."""
        for unit in self._units:
            unit.release()

    def put_away(self, until_used: bool = False) -> None:
        """Leaves tensors that take no room in the place of the frozen ones.

        Args:
            until_used: On this process's device, where the network is used next; else on the CPU.
        """
        for unit in self._units:
            unit.put_away(until_used)

    # ---------------------------------------------------------------- judging, saving

    def finish_judging(self) -> None:
        """To be called by all processes when each has judged its own records: see `Lockstep`."""
        self._lockstep.finish()

    def whole_network(self, keep: bool) -> nn.Module | None:
        """The network with all its tensors, those of the blocks on the CPU; None where not `keep`. To be called by all
        processes. The next forward puts blocks into shards again."""
        for unit in self._units:
            unit.gather()
            copies = [p.data.to("cpu", copy=True) for p in unit.parameters] if keep else []
            unit.release()
            for parameter, copy in zip(unit.parameters, copies, strict=keep):
                parameter.data = copy
        return self._network if keep else None


class _Unit:
    """Tensors that are gathered together, as bytes.

    Args:
        parameters: Of one block, in the same order in all processes.
        device: This process's.
    """

    def __init__(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        self.parameters = parameters
        self.in_backward = False
        starts, size = [], 0
        for parameter in parameters:
            starts.append(size)
            size += math.ceil(parameter.nbytes / _ALIGNED) * _ALIGNED
        world, rank = dist.get_world_size(), dist.get_rank()
        part = math.ceil(size / world / _ALIGNED) * _ALIGNED
        filled = torch.zeros(part * world, dtype=torch.uint8, device=parameters[0].device if parameters else device)
        for parameter, start in zip(parameters, starts, strict=True):
            filled[start : start + parameter.nbytes] = parameter.data.contiguous().flatten().view(torch.uint8)
        self.own = filled[part * rank : part * (rank + 1)].clone().to(device)
        del filled
        self._whole = torch.empty(part * world, dtype=torch.uint8, device=device)
        self._size = self._whole.nbytes
        self._views = [
            self._whole[start : start + p.nbytes].view(p.dtype).view(p.shape)
            for p, start in zip(parameters, starts, strict=True)
        ]
        self._absent = [_nothing(view, device) for view in self._views]
        self._there = True
        self._work: Any = None
        self.release()

    def start(self) -> None:
        """Begins to gather them, where that has not begun."""
        if self._there or not self.parameters:
            return
        # one storage for good: what autograd keeps for the backward pass are views of it
        self._whole.untyped_storage().resize_(self._size)
        self._work = dist.all_gather_into_tensor(self._whole, self.own, async_op=True)
        self._there = True

    def gather(self) -> None:
        """Has them whole."""
        self.start()
        if self._work is not None:
            self._work.wait()
            self._work = None
            self._put(self._views)

    def release(self) -> None:
        """Lets them go."""
        self.in_backward = False
        if self._there:
            self.gather()  # what has begun must end
            self._there = False
            self._put(self._absent)
            self._whole.untyped_storage().resize_(0)

    def put_away(self, until_used: bool) -> None:
        """See `FrozenShards`. Waits for nothing: another process may have ended in the middle of it."""
        pending, self._work, self._there, self.in_backward = self._work, None, False, False
        self._put(self._absent if until_used else [_nothing(absent, torch.device("cpu")) for absent in self._absent])
        if pending is None:
            self._whole.untyped_storage().resize_(0)

    def _put(self, tensors: list[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


def _nothing(like: Tensor, device: torch.device) -> Tensor:
    """A tensor of this shape and type that takes no room, and of which something computed is seen to be wrong."""
    value = math.nan if like.is_floating_point() else 0
    return torch.full((1,), value, dtype=like.dtype, device=device).expand(like.shape)


def _with_gradients(values: Any) -> list[Tensor]:
    if not torch.is_grad_enabled():
        return []
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.requires_grad]
