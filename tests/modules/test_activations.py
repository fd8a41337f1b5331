"""Blocks that keep less: the same gradients to the bit, and what is computed again and kept, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from ftlab.errors import UserError
from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.modules.activations import WAYS, GradientCheckpointing, checkpoint_blocks
from ftlab.networks import Network

Make = Callable[..., Any]
LAYERS, LINEAR = 2, 7
METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "lora": lambda: LoRA(r=4, dropout=0.1),
    "qlora": lambda: QLoRA(r=4, compute_dtype="float32"),
}


class Products(TorchDispatchMode):
    """Counts products and attention, and the products whose sums have `short` terms."""

    def __init__(self, short: int = 4) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.short = short

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in ("mm", "gemm_4bit"):
            self.count["short" if args[0].shape[-1] == self.short else "long"] += 1
        elif name.startswith("_scaled_dot_product") and "backward" not in name:
            self.count["attention"] += 1
        return func(*args, **kwargs or {})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Whose sums have 256 terms or more."""
    shape = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    directory = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **shape)).save_pretrained(directory)
    return Network(str(directory))


def gradients(
    network: Network, method: Method, way: GradientCheckpointing, host: Any = None
) -> tuple[dict[str, Tensor], Counter[str]]:
    """Of one batch, and what the backward pass computed."""
    torch.manual_seed(0)
    opened = network.model(method.quantization, torch.device("cpu"))
    checkpoint_blocks(opened, way, host)
    adapted = method.adapt(opened).train()
    ids = torch.arange(3 * 20).view(3, 20)
    torch.manual_seed(1)  # dropout
    loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
    with Products() as products:
        loss.backward()
    return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}, products.count


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_same_to_the_bit(method: str, wide: Network) -> None:
    kept, products = gradients(wide, METHODS[method](), False)
    assert kept
    again = {way: gradients(wide, METHODS[method](), way) for way in WAYS if way}
    for found, _ in again.values():
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[name], kept[name]) for name in kept)
    counted = {way: count for way, (_, count) in again.items()}
    adapters = 0 if method == "full" else LAYERS * LINEAR
    saved = counted[True]["long"] - counted["selective"]["long"] - adapters
    assert LAYERS * (LINEAR - 1) <= saved <= LAYERS * LINEAR  # the last of a block is wanted by nobody
    assert [counted[way]["attention"] for way in ("selective", True, "offloaded")] == [0, LAYERS, LAYERS]
    assert counted["selective"]["short"] == counted[True]["short"]
    assert counted["offloaded"] == counted[True]
    if method == "full":  # frozen embeddings want no gradient, unless blocks are computed again
        assert counted["selective"] == products


def test_what_is_offloaded_are_the_inputs_of_the_blocks(wide: Network) -> None:
    gone: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        gone.append(tensor)
        return tensor.clone()

    gradients(wide, LoRA(r=4), "offloaded", lambda: saved_tensors_hooks(pack, lambda tensor: tensor))
    assert [tuple(tensor.shape) for tensor in gone if tensor.numel()] == LAYERS * [(3, 20, 256)]


def test_a_run_without_a_gpu_offloads_nothing(make_module: Make, make_data: Make, make_trainer: Make) -> None:
    with pytest.raises(UserError, match=r"offloaded moves activations from a GPU.*set it to true"):
        make_trainer(max_steps=1).fit(make_module(LoRA(r=1), gradient_checkpointing="offloaded"), make_data())


def test_auto_is_for_the_command_line(make_module: Make) -> None:
    with pytest.raises(UserError, match=r"model.gradient_checkpointing auto is for ftlab fit"):
        make_module(gradient_checkpointing="auto")


def test_selective_is_for_blocks_that_are_not_compiled(make_module: Make) -> None:
    with pytest.raises(UserError, match="selective keeps what operations come to, which compiled blocks do not tell"):
        make_module(gradient_checkpointing="selective", compile=True)


def test_blocks_that_cannot_be_computed_again(wide: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = wide.model()
    monkeypatch.setattr(type(opened), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="blocks of LlamaForCausalLM cannot be computed again: set it to false"):
        checkpoint_blocks(opened, True)
