"""Attention over packs: the arithmetic of each sample alone, in float64; and as sdpa on whatever is no pack."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto import AutoModelForCausalLM

from ftlab.attention import PACKED, SDPA, attention_by_sample, mask_of, unfit
from ftlab.errors import UserError
from ftlab.networks import Network

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(vocab_size=97, num_key_value_heads=2, **SIZES)
CPU = torch.device("cpu")
BOUNDS = [0, 3, 4, 9, 11, 18]  # two rows of nine: the second begins where a sample does
HEADS, KEYS, WIDTH = 4, 2, 8


def drawn(heads: int) -> Tensor:
    """As a network lays them out: (rows, heads, length, width), tokens before heads in memory."""
    return torch.randn(2, 9, heads, WIDTH, dtype=torch.float64).transpose(1, 2).requires_grad_()


def by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(rows * length, heads, width), token by token."""
    rows = [tensor.transpose(1, 2).reshape(18, -1, WIDTH) for tensor in (query, key, value)]
    out = []
    for start, end in pairwise(BOUNDS):
        for place in range(start, end):
            heads = []
            for head in range(HEADS):
                group = head // (HEADS // KEYS)
                scores = rows[1][start : place + 1, group] @ rows[0][place, head] * scale
                heads.append((scores.exp() / scores.exp().sum()) @ rows[2][start : place + 1, group])
            out.append(torch.stack(heads))
    return torch.stack(out)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_samples_and_their_gradients_are_those_by_hand(scale: float | None) -> None:
    torch.manual_seed(0)
    inputs = drawn(HEADS), drawn(KEYS), drawn(KEYS)
    upstream = torch.randn(18, HEADS, WIDTH, dtype=torch.float64)
    found, _ = attention_by_sample(nn.Identity(), *inputs, mask_of(BOUNDS, CPU), scaling=scale)
    assert found.shape == (2, 9, HEADS, WIDTH)
    expected = by_hand(*inputs, scale or 1 / math.sqrt(WIDTH))
    torch.testing.assert_close(found.flatten(0, 1), expected)
    ours = torch.autograd.grad(found.flatten(0, 1), inputs, upstream)
    for one, other in zip(ours, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_drops_out_without_the_others() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(HEADS), drawn(KEYS), drawn(KEYS)
    others = value.detach().clone()
    others[0, :, :3] += 1  # of the first sample alone

    def dropped(values: Tensor, share: float = 0.5) -> Tensor:
        torch.manual_seed(1)
        return attention_by_sample(nn.Identity(), query, key, values, mask_of(BOUNDS, CPU), dropout=share)[0]

    difference = (dropped(value) - dropped(others)).flatten(0, 1).abs()
    assert difference[:3].max() > 0
    assert difference[3:].max() == 0
    assert not torch.equal(dropped(value), dropped(value, 0.0))


def test_what_it_does_not_compute_is_refused() -> None:
    query, key, value = drawn(HEADS), drawn(KEYS), drawn(KEYS)
    with pytest.raises(ValueError, match="packed attention knows no softcap"):
        attention_by_sample(nn.Identity(), query, key, value, mask_of(BOUNDS, CPU), softcap=30.0)


@pytest.mark.parametrize("bounds", [BOUNDS, [0, 0, 0, 0]], ids=["a pack", "an example's"])
def test_code_that_torch_makes_has_it_as_one_operation(bounds: list[int]) -> None:
    torch.manual_seed(0)
    inputs = drawn(HEADS), drawn(KEYS), drawn(KEYS)
    mask = mask_of(bounds, CPU)

    def weighed(*inputs: Tensor) -> Tensor:
        return attention_by_sample(nn.Identity(), *inputs, mask, scaling=0.3)[0].square()

    expected = weighed(*inputs)
    with torch._dynamo.config.patch(specialize_float=True):
        found = torch.compile(weighed, backend="aot_eager", fullgraph=True, dynamic=True)(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ours = torch.autograd.grad(found.sum(), inputs)
    for one, other in zip(ours, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


def opened(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@torch.no_grad()
def test_what_is_no_pack_is_computed_as_by_sdpa() -> None:
    ours, theirs = opened(LLAMA, PACKED), opened(LLAMA, SDPA)
    ids = torch.arange(24).view(2, 12)
    padded = torch.ones_like(ids)
    padded[1, 7:] = 0
    left = padded.flip(1)
    packed = torch.tensor([[*range(5), *range(7)]]).expand(2, -1)
    for inputs in ({}, {"attention_mask": padded}, {"attention_mask": left}, {"position_ids": packed}):
        found, expected = (model(input_ids=ids, **inputs, use_cache=False).logits for model in (ours, theirs))
        assert torch.equal(found, expected), inputs
    options: dict[str, Any] = {"attention_mask": left, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LLAMA, None),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97), None),
        (Qwen2Config(vocab_size=97, num_key_value_heads=2, **SIZES), None),
        (MistralConfig(vocab_size=97, num_key_value_heads=2, sliding_window=None, **SIZES), None),
        (MistralConfig(vocab_size=97, num_key_value_heads=2, sliding_window=5, **SIZES), "it attends to a window"),
        (
            Qwen2Config(
                vocab_size=97,
                num_key_value_heads=2,
                use_sliding_window=True,
                sliding_window=5,
                max_window_layers=1,
                **SIZES,
            ),
            "it attends to a window",
        ),
        (BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "its attention is its own"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_networks_that_are_fit_for_it(config: PreTrainedConfig, why: str | None) -> None:
    assert unfit(opened(config, SDPA if config.model_type != "bloom" else "eager")) == why


def test_a_network_that_is_not_fit_for_it_is_refused(tmp_path: Any) -> None:
    opened(MistralConfig(vocab_size=97, num_key_value_heads=2, sliding_window=5, **SIZES), SDPA).save_pretrained(
        tmp_path
    )
    said = "network.attention packed: MistralForCausalLM is not fit for it, as it attends to a window: take sdpa"
    with pytest.raises(UserError, match=said):
        Network(str(tmp_path), attention=PACKED).model()


def test_a_network_opens_with_it(network: Network) -> None:
    assert Network(network.path, attention=PACKED).model().config._attn_implementation == PACKED
