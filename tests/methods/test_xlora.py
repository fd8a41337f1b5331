"""X-LoRA: a router over adapters that exist; nothing of it is lost on the way to disk and back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods import LoRA, XLoRA
from ftlab.networks import Network

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def adapters(network: Network, adapt: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters that answer differently."""
    place = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        method = LoRA(r=4)
        adapted = adapt(method, network, seed)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(seed))
        method.save(adapted, place / str(seed))
    return [str(place / "1"), str(place / "2")]


def test_only_the_router_trains_and_comes_back_whole(
    adapters: list[str],
    network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = XLoRA(adapters, depth=2, size=8)
    adapted = adapt(method, network)
    assert all("internal_xlora_classifier" in name for name in method.trained(adapted))
    assert train(method, adapted) == method.trained(adapted)
    expected = logits(adapted)
    method.save(adapted, tmp_path)
    torch.testing.assert_close(logits(method.load(network.model(), tmp_path)), expected, rtol=1e-5, atol=1e-5)


def test_opens_with_the_adapters_that_were_saved_with_it(
    adapters: list[str],
    network: Network,
    adapt: Callable[..., nn.Module],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    """Those that it was trained over have since been trained anew, or are gone."""
    copies = [str(copytree(adapter, tmp_path / Path(adapter).name)) for adapter in adapters]
    method = XLoRA(copies)
    adapted = adapt(method, network)
    expected = logits(adapted)
    method.save(adapted, tmp_path / "saved")
    for copy in copies:
        rmtree(copy)
    for number, adapter in enumerate(adapters):
        ours, theirs = (
            load_file(Path(at) / "adapter_model.safetensors") for at in (tmp_path / f"saved/{number}", adapter)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    opened = XLoRA(adapters).load(network.model(), tmp_path / "saved")
    torch.testing.assert_close(logits(opened), expected, rtol=1e-5, atol=1e-5)


def test_adapters_of_another_base_are_refused(adapters: list[str], network: Network, tmp_path: Path) -> None:
    foreign = copytree(adapters[1], tmp_path / "foreign")
    noted = json.loads((foreign / "base.json").read_text())
    (foreign / "base.json").write_text(json.dumps(noted | {"untouched": "0" * 16}))
    with pytest.raises(UserError, match=re.escape(f"{foreign} was made on")):
        XLoRA([adapters[0], str(foreign)]).adapt(network.model())


def test_an_adapter_of_a_newer_peft_is_refused(adapters: list[str], network: Network, tmp_path: Path) -> None:
    newer = copytree(adapters[1], tmp_path / "newer")
    config = json.loads((newer / "adapter_config.json").read_text())
    (newer / "adapter_config.json").write_text(json.dumps(config | {"peft_version": "9.9", "new_field": 1}))
    with pytest.raises(UserError, match=r"was written by peft 9\.9, and fields new_field means nothing"):
        XLoRA([adapters[0], str(newer)]).adapt(network.model())


def test_trains_and_answers_in_the_module(
    adapters: list[str], make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module = make_module(XLoRA(adapters), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
    data = make_data()
    trainer = make_trainer(max_steps=3, limit_val_batches=1.0)
    trainer.fit(module, data)
    data.answers_in_validation = True
    trainer.validate(module, data, verbose=False)
    assert len(module.tally.predictions) == 5


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_adapters_are_refused(adapters: list[str], count: int) -> None:
    with pytest.raises(UserError, match=f"has {count}: there is nothing to mix"):
        XLoRA(adapters[:count])


def test_a_directory_without_an_adapter_is_refused(adapters: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} holds no adapter_config.json")):
        XLoRA([adapters[0], str(tmp_path)])


def test_no_merged_form_and_no_checkpointing(adapters: list[str], network: Network) -> None:
    method = XLoRA(adapters)
    with pytest.raises(UserError, match="no merged form"):
        method.merge(method.adapt(network.model()))
    model = network.model()
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient_checkpointing"):
        method.adapt(model)
