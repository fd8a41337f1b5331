"""What is kept of a block for its backward pass, on the accelerator there is: equal gradients, less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ftlab.methods import LoRA
from ftlab.modules.activations import WAYS, GradientCheckpointing, checkpoint_blocks
from ftlab.networks import Network

pytestmark = pytest.mark.gpu

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}


def gradients(network: Network, way: GradientCheckpointing) -> tuple[list[Tensor], int]:
    """Of one batch, and the most memory of a GPU meanwhile, in bytes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = network.model(None, device)
    checkpoint_blocks(opened, way)
    torch.manual_seed(0)
    adapted = LoRA(r=8).adapt(opened).train()
    ids = torch.arange(4 * 512, device=device).view(4, 512) % 128
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return [p.grad for p in adapted.parameters() if p.grad is not None], peak


def test_each_way_takes_less_memory_than_the_one_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **SHAPE)).save_pretrained(tmp_path)
    found = [gradients(Network(str(tmp_path)), way) for way in WAYS]
    kept = found[0][0]
    assert kept
    for again, _ in found:
        assert all(torch.equal(one, other) for one, other in zip(again, kept, strict=True))
    peaks = [peak for _, peak in found]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == (len(WAYS) if torch.cuda.is_available() else 1)
