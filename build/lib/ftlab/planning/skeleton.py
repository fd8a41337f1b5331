"""A network without its weights: every tensor has a shape, a type and a size in bytes, and no values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ftlab.errors import UserError
from ftlab.networks import Network, Quantization, base_kind

SHAPES = Path(__file__).resolve().parents[1] / "assets" / "shapes"
"""Of networks on the hub that ftlab knows: OWNER--NAME.json, their config.json by what a shape needs."""

_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights that have a scale, and scales that have one."""


class _Last(dict[Any, Any]):
    """Keeps what was put into it last."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > 8:
            del self[next(iter(self))]


@contextmanager
def without_values() -> Iterator[FakeTensorMode]:
    """In the block tensors have all but values, on this machine and its CPU, whatever machine is planned for. They may
    be converted to another type until `count_from_now`."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # its own memory refers to parameters weakly, and what is referred to so cannot be converted to another type
    mode.fake_tensor_converter.meta_converter.tensor_memo = _Last()  # type: ignore[assignment]
    with mode, mock.patch.object(torch.utils, "swap_tensors", _swap_what_differs):
        yield mode


def count_from_now(mode: FakeTensorMode) -> None:
    """Has the mode keep no tensor that nobody else does."""
    mode.fake_tensor_converter.meta_converter.tensor_memo = WeakValueDictionary()


_swap = torch.utils.swap_tensors


def _swap_what_differs(one: Tensor, other: Tensor) -> None:
    """`Module.to` has tensors without values change places, which it cannot where others refer to them."""
    if one.dtype != other.dtype:
        _swap(one, other)


def shape_of(network: Network) -> PreTrainedConfig:
    """Its configuration: what ships with ftlab where it is a network on the hub that is known, or its own.

    Raises:
        UserError: There is neither.
    """
    shipped = SHAPES / f"{network.path.replace('/', '--')}.json"
    if shipped.is_file() and not Path(network.path).is_dir():
        said = json.loads(shipped.read_text(encoding="utf-8"))
        return AutoConfig.for_model(said.pop("model_type"), **said)
    try:
        return network.config()
    except UserError as error:
        known = ", ".join(sorted(path.stem.replace("--", "/") for path in SHAPES.glob("*.json")))
        raise UserError(
            f"{error}; of a network that is not here ftlab plan knows the shape of {known}: give one of these, or a "
            "directory with its config.json, as model.network.path"
        ) from error


def skeleton(network: Network, quantization: Quantization | None = None) -> PreTrainedModel:
    """What `Network.model` opens, under a FakeTensorMode that is on: no weights are read or drawn.

    Args:
        network: Whose configuration is read.
        quantization: In how many bits the base would be held.

    Raises:
        UserError: Its configuration cannot be opened, or says that it is held in a way whose size is not known.
    """
    config = shape_of(network)
    kind = base_kind(config)
    if kind != "full":
        raise UserError(
            f"network.path: {network.path} is quantised by {kind}, of which ftlab plan knows no sizes: plan the "
            "network in full precision with a method whose base is in 4 bits"
        )
    options: dict[str, Any] = {"attn_implementation": network.attention} if network.attention else {}
    dtype = getattr(torch, network.dtype)
    trusted = network.trust_remote_code
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted, **options).eval()
    if quantization:
        _quantise(model, quantization)
    return model


def _quantise(model: PreTrainedModel, quantization: Quantization) -> None:
    """Has linear layers be those of bitsandbytes, as transformers chooses them."""
    wide: Any = model._keep_in_fp32_modules
    kept = HfQuantizer.get_modules_to_not_convert(model, keep_in_fp32_modules=wide)
    kind = _EightBits if quantization.kind == "int8" else _FourBits
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, kept):
            model.set_submodule(name, kind(module, quantization))
    model.config.quantization_config = quantization.config()
    model.is_quantized = True  # type: ignore[assignment]
    setattr(model, "is_loaded_in_8bit" if quantization.kind == "int8" else "is_loaded_in_4bit", True)


def _like(plain: Any, layer: Any) -> torch.Size:
    """Has `layer` be a linear layer as `plain` is, but for its weight, whose shape it gives: (out, in)."""
    nn.Module.__init__(layer)
    shape = plain.weight.shape if isinstance(plain, nn.Linear) else plain.weight.shape[::-1]
    layer.out_features, layer.in_features = shape
    layer.bias = plain.bias
    layer.source_cls = type(plain)
    return shape


class Params4bit(FakeTensor):
    """Peft asks for a weight of 4 bits by the name of its class."""


class _FourBits(bitsandbytes.nn.Linear4bit):
    """Codes of half a byte, a scale for each 64 of them, and those in a byte each where they are quantised, too.

    The library's own parameter cannot be one without values: here it is a plain one that has the same attributes.
    """

    def __init__(self, plain: Any, quantization: Quantization) -> None:
        shape, dtype = _like(plain, self), plain.weight.dtype
        storage = getattr(torch, quantization.storage_dtype)
        state = _scales(shape, quantization, dtype)
        codes = torch.empty(math.ceil(shape.numel() / 2 / storage.itemsize), 1, dtype=storage)
        self.weight: Any = nn.Parameter(codes, requires_grad=False)
        self._attributes = {
            "quant_state": state,
            "quant_type": quantization.kind,
            "blocksize": _BLOCK,
            "compress_statistics": quantization.double,
            "quant_storage": storage,
            "bnb_quantized": True,
        }
        self.quant_state, self.quant_storage = state, storage
        self.compute_dtype, self.compute_type_is_set = getattr(torch, quantization.compute_dtype), True
        self.support_avx512bf16_for_cpu = False
        self._describe()

    def _describe(self) -> None:
        self.weight.__class__ = Params4bit
        vars(self.weight).update(self._attributes)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        done = super()._apply(*args, **kwargs)
        self._describe()  # what is moved or converted comes back without attributes
        return done


def _scales(shape: torch.Size, quantization: Quantization, dtype: torch.dtype) -> QuantState:
    scales = math.ceil(shape.numel() / _BLOCK)
    common = (shape, torch.empty(16), _BLOCK, quantization.kind, dtype)
    if not quantization.double:
        return QuantState(torch.empty(scales), *common)
    outer = torch.empty(math.ceil(scales / _NESTED_BLOCK))
    of_scales = QuantState(outer, code=torch.empty(256), blocksize=_NESTED_BLOCK, dtype=torch.float32)
    return QuantState(torch.empty(scales, dtype=torch.uint8), *common, torch.empty(()), of_scales)


class _EightBits(bitsandbytes.nn.Linear8bitLt):
    """Codes of a byte, and a scale for each row; without the outliers, which depend on values."""

    def __init__(self, plain: Any, quantization: Quantization) -> None:
        rows, columns = _like(plain, self)
        codes = torch.empty(rows, columns, dtype=torch.int8)
        weight: Any = nn.Parameter(codes, requires_grad=False)
        weight.CB = weight.SCB = None
        weight.has_fp16_weights = False
        self.weight = weight
        self.index = None
        self.state = bitsandbytes.MatmulLtState()
        self.state.has_fp16_weights, self.state.threshold = False, 0.0
        self.state.CB, self.state.SCB = self.weight.data, torch.empty(rows)
