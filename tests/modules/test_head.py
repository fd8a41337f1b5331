"""The loss by way of the head: what float64 says of all logits, for any head, whatever is done to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from ftlab.modules import head
from ftlab.modules.head import Head

SHAPE: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0},
}
LENGTH = 12


def llama(**options: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **options))


def adapted(config: peft.PeftConfig, **options: Any) -> Any:
    torch.manual_seed(1)
    network = peft.get_peft_model(llama(**options), config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network


def in_few_bits() -> Any:
    network = llama()
    few = Linear4bit(16, 50, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    few.support_avx512bf16_for_cpu = False  # as where ftlab opens a network: see ftlab.networks._keep_packing
    few.load_state_dict(network.lm_head.state_dict())
    network.lm_head = few.to("cpu")
    network.lm_head.requires_grad_(False)
    return network


NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (llama, "fused"),
    "tied": (lambda: llama(tie_word_embeddings=True), "fused"),
    "LoRA on it": (lambda: adapted(peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"])), "fused"),
    "DoRA on it": (lambda: adapted(peft.LoraConfig(r=2, use_dora=True, target_modules=["lm_head"])), "fused"),
    "trained whole": (
        lambda: adapted(peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])),
        "fused",
    ),
    "LoRA beside it": (lambda: adapted(peft.LoraConfig(r=2, target_modules=["q_proj"])), "fused"),
    "virtual tokens": (
        lambda: adapted(peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
        "fused",
    ),
    "4 bits": (in_few_bits, "fused"),
    "capped": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=2.0, sliding_window=64)),
        "rows",
    ),
    "divided": (lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)), "rows"),
    "multiplied": (
        lambda: CohereForCausalLM(
            CohereConfig(**{n: v for n, v in SHAPE.items() if n != "head_dim"}, logit_scale=0.3, eos_token_id=1)
        ),
        "rows",
    ),
}


@pytest.fixture(autouse=True)
def _some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_ROWS", 4)
    monkeypatch.setattr(head, "_LOGITS", 1)


def batch() -> tuple[dict[str, Any], Tensor, Tensor]:
    """Three rows of which some tokens are targets; with places and targets."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 50, (3, LENGTH), generator=generator)
    labels = torch.where(torch.rand((3, LENGTH), generator=generator) < 0.5, ids, -100)
    places = (labels[:, 1:] != -100).nonzero()
    flat = places[:, 0] * LENGTH + places[:, 1]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    return inputs | {"labels": labels}, flat, labels.flatten()[flat + 1]


