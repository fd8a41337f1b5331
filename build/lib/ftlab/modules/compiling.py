"""`model.compile`: decoder blocks computed by code that torch makes of them (torch.compile), in passes with gradients.

Code is made of a block's forward for any number of rows and any length, once for all blocks that are alike. What stands
around it stays: hooks that gather shards, the head, the optimiser. Passes without gradients, which judge and generate,
are computed as ever, so that runs are judged by the same arithmetic, compiled or not.

Which code comes out depends on the sizes at which it is made: how loops are laid, and so in which order is summed. A
run that is resumed meets other batches first than one that was never stopped, and must come to the same bits. So code
is never made at the batch at hand, but at an example, whose sizes are the same at all times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ftlab.data.sources import cache_dir
from ftlab.errors import UserError, one_line, out_of_memory
from ftlab.networks import decoder_blocks, language_model

_ROWS, _LENGTH = 2, 512
"""Of an example: enough that loops are laid for much work, few enough to be computed at once."""

_VARIANTS = 32
"""Of code for one kind of block: with a mask or none, one row or more, an input with a gradient or none, other parts
that train; and twice that, where a network has two kinds of the same class. One with more would be compiled block by
block."""


def compile_blocks(network: nn.Module) -> None:
    """Has the decoder blocks of a network be compiled, when the first pass with gradients comes to them.

    What torch compiles by is set for this process. Code is kept for the next one under ftlab's own cache, or where
    TORCHINDUCTOR_CACHE_DIR says.

    Args:
        network: As its method has adapted it, not sharded yet.

    Raises:
        UserError: There is no C++ compiler, or the network's blocks cannot be told, or are not called as they are.
    """
    model = language_model(network)
    try:
        blocks = decoder_blocks(model)
    except UserError as error:
        raise UserError(
            f"model.compile: a network is compiled by its decoder blocks, and those of {type(model).__name__} cannot "
            "be told: set it to false"
        ) from error
    _require_a_compiler()
    _keep_code()
    _set_up()
    for block in blocks:
        if "forward" in vars(block):
            raise UserError(
                f"model.compile: something has put itself before the forward of {type(block).__name__}, and would be "
                "passed by: set it to false"
            )
        block.forward = MethodType(_forward, block)  # bound, so that a copy of a block calls itself


def _require_a_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # half a second
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "model.compile: torch compiles by way of a C++ compiler, and finds none: install g++, or name one in the "
            "environment variable CXX, or set model.compile to false"
        ) from error


def _keep_code() -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    usual = default_cache_dir()  # which torch has written there, where nobody else has
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir() / "compiled")


def _set_up() -> None:
    import torch._dynamo.config
    import torch.fx.experimental._config

    config: Any = torch._dynamo.config
    config.recompile_limit = _VARIANTS
    config.fail_on_recompile_limit_hit = True  # torch would go on without code, from some batch on
    config.specialize_float = True  # a block's are constants: taken for variables, each graph is traced twice
    config.optimize_ddp = False  # it would cut a block by DDP's buckets
    sizes: Any = torch.fx.experimental._config
    sizes.use_duck_shape = False  # sizes that are equal by chance would be taken to be equal always


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In the place of a block's own."""
    forward = type(block).forward  # at each call: FSDP2 gives a block another class
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    if kwargs.get("past_key_values") is not None:
        raise UserError(
            "model.compile: the method has keys and values of its own in each block, for which torch would make code "
            "block by block: set it to false"
        )
    code, kind = _code_of(forward), (forward, *_kind(*args, **kwargs))
    if kind in _met:  # or torch would trace the block for nothing, which takes seconds
        try:
            return code(block, *args, **kwargs)
        except Exception as error:
            if not isinstance(getattr(error, "inner_exception", None), _NoCode):
                _refuse(block, error)
                raise
    _met.add(kind)
    try:
        with _backend.makes_code():
            example_args, example_kwargs = _example((args, kwargs))
            with torch.random.fork_rng(_devices(args, kwargs)):  # dropout draws
                code(block, *example_args, **example_kwargs)
            # by the same code, or by other for what an example cannot be made of, such as where packs begin
            return code(block, *args, **kwargs)
    except Exception as error:
        _refuse(block, error)
        raise


def _refuse(block: nn.Module, error: Exception) -> None:
    """Says that code cannot be made, where that is the error: memory may run out, too, and hooks raise errors."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) and not out_of_memory(error):
        raise UserError(
            f"model.compile: torch cannot compile {type(block).__name__} as it is used here "
            f"({one_line(error)[:300]}): set it to false"
        ) from error


def _kind(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Much of what torch makes other code for, and that at little cost: this is asked at each call."""
    values = (*args, *kwargs.values())
    hidden = next(value for value in values if isinstance(value, Tensor))
    return hidden.dtype, hidden.requires_grad, len(hidden) == 1, tuple(value is None for value in values)


_met: set[tuple[Any, ...]] = set()


@cache
def _code_of(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, dynamic=True, backend=_backend)


class _NoCode(Exception):  # noqa: N818  (it is about to be made)
    """There is none for the inputs at hand."""


class _Backend:
    """Makes code (inductor) while it is told to, and says so when there is none at any other time."""

    def __init__(self) -> None:
        self._makes = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        if not self._makes:
            raise _NoCode
        return _make(graph, inputs)

    @contextmanager
    def makes_code(self) -> Iterator[None]:
        self._makes = True
        try:
            yield
        finally:
            self._makes = False


_backend = _Backend()


def _make(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    from torch._inductor.compile_fx import compile_fx

    # on a GPU torch would choose kernels by their time, which are not the same in two processes
    return compile_fx(graph, inputs, config_patches={"deterministic": True})


# ---------------------------------------------------------------- the example


def _example(inputs: Any) -> Any:
    """Inputs of a block, with zeros in the place of values, and sizes of their own in the place of rows and length."""
    hidden = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim == 3), None)
    if hidden is None:
        return inputs
    rows, length, _ = hidden.shape
    made: dict[int, Tensor] = {}  # what is given twice is one tensor

    def zeros(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in made:
            made[id(value)] = _zeros(value, rows, length).requires_grad_(value.requires_grad)
        return made[id(value)]

    return tree_map(zeros, inputs)


_AXES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((), (0,)),
    2: ((0,), (1,)),
    3: ((0,), (1,)),
    4: ((0,), (2, 3)),
}
"""Of a tensor of so many dimensions, those that may be rows, and those that may be a length: places, ids and positions,
hidden states and rotations, masks."""


def _zeros(like: Tensor, rows: int, length: int) -> Tensor:
    """Laid out as `like`: a view where it is one, with the same order of dimensions. Of all that, torch takes notice.

    One row stays one, and a length of 1, too: other code is made for them.
    """
    by_rows, by_length = _AXES.get(like.ndim, ((), ()))
    shape = list(like.shape)
    for axis in by_rows:
        shape[axis] = _ROWS if shape[axis] == rows > 1 else shape[axis]
    for axis in by_length:
        shape[axis] = _LENGTH if shape[axis] == length > 1 else shape[axis]
    strides, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda axis: (like.stride(axis), like.shape[axis])):
        if like.stride(axis):
            strides[axis] = step
            step *= shape[axis]
    if like._base is not None and (base := _zeros(like._base, rows, length)).numel() >= step:
        return base.as_strided(shape, strides)
    made = torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)
    storage: Any = made.untyped_storage()
    storage.fill_(0)  # repeated dimensions cannot be written to as such
    return made


def _devices(*inputs: Any) -> list[torch.device]:
    """Those whose random numbers are to be kept, beside the CPU's."""
    return list({leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_cuda})
