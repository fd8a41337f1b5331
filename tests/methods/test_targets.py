"""Layers that a configuration means: those that are there, of the right size, and asked for."""

import re

import peft
import pytest

from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, LoRA, Method, Peft
from ftlab.networks import Network, Quantization


@pytest.mark.parametrize("pattern", [".*", r".*(proj|head)", r"(lm|model).*"])
def test_a_pattern_that_takes_the_vocabulary_by_accident_is_refused(network: Network, pattern: str) -> None:
    with pytest.raises(UserError, match=r"also matches (lm_head|model\.embed_tokens), which holds the vocabulary"):
        LoRA(r=4, targets=pattern).adapt(network.model())


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"], r".*(q_proj|lm_head)"])
def test_the_vocabulary_is_adapted_where_it_is_named(network: Network, targets: str | list[str]) -> None:
    adapted = LoRA(r=4, targets=targets).adapt(network.model())
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("lm_head" in name or "embed_tokens" in name for name in names)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"], r".*(q_proj|lm_head)"])
def test_one_use_of_a_tied_matrix_is_refused(tied_network: Network, targets: str | list[str]) -> None:
    with pytest.raises(UserError, match=r"(lm_head|embed_tokens) shares its matrix"):
        LoRA(r=4, targets=targets).adapt(tied_network.model())


@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize(
    ("method", "said"),
    [
        # keys and values have 32 outputs in the tiny network, all else at least 64 of both
        (LoRA(r=33), "k_proj has 64 inputs and 32 outputs: give at most 32"),
        (LoRA(r=65, targets=["q_proj"]), "q_proj has 64 inputs and 64 outputs: give at most 64"),
        (LoRA(r=33, layers=[1]), r"model.layers.1.self_attn.k_proj has 64 inputs"),
        (AdaLoRA(init_r=40), "method.r is 40"),
        (Peft(peft.LoraConfig(r=64, target_modules=r".*\.v_proj")), "v_proj"),
    ],
)
def test_a_rank_above_the_layers_is_refused(network: Network, method: Method, said: str, base: str | None) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        method.adapt(network.model(Quantization(base) if base else None))  # type: ignore[arg-type]


def test_the_largest_rank_is_the_smaller_side(network: Network) -> None:
    adapted = LoRA(r=64, targets=["q_proj", "up_proj"]).adapt(network.model())
    assert any("up_proj.lora_A" in name for name, _ in adapted.named_parameters())


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
        peft.OFTConfig(oft_block_size=7, r=0, target_modules=["q_proj"]),
        peft.AdaptionPromptConfig(adapter_layers=9, adapter_len=4),
    ],
    ids=lambda config: type(config).__name__,
)
def test_what_peft_cannot_is_one_sentence_with_the_layers_that_are_there(
    network: Network, config: peft.PeftConfig
) -> None:
    with pytest.raises(UserError) as caught:
        Peft(config).adapt(network.model())
    assert "\n" not in str(caught.value)
    assert "q_proj" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.HRAConfig(), "nf4"),
        (peft.HRAConfig(), "int8"),  # takes its codes for weights, without a word
        (peft.LoHaConfig(), "fp4"),
        (peft.LoraConfig(use_dora=True), "int8"),
        (peft.OSFConfig(), "nf4"),
    ],
)
def test_a_base_that_a_method_cannot_work_on_is_refused(config: peft.PeftConfig, kind: str) -> None:
    with pytest.raises(UserError, match=f"{type(config).__name__} does not work on a base in {kind}, only on "):
        Peft(config, Quantization(kind))  # type: ignore[arg-type]
