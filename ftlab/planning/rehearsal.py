"""A training step without values: what it would hold and compute, found by running it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import bitsandbytes  # noqa: F401  (its operations)
import torch
from bitsandbytes.optim.optimizer import Optimizer1State, Optimizer8bit
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import masking_utils

from ftlab.attention import PACKED, mask_of, unfit
from ftlab.errors import UserError, one_line
from ftlab.methods import Method
from ftlab.modules.activations import GradientCheckpointing, checkpoint_blocks
from ftlab.modules.head import Head
from ftlab.networks import Network, count_parameters
from ftlab.planning.ledger import BLOCK, Ledger, Part
from ftlab.planning.processes import Shape
from ftlab.planning.skeleton import count_from_now, skeleton, without_values


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded to one length.

    Args:
        rows: How many there are.
        length: Tokens of each.
        targets: Share of the tokens that are learnt.
        packed: Whether a row is a pack; how many samples it has makes no difference to what it takes.
    """

    rows: int
    length: int
    targets: float = 1.0
    packed: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def tensors(self) -> tuple[dict[str, Any], Tensor, Tensor]:
        """What the network takes, from which places targets are predicted, and their ids."""
        ids = torch.zeros(self.rows, self.length, dtype=torch.long)
        count = max(1, int(self.targets * self.rows * (self.length - 1)))
        places = torch.zeros(count, dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}  # few networks are told of padding
        if self.packed:
            bounds = [row * self.length for row in range(self.rows + 1)]
            inputs["attention_mask"] = mask_of(bounds, ids.device)
            inputs["position_ids"] = torch.zeros_like(ids)
        return inputs, places, places.clone()


@dataclass(frozen=True)
class Rehearsal:
    """What a training step would take on one device.

    Args:
        peak: Bytes of each part when they are the most together.
        operations: Floating-point operations of a micro-batch, forward and backward, with what is computed twice; 0
            where they were not counted.
        parameters: Of the network.
        trained: Those that are trained.
        trained_bytes: Of what is trained, as a checkpoint holds it.
        optimizer_bytes: Of the optimiser's state.
        shape: Of the network, for what several processes take.
    """

    peak: dict[Part, int]
    operations: int
    parameters: int
    trained: int
    trained_bytes: int
    optimizer_bytes: int
    shape: Shape

    @property
    def memory(self) -> int:
        """The most bytes that are held at once."""
        return sum(self.peak.values())


@dataclass(frozen=True)
class Step:
    """What is rehearsed.

    Args:
        network: Whose shape it is.
        method: Trains it.
        optimizer: Over the method's groups.
        precision: Lightning's plugin.
        batch: A micro-batch.
        checkpointing: What is computed again in the backward pass.
        accumulate: Whether an optimiser step has more micro-batches than one.
        on_gpu: Whether types and workspaces are those of CUDA.
        counted: Whether operations are counted, too.
    """

    network: Network
    method: Method
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    precision: Precision
    batch: Batch
    checkpointing: GradientCheckpointing = False
    accumulate: bool = False
    on_gpu: bool = True
    counted: bool = True


Loss = Callable[[nn.Module, Batch], Tensor]


def rehearse(step: Step, loss: Loss | None = None) -> Rehearsal:
    """Runs one optimiser step, which finds the optimiser's state there, as all but the first do.

    Args:
        step: What.
        loss: By default the summed cross entropy as `ftlab fit` computes it.

    Raises:
        UserError: The network cannot be opened or adapted, or something on the way depends on values.
    """
    if step.method.needs_batches:
        raise UserError(
            f"ftlab plan: {type(step.method).__name__} looks at training batches before it adapts, and there are no "
            "values to look at: plan it with a start that does not, which takes as much"
        )
    try:
        with without_values() as mode, nullcontext() if step.batch.packed else _without_packs():
            return _rehearse(step, loss, mode)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"ftlab plan: {type(step.method).__name__} looks at the values of tensors ({one_line(error)}), and there "
            "are none: plan a method of the same size that does not, or measure a run of a few steps"
        ) from error