def gradients(network: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_are_those_of_all_logits(name: str) -> None:
    torch.manual_seed(0)
    make, way = NETWORKS[name]
    network = make().train()
    if name != "4 bits":  # which computes in float32
        network = network.double()
    inputs, places, targets = batch()
    labels = inputs.pop("labels")
    logits = network(**inputs).logits[:, -LENGTH:]
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    (3 * expected).backward()
    theirs = gradients(network)

    by_head = Head(network)
    loss = by_head.summed_loss(inputs, LENGTH, places, targets)
    (3 * loss).backward()
    ours = gradients(network)
    assert by_head.way == way
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "4 bits" else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(loss, expected, **tolerance)
    torch.testing.assert_close(ours, theirs, **tolerance)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            torch.testing.assert_close(by_head.summed_loss(inputs, LENGTH, places, targets), expected, **tolerance)
            each = by_head.losses(inputs, LENGTH, places, targets)
            log_p = logits.flatten(0, 1)[places].log_softmax(-1)
            torch.testing.assert_close(each, -log_p[range(len(targets)), targets].detach(), **tolerance)
    assert "forward" not in vars(by_head._layer)  # as it was


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_of_each_target_is_that_of_all_logits(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    inputs, places, targets = batch()
    del inputs["labels"]
    with torch.inference_mode():
        logits = network(**inputs).logits[:, -LENGTH:].flatten(0, 1)[places]
        expected = -logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        found = Head(network).losses(inputs, LENGTH, places, targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    empty = torch.zeros(0, dtype=torch.long)
    assert Head(network).losses(inputs, LENGTH, empty, empty).shape == (0,)


class Bounded(nn.Linear):
    """An output layer whose gradient needs what it gave."""

    def forward(self, rows: Tensor) -> Tensor:
        return 3 * super().forward(rows).tanh()


def test_a_layer_may_need_what_it_gave() -> None:
    torch.manual_seed(0)
    network, (inputs, places, targets) = llama(), batch()
    inputs.pop("labels")
    bounded = Bounded(16, 50, bias=False)
    bounded.weight = network.lm_head.weight
    network.lm_head = bounded
    logits = network(**inputs).logits.flatten(0, 1)[places]
    nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    theirs = gradients(network)
    Head(network).summed_loss(inputs, LENGTH, places, targets).backward()
    torch.testing.assert_close(gradients(network), theirs)


class Doubtful(LlamaForCausalLM):
    """Does to logits what no part of them can be known by."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits - found.logits.mean(dim=tuple(range(found.logits.ndim - 1)))
        return found


def test_what_is_not_known_by_its_parts_is_computed_whole() -> None:
    torch.manual_seed(0)
    network, (inputs, places, targets) = Doubtful(LlamaConfig(**SHAPE)), batch()
    inputs.pop("labels")
    by_head = Head(network)
    loss = by_head.summed_loss(inputs, LENGTH, places, targets)
    logits = network(**inputs).logits.flatten(0, 1)[places]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert by_head.way == "whole"


def test_a_hook_that_changes_logits_later_is_heeded() -> None:
    torch.manual_seed(0)
    network, (inputs, places, targets) = llama(), batch()
    inputs.pop("labels")
    by_head = Head(network)
    before = by_head.summed_loss(inputs, LENGTH, places, targets)

    def sharpen(module: nn.Module, args: Any, output: Any) -> None:
        output.logits = 2 * output.logits

    network.register_forward_hook(sharpen)
    after = by_head.summed_loss(inputs, LENGTH, places, targets)
    logits = network(**inputs).logits.flatten(0, 1)[places]
    torch.testing.assert_close(after, nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert after != before


def test_the_head_sees_rows_with_a_target_alone_some_at_a_time() -> None:
    network, (inputs, places, targets) = llama(), batch()
    inputs.pop("labels")
    by_head, sizes = Head(network), []
    by_head.summed_loss(inputs, LENGTH, places, targets)
    forward = network.lm_head.forward

    def seen(rows: Tensor) -> Tensor:
        sizes.append(rows.shape[:-1].numel())
        return forward(rows)

    network.lm_head.forward = seen
    by_head.summed_loss(inputs, LENGTH, places, targets).backward()
    assert network.lm_head.forward is seen  # another's stays
    assert sum(sizes) == len(places)
    assert max(sizes) == 4


def test_a_batch_without_targets_has_a_gradient_of_zeros() -> None:
    network, (inputs, _, _) = llama(), batch()
    inputs.pop("labels")
    nothing = torch.tensor([], dtype=torch.long)
    loss = Head(network).summed_loss(inputs, LENGTH, nothing, nothing)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_dropout_beside_it_is_drawn_once_a_row_and_trying_draws_nothing() -> None:
    network = adapted(peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["lm_head"])).train()
    inputs, places, targets = batch()
    inputs.pop("labels")
    torch.manual_seed(3)
    first = Head(network).summed_loss(inputs, LENGTH, places, targets)
    torch.manual_seed(3)
    by_head = Head(network)
    by_head.way = "fused"
    assert by_head.summed_loss(inputs, LENGTH, places, targets) == first


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bfloat16_sums_are_wide(precision: str) -> None:
    torch.manual_seed(0)
    network, (inputs, places, targets) = llama(), batch()
    inputs.pop("labels")
    exact = Head(network).summed_loss(inputs, LENGTH, places, targets)
    exact.backward()
    wide = gradients(network)["lm_head.weight"]
    if precision == "bf16-true":
        network = network.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = Head(network).summed_loss(inputs, LENGTH, places, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=2e-2)
    found = gradients(network)["lm_head.weight"].float()
    assert nn.functional.cosine_similarity(found.flatten(), wide.flatten(), dim=0) > 0.99
