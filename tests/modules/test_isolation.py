"""The probes of isolation and of padding, on networks that keep samples apart and on those that do not."""

import warnings
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import AutoModelForCausalLM

from ftlab.attention import PACKED
from ftlab.modules.isolation import attention_is_isolated, padding_is_unseen

LLAMA = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
SMALL: dict[str, Any] = {"vocab_size": 97, "n_layer": 2, "n_head": 4}


def opened(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, **options)


@pytest.mark.parametrize("packs", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        GPT2Config(n_embd=32, n_positions=64, **SMALL),
        MistralConfig(**(LLAMA.to_dict() | {"sliding_window": 3, "model_type": "mistral"})),
        GPTNeoXConfig(**(LLAMA.to_dict() | {"model_type": "gpt_neox"})),
    ],
    ids=lambda config: config.model_type,
)
def test_samples_are_kept_apart(config: PreTrainedConfig, dtype: torch.dtype, attention: str, packs: int) -> None:
    assert attention_is_isolated(opened(config, dtype=dtype, attn_implementation=attention), packs)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),  # a state that runs on
        BloomConfig(hidden_size=32, **SMALL),  # no positions
        OPTConfig(
            vocab_size=97,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
        ),  # positions, but attention does not look at them
    ],
    ids=lambda config: config.model_type,
)
def test_samples_are_not_kept_apart(config: PreTrainedConfig) -> None:
    assert not attention_is_isolated(opened(config))


@pytest.mark.parametrize("packs", [1, 2])
@pytest.mark.parametrize("config", [LLAMA, GPT2Config(n_embd=32, n_positions=64, **SMALL)], ids=["llama", "gpt2"])
def test_bounds_are_heeded_by_the_attention_that_knows_them(config: PreTrainedConfig, packs: int) -> None:
    assert attention_is_isolated(opened(config, attn_implementation=PACKED), packs, told_bounds=True)


def test_adapters_change_nothing() -> None:
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    assert attention_is_isolated(peft.get_peft_model(opened(LLAMA), lora))


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_prompt_methods_cannot_pack(config: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's own, that it ignores positions
        network = peft.get_peft_model(opened(LLAMA), config(task_type="CAUSAL_LM", num_virtual_tokens=4))
        assert not attention_is_isolated(network)


class Wrapped(nn.Module):
    """A network whose forward is changed."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def get_input_embeddings(self) -> nn.Module:
        return self.network.get_input_embeddings()


class WithoutPositions(Wrapped):
    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return self.network(input_ids=input_ids, use_cache=use_cache)


class WithoutRestart(Wrapped):
    """Attention as it should be, but positions that run on."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        starts = (position_ids == 0).cumsum(-1)
        mask = torch.tril(starts[:, :, None] == starts[:, None, :])[:, None]
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return self.network(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=use_cache)


class FlattenedOnly(Wrapped):
    """As flash attention: samples are found in a batch of one row only."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        positions = position_ids if len(input_ids) == 1 else torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return self.network(input_ids=input_ids, position_ids=positions, use_cache=use_cache)


def test_networks_that_take_no_positions_cannot_pack() -> None:
    assert not attention_is_isolated(WithoutPositions(opened(LLAMA)))


def test_positions_have_to_restart() -> None:
    assert not attention_is_isolated(WithoutRestart(opened(GPT2Config(n_embd=32, n_positions=64, **SMALL))))


def test_the_shape_that_is_asked_for_is_tried() -> None:
    network = FlattenedOnly(opened(LLAMA))
    assert attention_is_isolated(network, packs=1)
    assert not attention_is_isolated(network, packs=2)


def test_the_network_and_random_numbers_are_left_as_they_were() -> None:
    network = opened(GPT2Config(n_embd=32, n_positions=64, **SMALL)).train()  # with dropout
    network.transformer.h[0].eval()
    modes = [module.training for module in network.modules()]
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert attention_is_isolated(network)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_other_errors_are_not_hidden() -> None:
    class Broken(Wrapped):
        def forward(self, **inputs: Any) -> Any:
            raise TypeError("broken")

    network = Broken(opened(LLAMA)).train()
    with pytest.raises(TypeError, match="broken"):
        attention_is_isolated(network)
    assert network.training


OPT = OPTConfig(
    **{"vocab_size": 97, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"word_embed_proj_dim": 32, "max_position_embeddings": 64},
)
BERT = BertConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        *(LLAMA, GPT2Config(n_embd=32, n_positions=64, **SMALL), BloomConfig(hidden_size=32, **SMALL), OPT),
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),
    ],
    ids=lambda config: config.model_type,
)
def test_padding_on_the_right_is_unseen(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    network = opened(config, dtype=dtype).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert padding_is_unseen(network, torch.device("cpu"))
    assert network.training
    assert torch.equal(torch.rand(1), expected)  # nothing was drawn


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_padding_is_unseen_behind_virtual_tokens(config: Any) -> None:
    network = peft.get_peft_model(opened(LLAMA), config(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert padding_is_unseen(network, torch.device("cpu"))


def test_padding_is_seen_by_attention_to_what_follows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not padding_is_unseen(opened(BERT), torch.device("cpu"))  # no decoder: it sees both sides


def test_a_network_that_wants_a_mask_is_told_of_padding() -> None:
    class Strict(Wrapped):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
            return self.network(input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=use_cache)

    assert not padding_is_unseen(Strict(opened(LLAMA)), torch.device("cpu"))
