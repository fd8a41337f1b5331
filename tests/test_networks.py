"""A network is opened as it is described, counted and fingerprinted to the byte, and never repacked."""

import dataclasses
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from ftlab.errors import UserError
from ftlab.networks import Network, Quantization, base_kind, count_parameters, fingerprint, frozen_tensors

IDS = torch.tensor([[3, 141, 59, 265, 358, 979]])


@pytest.fixture
def copied(network: Network, tmp_path: Path) -> Path:
    """A copy of the network's directory, to be damaged."""
    return Path(shutil.copytree(network.path, tmp_path / "copy"))


class TestOpen:
    def test_model_is_what_transformers_opens(self, network: Network) -> None:
        model = network.model()
        reference = AutoModelForCausalLM.from_pretrained(network.path)
        assert not model.training
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=0)

    def test_tokenizer_is_what_transformers_opens(self, network: Network) -> None:
        text = "Zeno asks Ralf to clean fifty tiny ropes."
        assert network.tokenizer()(text)["input_ids"] == AutoTokenizer.from_pretrained(network.path)(text)["input_ids"]

    def test_context_length(self, network: Network) -> None:
        assert network.context_length() == 128

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_weights_have_the_dtype(self, network: Network, dtype: str) -> None:
        model = Network(network.path, dtype=dtype).model()
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}

    def test_attention_kernel_is_passed_on(self, network: Network) -> None:
        assert Network(network.path, attention="eager").model().config._attn_implementation == "eager"


class TestRandomWeights:
    def test_same_seed_same_weights_and_not_the_pretrained_ones(self, network: Network) -> None:
        def drawn(seed: int) -> dict[str, torch.Tensor]:
            torch.manual_seed(seed)
            return Network(network.path, random_weights=True).model().state_dict()

        first, again, other = drawn(1), drawn(1), drawn(2)
        pretrained = network.model().state_dict()
        matrices = [name for name, tensor in pretrained.items() if tensor.ndim == 2]
        assert matrices
        for name in matrices:
            assert torch.equal(first[name], again[name])
            assert not torch.equal(first[name], other[name])
            assert not torch.equal(first[name], pretrained[name])
        # drawn as the architecture says, not scaled from the pretrained ones
        assert first[matrices[0]].std().item() == pytest.approx(0.1, rel=0.02)

    def test_cannot_be_quantised(self, network: Network) -> None:
        with pytest.raises(UserError, match=r"network\.random_weights"):
            Network(network.path, random_weights=True).model(Quantization())


