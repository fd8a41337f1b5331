"""What every method owes: an honest start, a base that stays as it is, and weights that others can open."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from ftlab.methods import LISA, Full, LoRA, Method, Peft, QLoRA, ZeroShot
from ftlab.networks import Network, Quantization, fingerprint, frozen_tensors

EVERYTHING = r".*"
NOTHING = r"(?!)"
ADAPTERS = r"lora_[AB]\.default\.weight$"


@dataclass(frozen=True)
class Case:
    """A method, and by hand: the names of what it trains, and how it begins."""

    make: Callable[[], Method]
    trains: str
    identity: bool = True
    whole_model: bool = False  # model/ is a network of its own, not an adapter


def _qlora(kind: str = "nf4", **options: object) -> Callable[[], Method]:
    return lambda: QLoRA(r=4, kind=kind, compute_dtype="float32", **options)  # type: ignore[arg-type]


CASES = {
    "zero_shot": Case(ZeroShot, NOTHING),
    "full": Case(Full, EVERYTHING, whole_model=True),
    "full_patterns": Case(lambda: Full(["*.layers.1.mlp.*", "*norm*"]), r"layers\.1\.mlp\.|norm", whole_model=True),
    "full_last_blocks": Case(lambda: Full(last_blocks=1), r"layers\.1\.", whole_model=True),
    "full_norms": Case(lambda: Full(only="norms"), r"norm", whole_model=True),
    "full_layerwise": Case(lambda: Full(layer_decay=0.9), EVERYTHING, whole_model=True),
    "lisa": Case(lambda: LISA(active=2, interval=1), EVERYTHING, whole_model=True),
    "lora": Case(lambda: LoRA(r=4), ADAPTERS),
    "lora_some": Case(
        lambda: LoRA(r=4, alpha=3, targets=["q_proj", "v_proj"], layers=[1]),
        r"layers\.1\.self_attn\.[qv]_proj\.lora_[AB]",
    ),
    "dora": Case(lambda: LoRA(r=4, dora=True), r"lora_([AB]|magnitude_vector)\.default"),
    "rslora": Case(lambda: LoRA(r=4, rslora=True), ADAPTERS),
    "gaussian": Case(lambda: LoRA(r=4, init="gaussian"), ADAPTERS),
    "orthogonal": Case(lambda: LoRA(r=4, init="orthogonal"), ADAPTERS),
    "pissa": Case(lambda: LoRA(r=4, init="pissa"), ADAPTERS, identity=False),
    "pissa_niter_16": Case(lambda: LoRA(r=4, init="pissa_niter_16"), ADAPTERS, identity=False),
    "olora": Case(lambda: LoRA(r=4, init="olora"), ADAPTERS, identity=False),
    "corda": Case(lambda: LoRA(r=4, init="corda"), ADAPTERS, identity=False),
    "lora_ga": Case(lambda: LoRA(r=4, init="lora_ga"), ADAPTERS, identity=False),
    "eva": Case(lambda: LoRA(r=4, init="eva"), ADAPTERS),
    "lora_plus": Case(lambda: LoRA(r=4, ratio=16), ADAPTERS),
    "modules_to_save": Case(
        lambda: LoRA(r=4, modules_to_save=["lm_head"]), rf"{ADAPTERS}|lm_head\.modules_to_save\.default"
    ),
    "qlora_nf4": Case(_qlora(), ADAPTERS),
    "qlora_single": Case(_qlora(double=False), ADAPTERS),
    "qlora_fp4": Case(_qlora("fp4"), ADAPTERS),
    "qlora_int8": Case(_qlora("int8"), ADAPTERS),
    "qlora_eva": Case(_qlora(init="eva"), ADAPTERS),
    "loftq": Case(_qlora(init="loftq"), ADAPTERS, identity=False),
    "qlora_dora": Case(_qlora(dora=True), r"lora_([AB]|magnitude_vector)\.default"),
    "ia3": Case(lambda: Peft(peft.IA3Config()), r"ia3_l\.default$"),
}
REWRITING = {"pissa", "pissa_niter_16", "olora", "corda", "lora_ga"}
FOUR_BITS = {"qlora_nf4", "qlora_single", "qlora_fp4", "qlora_eva", "loftq", "qlora_dora"}


@dataclass
class Trained:
    """A method's whole way on the tiny network, and what was seen on it."""

    name: str
    case: Case
    method: Method
    base: PreTrainedModel
    network: nn.Module
    start: Tensor
    frozen_at_start: str
    moved: set[str]
    end: Tensor
    model: Path


