"""Layers that a configuration means: those that are there, of the right size, and asked for."""

import re

import peft
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, LoRA, Method, Peft, QLoRA
from ftlab.networks import Network, Quantization


@pytest.mark.parametrize("pattern", [".*", r".*(proj|head)", r"(lm|model).*"])
def test_a_pattern_that_takes_the_vocabulary_by_accident_is_refused(network: Network, pattern: str) -> None:
    with pytest.raises(
        UserError, match=r"also matches (lm_head|model\.embed_tokens), which is (the head|an embedding)"
    ):
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
        (AdaLoRA(init_r=40), "method.init_r is 40"),
        (
            Peft(peft.LoraConfig(r=4, rank_pattern={"v_proj": 40}, target_modules=["q_proj", "v_proj"])),
            "method.r is 40",
        ),
        (Peft(peft.LoraConfig(r=64, target_modules=r".*\.v_proj")), "v_proj"),
    ],
)
def test_a_rank_above_the_layers_is_refused(network: Network, method: Method, said: str, base: str | None) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        method.adapt(network.model(Quantization(base) if base else None))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [peft.LoHaConfig(r=65), peft.HRAConfig(r=65), peft.HiraConfig(r=65)])
def test_a_rank_above_the_layers_is_refused_of_others_than_lora(network: Network, config: peft.PeftConfig) -> None:
    config.target_modules = ["q_proj"]
    with pytest.raises(UserError, match=r"method\.r is 65, and model\.layers\.0\.self_attn\.q_proj has 64 inputs"):
        Peft(config).adapt(network.model())


def test_the_layers_that_are_told_are_the_networks_own(network: Network) -> None:
    """64 goes into the width of the layers that are adapted first, and not into that of down_proj, 96."""
    config = peft.BOFTConfig(boft_block_size=64, target_modules=["q_proj", "down_proj"])
    with pytest.raises(UserError, match=r"must be divisible") as refused:
        Peft(config).adapt(network.model())
    _, _, told = str(refused.value).partition("its linear layers are ")
    assert set(told.split(", ")) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    }


def test_a_size_that_is_no_rank_may_be_larger(network: Network) -> None:
    Peft(peft.VeraConfig(r=256, target_modules=["q_proj"])).adapt(network.model())


def test_layers_that_are_stored_the_other_way_round_are_looked_at_too() -> None:
    network = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=100, n_positions=32))
    with pytest.raises(
        UserError, match=r"method\.r is 65, and transformer\.h\.0\.attn\.c_attn has 64 inputs and 192 out"
    ):
        LoRA(r=65).adapt(network)
    with pytest.raises(UserError, match=r"also matches transformer\.wpe, which is an embedding"):
        LoRA(r=4, targets=r".*(c_attn|pe)").adapt(network)


@pytest.mark.parametrize("config", [peft.IA3Config(), peft.LoHaConfig(target_modules="all-linear")])
def test_a_tied_matrix_trained_whole_beside_another_method_than_lora_is_refused(
    tied_network: Network, config: peft.PeftConfig
) -> None:
    config.modules_to_save = ["lm_head"]
    with pytest.raises(UserError, match=r"modules_to_save lm_head beside \w+: lm_head shares its matrix"):
        Peft(config).adapt(tied_network.model())


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
    with pytest.raises(
        UserError, match=f"{type(config).__name__}( with dora)? does not work on a base in {kind}, only on "
    ):
        Peft(config, Quantization(kind))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"kind": "int8", "dora": True},
            r"method: QLoRA with dora does not work on a base in int8, only on fp4, full, nf4:",
        ),
        (
            {"kind": "int8", "init": "loftq"},
            "method: QLoRA with init loftq does not work on a base in int8, only on fp4",
        ),
    ],
)
def test_what_does_not_go_together_is_named(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        QLoRA(**options)