class TestErrors:
    """Each is one sentence on one line that names the path."""

    def refused(self, path: Path | str, open_it: Callable[[Network], object]) -> str:
        with pytest.raises(UserError, match=re.escape(f"network.path: {path}")) as caught:
            open_it(Network(str(path)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("open_it", [Network.model, Network.tokenizer, Network.config, Network.context_length])
    def test_missing_directory(self, tmp_path: Path, open_it: Callable[[Network], object]) -> None:
        assert "is no directory" in self.refused(tmp_path / "nowhere", open_it)
        assert f"is no directory, seen from {Path.cwd()}: give" in self.refused(Path("./nowhere/it/is"), open_it)

    def test_not_on_the_hub(self) -> None:
        assert "neither a directory nor" in self.refused("nobody/no-such-network", Network.model)

    def test_directory_without_weights(self, copied: Path) -> None:
        (copied / "model.safetensors").unlink()
        assert "has no weights" in self.refused(copied, Network.model)

    def test_torn_weights(self, copied: Path) -> None:
        weights = copied / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        assert "weights" in self.refused(copied, Network.model)

    def test_incomplete_weights(self, copied: Path) -> None:
        weights = load_file(copied / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, copied / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"lack 'model\.layers\.1\.mlp\.up_proj\.weight'"):
            Network(str(copied)).model()

    def test_weights_of_another_shape(self, copied: Path) -> None:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
        assert "weights" in self.refused(copied, Network.model)

    def test_directory_without_tokenizer(self, copied: Path) -> None:
        for file in copied.glob("token*"):
            file.unlink()
        assert "has no tokenizer" in self.refused(copied, Network.tokenizer)

    def test_directory_without_config(self, copied: Path) -> None:
        (copied / "config.json").unlink()
        assert "has no config.json" in self.refused(copied, Network.config)

    def test_broken_config(self, copied: Path) -> None:
        (copied / "config.json").write_text("{")
        assert "has no config.json" in self.refused(copied, Network.config)


class TestTrust:
    """Nothing that comes with a network is run, or unpickled, unless that is asked for by name."""

    @pytest.fixture
    def with_code(self, copied: Path) -> Path:
        """A network whose configuration and tokenizer are classes of its own; its code leaves a mark where it runs."""
        mark = f"from pathlib import Path; Path({str(copied / 'ran')!r}).touch()\n"
        code = {
            "configuration_own.py": "from transformers import LlamaConfig\n"
            "class Own(LlamaConfig): model_type = 'own'\n",
            "modeling_own.py": "from transformers import LlamaForCausalLM\nfrom .configuration_own import Own\n"
            "class OwnNetwork(LlamaForCausalLM): config_class = Own\n",
            "tokenization_own.py": "from transformers import PreTrainedTokenizerFast\n"
            "class OwnTokenizer(PreTrainedTokenizerFast): pass\n",
        }
        for name, text in code.items():
            (copied / name).write_text(mark + text)
        own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.OwnNetwork"}
        tokenizer = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
        for name, said in {
            "config.json": {"model_type": "own", "architectures": ["OwnNetwork"], "auto_map": own},
            "tokenizer_config.json": {"tokenizer_class": "OwnTokenizer", "auto_map": tokenizer},
        }.items():
            (copied / name).write_text(json.dumps(json.loads((copied / name).read_text()) | said))
        return copied

    @pytest.mark.parametrize("open_it", [Network.model, Network.tokenizer, Network.config, Network.context_length])
    def test_code_is_not_run(self, with_code: Path, open_it: Callable[[Network], object]) -> None:
        with pytest.raises(UserError, match=r"comes with code of its own.*model\.network\.trust_remote_code") as error:
            open_it(Network(str(with_code)))
        assert "\n" not in str(error.value)
        assert not (with_code / "ran").exists()

    def test_code_is_run_where_it_is_trusted(self, with_code: Path, network: Network) -> None:
        trusted = Network(str(with_code), trust_remote_code=True)
        assert type(trusted.tokenizer()).__name__ == "OwnTokenizer"
        model = trusted.model()
        assert type(model).__name__ == "OwnNetwork"
        assert (with_code / "ran").exists()
        assert torch.equal(model(IDS).logits, network.model()(IDS).logits)

    def test_a_kernel_from_the_hub_is_code(self, network: Network) -> None:
        with pytest.raises(UserError, match=r"owner/kernel is code from the hub.*trust_remote_code"):
            Network(network.path, attention="owner/kernel").model()

    @pytest.fixture
    def pickled(self, copied: Path) -> Path:
        torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
        (copied / "model.safetensors").unlink()
        return copied

    def test_pickled_weights_are_refused(self, pickled: Path) -> None:
        with pytest.raises(UserError, match=r"has pickled weights.*save_pretrained.*pickled_weights") as error:
            Network(str(pickled)).model()
        assert "\n" not in str(error.value)

    def test_pickled_weights_are_opened_where_that_is_said(self, pickled: Path, network: Network) -> None:
        model = Network(str(pickled), pickled_weights=True).model()
        assert torch.equal(model(IDS).logits, network.model()(IDS).logits)

    def test_a_program_in_a_pickle_is_not_run_even_then(self, pickled: Path) -> None:
        class Program:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (pickled / "ran",)

        torch.save({"model.norm.weight": Program()}, pickled / "pytorch_model.bin")
        with pytest.raises(UserError, match="has no weights that transformers can open"):
            Network(str(pickled), pickled_weights=True).model()
        assert not (pickled / "ran").exists()

    def test_safetensors_are_preferred(self, copied: Path, network: Network) -> None:
        (copied / "pytorch_model.bin").write_bytes(b"no weights")
        model = Network(str(copied), pickled_weights=True).model()
        assert torch.equal(model(IDS).logits, network.model()(IDS).logits)


class TestCount:
    # Llama by its own arithmetic: embeddings, q k v o, gate up down, two norms a layer, the last norm
    LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    BODY = 2 * LAYER + 64

    def embedding(self, network: Network) -> int:
        return 64 * network.config().vocab_size

    def test_all_parameters(self, network: Network) -> None:
        assert count_parameters(network.model(), ()) == (0, 2 * self.embedding(network) + self.BODY)

    def test_tied_matrix_counts_once(self, tied_network: Network) -> None:
        assert count_parameters(tied_network.model(), ())[1] == self.embedding(tied_network) + self.BODY

    def test_only_what_is_trained_counts_as_trained(self, network: Network) -> None:
        assert count_parameters(network.model(), {"model.norm.weight"}) == (64, 2 * self.embedding(network) + self.BODY)

    @pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
    def test_quantised_weights_count_what_they_stand_for(self, network: Network, kind: str) -> None:
        model = network.model(Quantization(kind))
        assert count_parameters(model, ())[1] == 2 * self.embedding(network) + self.BODY


class TestFingerprint:
    def test_same_bytes_same_fingerprint(self, network: Network) -> None:
        one, other = network.model(), network.model()
        assert fingerprint(one.named_parameters()) == fingerprint(other.named_parameters())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_one_changed_byte_shows(self, network: Network, dtype: str) -> None:
        model = Network(network.path, dtype=dtype).model()
        before = fingerprint(model.named_parameters())
        _flip_bit(model.model.layers[1].mlp.up_proj.weight.data)
        assert fingerprint(model.named_parameters()) != before

    def test_name_is_part_of_it(self) -> None:
        weight = torch.ones(3)
        assert fingerprint([("a", weight)]) != fingerprint([("b", weight)])

    @pytest.mark.parametrize("double", [True, False])
    def test_one_changed_byte_of_a_4_bit_weight_or_its_scales_shows(self, network: Network, double: bool) -> None:
        model = network.model(Quantization("nf4", double=double))
        weight = model.model.layers[0].mlp.down_proj.weight
        parts = [weight.data, weight.quant_state.absmax]
        if double:
            parts.append(weight.quant_state.state2.absmax)
        seen = {fingerprint(model.named_parameters())}
        for part in parts:
            _flip_bit(part)
            seen.add(fingerprint(model.named_parameters()))
        assert len(seen) == 1 + len(parts)

    def test_one_changed_byte_of_an_int8_weight_or_its_scales_shows(self, network: Network) -> None:
        model = network.model(Quantization("int8")).requires_grad_(False)
        layer = model.model.layers[0].mlp.down_proj
        first = fingerprint(frozen_tensors(model, ()))
        seen = {first}
        for part in (layer.weight.data, layer.weight.SCB):
            _flip_bit(part)
            seen.add(fingerprint(frozen_tensors(model, ())))
        assert len(seen) == 3
        model(IDS)  # bitsandbytes moves the scales, which changes no byte
        seen.add(fingerprint(frozen_tensors(model, ())))
        assert len(seen) == 3
        _flip_bit(layer.weight.data)
        _flip_bit(layer.state.SCB)
        assert fingerprint(frozen_tensors(model, ())) == first


class TestQuantised:
    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    def test_forward_in_evaluation_neither_repacks_nor_rounds_otherwise(self, network: Network, kind: str) -> None:
        model = network.model(Quantization(kind, compute_dtype="float32"))
        before = fingerprint(model.named_parameters())
        with torch.no_grad():
            evaluated = model.eval()(IDS).logits
            trained = model.train()(IDS).logits
        assert fingerprint(model.named_parameters()) == before
        torch.testing.assert_close(evaluated, trained, rtol=0, atol=0)

    def test_logits_are_those_of_the_dequantised_weights(self, network: Network) -> None:
        quantised = network.model(Quantization("nf4", compute_dtype="float32"))
        reference = AutoModelForCausalLM.from_pretrained(network.path)
        for name, module in quantised.named_modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                weight = dequantize_4bit(module.weight.data, state).float()
                reference.get_submodule(name).weight.data = weight
        torch.testing.assert_close(quantised(IDS).logits, reference(IDS).logits, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), ("fp4", 4), ("int8", 8)])
    def test_linear_layers_are_held_in_few_bits(self, network: Network, kind: str, bits: int) -> None:
        layer = network.model(Quantization(kind)).model.layers[0].mlp.down_proj
        assert layer.weight.nbytes == math.prod((64, 96)) * bits // 8

    @pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
    def test_storage_dtype(self, network: Network, storage: str) -> None:
        model = network.model(Quantization("nf4", storage_dtype=storage))
        assert model.model.layers[0].mlp.down_proj.weight.dtype == getattr(torch, storage)
        assert torch.isfinite(model(IDS).logits).all()


