"""Which saved adapters vLLM takes."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
from safetensors.torch import load_file
from torch import nn

from ftlab.methods import LoRA, Method, Peft
from ftlab.methods.serving import vllm_rank, why_not_vllm
from ftlab.networks import Network

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


def saved(method: Method, network: Network, adapt: Callable[..., nn.Module], to: Path) -> Path:
    method.save(adapt(method, network), to)
    return to


@pytest.mark.parametrize("method", [LoRA(r=4), LoRA(r=4, rslora=True), LoRA(r=4, init="pissa", targets=["q_proj"])])
def test_plain_lora_is_in_its_layout(
    method: Method, network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """As vllm/lora/utils.py takes names apart: base_model.model.MODULE.lora_A.weight, MODULE being the base's own."""
    directory = saved(method, network, adapt, tmp_path / "adapter")
    assert why_not_vllm(directory) is None
    assert vllm_rank(directory) == 8
    modules = dict(network.model().named_modules())
    for name in load_file(directory / "adapter_model.safetensors"):
        assert name.startswith("base_model.model.")
        module, matrix, weight = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert module in modules
        assert (matrix, weight) in {("lora_A", "weight"), ("lora_B", "weight")}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoRA(r=4, dora=True), "takes no DoRA"),
        (LoRA(r=4, modules_to_save=["lm_head"]), "no layers trained whole"),
        (Peft(peft.LoraConfig(**LORA, bias="lora_only")), "no biases"),
        (Peft(peft.LoraConfig(**LORA, rank_pattern={"q_proj": 2})), "one rank and one scale"),
        (Peft(peft.LoraConfig(**LORA, alpha_pattern={"q_proj": 2})), "one rank and one scale"),
        (Peft(peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])), "this is IA3"),
        (
            Peft(peft.LoraConfig(**LORA, alora_invocation_tokens=[5], task_type="CAUSAL_LM")),
            "would pass over alora_invocation_tokens",
        ),
        (Peft(peft.LoraConfig(**LORA, trainable_token_indices=[3])), "would pass over"),
    ],
)
def test_what_it_does_not_take(
    method: Method, said: str, network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    assert said in str(why_not_vllm(saved(method, network, adapt, tmp_path / "adapter")))


@pytest.mark.parametrize(("r", "least"), [(8, 16), (12, 32), (65, 256), (150, 320)])
def test_a_start_that_is_saved_at_twice_its_rank_asks_for_that(
    r: int, least: int, network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """PiSSA; vLLM takes 8, 16, 32, 64, 128, 256, 320 and 512 for --max-lora-rank."""
    if r > 64:  # more than the layers of this network hold
        (tmp_path / "adapter_config.json").write_text(f'{{"r": {2 * r}}}')
    else:
        saved(LoRA(r=r, init="pissa", targets=["q_proj"]), network, adapt, tmp_path)
    assert vllm_rank(tmp_path) == least


def test_too_high_a_rank_for_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 600}')
    assert "ranks up to 512" in str(why_not_vllm(tmp_path))
