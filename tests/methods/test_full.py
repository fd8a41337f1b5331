"""Full fine-tuning: which weights are trained and how fast, tied weights, and directories that do not fit."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftlab.errors import UserError
from ftlab.methods import Full, ZeroShot
from ftlab.networks import Network, decoder_blocks

WIDTH = 16


@dataclass(frozen=True)
class Family:
    """A kind of network, small and with random weights, and its parts by hand."""

    config: dict[str, Any]
    blocks: str
    embeddings: set[str]
    top: set[str]
    norms: set[str]  # of one block

    def make(self, kind: str, **options: Any) -> PreTrainedModel:
        config = AutoConfig.for_model(kind, vocab_size=1400, bos_token_id=1, eos_token_id=2, **(self.config | options))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config)


FAMILIES = {
    "llama": Family(
        {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
        "model.layers",
        {"model.embed_tokens.weight"},
        {"model.norm.weight", "lm_head.weight"},
        {"input_layernorm.weight", "post_attention_layernorm.weight"},
    ),
    "gpt2": Family(
        {"n_embd": WIDTH, "n_layer": 3, "n_head": 2, "n_positions": 64},
        "transformer.h",
        {"transformer.wte.weight", "transformer.wpe.weight"},
        {"transformer.ln_f.weight", "transformer.ln_f.bias"},
        {"ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"},
    ),
    "opt": Family(
        {
            "hidden_size": WIDTH,
            "ffn_dim": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "word_embed_proj_dim": WIDTH,
        },
        "model.decoder.layers",
        {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
        {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"},
        {f"{norm}_layer_norm.{part}" for norm in ("self_attn", "final") for part in ("weight", "bias")},
    ),
    "gpt_neox": Family(
        {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
        "gpt_neox.layers",
        {"gpt_neox.embed_in.weight"},
        {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "lm_head.weight"},
        {f"{norm}_layernorm.{part}" for norm in ("input", "post_attention") for part in ("weight", "bias")},
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Family, PreTrainedModel]:
    return FAMILIES[request.param], FAMILIES[request.param].make(request.param)


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def of_blocks(family: Family, network: nn.Module, numbers: Iterable[int]) -> set[str]:
    prefixes = tuple(f"{family.blocks}.{number}." for number in numbers)
    return {name for name, _ in network.named_parameters() if name.startswith(prefixes)}


class TestWhatIsTrained:
    def test_the_blocks_are_found_whatever_they_are_called(self, family: tuple[Family, PreTrainedModel]) -> None:
        known, network = family
        assert decoder_blocks(network) is network.get_submodule(known.blocks)
        inside = of_blocks(known, network, range(3))
        assert {name for name, _ in network.named_parameters()} - inside == known.embeddings | known.top

    def test_a_list_within_a_block_is_none_of_blocks(self) -> None:
        network: Any = FAMILIES["llama"].make("llama")
        network.model.layers[0].experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        assert decoder_blocks(network) is network.model.layers

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_last_blocks_alone(self, count: int, family: tuple[Family, PreTrainedModel]) -> None:
        known, network = family
        Full(last_blocks=count).adapt(network)
        assert trained(network) == of_blocks(known, network, range(3 - count, 3))

    def test_the_last_blocks_and_what_patterns_name_beside(self, family: tuple[Family, PreTrainedModel]) -> None:
        known, network = family
        Full(trainable=sorted(known.top), last_blocks=1).adapt(network)
        assert trained(network) == of_blocks(known, network, [2]) | known.top

    def test_norms_alone(self, family: tuple[Family, PreTrainedModel]) -> None:
        known, network = family
        Full(only="norms").adapt(network)
        of_all_blocks = {f"{known.blocks}.{number}.{norm}" for number in range(3) for norm in known.norms}
        assert trained(network) == of_all_blocks | {name for name in known.top if "head" not in name}

    @pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox"])
    def test_biases_alone(self, kind: str, train: Callable[..., set[str]]) -> None:
        network, method = FAMILIES[kind].make(kind), Full(only="biases")
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        method.adapt(network)
        moved = train(method, network)
        biases = {name for name in before if name.endswith(".bias")}
        assert len(biases) > 3 * 5
        assert trained(network) == biases >= moved
        assert {n for n, p in network.named_parameters() if not torch.equal(p, before[n])} == moved
        # softmax does not change with what is added to every key: the bias of keys has no gradient but rounding
        assert all("k_proj" in name for name in biases - moved)

    def test_biases_of_the_last_block_alone(self) -> None:
        network = FAMILIES["gpt2"].make("gpt2")
        Full(last_blocks=1, only="biases").adapt(network)
        layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        assert trained(network) == {f"transformer.h.2.{layer}.bias" for layer in layers}

    def test_an_adapted_network_can_be_adapted_again(self) -> None:
        network = FAMILIES["gpt2"].make("gpt2")
        Full(last_blocks=1).adapt(network)
        Full().adapt(network)
        assert trained(network) == {name for name, _ in network.named_parameters()}

    def test_a_part_trains_under_gradient_checkpointing(self, batches: list[dict[str, Tensor]]) -> None:
        gradients = []
        for checkpointing in (False, True):
            network = FAMILIES["gpt2"].make("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
            Full(last_blocks=2).adapt(network)
            if checkpointing:
                network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            network.train()
            network(**batches[0], use_cache=False).loss.backward()
            gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() == trained(network)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient)


class TestRates:
    def test_decay_from_the_head_down_to_the_embeddings(self, family: tuple[Family, PreTrainedModel]) -> None:
        """The rates of torch's own optimiser, with 1, 1/2, 1/4, 1/8 and 1/16 by hand."""
        known, network = family
        method = Full(layer_decay=0.5)
        method.adapt(network)
        groups = method.param_groups(network)
        assert "lr_scale" in groups[0]
        assert groups[0]["lr_scale"] == 1.0  # the first group's rate is the one that is logged
        scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        decays = {id(p): group.get("weight_decay") for group in groups for p in group["params"]}
        assert len(scales) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
        by_hand = dict.fromkeys(known.top, 1.0) | dict.fromkeys(known.embeddings, 1 / 16)
        for number, scale in ((2, 1 / 2), (1, 1 / 4), (0, 1 / 8)):
            by_hand |= dict.fromkeys(of_blocks(known, network, [number]), scale)
        assert {name: scales[id(p)] for name, p in network.named_parameters()} == by_hand
        assert all((decays[id(p)] == 0.0) == (p.ndim < 2) for p in network.parameters())

    def test_of_a_part_has_groups_for_that_part_only(self) -> None:
        network, method = FAMILIES["llama"].make("llama"), Full(last_blocks=2, layer_decay=0.5)
        method.adapt(network)
        groups = method.param_groups(network)
        assert [group["lr_scale"] for group in groups] == [0.5, 0.5, 0.25, 0.25]  # matrices and norms of two blocks
        assert {id(p) for group in groups for p in group["params"]} == {
            id(p) for p in network.parameters() if p.requires_grad
        }

    def test_a_tied_matrix_learns_as_an_embedding(self, tied_network: Network) -> None:
        network, method = tied_network.model(), Full(layer_decay=0.5)
        method.adapt(network)
        [group] = [
            group
            for group in method.param_groups(network)
            if any(p is network.get_output_embeddings().weight for p in group["params"])
        ]
        assert group["lr_scale"] == 1 / 8  # below two blocks

    def test_a_step_of_gradient_descent_is_scaled(self, batches: list[dict[str, Tensor]]) -> None:
        network, method = FAMILIES["llama"].make("llama"), Full(layer_decay=0.5)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        method.adapt(network)
        groups = method.param_groups(network)
        optimizer = torch.optim.SGD([group | {"lr": 0.1 * group["lr_scale"]} for group in groups])
        network(**batches[0]).loss.backward()
        optimizer.step()
        for name, scale in {"lm_head.weight": 1, "model.layers.0.mlp.up_proj.weight": 1 / 8}.items():
            parameter = network.get_parameter(name)
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * scale * parameter.grad)


