"""What is particular to LoRA, its variants and other adapters: scale, rates, exports, and what they refuse."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.methods import LoRA, Peft, QLoRA
from ftlab.networks import Network

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def by_hand(network: Network, adapter: Path, scale: float) -> nn.Module:
    """The pretrained network with scale B A added to every adapted weight."""
    reference = AutoModelForCausalLM.from_pretrained(network.path)
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in weights if name.endswith("lora_A.weight")]:
        layer = reference.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.weight.data += scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
    return reference


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"r": 4}, 2.0),  # alpha is 2 r
        ({"r": 4, "alpha": 3}, 0.75),
        ({"r": 4, "alpha": 0.5}, 0.125),
        ({"r": 4, "alpha": 3, "rslora": True}, 1.5),  # alpha / sqrt(r)
        ({"r": 1, "targets": ["q_proj", "down_proj"]}, 2.0),
    ],
)
def test_lora_is_w_plus_scale_b_a(
    options: dict,
    scale: float,
    network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = LoRA(**options)
    adapted = adapt(method, network)
    train(method, adapted)
    method.save(adapted, tmp_path)
    torch.testing.assert_close(logits(adapted), logits(by_hand(network, tmp_path, scale)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora"])
def test_rewriting_start_is_saved_as_plain_lora_on_the_original_base(
    init: str,
    network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = LoRA(r=4, init=init)  # type: ignore[arg-type]
    adapted = adapt(method, network)
    train(method, adapted)
    method.save(adapted, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 8
    assert config["base_model_name_or_path"] == network.path
    scale = config["lora_alpha"] / config["r"]
    torch.testing.assert_close(logits(adapted), logits(by_hand(network, tmp_path, scale)), rtol=1e-4, atol=1e-4)
    # and saving again gives the same: nothing was used up
    method.save(adapted, tmp_path / "again")
    one, again = (load_file(where / "adapter_model.safetensors") for where in (tmp_path, tmp_path / "again"))
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_pissa_starts_from_the_largest_singular_values(network: Network, adapt: Callable[..., nn.Module]) -> None:
    adapted = adapt(LoRA(r=4, alpha=4, init="pissa"), network)
    original = AutoModelForCausalLM.from_pretrained(network.path)
    layer = adapted.base_model.model.model.layers[1].mlp.up_proj
    u, s, v = torch.linalg.svd(original.model.layers[1].mlp.up_proj.weight.double())
    principal = (u[:, :4] * s[:4] @ v[:4]).float()
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(product, principal, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight + product, original.model.layers[1].mlp.up_proj.weight)


def test_lora_plus_scales_the_rate_of_b_alone(network: Network) -> None:
    method = LoRA(r=4, ratio=16)
    adapted = method.adapt(network.model())
    rates = {id(p): group.get("lr_scale", 1.0) for group in method.param_groups(adapted) for p in group["params"]}
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n: rates[id(p)] for n, p in trained.items()} == {n: 16.0 if "lora_B" in n else 1.0 for n in trained}


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_no_decay_on_vectors(network: Network, ratio: float) -> None:
    method = LoRA(r=4, ratio=ratio, modules_to_save=["norm"])
    adapted = method.adapt(network.model())
    optimizer = torch.optim.AdamW(method.param_groups(adapted), lr=1.0, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert any("norm" in name for name in trained)
    assert {n: decay[id(p)] for n, p in trained.items()} == {n: 0.0 if "norm" in n else 0.5 for n in trained}


@pytest.mark.parametrize("quantised", [False, True])
def test_tied_embeddings_stay_tied_after_merge(
    quantised: bool,
    tied_network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = QLoRA(r=4, compute_dtype="float32") if quantised else LoRA(r=4)
    adapted = adapt(method, tied_network)
    train(method, adapted)
    expected = logits(adapted)
    merged = method.merge(adapted)
    merged.save_pretrained(tmp_path)
    for other in (merged, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert other.lm_head.weight.data_ptr() == other.model.embed_tokens.weight.data_ptr()
        torch.testing.assert_close(logits(other), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_training_one_of_two_tied_layers_whole_gives_the_same_answers_everywhere(
    layer: str,
    tied_network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = LoRA(r=4, modules_to_save=[layer])
    adapted = adapt(method, tied_network)
    trained = [name for name in method.trained(adapted) if "lora_" not in name]
    assert len(trained) == 1  # the one matrix that they are
    train(method, adapted)
    expected = logits(adapted)
    method.save(adapted, tmp_path / "adapter")
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(opened), expected, rtol=1e-5, atol=1e-5)
    merged = method.merge(method.load(tied_network.model(), tmp_path / "adapter"))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()
    merged.save_pretrained(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(opened), expected, rtol=1e-4, atol=1e-4)


def test_layers_are_chosen_by_number(network: Network) -> None:
    adapted = LoRA(r=4, layers=[1]).adapt(network.model())
    adapted_layers = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    mlp, attention = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    expected = [f"mlp.{name}" for name in mlp] + [f"self_attn.{name}" for name in attention]
    assert adapted_layers == {f"base_model.model.model.layers.1.{name}" for name in expected}


def test_dropout_is_active_in_training_only(network: Network, batches: list[dict[str, Tensor]]) -> None:
    adapted = LoRA(r=4, dropout=0.5, init="gaussian").adapt(network.model())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    ids = batches[0]["input_ids"]
    with torch.no_grad():
        assert not torch.equal(adapted.train()(ids).logits, adapted(ids).logits)
        assert torch.equal(adapted.eval()(ids).logits, adapted(ids).logits)


class TestRefusals:
    @pytest.mark.parametrize("method", [LoRA(targets=["query"]), Peft(peft.LoraConfig(target_modules=["query"]))])
    def test_target_that_is_not_there_names_the_layers_that_are(self, network: Network, method: Peft) -> None:
        with pytest.raises(UserError, match="query") as caught:
            method.adapt(network.model())
        assert ", ".join([*LINEAR, "lm_head"]) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_one_target_of_two_that_is_not_there(self, network: Network) -> None:
        with pytest.raises(UserError, match="query"):
            LoRA(targets=["q_proj", "query"]).adapt(network.model())

    def test_module_to_save_that_is_not_there(self, network: Network) -> None:
        with pytest.raises(UserError, match="head_of_lm"):
            LoRA(modules_to_save=["head_of_lm"]).adapt(network.model())

    def test_layer_that_is_not_there(self, network: Network) -> None:
        with pytest.raises(UserError, match="7"):
            LoRA(layers=[1, 7]).adapt(network.model())

    @pytest.mark.parametrize("r", [0, -1])
    def test_rank_below_one(self, r: int) -> None:
        with pytest.raises(UserError, match=rf"method\.r is {r}"):
            LoRA(r=r)

    def test_odd_rank_for_orthogonal(self, network: Network) -> None:
        with pytest.raises(UserError, match="even"):
            LoRA(r=3, init="orthogonal").adapt(network.model())

    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora"])
    def test_rewriting_a_quantised_base(self, init: str) -> None:
        with pytest.raises(UserError, match=init):
            QLoRA(init=init)  # type: ignore[arg-type]

    @pytest.mark.parametrize("variant", ["dora", "rslora"])
    def test_rewriting_start_with_a_variant_that_has_no_plain_form(self, variant: str) -> None:
        with pytest.raises(UserError, match=re.escape(f"pissa together with {variant}")):
            LoRA(init="pissa", **{variant: True})

    def test_eva_without_data(self, network: Network) -> None:
        with pytest.raises(UserError, match=r"data\.path"):
            LoRA(init="eva").adapt(network.model())

    def test_no_merged_form(self, network: Network) -> None:
        method = Peft(peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
        with pytest.raises(UserError, match="no merged form"):
            method.merge(method.adapt(network.model()))

    def test_adapter_of_another_network(self, network: Network, tmp_path: Path) -> None:
        method = LoRA(r=4)
        method.save(method.adapt(network.model()), tmp_path)
        config = network.config()
        config.intermediate_size = 64
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            method.load(AutoModelForCausalLM.from_config(config), tmp_path)

    def test_adapter_that_lacks_tensors(self, network: Network, tmp_path: Path) -> None:
        method = LoRA(r=4)
        method.save(method.adapt(network.model()), tmp_path)
        weights = load_file(tmp_path / "adapter_model.safetensors")
        del weights["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
        save_file(weights, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match="up_proj"):
            method.load(network.model(), tmp_path)

    def test_directory_without_an_adapter(self, network: Network, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            LoRA(r=4).load(network.model(), tmp_path)