def _rehearse(step: Step, loss: Loss | None, mode: FakeTensorMode) -> Rehearsal:
    network, method = skeleton(step.network, step.method.quantization), step.method
    batch = step.batch
    if batch.packed and step.network.attention in (None, PACKED) and unfit(network) is None:
        network.set_attn_implementation(PACKED)
    else:  # positions tell transformers of packs, and it makes a mask
        batch = replace(batch, packed=False)
    checkpoint_blocks(network, step.checkpointing, _elsewhere)
    adapted = method.adapt(network).train()
    step.precision.convert_module(adapted)
    count_from_now(mode)
    trained = method.trained(adapted)
    parameters = [p for name, p in adapted.named_parameters() if name in trained]
    loss = loss or _Loss(adapted)
    ledger = Ledger(_WORKSPACES if step.on_gpu else None, BLOCK if step.on_gpu else 1)
    vocabulary = network.config.get_text_config(decoder=True).vocab_size
    ledger.assign_shapes("head", lambda shape: bool(shape) and shape[-1] == vocabulary)
    as_there = _as_on_gpu if step.on_gpu else nullcontext
    flops = FlopCounterMode(display=False, custom_mapping=_OPERATIONS)
    with as_there():
        optimizer = _Optimizer(step.optimizer, method.param_groups(adapted), ledger) if parameters else None
    with ledger, as_there():
        ledger.assign("weights", [*adapted.parameters(), *adapted.buffers()])
        if optimizer:  # a step before: all others find its state there
            optimizer.step(from_nothing=True)
        since = ledger.moment
        if step.accumulate:  # the gradients of the micro-batches before
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        _pass(step, ledger, lambda: loss(adapted, batch), parameters)
        if optimizer:
            optimizer.step()
    if step.counted:  # apart: the counter keeps what would be let go
        with flops, as_there():
            _pass(step, ledger, lambda: loss(adapted, batch), parameters)
    all_, of_trained = reversed(count_parameters(adapted, trained))
    return Rehearsal(
        ledger.peak(since),
        flops.get_total_flops(),
        all_,
        of_trained,
        sum(p.nbytes for p in parameters),
        optimizer.bytes if optimizer else 0,
        Shape.of(adapted),
    )


@contextmanager
def _without_packs() -> Iterator[None]:
    """Has transformers see that no positions restart in padded rows: without values it cannot, and makes a mask of all
    pairs of positions, which training has not."""
    with mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None):
        yield


def _elsewhere() -> saved_tensors_hooks:
    """Has tensors that are kept for the backward pass be held by nobody until they are wanted."""
    return saved_tensors_hooks(
        lambda tensor: (tensor.shape, tensor.dtype), lambda said: torch.empty(said[0], dtype=said[1])
    )