class TestQuantisedByOthers:
    """Checkpoints whose config.json says that they are quantised."""

    def said(self, copied: Path, **said: Any) -> Network:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
        return Network(str(copied))

    @pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
    def test_bitsandbytes_checkpoint_is_opened_as_it_comes(self, network: Network, kind: str, tmp_path: Path) -> None:
        quantised = network.model(Quantization(kind, compute_dtype="float32"))
        quantised.save_pretrained(tmp_path)
        opened = Network(str(tmp_path)).model()
        before = fingerprint(frozen_tensors(opened, ()))
        assert base_kind(opened) == base_kind(opened.config) == kind
        torch.testing.assert_close(opened(IDS).logits, quantised(IDS).logits, rtol=0, atol=0)
        assert fingerprint(frozen_tensors(opened, ())) == before  # not repacked either

    def test_quantising_it_once_more_is_refused(self, network: Network, tmp_path: Path) -> None:
        network.model(Quantization("fp4")).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"quantised already \(fp4\), and the method asks for nf4 on top"):
            Network(str(tmp_path)).model(Quantization("nf4"))

    @pytest.mark.parametrize(
        ("kind", "packages"),
        [("torchao", "torchao"), ("hqq", "hqq"), ("gptq", "gptqmodel optimum"), ("awq", "gptqmodel")],
    )
    def test_missing_package_is_named(
        self, kind: str, packages: str, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=rf"quantised by {kind}, .* pip install {packages}$"):
            self.said(copied, quant_method=kind).model()

    def test_way_that_transformers_does_not_know(self, copied: Path) -> None:
        with pytest.raises(UserError, match=r"compressed-tensors|compressed_tensors"):
            self.said(copied, quant_method="compressed-tensors").model()

    def test_random_weights_cannot_be_quantised(self, copied: Path) -> None:
        quantised = self.said(copied, quant_method="torchao")
        with pytest.raises(UserError, match=r"network\.random_weights"):
            Network(quantised.path, random_weights=True).model()

    @pytest.fixture
    def of_torchao(self, network: Network, tmp_path: Path) -> Network:
        quantization = pytest.importorskip("torchao.quantization")
        few_bits = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        AutoModelForCausalLM.from_pretrained(network.path, quantization_config=few_bits).save_pretrained(tmp_path)
        return Network(str(tmp_path))

    def test_torchao_is_opened_and_learns_by_lora(self, network: Network, of_torchao: Network) -> None:
        opened = of_torchao.model()
        assert base_kind(opened) == "torchao"
        assert type(opened.model.layers[0].mlp.down_proj.weight).__module__.startswith("torchao")
        assert count_parameters(opened, ())[1] == count_parameters(network.model(), ())[1]
        adapted: Any = peft.get_peft_model(opened, peft.LoraConfig(target_modules="all-linear"))
        assert base_kind(adapted) == "torchao"
        trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
        before = fingerprint(frozen_tensors(adapted, trained))
        optimizer = torch.optim.AdamW([adapted.get_parameter(name) for name in trained], lr=1e-2)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = adapted(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert fingerprint(frozen_tensors(adapted, trained)) == before

    @pytest.mark.parametrize("part", ["qdata", "scale"])
    def test_one_changed_byte_of_torchao_shows(self, of_torchao: Network, part: str) -> None:
        opened = of_torchao.model()
        before = fingerprint(frozen_tensors(opened, ()))
        _flip_bit(getattr(opened.model.layers[0].mlp.down_proj.weight, part))
        assert fingerprint(frozen_tensors(opened, ())) != before

    def test_torchao_that_quantises_activations_is_a_kind_of_its_own(self, network: Network) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        few_bits = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
        opened = AutoModelForCausalLM.from_pretrained(network.path, quantization_config=few_bits)
        assert base_kind(opened) == "torchao-dynamic"
        layer = opened.model.layers[0].mlp.down_proj
        assert not layer(torch.ones(1, 96, requires_grad=True)).requires_grad  # which is why

    def test_full_precision_is_a_kind_too(self, network: Network) -> None:
        assert base_kind(network.model()) == base_kind(network.config()) == "full"


def _flip_bit(tensor: torch.Tensor) -> None:
    """Changes the lowest bit of the first byte, in place."""
    tensor.flatten().view(torch.uint8)[0] ^= 1


def test_a_kernel_that_is_not_installed_is_no_matter_of_the_weights(network: Network) -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("it is installed")
    kernel = dataclasses.replace(network, attention="flash_attention_2")
    with pytest.raises(UserError, match=r"network\.attention is flash_attention_2, whose package is not installed"):
        kernel.model()
