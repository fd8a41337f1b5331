"""Attention that keeps packed samples apart without a mask of every pair of positions, under the name `packed`.

transformers makes such a mask of where positions restart, and then all pairs of a pack's positions are computed. Here
the mask of a pack is where its samples begin, and each is computed alone: by torch's kernel for samples of any length
on a GPU, and one after the other elsewhere. Any other batch is computed as by `sdpa`, to the bit.

A network takes the bounds as its `attention_mask`: one in four dimensions goes to every layer as it is, and none is
made. A keyword would reach the layers, too, but the mask would be made all the same.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA, PACKED = "sdpa", "packed"

_MOST_WIDTH = 256
"""Of a head, for the kernels of flash attention."""


def mask_of(bounds: Sequence[int], device: torch.device) -> Tensor:
    """What a network takes as the `attention_mask` of a pack.

    Args:
        bounds: Where samples begin in the flattened rows, the padding of a row being one; and where the last ends.
        device: Of the network.
    """
    mask: Any = torch.tensor(bounds, dtype=torch.int32)[None, None, None].to(device, non_blocking=True)
    mask.lengths = [end - start for start, end in pairwise(bounds)]  # or each layer would wait for the device
    return mask


def unfit(network: PreTrainedModel) -> str | None:
    """Why packs cannot be attended to by `packed` in this network; None where nothing speaks against it.

    Whether it does so rightly is for a trial to show: see `ftlab.modules.isolation`.
    """
    if not network._can_set_attn_implementation():
        return "its attention is its own"
    if _sees_part(network.config.get_text_config(decoder=True)):
        return "it attends to a window"
    return None


def _sees_part(config: PreTrainedConfig) -> bool:
    """Whether some layer sees less than all that stands before, which the mask alone may tell it."""
    kinds = set(getattr(config, "layer_types", None) or ())
    windows = ("sliding_window", "attention_chunk_size", "window_size")
    return bool(kinds - {"full_attention"}) if kinds else any(getattr(config, name, None) for name in windows)


def attention_by_sample(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' interface of an attention: heads in the second dimension, of the result in the third.

    Raises:
        ValueError: The network wants of a pack what is not computed here, such as a bias.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    wanted = [name for name in _ELSEWHERE if options.get(name) is not None]
    if wanted:
        raise ValueError(f"{PACKED} attention knows no {wanted[0]}")
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    rows, _, length, _ = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if _kernel_fits(query, value, dropout):
        found = _by_kernel(query, key, value, attention_mask.flatten(), length, scale)
    elif torch.compiler.is_compiling() and query.device.type == "cpu" and not dropout:
        dtype = _computed_in(query)
        found = _as_one(query.to(dtype), key.to(dtype), value.to(dtype), attention_mask.flatten(), scale)[0]
    else:
        found = _one_by_one(query, key, value, attention_mask, dropout, scale)
    return found.unflatten(0, (rows, length)), None


_ELSEWHERE = ("softcap", "s_aux", "position_bias", "cache", "sliding_window")


@torch.compiler.disable  # on how many samples there are its operations depend
def _one_by_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scale: float | None) -> Tensor:
    """Of (tokens, heads, width) each."""
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scale, "is_causal": True}
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    found = [
        scaled_dot_product_attention(q, k, v, **options)[0].transpose(0, 1)
        for q, k, v in _samples(mask, query, key, value)
    ]
    return torch.cat(found)


def _kernel_fits(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch's kernel takes them: it computes in 16 bits, and drops nothing."""
    if not query.is_cuda or dropout or _VARLEN is None:
        return False
    width = query.shape[-1]
    narrow = _computed_in(query) in (torch.float16, torch.bfloat16)
    return narrow and width == value.shape[-1] <= _MOST_WIDTH and width % 8 == 0


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
    """Of (tokens, heads, width) each, none of whose samples has more than `longest` tokens."""
    assert _VARLEN is not None
    dtype = _computed_in(query)
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))  # rotations may have left them wider
    return _VARLEN(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0))


@torch.library.custom_op("ftlab::attend_by_sample", mutates_args=())
def _as_one(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """`_one_by_one` as torch.compile can keep it in the midst of its code: on a CPU, without dropout.

    Returns:
        What it comes to, and the logarithms of the sums of exponentials, (heads, tokens).
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found = [kernel(*parts, 0.0, True, scale=scale) for parts in _samples(bounds, query, key, value)]
    return torch.cat([out[0].transpose(0, 1) for out, _ in found]), torch.cat([sums[0] for _, sums in found], 1)


@_as_one.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape), query.new_empty(query.shape[1], query.shape[0], dtype=sums)


@torch.library.custom_op("ftlab::attend_by_sample_backward", mutates_args=())
def _as_one_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    of_sums = (part[0, :, :, 0] for (part,) in _samples(bounds, sums.T[:, :, None]))
    found = [
        kernel(*parts, of_sample[None].contiguous(), 0.0, True, scale=scale)
        for parts, of_sample in zip(_samples(bounds, upstream, query, key, value, out), of_sums, strict=True)
    ]
    of_query, of_key, of_value = (
        torch.cat([part[0].transpose(0, 1) for part in each]) for each in zip(*found, strict=True)
    )
    return of_query, of_key, of_value


@_as_one_backward.register_fake
def _(upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def _back(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_as_one_backward(upstream, *ctx.saved_tensors, ctx.scale), None, None


_as_one.register_autograd(_back, setup_context=_keep)


def _samples(mask: Tensor, *flat: Tensor) -> Iterator[list[Tensor]]:
    """Of each sample its part of these (tokens, heads, width), as (1, heads, its tokens, width)."""
    for parts in zip(*(tensor.split(_lengths(mask, len(tensor))) for tensor in flat), strict=True):
        if len(parts[0]):
            yield [part.transpose(0, 1)[None] for part in parts]


def _lengths(mask: Tensor, tokens: int) -> list[int]:
    """Of the samples; the last has what is left, where code is made at an example, whose bounds are all zero."""
    lengths = list(getattr(mask, "lengths", None) or mask.flatten().diff().tolist())
    lengths[-1] += tokens - sum(lengths)
    return lengths


def _computed_in(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _varlen() -> Callable[..., Tensor] | None:
    """torch's attention over samples of any length, where it is there and takes what is asked of it here."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(found).parameters.keys()
    if not takes >= {"scale", "window_size"}:
        return None
    # torch before 2.12 need not be told that keys have fewer heads
    return partial(found, enable_gqa=True) if "enable_gqa" in takes else found


_VARLEN = _varlen()


ALL_ATTENTION_FUNCTIONS.register(PACKED, attention_by_sample)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, sdpa_mask)
