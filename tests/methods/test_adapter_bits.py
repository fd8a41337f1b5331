"""Adapters in 4 and 8 bits: what is stored against blocks rounded by hand, what opens it against plain peft."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftlab.cli import main
from ftlab.errors import UserError
from ftlab.methods import AdaLoRA, Full, LoRA, Method, Peft, XLoRA
from ftlab.methods.adapter_bits import FILE, dequantise, is_quantised, plain, quantise
from ftlab.methods.adapters import Adapters
from ftlab.networks import Network

# The 16 values of Dettmers et al. 2023 (arXiv 2305.14314), appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
# Half of the largest step between two values, as a share of the block's maximum. The dynamic type has 64 equal steps
# from 0.1 to 1 in each sign (Dettmers 2015, arXiv 1511.04561), with its values in the middle of them; on the CPU
# bitsandbytes looks values up to 16 bits, and where two are as near takes either.
HALF_STEP = {4: np.diff(NF4).max() / 2, 8: 0.9 / 64 / 2 + 2**-15}
WEIGHTS = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"


def write(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """An adapter's directory: for what does not open it, any tensors will do."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def there_and_back(place: Path, tensors: dict[str, Tensor], bits: Any) -> dict[str, Tensor]:
    write(place / "plain", tensors)
    quantise(place / "plain", place / "few", bits)
    dequantise(place / "few", place / "back")
    return load_file(place / "back" / WEIGHTS)


def nf4_by_hand(tensor: Tensor) -> Tensor:
    values = tensor.double().numpy().reshape(-1)
    for start in range(0, len(values), 64):
        block = values[start : start + 64]
        maximum = np.abs(block).max()
        if maximum:
            block[:] = NF4[np.abs(block[:, None] / maximum - NF4).argmin(axis=1)] * maximum
    return torch.from_numpy(values).reshape(tensor.shape).to(tensor.dtype)


def block_maxima(tensor: Tensor) -> Tensor:
    """For each value the largest magnitude of its block."""
    values = tensor.double().abs().reshape(-1)
    maxima = [block.max().expand(len(block)) for block in values.split(64)]
    return torch.cat([*maxima, torch.empty(0, dtype=torch.float64)]).reshape(tensor.shape)


