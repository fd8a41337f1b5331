"""An adapter goes back onto the base that it was made on, and onto no other."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.methods import LoRA, Peft, QLoRA, ZeroShot
from ftlab.networks import Network


@pytest.fixture
def adapter(network: Network, adapt: Callable[..., nn.Module], tmp_path: Path) -> Path:
    method = LoRA(r=4)
    method.save(adapt(method, network), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def moved(network: Network, tmp_path: Path) -> Callable[[str, float], Network]:
    """The network with one of its tensors changed, in another directory."""

    def write(name: str, by: float) -> Network:
        model = AutoModelForCausalLM.from_pretrained(network.path)
        model.get_parameter(name).data[-1] += by
        model.save_pretrained(tmp_path / "moved")
        return Network(str(tmp_path / "moved"))

    return write


def test_the_base_is_known_wherever_it_lies(adapter: Path, moved: Callable[[str, float], Network]) -> None:
    LoRA(r=4).load(moved("model.norm.weight", 0.0).model(), adapter)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
)
def test_another_base_of_the_same_shape_is_refused(
    adapter: Path, moved: Callable[[str, float], Network], network: Network, name: str
) -> None:
    other = moved(name, 1e-3)
    with pytest.raises(UserError, match=re.escape(f"{adapter} was made on {network.path}")) as caught:
        LoRA(r=4).load(other.model(), adapter)
    assert other.path in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"of_the_future": 1}', '{"revision": null}'])
def test_a_note_that_cannot_be_read_is_refused(adapter: Path, network: Network, text: str) -> None:
    (adapter / "base.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{adapter / 'base.json'} is damaged or of another version")):
        LoRA(r=4).load(network.model(), adapter)


def test_the_same_base_in_few_bits_or_in_bfloat16_is_accepted(adapter: Path, network: Network) -> None:
    QLoRA(r=4).load(network.model(QLoRA(r=4).quantization), adapter)
    LoRA(r=4).load(Network(network.path, dtype="bfloat16").model(), adapter)


def test_another_base_in_another_type_is_refused(adapter: Path, moved: Callable[[str, float], Network]) -> None:
    other = moved("model.norm.weight", 0.1)
    with pytest.raises(UserError, match="was made on"):
        LoRA(r=4).load(Network(other.path, dtype="bfloat16").model(), adapter)


def test_a_base_into_which_an_adapter_was_merged_is_another(
    adapter: Path, network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """Only its linear layers differ."""
    method = LoRA(r=4, init="gaussian")
    adapted = adapt(method, network)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    method.merge(adapted).save_pretrained(tmp_path / "merged")
    with pytest.raises(UserError, match="was made on"):
        LoRA(r=4).load(Network(str(tmp_path / "merged")).model(), adapter)


def test_another_base_in_the_same_few_bits_is_refused(
    network: Network, adapt: Callable[..., nn.Module], moved: Callable[[str, float], Network], tmp_path: Path
) -> None:
    method = QLoRA(r=4)
    method.save(adapt(method, network), tmp_path / "of4bits")
    method.load(network.model(method.quantization), tmp_path / "of4bits")
    other = moved("model.layers.1.mlp.up_proj.weight", 0.1)
    with pytest.raises(UserError, match="was made on"):
        method.load(other.model(method.quantization), tmp_path / "of4bits")


def test_another_revision_is_refused(adapter: Path, network: Network) -> None:
    noted = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps(noted | {"revision": "abc"}))
    model = network.model()
    model.config._commit_hash = "def"
    with pytest.raises(UserError, match="revision abc"):
        LoRA(r=4).load(model, adapter)


def test_an_adapter_of_others_needs_no_note(network: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    peft.get_peft_model(network.model(), config).save_pretrained(str(tmp_path))
    Peft(config).load(network.model(), tmp_path)


@pytest.mark.parametrize("change", [{"field_of_the_future": 3}, {"peft_type": "METHOD_OF_THE_FUTURE"}])
def test_a_configuration_of_a_newer_peft_is_refused(adapter: Path, network: Network, change: dict) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change | {"peft_version": "99.0"}))
    with pytest.raises(UserError, match=re.escape(f"{adapter}")) as caught:
        LoRA(r=4).load(network.model(), adapter)
    assert "99.0" in str(caught.value)
    assert peft.__version__ in str(caught.value)
    assert "FUTURE" in str(caught.value).upper()


def test_the_baseline_belongs_to_its_base_too(
    moved: Callable[[str, float], Network], network: Network, tmp_path: Path
) -> None:
    ZeroShot().save(ZeroShot().adapt(network.model()), tmp_path / "base")
    ZeroShot().load(network.model(), tmp_path / "base")
    with pytest.raises(UserError, match="was made on"):
        ZeroShot().load(moved("model.norm.weight", 1e-3).model(), tmp_path / "base")
