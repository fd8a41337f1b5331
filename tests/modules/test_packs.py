"""By which attention packs are computed: chosen by trial, the same when a run goes on, with the gradients of a mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import SaveAt, adam, trained
from torch import nn
from transformers import MistralConfig
from transformers.models.auto import AutoModelForCausalLM

from ftlab.attention import PACKED, SDPA, mask_of
from ftlab.errors import UserError
from ftlab.methods import Full, LoRA
from ftlab.modules import Cosine
from ftlab.modules.activations import GradientCheckpointing, checkpoint_blocks
from ftlab.modules.packs import attend_to_packs
from ftlab.networks import Network, language_model

Make = Callable[..., Any]

PACKS = {"batching": "pack", "max_length": 64, "batch_size": 1}


def attention_of(network: nn.Module) -> str:
    return language_model(network).config._attn_implementation


@pytest.fixture
def windowed(tmp_path: Path) -> Network:
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "windowed")
    return Network(str(tmp_path / "windowed"))


@pytest.mark.parametrize(
    ("named", "before", "chosen"),
    [
        (None, None, PACKED),
        (None, PACKED, PACKED),
        (None, SDPA, SDPA),  # of a run that began so
        (SDPA, None, SDPA),
        (PACKED, PACKED, PACKED),
        ("eager", None, "eager"),
    ],
)
def test_what_is_named_or_was_before_goes_first(
    network: Network, named: str | None, before: str | None, chosen: str
) -> None:
    pretrained = Network(network.path, attention=named)
    adapted = LoRA(r=2).adapt(pretrained.model()).train()
    assert attend_to_packs(adapted, pretrained, before) == (chosen == PACKED)
    assert attention_of(adapted) == chosen
    assert adapted.training


def test_a_window_takes_the_mask(windowed: Network) -> None:
    adapted = LoRA(r=2).adapt(windowed.model()).train()
    assert not attend_to_packs(adapted, windowed)
    assert attention_of(adapted) == SDPA
    with pytest.raises(UserError, match=r"it attends to a window\): start another run"):
        attend_to_packs(adapted, windowed, PACKED)


def test_a_network_that_leaks_with_it_takes_the_mask(network: Network) -> None:
    adapted = Full().adapt(network.model()).train()

    def forget(_: Any, args: Any, inputs: dict[str, Any]) -> Any:
        """As something between the two that knows no such mask."""
        mask = inputs.get("attention_mask")
        return args, inputs if mask is None or mask.ndim == 2 else inputs | {"attention_mask": None}

    blocks = next(module for module in adapted.modules() if isinstance(module, nn.ModuleList))
    hooks = [block.register_forward_pre_hook(forget, with_kwargs=True) for block in blocks]
    with pytest.raises(UserError, match="packed records see each other, so the loss would be of something else"):
        attend_to_packs(adapted, network)  # nor is there a mask
    assert attention_of(adapted) == SDPA
    for hook in hooks:
        hook.remove()
    assert attend_to_packs(adapted, network)


def test_a_run_that_began_with_a_mask_goes_on_with_one(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path, network: Network
) -> None:
    """To the same bits: its checkpoint says nothing, as there was nothing else."""
    path = tmp_path / "step.ckpt"

    def module(attention: str | None) -> Any:
        made = make_module(LoRA(r=2, dropout=0.3), optimizer=adam, schedule=Cosine())
        made.pretrained = Network(network.path, attention=attention)
        return made

    whole = module(SDPA)
    make_trainer(max_steps=4, callbacks=[SaveAt(2, path)]).fit(whole, make_data(**PACKS))
    assert not whole.told_bounds
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["ftlab"].pop("attention") == SDPA
    torch.save(checkpoint, path)
    resumed = module(None)
    make_trainer(max_steps=4).fit(resumed, make_data(**PACKS), ckpt_path=path)
    assert all(torch.equal(trained(resumed)[name], weight) for name, weight in trained(whole).items())

    own, beside = module(None), tmp_path / "own.ckpt"
    make_trainer(max_steps=1, callbacks=[SaveAt(1, beside)]).fit(own, make_data(**PACKS))
    assert own.told_bounds
    assert torch.load(beside, weights_only=False)["ftlab"]["attention"] == PACKED


@pytest.mark.parametrize("way", ["selective", True])
def test_activations_are_computed_again_alike(way: GradientCheckpointing, network: Network) -> None:
    ids = torch.arange(60).view(2, 30)
    positions = torch.tensor([[*range(11), *range(4), *range(15)]]).expand(2, -1)
    mask = mask_of([0, 11, 15, 30, 41, 45, 60], ids.device)

    def gradients(way: GradientCheckpointing) -> list[torch.Tensor]:
        torch.manual_seed(0)
        opened = Network(network.path, attention=PACKED).model()
        checkpoint_blocks(opened, way)
        adapted = LoRA(r=2, init="gaussian").adapt(opened).train()
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        adapted(**inputs, labels=ids, use_cache=False).loss.backward()
        return [p.grad for p in adapted.parameters() if p.grad is not None]

    kept = gradients(False)
    assert kept
    assert all(torch.equal(one, other) for one, other in zip(gradients(way), kept, strict=True))