@pytest.fixture(scope="module")
def some() -> dict[str, Tensor]:
    """Matrices of several types and sizes, in blocks of very different magnitude, and what is no matrix."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((8, 64), (5, 13), (2, 2), (70, 3), (2, 3, 40)):
            matrix = torch.randn(shape, generator=generator) * 10 ** torch.randint(-3, 2, shape, generator=generator)
            made[f"{dtype}{shape}"] = matrix.to(dtype)
    made["zeros"] = torch.zeros(9, 64)
    made["zeros and more"] = torch.cat([torch.zeros(64), torch.randn(36, generator=generator)]).reshape(2, 50)
    return made


def test_four_bits_are_the_nearest_of_nf4_in_blocks_of_64(some: dict[str, Tensor], tmp_path: Path) -> None:
    back = there_and_back(tmp_path, some, 4)
    assert back.keys() == some.keys()
    for name, tensor in some.items():
        torch.testing.assert_close(back[name], nf4_by_hand(tensor), rtol=1e-6, atol=0)


def test_eight_bits_are_within_half_a_step(some: dict[str, Tensor], tmp_path: Path) -> None:
    back = there_and_back(tmp_path, some, 8)
    assert back.keys() == some.keys()
    for name, tensor in some.items():
        assert back[name].dtype == tensor.dtype
        error = (back[name].double() - tensor.double()).abs()
        rounding = torch.finfo(tensor.dtype).eps / 2  # of the result
        assert (error <= (HALF_STEP[8] * 1.001 + rounding) * block_maxima(tensor)).all(), name
        assert not tensor.any() or error.any() or tensor.numel() < 4


@pytest.mark.parametrize("bits", [4, 8])
def test_vectors_integers_and_files_stay_as_they_are(bits: Any, tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(2, 2),
        "magnitude": torch.randn(100),
        "row": torch.randn(1, 100),
        "column": torch.randn(1, 100, 1),
        "scalar": torch.tensor(0.1),
        "indices": torch.arange(128).reshape(2, 64),
        "mask": torch.ones(2, 64, dtype=torch.bool),
        "none left": torch.empty(0, 64),
        "few already": torch.randn(2, 64).to(torch.float8_e4m3fn),
    }
    write(tmp_path / "plain", tensors)
    (tmp_path / "plain" / "base.json").write_text("{}")
    (tmp_path / "plain" / "deeper").mkdir()
    (tmp_path / "plain" / "deeper" / WEIGHTS).write_bytes(b"of another adapter")
    quantise(tmp_path / "plain", tmp_path / "few", bits)
    dequantise(tmp_path / "few", tmp_path / "back")
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert back.keys() == tensors.keys()
    assert not torch.equal(back.pop("matrix"), tensors.pop("matrix"))
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name].float(), tensor.float(), rtol=0, atol=0)
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
    with safe_open(tmp_path / "back" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    both = ["adapter_config.json", "base.json", "deeper", f"deeper/{WEIGHTS}"]
    for directory, own in (("few", FILE), ("back", WEIGHTS)):
        found = sorted(str(path.relative_to(tmp_path / directory)) for path in (tmp_path / directory).rglob("*"))
        assert found == sorted([*both, own])


@pytest.mark.parametrize(
    ("bits", "dtype", "smaller"),
    [  # 32 / (4 + 32 / 64) and so on: a maximum a block, in the matrix's own type
        (4, torch.float32, 32 / 4.5),
        (8, torch.float32, 32 / 8.5),
        (4, torch.bfloat16, 16 / 4.25),
        (8, torch.bfloat16, 16 / 8.25),
    ],
)
def test_size(bits: Any, dtype: torch.dtype, smaller: float, tmp_path: Path) -> None:
    tensors = {}
    for layer in range(8):  # a rank of 8 beside the attention of a network of 135 million
        for part, width in (("q", 576), ("k", 192), ("v", 192), ("o", 576)):
            tensors[LAYER.format(layer, part, "A")] = torch.randn(8, 576).to(dtype)
            tensors[LAYER.format(layer, part, "B")] = torch.randn(width, 8).to(dtype)
    there_and_back(tmp_path, tensors, bits)
    plain_size, size, back = (
        (tmp_path / where).stat().st_size for where in (f"plain/{WEIGHTS}", f"few/{FILE}", f"back/{WEIGHTS}")
    )
    assert plain_size / size == pytest.approx(smaller, rel=0.05)  # 5 % for the names
    assert back == plain_size


shapes = st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda shape: np.prod(shape) <= 5000)
kinds = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])


@settings(max_examples=60)
@given(
    made=st.dictionaries(st.text(min_size=1, max_size=12), st.tuples(shapes, kinds, st.integers(-4, 3)), max_size=6),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32),
)
def test_any_tensors_come_back_within_half_a_step(
    made: dict[str, tuple[list[int], torch.dtype, int]], bits: Any, seed: int
) -> None:
    made["matrix"] = [2, 2], torch.float32, 0
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(shape, generator=generator).clamp(-5, 5) * 10.0**exponent).to(dtype)
        for name, (shape, dtype, exponent) in made.items()
        if name != "__metadata__"  # which safetensors keeps for itself
    }
    with tempfile.TemporaryDirectory() as place:
        back = there_and_back(Path(place), tensors, bits)
    assert {name: (t.dtype, t.shape) for name, t in back.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    for name, tensor in tensors.items():
        if len(tensor.squeeze().shape) < 2 or not tensor.is_floating_point():
            assert torch.equal(back[name], tensor)
            continue
        info = torch.finfo(tensor.dtype)
        bound = (HALF_STEP[bits] * 1.001 + info.eps / 2) * block_maxima(tensor) + info.smallest_normal * info.eps
        assert ((back[name].double() - tensor.double()).abs() <= bound).all()


# ---------------------------------------------------------------- opened

METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(r=4),
    "modules_to_save": lambda: LoRA(r=4, modules_to_save=["lm_head"]),
    "dora": lambda: LoRA(r=4, dora=True),
    "adalora": lambda: AdaLoRA(init_r=4, target_r=2),
    "vera": lambda: Peft(peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"])),
    "oft": lambda: Peft(peft.OFTConfig(oft_block_size=8, target_modules=["q_proj", "v_proj"])),
    "prompt": lambda: Peft(peft.PromptTuningConfig(num_virtual_tokens=4)),
}


def trained(method: Method, network: Network, adapt: Callable[..., nn.Module], directory: Path, seed: int = 0) -> Path:
    """Saves an adapter of this method with random values in all that trains."""
    adapted = adapt(method, network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    method.save(adapted, directory)
    return directory


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", METHODS)
def test_the_method_opens_it_as_peft_opens_it_widened(
    name: str,
    bits: Any,
    network: Network,
    adapt: Callable[..., nn.Module],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method = METHODS[name]()
    whole = trained(method, network, adapt, tmp_path / "plain")
    quantise(whole, tmp_path / "few", bits)
    dequantise(tmp_path / "few", tmp_path / "back")
    opened = logits(METHODS[name]().load(network.model(), tmp_path / "few"))
    alone = logits(peft.PeftModel.from_pretrained(network.model(), str(tmp_path / "back")))
    assert torch.equal(opened, alone)
    original = logits(method.load(network.model(), whole))
    alone = logits(network.model())
    assert 0 < (opened - original).abs().max() < (original[:, -alone.shape[1] :] - alone).abs().max()


def test_tied_embeddings_stay_tied(
    tied_network: Network,
    adapt: Callable[..., nn.Module],
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    def method() -> LoRA:
        return LoRA(r=4, modules_to_save=["embed_tokens"])

    trained(method(), tied_network, adapt, tmp_path / "plain")
    quantise(tmp_path / "plain", tmp_path / "few", 8)
    dequantise(tmp_path / "few", tmp_path / "back")
    opened: Any = method().load(tied_network.model(), tmp_path / "few")
    alone = peft.PeftModel.from_pretrained(tied_network.model(), str(tmp_path / "back"))
    assert torch.equal(logits(opened), logits(alone))
    embeddings, head = opened.get_input_embeddings(), opened.get_output_embeddings()
    assert head.weight.data_ptr() == embeddings.weight.data_ptr()


def test_beside_plain_adapters(
    network: Network, adapt: Callable[..., nn.Module], logits: Callable[[nn.Module], Tensor], tmp_path: Path
) -> None:
    directories = {}
    for seed, name in enumerate("abc"):
        directories[name] = trained(LoRA(r=4), network, adapt, tmp_path / name, seed)
    for name, bits in (("a", 4), ("c", 8)):
        quantise(tmp_path / name, tmp_path / f"{name}{bits}", bits)  # type: ignore[arg-type]
        dequantise(tmp_path / f"{name}{bits}", tmp_path / f"{name} back")
        directories[name] = tmp_path / f"{name}{bits}"
    adapters = Adapters(network.model(), directories)
    for name, where in (("a", "a back"), ("b", "b"), ("c", "c back")):
        adapters.use(name)
        alone = peft.PeftModel.from_pretrained(network.model(), str(tmp_path / where))
        torch.testing.assert_close(logits(adapters.network), logits(alone), rtol=1e-5, atol=1e-5)


def test_a_router_over_adapters_is_stored_and_wants_them_whole(
    network: Network, adapt: Callable[..., nn.Module], logits: Callable[[nn.Module], Tensor], tmp_path: Path
) -> None:
    experts = [str(trained(LoRA(r=4), network, adapt, tmp_path / str(seed), seed)) for seed in (1, 2)]
    method = XLoRA(experts, depth=2, size=8)
    trained(method, network, adapt, tmp_path / "plain")
    quantise(tmp_path / "plain", tmp_path / "few", 8)
    dequantise(tmp_path / "few", tmp_path / "back")
    opened, back = (logits(method.load(network.model(), tmp_path / where)) for where in ("few", "back"))
    assert torch.equal(opened, back)
    quantise(tmp_path / "1", tmp_path / "expert", 4)
    with pytest.raises(UserError, match=rf"method\.adapters: {tmp_path}/expert is stored in few bits"):
        XLoRA([str(tmp_path / "expert"), experts[1]])


def test_generate_answers_with_it(
    network: Network, adapt: Callable[..., nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(LoRA(r=4), network, adapt, tmp_path / "plain")
    quantise(tmp_path / "plain", tmp_path / "few", 4)
    dequantise(tmp_path / "few", tmp_path / "back")
    said = []
    for where in ("few", "back"):
        words = ["--adapter", f"a={tmp_path / where}", "--prompt", "Why?", "--decoding.max_new_tokens", "6"]
        assert main(["generate", *words]) == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1] != "\n"


def test_plain_is_the_directory_itself_or_a_copy_that_is_gone_afterwards(tmp_path: Path) -> None:
    there_and_back(tmp_path, {"a": torch.randn(4, 64)}, 4)
    assert [is_quantised(tmp_path / where) for where in ("plain", "few", "back", "nowhere")] == [
        False,
        True,
        *[False] * 2,
    ]
    with plain(tmp_path / "plain") as place:
        assert place == tmp_path / "plain"
    with plain(tmp_path / "few") as place:
        assert (place / WEIGHTS).read_bytes() == (tmp_path / "back" / WEIGHTS).read_bytes()
    assert not place.exists()
    assert is_quantised(tmp_path / "few")


# ---------------------------------------------------------------- refused


def test_only_an_adapter_in_peft_s_layout_is_stored_in_few_bits(network: Network, tmp_path: Path) -> None:
    Full().save(network.model(), tmp_path / "full")
    with pytest.raises(UserError, match=r"full has no adapter_config\.json: there is no adapter to store in few bits"):
        quantise(tmp_path / "full", tmp_path / "few", 4)
    write(tmp_path / "empty", {})
    (tmp_path / "empty" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"empty has no adapter_model\.safetensors: there is no adapter"):
        quantise(tmp_path / "empty", tmp_path / "few", 4)
    (tmp_path / "empty" / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(UserError, match=r"empty/adapter_model\.safetensors is damaged"):
        quantise(tmp_path / "empty", tmp_path / "few", 4)
    with pytest.raises(UserError, match=r"full holds no adapter in few bits: there is no adapter_config\.json in it"):
        dequantise(tmp_path / "full", tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_neither_what_is_stored_so_nor_what_is_there_is_written_over(tmp_path: Path) -> None:
    there_and_back(tmp_path, {"a": torch.randn(4, 64)}, 8)
    with pytest.raises(UserError, match="few is stored in few bits already"):
        quantise(tmp_path / "few", tmp_path / "fewer", 4)
    with pytest.raises(UserError, match="back exists: give a new directory"):
        quantise(tmp_path / "plain", tmp_path / "back", 4)
    with pytest.raises(UserError, match="back exists: give a new directory"):
        dequantise(tmp_path / "few", tmp_path / "back")


@pytest.mark.parametrize("method", [Peft(peft.IA3Config()), LoRA(r=1)], ids=["ia3", "rank 1"])
def test_vectors_alone_are_not_stored_in_few_bits(
    method: Method, network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    trained(method, network, adapt, tmp_path / "plain")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors has vectors alone"):
        quantise(tmp_path / "plain", tmp_path / "few", 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    weights = torch.ones(3, 64)
    weights[1, 2] = value
    write(tmp_path / "plain", {"b": torch.ones(3, 64), "a": weights})
    with pytest.raises(UserError, match="'a' has values that are not finite"):
        quantise(tmp_path / "plain", tmp_path / "few", 8)
    assert not (tmp_path / "few").exists()


def described(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Writes the file anew, with another description of it."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["__packed__"])
    change(description)
    save_file(load_file(path), path, metadata={"__packed__": json.dumps(description)})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "torn header": (lambda path: path.write_bytes(path.read_bytes()[:40]), "is damaged"),
    "torn values": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
    "other bytes": (lambda path: path.write_bytes(b"\xff" * 500), "is damaged"),
    "no description": (lambda path: save_file(load_file(path), path), "is damaged (it lacks '__packed__')"),
    "no values": (
        lambda path: save_file(
            {"b": load_file(path)["b"]}, path, {"__packed__": '{"format":1,"bits":4,"matrices":[]}'}
        ),
        "is damaged (it lacks '__packed__')",
    ),
    "no JSON": (lambda path: save_file(load_file(path), path, {"__packed__": "{"}), "is damaged"),
    "no object": (lambda path: save_file(load_file(path), path, {"__packed__": "[]"}), "is damaged"),
    "fewer values": (
        lambda path: save_file(load_file(path) | {"__packed__": torch.zeros(5, dtype=torch.uint8)}, path),
        "is damaged",
    ),
    "other shape": (
        lambda path: described(path, lambda it: it["matrices"][0][2].append(3)),
        "is damaged (432 bytes of values are described, and it has 144)",
    ),
    "no shape": (lambda path: described(path, lambda it: it["matrices"][0].pop()), "is damaged"),
    "negative": (lambda path: described(path, lambda it: it["matrices"][0][2].append(-1)), "is damaged"),
    "type": (
        lambda path: described(path, lambda it: it["matrices"][0].__setitem__(1, "int4")),
        "is damaged (a is int4",
    ),
    "bits": (lambda path: described(path, lambda it: it.update(bits=5)), "is in 5 bits, and an adapter is stored in 4"),
    "newer": (lambda path: described(path, lambda it: it.update(format=2)), "is of format 2, and this ftlab reads 1"),
    "no config": (lambda path: (path.parent / "adapter_config.json").unlink(), "there is no adapter_config.json in it"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_said_of_the_file(name: str, tmp_path: Path) -> None:
    there_and_back(tmp_path, {"a": torch.randn(4, 64), "b": torch.randn(3)}, 4)
    damage, said = DAMAGE[name]
    damage(tmp_path / "few" / FILE)
    with pytest.raises(UserError, match=re.escape(said)) as refusal, plain(tmp_path / "few"):
        pass
    sentence = str(refusal.value)
    assert str(tmp_path / "few") in sentence
    assert "\n" not in sentence
    assert len(re.findall(re.escape(tempfile.gettempdir()), sentence)) == 1


def test_what_does_not_fit_the_network_is_said_of_the_user_s_directory(
    network: Network, adapt: Callable[..., nn.Module], tmp_path: Path
) -> None:
    whole = trained(LoRA(r=4), network, adapt, tmp_path / "plain")
    config = json.loads((whole / "adapter_config.json").read_text())
    (whole / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    quantise(whole, tmp_path / "few", 4)
    shutil.rmtree(whole)
    said = f"{tmp_path / 'few'} holds no adapter that fits the network"
    for opens in (
        lambda: LoRA(r=4).load(network.model(), tmp_path / "few"),
        lambda: Adapters(network.model(), {"a": tmp_path / "few"}),
    ):
        with pytest.raises(UserError, match=re.escape(said)) as refusal:
            opens()
        assert len(re.findall(re.escape(tempfile.gettempdir()), str(refusal.value))) == 1
