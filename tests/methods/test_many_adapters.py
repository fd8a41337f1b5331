"""Several adapters on one base: each against a PeftModel with it alone, combinations against sums by hand."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, generate_all
from ftlab.methods import LoRA
from ftlab.methods.adapters import Adapters, Combination
from ftlab.networks import Network, Quantization

PROMPTS = [[5, 90, 300], [7], [11, 4, 400, 8, 30, 2], [600, 6, 21], [17, 3, 1200, 12, 9]]
NAMES = ["a", "b", "c", "b", "a"]
NF4 = Quantization("nf4", compute_dtype="float32")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Write = Callable[..., dict[str, Path]]


@pytest.fixture
def write(network: Network, tmp_path: Path) -> Write:
    """Saves adapters a, b, c, … of these configurations with peft alone, with random values in all that trains."""

    def write_all(*configs: peft.PeftConfig) -> dict[str, Path]:
        directories = {}
        for number, config in enumerate(configs):
            config.task_type = "CAUSAL_LM"
            torch.manual_seed(number)
            adapted = peft.get_peft_model(network.model(), config)
            with torch.no_grad():
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter += 0.2 * torch.randn_like(parameter)
            name = "abcdefgh"[number]
            adapted.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
            directories[name] = tmp_path / name
        return directories

    return write_all


def lora(r: int = 4, targets: Any = ("q_proj", "up_proj"), **options: Any) -> peft.LoraConfig:
    options["target_modules"] = targets if isinstance(targets, str) else list(targets)
    return peft.LoraConfig(r=r, **options)


def alone(network: Network, directory: Path, quantization: Quantization | None = None) -> nn.Module:
    return peft.PeftModel.from_pretrained(network.model(quantization), str(directory)).eval()


@torch.no_grad()
def greedy_by_hand(network: nn.Module, prompt: list[int], new_tokens: int) -> list[int]:
    """The likeliest token, one at a time, from the whole text so far: no batch, no padding, no cache."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item())
    return tokens[len(prompt) :]


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
@pytest.mark.parametrize("embeddings", [False, True], ids=["linear", "embeddings"])
def test_a_mixed_batch_answers_as_each_adapter_alone(
    quantization: Quantization | None, embeddings: bool, network: Network, write: Write
) -> None:
    targets = ["embed_tokens", "q_proj"] if embeddings else "all-linear"
    directories = write(lora(4, targets), lora(2, ["v_proj"], use_rslora=True), lora(8, ["down_proj"], lora_alpha=3))
    expected = []
    for name, prompt in zip(NAMES, PROMPTS, strict=True):
        expected.append(greedy_by_hand(alone(network, directories[name], quantization), prompt, 8))
    adapters = Adapters(network.model(quantization), directories)
    assert adapters.mixes
    rows = adapters.rows(NAMES)
    assert generate_all(adapters.network, PROMPTS, Decoding(8), [], 0, 5, rows) == expected
    assert generate_all(adapters.network, PROMPTS, Decoding(8), [], 0, 2, rows) == expected
    for name, prompt, answer in zip(NAMES, PROMPTS, expected, strict=True):
        adapters.use(name)
        assert generate_all(adapters.network, [prompt], Decoding(8), [], 0, 1) == [answer]
    assert len(set(map(tuple, expected))) == len(PROMPTS)


def test_a_mixed_batch_searches_with_beams_as_each_adapter_alone(network: Network, write: Write) -> None:
    directories = write(lora(4), lora(2))
    names, decoding = ["a", "b", "b", "a", "b"], Decoding(6, num_beams=3)
    expected = []
    for name, prompt in zip(names, PROMPTS, strict=True):
        expected += generate_all(alone(network, directories[name]), [prompt], decoding, [], 0, 1)
    adapters = Adapters(network.model(), directories)
    assert generate_all(adapters.network, PROMPTS, decoding, [], 0, 5, adapters.rows(names)) == expected


