"""A network without its weights holds what the network with its weights does, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ftlab.errors import UserError
from ftlab.methods import LoRA, QLoRA
from ftlab.networks import Network, Quantization, count_parameters
from ftlab.planning import SHAPES, shape_of, skeleton, without_values

PUBLISHED = {
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "microsoft/phi-2": 2_779_683_840,
    "openai-community/gpt2": 124_439_808,
}
"""Parameters of each, as their pages on the hub count them."""

BASES = {
    "full": None,
    "nf4, double": Quantization(),
    "nf4": Quantization(double=False),
    "fp4 in bfloat16": Quantization("fp4", storage_dtype="bfloat16"),
    "int8": Quantization("int8"),
}


def stored(network: nn.Module) -> dict[str, int]:
    """Bytes of each parameter, with its scales."""
    sizes = {}
    for name, parameter in network.named_parameters():
        state: Any = getattr(parameter, "quant_state", None)
        scales = [] if state is None else [state.absmax, state.code, state.offset]
        if state is not None and state.state2 is not None:
            scales += [state.state2.absmax, state.state2.code]
        sizes[name] = parameter.nbytes + sum(part.nbytes for part in scales if part is not None)
    return sizes


@pytest.mark.parametrize("base", BASES)
def test_it_holds_as_much_as_the_network_that_is_opened(base: str, network: Network) -> None:
    real = network.model(BASES[base])
    with without_values():
        planned = skeleton(network, BASES[base])
        assert stored(planned) == stored(real)
        assert {name: p.dtype for name, p in planned.named_parameters()} == {
            name: p.dtype for name, p in real.named_parameters()
        }
        assert count_parameters(planned, ()) == count_parameters(real, ())


def test_layers_that_are_laid_out_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's are (in, out)."""
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=128, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    gpt2 = Network(str(tmp_path))
    real = gpt2.model(Quantization())
    with without_values():
        planned = skeleton(gpt2, Quantization())
        assert stored(planned) == stored(real)
        ids = torch.zeros(2, 8, dtype=torch.long)
        assert planned(input_ids=ids).logits.shape == (2, 8, 64)


@pytest.mark.parametrize(
    "method",
    [LoRA(r=4), QLoRA(r=4), QLoRA(r=4, kind="int8"), QLoRA(r=4, dora=True)],
    ids=["lora", "nf4", "int8", "dora over nf4"],
)
def test_methods_adapt_it_as_they_adapt_the_network(method: Any, network: Network) -> None:
    real = {
        n: p.shape for n, p in method.adapt(network.model(method.quantization)).named_parameters() if p.requires_grad
    }
    with without_values():
        adapted = method.adapt(skeleton(network, method.quantization)).train()
        assert {name: p.shape for name, p in adapted.named_parameters() if p.requires_grad} == real
        ids = torch.zeros(2, 8, dtype=torch.long)
        adapted(input_ids=ids).logits.sum().backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_that_ship_have_as_many_parameters_as_is_published(name: str) -> None:
    with without_values():
        assert count_parameters(skeleton(Network(name)), ())[1] == PUBLISHED[name]


def test_all_shapes_that_ship_are_checked() -> None:
    assert {path.stem.replace("--", "/") for path in SHAPES.glob("*.json")} == set(PUBLISHED)


def test_every_network_of_the_experiments_has_a_shape() -> None:
    import yaml

    for file in (Path(__file__).parents[2] / "experiments" / "network").glob("*.yaml"):
        path = yaml.safe_load(file.read_text())["model"]["network"]["path"]
        assert shape_of(Network(path)).num_hidden_layers > 0


def test_a_network_that_nobody_knows() -> None:
    with pytest.raises(
        UserError, match=r"knows the shape of Qwen/Qwen3-0.6B-Base.*or a directory with its config.json"
    ):
        shape_of(Network("nobody/nothing"))


def test_a_network_that_others_have_quantised(tmp_path: Path) -> None:
    config = GPT2Config(quantization_config={"quant_method": "gptq", "bits": 4})
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is quantised by gptq, of which ftlab plan knows no sizes"), without_values():
        skeleton(Network(str(tmp_path)))
