"""Full fine-tuning: which weights are trained, tied weights, and directories that are not what they should be."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.methods import Full, ZeroShot
from ftlab.networks import Network


def test_pattern_that_matches_nothing_names_what_there_is(network: Network) -> None:
    with pytest.raises(UserError, match=re.escape("no parameter matches '*.attention.*'")) as caught:
        Full(["*norm*", "*.attention.*"]).adapt(network.model())
    assert "model.layers.*.self_attn.q_proj.weight" in str(caught.value)
    assert str(caught.value).count("q_proj") == 1  # once, not once a layer


def test_tied_embeddings_stay_tied(
    tied_network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = Full()
    network = adapt(method, tied_network)
    train(method, network)
    method.save(network, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = method.load(tied_network.model(), tmp_path)
    for other in (opened, loaded, method.merge(network)):
        assert other.lm_head.weight.data_ptr() == other.model.embed_tokens.weight.data_ptr()
        torch.testing.assert_close(logits(other), logits(network), rtol=1e-5, atol=1e-5)


def test_load_from_several_files(network: Network, logits: Callable[[nn.Module], Tensor], tmp_path: Path) -> None:
    trained = Network(network.path, random_weights=True).model()
    trained.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = Full().load(network.model(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=0, atol=0)


def test_load_refuses_a_directory_without_weights(network: Network, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} lacks weights")):
        Full().load(network.model(), tmp_path)


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_load_refuses_weights_of_another_network(network: Network, tmp_path: Path, change: str) -> None:
    weights = load_file(Path(network.path) / "model.safetensors")
    moved = weights.pop("model.norm.weight")
    if change == "unknown":
        weights |= {"model.norm.weight": moved, "model.other.weight": moved.clone()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.other\.weight" if change == "unknown" else r"model\.norm\.weight"):
        Full().load(network.model(), tmp_path)


def test_no_decay_on_norms(network: Network) -> None:
    method = Full()
    adapted = method.adapt(network.model())
    optimizer = torch.optim.AdamW(method.param_groups(adapted), lr=1.0, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {n: decay[id(p)] for n, p in adapted.named_parameters()} == {
        n: 0.0 if "norm" in n else 0.5 for n, _ in adapted.named_parameters()
    }


def test_zero_shot_names_its_base(network: Network, tmp_path: Path, logits: Callable[[nn.Module], Tensor]) -> None:
    method = ZeroShot()
    adapted = method.adapt(network.model())
    method.save(adapted, tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["base.json"]
    assert network.path in (tmp_path / "model" / "base.json").read_text()
    reference = logits(AutoModelForCausalLM.from_pretrained(network.path))
    for other in (method.load(network.model(), tmp_path / "model"), method.merge(adapted)):
        torch.testing.assert_close(logits(other), reference, rtol=0, atol=0)