@pytest.mark.parametrize(
    "configs",
    [
        lambda: [peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])] * 2,
        lambda: [lora(4, use_dora=True), lora(2)],
        lambda: [lora(4), lora(2, modules_to_save=["lm_head"])],
        lambda: [lora(4), lora(2, trainable_token_indices=[5, 90])],
        lambda: [peft.PromptTuningConfig(num_virtual_tokens=3), peft.PromptTuningConfig(num_virtual_tokens=5)],
        lambda: [peft.LNTuningConfig(target_modules=["input_layernorm"])] * 2,
        lambda: [peft.VeraConfig(r=8, target_modules=["q_proj"]), peft.VeraConfig(r=8, target_modules=["q_proj"])],
        lambda: [peft.LoHaConfig(r=2, target_modules=["q_proj"]), peft.LoHaConfig(r=4, target_modules=["up_proj"])],
    ],
    ids=["ia3", "dora", "modules_to_save", "trainable_tokens", "prompt", "ln", "vera", "loha"],
)
def test_what_cannot_be_mixed_is_switched(
    configs: Callable[[], list[peft.PeftConfig]], network: Network, write: Write
) -> None:
    directories = write(*configs())
    adapters = Adapters(network.model(), directories)
    assert not adapters.mixes
    for name in ("b", "a", "b"):  # there and back: nothing stays of the one that was in use
        expected = [greedy_by_hand(alone(network, directories[name]), prompt, 6) for prompt in PROMPTS[:2]]
        adapters.use(name)
        assert generate_all(adapters.network, PROMPTS[:2], Decoding(6), [], 0, 2) == expected


def test_any_name_will_do(network: Network, write: Write, logits: Callable[[nn.Module], Tensor]) -> None:
    """peft itself splits names at dots, takes "a" for a part of "lora_", and breaks at "pop"."""
    directories = write(lora(4), lora(2), lora(3))
    names = ["lora", "v1.5", "pop"]
    adapters = Adapters(network.model(), dict(zip(names, directories.values(), strict=True)))
    for name, directory in zip(names, directories.values(), strict=True):
        adapters.use(name)
        torch.testing.assert_close(logits(adapters.network), logits(alone(network, directory)))


# ---------------------------------------------------------------- combinations


