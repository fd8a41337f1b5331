"""Bytes of tensors from their making to their end, part by part: what a step would hold, without holding it."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = Literal["weights", "gradients", "optimizer", "activations", "head", "temporary"]
PARTS: tuple[Part, ...] = get_args(Part)

BLOCK = 512
"""Bytes that CUDA's caching allocator gives out at a time; those of a tensor are rounded up to them."""

Workspace = Callable[..., int]


class Ledger(TorchDispatchMode):
    """Keeps account of every storage that an operation makes while it is on, until nobody holds it any more.

    A storage counts once, whatever views there are of it. Of tensors without values (FakeTensorMode) it counts the
    bytes that they would have. Operations of one kernel may hold more than they return: see `workspaces`.

    Args:
        workspaces: By operation, the bytes that it holds while it runs, from its arguments.
        block: Sizes are rounded up to a multiple of this, in bytes.
    """

    def __init__(self, workspaces: dict[Any, Workspace] | None = None, block: int = BLOCK) -> None:
        super().__init__()
        self._workspaces = workspaces or {}
        self._block = block
        self._shapes: Callable[[torch.Size], bool] = lambda shape: False
        self._part_of_shapes: Part = "head"
        self._part: Part = "temporary"
        self._serial: dict[int, int] = {}  # of the storages that are there, by their address
        self._parts: list[Part] = []  # of all storages, by serial number
        self._events: list[tuple[int, int]] = []  # serial number, and bytes that came or went
        self._holders: Counter[int] = Counter()  # storages that stand for one, by serial number
        self._watching = True

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """What is made in the block belongs to `part`, until `assign` says otherwise."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def assign(self, part: Part, tensors: Iterable[Tensor | None]) -> None:
        """Says what tensors are: they may be there already, or belong to another part so far."""
        for tensor in tensors:
            if tensor is not None:
                for plain in _stored(tensor):
                    self._parts[self._enter(plain)] = part

    def assign_shapes(self, part: Part, shapes: Callable[[torch.Size], bool]) -> None:
        """Has what is made from now on with such shapes belong to `part`, until `assign` says otherwise."""
        self._shapes, self._part_of_shapes = shapes, part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        workspace = self._workspaces.get(func)
        if workspace and (held := self._rounded(workspace(*args, **kwargs))):
            self._parts.append("temporary")
            self._events += [(len(self._parts) - 1, held), (len(self._parts) - 1, -held)]
        result = func(*args, **kwargs)
        if func is torch.ops.aten.add.Tensor and not torch.is_grad_enabled() and _alike(*args):
            self._takes_over(result, args[0])
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def _takes_over(self, sum_: Tensor, first: Tensor) -> None:
        """Autograd adds a gradient to another in the place of that, but not where tensors have no values."""
        serial, storage = self._enter(first), sum_.untyped_storage()
        if storage._cdata not in self._serial:
            self._serial[storage._cdata] = serial
            self._holders[serial] += 1
            weakref.finalize(storage, self._leave, storage._cdata, self._rounded(storage.nbytes())).atexit = False

    def _enter(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._serial.get(address)
        if known is not None:
            return known
        serial, size = len(self._parts), self._rounded(storage.nbytes())
        self._parts.append(self._part_of_shapes if self._shapes(tensor.shape) else self._part)
        self._serial[address] = serial
        self._holders[serial] = 1
        self._events.append((serial, size))
        weakref.finalize(storage, self._leave, address, size).atexit = False
        return serial

    def _leave(self, address: int, size: int) -> None:
        serial = self._serial.pop(address)
        self._holders[serial] -= 1
        if self._watching and not self._holders[serial]:
            self._events.append((serial, -size))

    def _rounded(self, size: int) -> int:
        return math.ceil(size / self._block) * self._block

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watching = False

    # ---------------------------------------------------------------- what came of it

    @property
    def moment(self) -> int:
        """Now, as `peak` takes it."""
        return len(self._events)

    def peak(self, since: int = 0) -> dict[Part, int]:
        """Bytes of each part when they were the most together.

        Args:
            since: Moments before this one do not count.
        """
        live = most = 0
        held: Counter[Part] = Counter()
        at_most: Counter[Part] = Counter()
        for moment, (serial, size) in enumerate(self._events):
            live += size
            held[self._parts[serial]] += size
            if live > most and moment >= since:
                most, at_most = live, held.copy()
        return {part: at_most[part] for part in PARTS}


def _alike(first: Any, second: Any, *_: Any) -> bool:
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    return both and (first.shape, first.dtype, first.is_contiguous()) == (second.shape, second.dtype, True)


def _stored(tensor: Any) -> Iterator[Tensor]:
    """A tensor, and the scales of a quantised one."""
    yield tensor
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (part for part in (state.absmax, state.code, state.offset) if isinstance(part, Tensor))
        state = state.state2