def _pass(step: Step, ledger: Ledger, loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    """Forward, and backward where there is something to train."""
    with torch.set_grad_enabled(bool(parameters)), ledger.part("activations"), step.precision.forward_context():
        value = loss()
    if parameters:
        with ledger.part("temporary"):
            value.backward()
        ledger.assign("gradients", (p.grad for p in parameters))


class _Loss:
    """The loss as `FinetuneModule` has it."""

    def __init__(self, network: nn.Module) -> None:
        self._head = Head(network)
        self._head.try_without_values()

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        inputs, places, targets = batch.tensors()
        return self._head.summed_loss(inputs, batch.length, places, targets)


class _Optimizer:
    """The optimiser of a rehearsal.

    Args:
        make: Makes it over groups.
        groups: Of parameters without values.
        ledger: Keeps account of its state.
    """

    def __init__(
        self, make: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]], ledger: Ledger
    ) -> None:
        self._parameters = [p for group in groups for p in group["params"]]
        with unset_fake_temporarily():  # its tables have values
            self._optimizer = make(groups)
        self._ledger = ledger
        self._held: list[Tensor] = []
        self._elsewhere = 0

    @property
    def _state(self) -> list[Tensor]:
        states = self._optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    @property
    def bytes(self) -> int:
        """Of its state, on the device or paged."""
        return self._elsewhere + sum(tensor.nbytes for tensor in self._held or self._state)

    def step(self, from_nothing: bool = False) -> None:
        """Steps, or holds as much as it would, and lets gradients go.

        Args:
            from_nothing: With gradients of its own.
        """
        with self._ledger.part("temporary"):
            if isinstance(self._optimizer, Optimizer8bit):  # it asks the library for memory itself
                self._held = self._held or list(self._of_bitsandbytes())
            else:
                for parameter in self._parameters if from_nothing else ():
                    parameter.grad = torch.zeros_like(parameter)
                self._optimizer.step()
        self._ledger.assign("optimizer", self._held or self._state)
        for parameter in self._parameters:
            parameter.grad = None

    def _of_bitsandbytes(self) -> Iterator[Tensor]:
        """What the states of bitsandbytes' optimisers take on the device: those that are paged lie elsewhere.

        8 bits a value and a scale for 256 of them, of parameters with 4096 values or more (Dettmers et al. 2022, arXiv
        2110.02861).
        """
        optimizer: Any = self._optimizer
        options, states = optimizer.args, 1 if isinstance(optimizer, Optimizer1State) else 2
        for values in (parameter.numel() for parameter in self._parameters):
            small = values < options.min_8bit_size or options.optim_bits == 32
            kinds = [(values, torch.float32)] if small else [(values, torch.uint8), (-(-values // 256), torch.float32)]
            for count, dtype in states * kinds:
                if optimizer.is_paged and values >= _PAGED_FROM:
                    self._elsewhere += count * dtype.itemsize
                else:
                    yield torch.empty(count, dtype=dtype)


_OPTIMIZERS: Any = importlib.import_module("torch.optim.optimizer")  # whose name in torch.optim is taken away
_PAGED_FROM = 100_000
"""Values of a parameter from which a paged optimiser's state is paged."""


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Has this machine's CPU do as CUDA would: autocast has norms in float32; adapters ask for CUDA's own switch; fused
    attention drops out without a mask of its own; optimisers take all parameters at once."""
    enabled, attention = torch.is_autocast_enabled, nn.functional.scaled_dot_product_attention
    supported = _OPTIMIZERS._get_foreach_kernels_supported_devices()

    def without_dropout(*args: Any, **kwargs: Any) -> Tensor:
        return attention(*args, **kwargs | {"dropout_p": 0.0})

    def wide(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def in_float32(*args: Any, **kwargs: Any) -> Tensor:
            return norm(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

        return in_float32

    with (
        mock.patch.object(torch, "is_autocast_enabled", lambda *device: enabled(*device or ("cpu",))),
        mock.patch.object(nn.functional, "scaled_dot_product_attention", without_dropout),
        mock.patch.object(_OPTIMIZERS, "_get_foreach_kernels_supported_devices", return_value=[*supported, "cpu"]),
        mock.patch.object(nn.functional, "layer_norm", wide(nn.functional.layer_norm)),
        mock.patch.object(nn.functional, "group_norm", wide(nn.functional.group_norm)),
        _SaysCUDA(),
    ):
        yield


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and torch.is_autocast_enabled("cpu") else value


class _SaysCUDA(TorchFunctionMode):
    """An optimiser may ask where parameters are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        return func(*args, **kwargs or {})


def _operations_of_gemm(a: Any, b: Any, shape: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a[:-1]) * math.prod(shape)


def _operations_of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _operations_of_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _dequantised(a: Tensor, b: Tensor, shape: Any, *_: Any, **__: Any) -> int:
    """A product with a weight of 4 bits, of more rows than a few, dequantises it in the kernel's own memory."""
    return math.prod(shape) * a.itemsize


_FOUR_BITS = torch.ops.bitsandbytes.gemm_4bit
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_OPERATIONS = {
    _FOUR_BITS: _operations_of_gemm,
    _CPU_ATTENTION: _operations_of_attention,
    _CPU_ATTENTION_BACKWARD: _operations_of_attention_backward,
}
_WORKSPACES = {_FOUR_BITS.default: _dequantised}
