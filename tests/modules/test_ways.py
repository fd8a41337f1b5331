"""Ways of computing that take more than the usual ones are told, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
)
from transformers.models.auto import AutoModelForCausalLM

from ftlab.methods import LoRA
from ftlab.modules.ways import slower, ways
from ftlab.networks import Network

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
WINDOW = "packs are computed with a mask of every pair of positions: it attends to a window"
CAPPED = "the logits of every target of a micro-batch are held at once: the network does something with them after its"


@pytest.mark.parametrize(("config", "found", "said"), [
    (LlamaConfig(**SHAPE), {"loss": "fused", "packs": "by sample"}, []),
    (GPT2Config(n_embd=32, n_layer=1, n_head=4), {"loss": "fused", "packs": "by sample"}, []),
    (MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=3), {"loss": "fused", "packs": "by sdpa"}, [WINDOW]),
    (Gemma2Config(**SHAPE, head_dim=8, num_key_value_heads=2, final_logit_softcapping=2.0, attn_logit_softcapping=None),
     {"loss": "rows", "packs": "by eager"}, [CAPPED, WINDOW]),
])  # fmt: skip
def test_what_is_slower_is_told(
    config: PreTrainedConfig, found: dict[str, str], said: list[str], tmp_path: Path, network: Network,
    make_module: Callable[..., Any], make_data: Callable[..., Any], make_trainer: Callable[..., Any],
) -> None:  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "network")
    tokenizer.save_pretrained(tmp_path / "network")
    module, data = make_module(LoRA(r=2)), make_data(batching="pack", max_length=64, batch_size=1)
    module.pretrained = data.network = Network(str(tmp_path / "network"))
    make_trainer(max_steps=1).fit(module, data)
    assert ways(module) == found | {"padding": ways(module)["padding"]}
    assert [sentence[: len(wanted)] for sentence, wanted in zip(slower(module), said, strict=True)] == said
    module.pretrained = Network(str(tmp_path / "network"), attention="sdpa")  # which asks for the mask
    assert WINDOW not in slower(module)