class TestRefusals:
    def test_biases_of_a_network_that_has_none(self) -> None:
        with pytest.raises(UserError, match=r"method\.only biases: LlamaForCausalLM has none") as caught:
            Full(only="biases").adapt(FAMILIES["llama"].make("llama"))
        assert "model.layers.*.self_attn.q_proj.weight" in str(caught.value)
        assert str(caught.value).count("q_proj") == 1
        assert "\n" not in str(caught.value)

    def test_norms_where_none_is_chosen(self) -> None:
        with pytest.raises(UserError, match=re.escape("method.only norms")) as caught:
            Full(["lm_head*"], only="norms").adapt(FAMILIES["llama"].make("llama"))
        assert "has none among lm_head.weight;" in str(caught.value)

    @pytest.mark.parametrize("count", [0, -1, 4])
    def test_more_blocks_than_there_are_or_none(self, count: int, family: tuple[Family, PreTrainedModel]) -> None:
        with pytest.raises(UserError, match=rf"method\.last_blocks is {count}: \w+ has 3 blocks, give 1 to 3"):
            Full(last_blocks=count).adapt(family[1])

    @pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
    def test_decay_that_is_no_share(self, decay: float) -> None:
        with pytest.raises(UserError, match=re.escape(f"method.layer_decay is {decay}")):
            Full(layer_decay=decay)

    def test_no_pattern(self, network: Network) -> None:
        with pytest.raises(UserError, match=r"method\.trainable is empty"):
            Full([]).adapt(network.model())

    @pytest.mark.parametrize("patterns", [["lm_head*"], ["*norm*", "lm_head.weight"], ["*head*", "*.layers.1.*"]])
    def test_the_head_of_tied_embeddings(self, patterns: list[str], tied_network: Network) -> None:
        said = r"lm_head\.weight, which '.*head.*' matches, is tied with model\.embed_tokens\.weight: name that"
        with pytest.raises(UserError, match=said):
            Full(patterns).adapt(tied_network.model())

    @pytest.mark.parametrize("patterns", [["*embed*"], ["lm_head*", "*embed*"], ["*"]])
    def test_but_not_where_the_embeddings_are_named(self, patterns: list[str], tied_network: Network) -> None:
        network: Any = Full(patterns).adapt(tied_network.model())
        assert network.lm_head.weight.requires_grad
        assert "model.embed_tokens.weight" in trained(network)
        assert "lm_head.weight" not in trained(network)

    def test_the_head_of_untied_embeddings_is_trained_alone(self, network: Network) -> None:
        assert trained(Full(["lm_head*"]).adapt(network.model())) == {"lm_head.weight"}

    def test_blocks_that_cannot_be_told(self) -> None:
        network = FAMILIES["llama"].make("llama")
        network.config.num_hidden_layers = 7
        with pytest.raises(UserError, match=r"the 7 decoder blocks cannot be told.*model\.layers.*by names"):
            Full(last_blocks=1).adapt(network)


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