@pytest.fixture(scope="module", params=CASES)
def trained(
    request: pytest.FixtureRequest,
    network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    logits: Callable[[nn.Module], Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """The method adapted, trained for three steps (where it trains) and saved."""
    case = CASES[request.param]
    method = case.make()
    adapted = adapt(method, network)
    start, frozen = logits(adapted), fingerprint(frozen_tensors(adapted, method.trained(adapted)))
    moved = train(method, adapted) if method.trains else set()
    end, model = logits(adapted), tmp_path_factory.mktemp("model")
    method.save(adapted, model)
    base = network.model(method.quantization)
    return Trained(request.param, case, method, base, adapted, start, frozen, moved, end, model)


def test_start_is_the_base_where_declared(trained: Trained, logits: Callable[[nn.Module], Tensor]) -> None:
    assert trained.method.identity_at_start == trained.case.identity
    if trained.name == "loftq":
        return  # nearer to the base in full precision: tests/methods/test_starts.py
    # the others that are not declared begin there, too, but for rounding: they only share the base out
    torch.testing.assert_close(trained.start, logits(trained.base), rtol=1e-4, atol=1e-4)


def test_only_what_is_declared_is_trained(trained: Trained) -> None:
    names = [name for name, _ in trained.network.named_parameters()]
    declared = {name for name in names if re.search(trained.case.trains, name)}
    assert bool(declared) == trained.method.trains
    assert {name for name, p in trained.network.named_parameters() if p.requires_grad} == declared
    assert trained.moved == declared


def test_training_changes_the_answers(trained: Trained) -> None:
    assert torch.allclose(trained.end, trained.start) != trained.method.trains


def test_what_is_trained_is_held_in_full_precision(trained: Trained) -> None:
    assert {p.dtype for p in trained.network.parameters() if p.requires_grad} <= {torch.float32}


def test_frozen_base_is_unchanged_to_the_byte(trained: Trained) -> None:
    assert (
        fingerprint(frozen_tensors(trained.network, trained.method.trained(trained.network))) == trained.frozen_at_start
    )
    if trained.name in REWRITING:
        return  # these begin by moving a part of it into the adapter
    pristine = dict(trained.base.named_parameters())
    for name, parameter in trained.network.named_parameters():
        if not parameter.requires_grad:
            original = pristine[_original(name)]
            assert fingerprint([("", parameter)]) == fingerprint([("", original)]), name


def test_same_seed_gives_the_same_start_and_another_seed_another(
    trained: Trained, network: Network, adapt: Callable[..., nn.Module]
) -> None:
    def start(seed: int) -> str:
        method = trained.case.make()
        adapted = adapt(method, network, seed)
        return fingerprint((n, p) for n, p in adapted.named_parameters() if p.requires_grad)

    assert start(0) == start(0)
    drawn = {
        "full_last_blocks",
        "full_norms",
        "full_layerwise",
        "lisa",
        "pissa",
        "olora",
        "ia3",
        "eva",
        "qlora_eva",
        "corda",
        "loftq",
        "zero_shot",
        "full",
        "full_patterns",
    }
    if trained.name not in drawn:  # whose start is a function of the base or of the data
        assert start(0) != start(1)


def test_save_leaves_the_network_as_it_is(trained: Trained, logits: Callable[[nn.Module], Tensor]) -> None:
    torch.testing.assert_close(logits(trained.network), trained.end, rtol=0, atol=0)


def test_load_on_a_fresh_base_answers_the_same(
    trained: Trained, network: Network, logits: Callable[[nn.Module], Tensor]
) -> None:
    method = trained.case.make()
    loaded = method.load(network.model(method.quantization), trained.model)
    torch.testing.assert_close(logits(loaded), trained.end, rtol=1e-5, atol=1e-5)


def test_model_opens_without_ftlab(trained: Trained, logits: Callable[[nn.Module], Tensor]) -> None:
    if trained.name == "zero_shot":
        pytest.skip("names its base and keeps nothing")
    opened = _opened_by_others(trained.model, trained.case.whole_model, trained.method.quantization)
    torch.testing.assert_close(logits(opened), trained.end, rtol=1e-5, atol=1e-5)


def test_model_holds_little_more_than_what_is_trained(trained: Trained) -> None:
    size = sum(file.stat().st_size for file in trained.model.iterdir())
    trained_bytes = sum(p.nbytes for p in trained.network.parameters() if p.requires_grad)
    if trained.case.whole_model:
        trained_bytes = sum(p.nbytes for p in trained.network.parameters())
    doubled = 2 if trained.name in REWRITING else 1
    assert size < doubled * trained_bytes + 16_000  # names and configuration


def test_merged_network_answers_the_same(
    trained: Trained, network: Network, logits: Callable[[nn.Module], Tensor], tmp_path: Path
) -> None:
    method = trained.case.make()
    merged = method.merge(method.load(network.model(method.quantization), trained.model))
    assert not any("lora" in name or "ia3" in name for name, _ in merged.named_parameters())
    if trained.name in FOUR_BITS and trained.name != "qlora_dora":
        reference = _merged_by_hand(trained.base, trained.model)
    elif trained.name == "qlora_int8":
        torch.testing.assert_close(logits(merged), trained.end, rtol=0.1, atol=0.1)  # activations were 8 bits too
        return
    else:
        reference = trained.network
    torch.testing.assert_close(logits(merged), logits(reference), rtol=1e-4, atol=1e-4)

    merged.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(opened), logits(merged), rtol=1e-5, atol=1e-5)
    assert not hasattr(opened.config, "quantization_config")


def test_method_is_not_used_up(trained: Trained, network: Network, adapt: Callable[..., nn.Module]) -> None:
    before = {n: p.shape for n, p in trained.network.named_parameters()}
    again = adapt(trained.method, network)
    assert {n: p.shape for n, p in again.named_parameters()} == before


def _original(name: str) -> str:
    """The name that a parameter had before peft wrapped its layer."""
    return re.sub(r"^base_model\.model\.|\.base_layer|\.original_module", "", name)


def _opened_by_others(directory: Path, whole: bool, quantization: Quantization | None) -> nn.Module:
    if whole:
        return AutoModelForCausalLM.from_pretrained(directory)
    if quantization is None:
        return peft.AutoPeftModelForCausalLM.from_pretrained(directory)
    bits = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization.kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=torch.float32,
        )
    )
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(
        directory, quantization_config=bits, device_map={"": "cpu"}, dtype=torch.float32
    )
    for module in opened.modules():  # bitsandbytes' bfloat16 kernel rounds otherwise, see networks._keep_packing
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return opened


def _merged_by_hand(quantised: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Weights as bitsandbytes dequantises them, and alpha / r B A added."""
    config = peft.LoraConfig.from_pretrained(str(adapter))
    weights = load_file(adapter / "adapter_model.safetensors")
    reference = AutoModelForCausalLM.from_pretrained(quantised.name_or_path)
    for name, module in quantised.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        weight = dequantize_4bit(copy.deepcopy(module.weight.data), state).float()
        prefix = f"base_model.model.{name}"
        if f"{prefix}.lora_A.weight" in weights:
            a, b = weights[f"{prefix}.lora_A.weight"].double(), weights[f"{prefix}.lora_B.weight"].double()
            alpha = (config.alpha_pattern or {}).get(name, config.lora_alpha)
            weight = (weight.double() + alpha / a.shape[0] * b @ a).float()
        reference.get_submodule(name).weight.data = weight
    return reference
