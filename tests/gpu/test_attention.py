"""Attention over packs by torch's kernel for samples of any length: what comes of one sample after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ftlab import attention
from ftlab.attention import PACKED, SDPA, attention_by_sample, mask_of
from ftlab.modules.isolation import attention_is_isolated

pytestmark = pytest.mark.gpu

BOUNDS = [0, 100, 101, 300, 512, 840, 1024]  # two rows of 512


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda")


def results(dtype: torch.dtype, heads: int, keys: int, width: int, device: torch.device) -> list[Tensor]:
    """Of a pack: what attention comes to, and its gradients."""
    torch.manual_seed(0)
    drawn = (torch.randn(2, 512, count, width, device=device) for count in (heads, keys, keys))
    inputs = [tensor.to(dtype).transpose(1, 2).requires_grad_() for tensor in drawn]
    out, _ = attention_by_sample(nn.Identity(), *inputs, mask_of(BOUNDS, device), scaling=width**-0.5)
    weights = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "keys"), [(8, 8), (8, 2)], ids=["all heads", "grouped"])
@pytest.mark.parametrize("width", [64, 128])
def test_the_kernel_comes_to_what_samples_do_one_by_one(
    dtype: torch.dtype, heads: int, keys: int, width: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attention._VARLEN is not None
    found = results(dtype, heads, keys, width, device)
    monkeypatch.setattr(attention, "_VARLEN", None)
    for one, other in zip(found, results(dtype, heads, keys, width, device), strict=True):
        assert (one - other).float().norm() <= 2e-2 * other.float().norm()
    exact = results(torch.float32, heads, keys, width, device)
    for one, other in zip(found, exact, strict=True):
        assert (one.float() - other).norm() <= 2e-2 * other.norm()


def test_a_network_keeps_samples_apart_by_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16-mixed, where rotations leave queries in float32; with the gradients of the mask."""
    calls = []
    kernel = attention._VARLEN

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(args)
        return kernel(*args, **kwargs)  # type: ignore[misc]

    monkeypatch.setattr(attention, "_VARLEN", counted)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_key_value_heads=1, **sizes)).to(device)
    ids = torch.arange(60, device=device).view(2, 30)
    positions = torch.tensor([[*range(11), *range(4), *range(15)]], device=device).expand(2, -1)
    told = {"attention_mask": mask_of([0, 11, 15, 30, 41, 45, 60], device)}

    def gradients(name: str, **inputs: Tensor) -> list[Tensor]:
        network.set_attn_implementation(name)
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(input_ids=ids, position_ids=positions, labels=ids, use_cache=False, **inputs).loss
        return list(torch.autograd.grad(loss, list(network.parameters())))

    for one, other in zip(gradients(PACKED, **told), gradients(SDPA), strict=True):
        assert (one - other).norm() <= 5e-2 * other.norm() + 1e-6
    assert calls
    network.set_attn_implementation(PACKED)
    with torch.autocast("cuda", torch.bfloat16):
        assert attention_is_isolated(network, 2, told_bounds=True)