def updates(network: Network, directory: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the scale of each adapted layer."""
    layers = alone(network, directory).get_base_model().named_modules()  # type: ignore[operator]
    return {
        name: (layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data, layer.scaling["default"])
        for name, layer in layers
        if hasattr(layer, "lora_A")
    }


def by_hand(network: Network, changes: dict[str, Tensor]) -> nn.Module:
    reference = AutoModelForCausalLM.from_pretrained(network.path)
    for name, change in changes.items():
        reference.get_submodule(name).weight.data += change
    return reference


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(
    "configs",
    [
        lambda: [lora(4, "all-linear", lora_alpha=3), lora(4, "all-linear", lora_alpha=8)],
        lambda: [lora(2, ["q_proj"]), lora(8, ["q_proj", "down_proj"])],
        lambda: [lora(4, use_rslora=True), lora(2, use_rslora=True)],
        lambda: [lora(4, layers_to_transform=[0]), lora(4, layers_to_transform=[1])],
        lambda: [lora(4, r".*\.o_proj"), lora(4, ["q_proj"])],
        lambda: [lora(4, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 5}), lora(4)],
    ],
    ids=["alike", "ranks", "rslora", "layers", "expression", "patterns"],
)
def test_cat_is_the_weighted_sum_of_the_updates(
    configs: Callable[[], list[peft.PeftConfig]],
    quantised: bool,
    network: Network,
    write: Write,
    tmp_path: Path,
    logits: Callable[[nn.Module], Tensor],
) -> None:
    directories = write(*configs())
    changes: dict[str, Tensor] = {}
    for name, weight in {"a": 0.7, "b": -0.3}.items():
        for layer, (a, b, scale) in updates(network, directories[name]).items():
            changes[layer] = changes.get(layer, torch.zeros(())) + weight * scale * b @ a
    quantization = NF4 if quantised else None
    adapters = Adapters(network.model(quantization), directories)
    adapters.combine("mix", {"a": 0.7, "b": -0.3})
    combined = logits(adapters.network)
    if not quantised:
        torch.testing.assert_close(combined, logits(by_hand(network, changes)), rtol=1e-4, atol=1e-4)
    # saved, it is an adapter like any other
    adapters.save("mix", tmp_path / "mix")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing")
        torch.testing.assert_close(logits(alone(network, tmp_path / "mix", quantization)), combined)
    # and the others are what they were
    adapters.use("a")
    torch.testing.assert_close(logits(adapters.network), logits(alone(network, directories["a"], quantization)))
    # and it mixes with them
    rows = adapters.rows(["mix", "a", "b", "mix", "a"])
    answers = generate_all(adapters.network, PROMPTS, Decoding(4), [], 0, 5, rows)
    assert answers[3] == greedy_by_hand(alone(network, tmp_path / "mix", quantization), PROMPTS[3], 4)
    assert answers[2] == greedy_by_hand(alone(network, directories["b"], quantization), PROMPTS[2], 4)


def test_linear_sums_a_and_b_each_by_itself(
    network: Network, write: Write, logits: Callable[[nn.Module], Tensor]
) -> None:
    directories = write(lora(4, lora_alpha=3, use_rslora=True), lora(4, lora_alpha=8, use_rslora=True))
    one, two = (updates(network, directory) for directory in directories.values())
    changes = {}
    for layer in one:
        (a1, b1, s1), (a2, b2, s2) = one[layer], two[layer]
        w1, w2 = (0.7 * s1) ** 0.5, (0.3 * s2) ** 0.5
        changes[layer] = (w1 * b1 + w2 * b2) @ (w1 * a1 + w2 * a2)
    expected = logits(by_hand(network, changes))
    adapters = Adapters(network.model(), directories)
    adapters.combine("linear", {"a": 0.7, "b": 0.3}, "linear")
    torch.testing.assert_close(logits(adapters.network), expected, rtol=1e-4, atol=1e-4)
    adapters.combine("dare", {"a": 0.7, "b": 0.3}, "dare_linear", density=1.0)  # drops nothing
    torch.testing.assert_close(logits(adapters.network), expected, rtol=1e-4, atol=1e-4)


def test_svd_is_exact_where_the_rank_suffices(
    network: Network, write: Write, logits: Callable[[nn.Module], Tensor]
) -> None:
    directories = write(lora(4), lora(2, ["down_proj"]))  # no layer in both
    adapters = Adapters(network.model(), directories)
    adapters.combine("sum", {"a": 0.7, "b": 0.3})
    expected = logits(adapters.network)
    adapters.combine("svd", {"a": 0.7, "b": 0.3}, "svd")
    torch.testing.assert_close(logits(adapters.network), expected, rtol=1e-4, atol=1e-4)


def test_ties_keeps_the_largest_of_the_sign_that_prevails(
    network: Network, write: Write, logits: Callable[[nn.Module], Tensor]
) -> None:
    directories = write(lora(4), lora(4))
    one, two = (updates(network, directory) for directory in directories.values())
    changes = {}
    for layer in one:
        a, b = (ties(one[layer][n], one[layer][2] * 0.7, two[layer][n], two[layer][2] * 0.3, 0.5) for n in (0, 1))
        changes[layer] = b @ a
    adapters = Adapters(network.model(), directories)
    adapters.combine("ties", {"a": 0.7, "b": 0.3}, "ties", density=0.5)
    torch.testing.assert_close(logits(adapters.network), logits(by_hand(network, changes)), rtol=1e-4, atol=1e-4)


def ties(one: Tensor, first: float, two: Tensor, second: float, density: float) -> Tensor:
    """TIES of two matrices (arXiv 2306.01708): trim, elect a sign by total mass, mean of those that agree."""
    kept = []
    for matrix in (one, two):
        threshold = matrix.abs().flatten().sort(descending=True).values[int(density * matrix.numel()) - 1]
        kept.append(torch.where(matrix.abs() >= threshold, matrix, 0.0))
    sign = torch.where(kept[0] + kept[1] >= 0, 1.0, -1.0)
    agree = [(matrix.sign() == sign).float() for matrix in kept]
    total = first**0.5 * kept[0] * agree[0] + second**0.5 * kept[1] * agree[1]
    return total / (agree[0] + agree[1]).clamp(min=1)


def test_dare_draws_alike_and_leaves_the_random_state(
    network: Network, write: Write, logits: Callable[[nn.Module], Tensor]
) -> None:
    directories = write(lora(4), lora(4))
    made = []
    for seed in (1, 2):
        adapters = Adapters(network.model(), directories)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        adapters.combine("dare", {"a": 0.5, "b": 0.5}, "dare_ties_svd", density=0.5)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(logits(adapters.network))
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("configs", "kind", "density", "said"),
    [
        ([lora(4), lora(2)], "linear", None, "All adapters must have the same r value"),
        ([lora(4), lora(4, rank_pattern={"q_proj": 2})], "linear", None, "b has layers of different ranks"),
        ([lora(4), lora(4, use_dora=True)], "cat", None, "b has use_dora, which peft leaves out"),
        ([lora(4, modules_to_save=["lm_head"]), lora(4)], "cat", None, "a has modules_to_save"),
        ([lora(4, lora_bias=True), lora(4)], "cat", None, "a has lora_bias"),
        ([peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])] * 2, "cat", None, "a is IA3"),
        ([lora(4), lora(4)], "ties", None, "ties needs a density"),
        ([lora(4), lora(4)], "ties", 1.5, "the density is 1.5"),
        ([lora(4), lora(4)], "cat", 0.5, "cat keeps every value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_combined_is_refused(
    configs: list[peft.PeftConfig], kind: Combination, density: float | None, said: str, network: Network, write: Write
) -> None:
    adapters = Adapters(network.model(), write(*configs))
    for _ in range(2):  # a refusal leaves nothing behind that would pass
        with pytest.raises(UserError) as caught:
            adapters.combine("mix", {"a": 0.5, "b": 0.5}, kind, density)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert adapters.names == ["a", "b"]


def test_names_of_a_combination(network: Network, write: Write) -> None:
    adapters = Adapters(network.model(), write(lora(4), lora(4)))
    with pytest.raises(UserError, match="'a' has the name of an adapter"):
        adapters.combine("a", {"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match="no adapter 'd' to combine: there are a, b"):
        adapters.combine("mix", {"a": 0.5, "d": 0.5})


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ([lora(4), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])], "a is LORA and b is IA3"),
        ([lora(4), lora(4, init_lora_weights="pissa")], "b changes the base"),
        ([lora(4, bias="all"), lora(4, bias="all")], "bias"),
    ],
    ids=["methods", "pissa", "bias"],
)
def test_adapters_that_do_not_go_together_are_refused(
    configs: list[peft.PeftConfig], said: str, network: Network, write: Write
) -> None:
    with pytest.raises(UserError) as caught:
        Adapters(network.model(), write(*configs))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapter_of_another_network(network: Network, write: Write) -> None:
    directories = write(lora(4), lora(2))
    config = network.config()
    config.intermediate_size = 64
    with pytest.raises(UserError, match=r"a: .* holds no adapter that fits the network") as caught:
        Adapters(AutoModelForCausalLM.from_config(config), directories)
    assert str(caught.value).count("size mismatch") == 1
    assert str(caught.value).endswith(" more)")


def test_adapter_of_a_network_with_more_layers(network: Network, write: Write) -> None:
    directories = write(lora(4), lora(2))
    config = network.config()
    config.num_hidden_layers = 1
    with pytest.raises(UserError, match=r"a: .* has .*layers\.1\..* no place in the network"):
        Adapters(AutoModelForCausalLM.from_config(config), directories)


def test_a_second_adapter_with_tied_embeddings_of_its_own(
    tied_network: Network, tmp_path: Path, adapt: Callable[..., nn.Module]
) -> None:
    """peft ties those of the first alone, and would answer with the base's output embeddings for the second."""
    method = LoRA(r=4, modules_to_save=["lm_head"])
    method.save(adapt(method, tied_network), tmp_path / "one")
    with pytest.raises(UserError, match=r"b: .* has .*lm_head.* no place in the network beside a"):
        Adapters(tied_network.model(), {"a": tmp_path / "one", "b": tmp_path / "one"})


def test_embeddings_beside_an_adapter_would_change_the_base(network: Network, write: Write) -> None:
    directories = write(lora(4), lora(2))
    alone(network, directories["b"]).save_pretrained(str(directories["b"]), save_embedding_layers=True)
    with pytest.raises(UserError, match=r"b: .* also holds .*of the base"):
        Adapters(network.model(), directories)


def test_adapter_that_lacks_tensors(network: Network, write: Write) -> None:
    directories = write(lora(4), lora(2))
    file = directories["b"] / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(iter(tensors))]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"b: .* lacks"):
        Adapters(network.model(), directories)
