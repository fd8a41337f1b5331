"""Open a pretrained network and its tokenizer: dtype, attention kernel, quantised base.

Nothing here knows of methods, data or Lightning. Whoever opens a network with random weights, or adds
parameters to one, seeds first: the same seed then gives the same tensors in every process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftlab.attention import PACKED, SDPA, unfit
from ftlab.errors import UserError, out_of_memory

DType = Literal["float32", "bfloat16", "float16"]

# or transformers takes weights from a pull request on the hub where a network has no safetensors
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

_PICKLED = (
    "has pickled weights (*.bin) and no safetensors, and a pickle can hold a program: convert it, with transformers' "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW), or have it opened as it is (pickled_weights: "
    "true, --model.network.pickled_weights)"
)

# what transformers opens a checkpoint with that others have quantised
PACKAGES_TO_OPEN = {"torchao": ("torchao",), "hqq": ("hqq",), "gptq": ("gptqmodel", "optimum"), "awq": ("gptqmodel",)}


@dataclass(frozen=True)
class Quantization:
    """How a frozen base is held in few bits (bitsandbytes).

    Args:
        kind: nf4 and fp4 take 4 bits a weight in blocks of 64 (Dettmers et al. 2023, arXiv 2305.14314);
            int8 is LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).
        double: Quantise the blocks' scales too (saves about 0.4 bit a weight; 4-bit kinds only).
        compute_dtype: Type in which the dequantised weights are multiplied.
        storage_dtype: Type that the packed 4-bit weights pretend to have (FSDP wants one type for all).
    """

    kind: Literal["nf4", "fp4", "int8"] = "nf4"
    double: bool = True
    compute_dtype: DType = "bfloat16"
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] = "uint8"

    def config(self) -> BitsAndBytesConfig:
        """The same in transformers' words."""
        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            bnb_4bit_quant_storage=getattr(torch, self.storage_dtype),
        )


@dataclass(frozen=True)
class Network:
    """A pretrained causal language model: where it lies and how it is opened.

    Args:
        path: Directory in Hugging Face layout, or a name on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights in memory. For full fine-tuning keep float32 and set `trainer.precision`;
            a frozen base may be bfloat16.
        attention: Attention kernel, as transformers names it (sdpa, flash_attention_2, flex_attention, eager); or
            packed: each sample of a pack by itself, all else by sdpa. By default transformers' own, but packed for
            packs where the network is fit for it.
        random_weights: Take the architecture alone, with freshly drawn weights: the control that shows what
            pretraining is worth.
        trust_remote_code: Run the Python files that come with the network or its tokenizer, or a kernel from the hub
            that `attention` names. They may do whatever you may do: read them first, and name the `revision`.
        pickled_weights: Open weights that are pickled (*.bin) where there are no safetensors. torch reads tensors alone
            from them, but a pickle is a program.
    """

    path: str
    revision: str | None = None
    dtype: DType = "float32"
    attention: str | None = None
    random_weights: bool = False
    trust_remote_code: bool = False
    pickled_weights: bool = False

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Opens the tokenizer. Raises UserError where there is none."""
        return self._open(AutoTokenizer, "tokenizer")

    def config(self) -> PreTrainedConfig:
        """Opens the architecture's description. Raises UserError where there is none."""
        return self._open(AutoConfig, "config.json")

    def context_length(self) -> int | None:
        """Longest input in tokens that the network was built for; None where its configuration does not say.

        None also for a tokenizer without a network, which is enough to prepare data.
        """
        if Path(self.path).is_dir() and not (Path(self.path) / "config.json").is_file():
            return None
        return getattr(self.config(), "max_position_embeddings", None)

    def base_kind(self, quantization: Quantization | None) -> str:
        """How the base will be held once it is opened: see the function of this name. Opens no weights."""
        return quantization.kind if quantization else base_kind(self.config())

    def model(self, quantization: Quantization | None = None, device: torch.device | str = "cpu") -> PreTrainedModel:
        """Opens the network on `device`, in evaluation mode: quantised where asked, or as its checkpoint already is.

        Raises:
            UserError: There is no such network; it is not whole; it is quantised already, or by a package that is not
                installed, or in a way that transformers cannot read.
        """
        kind = base_kind(self.config())  # what is wrong with it is better said before the weights
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if self.attention:
            if "/" in self.attention and not self.trust_remote_code:
                raise UserError(
                    f"network.attention: {self.attention} is code from the hub: read it, and have it run "
                    "(trust_remote_code: true, --model.network.trust_remote_code), or name a kernel of transformers, "
                    "such as sdpa"
                )
            options["attn_implementation"] = SDPA if self.attention == PACKED else self.attention
        if self.random_weights:
            if quantization or kind != "full":
                raise UserError(
                    "network.random_weights cannot be quantised: choose a method with a full-precision base"
                )
            trusted = self.trust_remote_code
            drawn = AutoModelForCausalLM.from_config(self.config(), trust_remote_code=trusted, **options)
            return self._attending(drawn)
        if kind != "full":
            self._check_readable(kind, quantization)
        if quantization:
            options["quantization_config"] = quantization.config()
        if quantization or torch.device(device).type != "cpu":
            options["device_map"] = {"": device}
        options["use_safetensors"] = None if self.pickled_weights else True
        model, loading = self._open(AutoModelForCausalLM, "weights", output_loading_info=True, **options)
        if loading["missing_keys"]:  # transformers draws them at random and warns
            raise UserError(self._lacking(sorted(loading["missing_keys"]), kind))
        _keep_packing(model)
        return self._attending(model)

    def _attending(self, model: PreTrainedModel) -> PreTrainedModel:
        """By the attention of our own, where that is asked for."""
        if self.attention == PACKED:
            if why := unfit(model):
                raise UserError(
                    f"network.attention {PACKED}: {type(model).__name__} is not fit for it, as {why}: take {SDPA}"
                )
            model.set_attn_implementation(PACKED)
        return model

    def _check_readable(self, kind: str, quantization: Quantization | None) -> None:
        if quantization:  # transformers would take the checkpoint's own, with a warning
            raise UserError(
                f"network.path: {self.path} is quantised already ({kind}), and the method asks for {quantization.kind} "
                "on top: choose a method without quantization, such as LoRA in place of QLoRA, or the network in full "
                "precision"
            )
        absent = [
            package
            for package in PACKAGES_TO_OPEN.get(kind.removesuffix("-dynamic"), ())
            if importlib.util.find_spec(package) is None
        ]
        if absent:
            raise UserError(
                f"network.path: {self.path} is quantised by {kind}, and {' and '.join(absent)} to open it with "
                f"{'is' if len(absent) == 1 else 'are'} not installed: pip install {' '.join(absent)}"
            )

    def _check_weights(self) -> None:
        """Refuses a directory without weights that may be opened."""
        if any(Path(self.path).glob("*.safetensors")):
            return
        pickled = any(Path(self.path).glob("*.bin"))
        if not pickled:
            raise UserError(f"network.path: {self.path} has no weights (*.safetensors)")
        if not self.pickled_weights:
            raise UserError(f"network.path: {self.path} {_PICKLED}")

    def _lacking(self, missing: list[str], kind: str) -> str:
        if kind == "full":
            return (
                f"network.path: the weights in {self.path} lack {missing[0]!r} and {len(missing) - 1} more tensors "
                "that config.json describes: get them whole"
            )
        return (
            f"network.path: transformers {transformers.__version__} does not find {missing[0]!r} and "
            f"{len(missing) - 1} more tensors in {self.path}, which is quantised by {kind}, and would draw them at "
            "random: take the network in full precision"
        )

    def _open(self, kind: type, what: str, **options: Any) -> Any:
        local = Path(self.path).is_dir()
        if local and what == "weights":
            self._check_weights()
        try:
            return kind.from_pretrained(  # type: ignore[attr-defined]
                self.path, revision=self.revision, trust_remote_code=self.trust_remote_code, **options
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
            if out_of_memory(error):
                raise
            if "trust_remote_code" in str(error) and not self.trust_remote_code:
                raise UserError(
                    f"network.path: {self.path} comes with code of its own: read it, and have it run "
                    "(trust_remote_code: true, --model.network.trust_remote_code), or take another network"
                ) from error
            if not local and what == "weights" and "use_safetensors" in str(error):
                raise UserError(f"network.path: {self.path} on the hub {_PICKLED}") from error
            if isinstance(error, ImportError) and "FlashAttention" in str(error):
                raise UserError(
                    f"network.attention is {self.attention}, whose package is not installed ({_first_line(error)}): "
                    "install it, or take sdpa"
                ) from error
            if local:
                raise UserError(
                    f"network.path: {self.path} has no {what} that transformers can open ({_first_line(error)})"
                ) from error
            if self.path.count("/") > 1 or self.path.startswith("."):  # none of the hub's names is so
                raise UserError(
                    f"network.path: {self.path} is no directory, seen from {Path.cwd()}: give the command where it is "
                    "one, or say where it lies now"
                ) from error
            raise UserError(
                f"network.path: {self.path} is neither a directory nor a network that can be fetched from the hub "
                f"({_first_line(error)})"
            ) from error


def base_kind(network: nn.Module | PreTrainedConfig) -> str:
    """How the weights of a base are held, from the network, adapted or not, or from its configuration.

    "full", a kind of `Quantization`, or of a checkpoint that others have quantised what transformers calls the way:
    "torchao", "hqq", "gptq", "awq" and more. "torchao-dynamic" also quantises activations, which stops the gradient.
    """
    config = network if isinstance(network, PreTrainedConfig) else getattr(network, "config", None)
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised is None:
        return "full"
    said = quantised if isinstance(quantised, dict) else quantised.to_dict()  # a dictionary until it is opened
    if said.get("load_in_8bit"):
        return "int8"
    if said.get("load_in_4bit"):
        return said.get("bnb_4bit_quant_type", "fp4")
    kind = str(getattr(said["quant_method"], "value", said["quant_method"]))
    dynamic = kind == "torchao" and "DynamicActivation" in str(said.get("quant_type"))
    return f"{kind}-dynamic" if dynamic else kind


def dequantised(network: PreTrainedModel) -> PreTrainedModel:
    """The weights that few bits stand for, in full precision; `network` is used up."""
    plain: Any = network.dequantize()
    conversions = plain.__dict__.get("_weight_conversions") or []
    # how a checkpoint in few bits was read: saved, plain weights would be turned back into that
    plain._weight_conversions = [
        conversion
        for conversion in conversions
        if not any(type(step).__module__.startswith("transformers.integrations.") for step in conversion.operations)
    ] or None
    return plain


def count_parameters(network: nn.Module, trained: Collection[str]) -> tuple[int, int]:
    """Those named in `trained`, and all: a 4-bit weight counts the weights it stands for, a tied one once."""
    of_trained = total = 0
    for name, parameter in network.named_parameters():
        state = getattr(parameter, "quant_state", None)
        size = math.prod(state.shape) if state else parameter.numel()
        total += size
        of_trained += size if name in trained else 0
    return of_trained, total


def frozen_tensors(network: nn.Module, trained: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters not named in `trained`, and the scales of int8 weights, which bitsandbytes moves about."""
    for name, parameter in network.named_parameters():
        if name not in trained:
            yield name, parameter
    for name, module in network.named_modules():
        # own parameters only: a wrapper's `weight` is that of the layer in it
        scales = getattr(module._parameters.get("weight"), "SCB", None)  # until the first forward
        scales = getattr(getattr(module, "state", None), "SCB", None) if scales is None else scales
        if isinstance(scales, torch.Tensor):
            yield f"{name}.SCB", scales


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Digest of named tensors to the byte (BLAKE2b, 16 hex digits); of a quantised weight, its scales too.

    That of their names and digests, which threads take: one alone makes a GB a second of a network's tens of GB. Each
    thread copies one tensor at a time to the CPU.
    """
    digest, threads = hashlib.blake2b(digest_size=8), min(8, len(os.sched_getaffinity(0)))
    under_way: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for named in tensors:
            if len(under_way) == 4 * threads:  # so that a large one holds nobody up, and who counts them sees them go
                digest.update(under_way.popleft().result())
            under_way.append(pool.submit(_named_digest, named))
        for found in under_way:
            digest.update(found.result())
    return digest.hexdigest()


def _named_digest(named: tuple[str, torch.Tensor]) -> bytes:
    name, tensor = named
    digest = hashlib.blake2b(name.encode())
    for part in plain_parts(tensor):
        if isinstance(part, FakeTensor):  # of ftlab plan: there are no bytes
            continue
        digest.update(part.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    return digest.digest()


def language_model(network: nn.Module) -> PreTrainedModel:
    """The transformers network in `network`, adapted or not: each token that is generated passes through its forward,
    which a wrapper's need not."""
    return next(module for module in network.modules() if isinstance(module, PreTrainedModel))


def decoder_blocks(network: PreTrainedModel) -> nn.ModuleList:
    """The equal blocks that the text runs through, from the input on, whatever the network calls them.

    Raises:
        UserError: There is no list of as many modules as its configuration says that it has, or more than one.
    """
    count = network.config.get_text_config(decoder=True).num_hidden_layers
    lists = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    # a list within another, such as the experts of a block, may be as long by chance
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    found = [module for module in outermost.values() if len(module) == count]
    if len(found) != 1:
        raise UserError(
            f"in {type(network).__name__} the {count} decoder blocks cannot be told, {len(found)} of its lists of "
            f"modules are as long ({', '.join(outermost)}): choose by names of parameters what is trained"
        )
    return found[0]


def plain_parts(tensor: Any) -> Iterator[Any]:
    """The tensors that one is made of: itself, codes and scales of a quantised one, or this process's part of one in
    shards."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's would be dequantised, and shards gathered
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        for part in parts:
            if isinstance(part, torch.Tensor):
                yield from plain_parts(part)
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)
    if state:
        yield from state.as_dict(packed=True).values()


def _keep_packing(model: nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit weights, in place, at the first forward in evaluation mode.

    It does so on CPUs with AVX512-BF16: the frozen base would change under the adapter, evaluation would be rounded
    otherwise than training (bfloat16 whatever `compute_dtype` says), and widths that are no multiple of 32 fail.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
