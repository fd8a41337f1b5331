"""Compiled blocks: the loss and gradients of uncompiled ones, by code that is made once for all lengths.

Torch traces and differentiates here as ever. Code in C++ is made of it in one slow test, and in
`tests/cli/test_compiling.py`: that takes minutes.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from transformers import AutoModelForCausalLM

from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, generate, left_pad
from ftlab.methods import Full, LoRA, Method, Peft, QLoRA
from ftlab.modules import compiling
from ftlab.modules.compiling import compile_blocks
from ftlab.networks import Network, decoder_blocks, language_model

Make = Callable[..., Any]

METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "lora": lambda: LoRA(r=2, init="gaussian"),
    "qlora": lambda: QLoRA(r=2, init="gaussian", compute_dtype="float32"),
}
PADDED = [(3, 17), (5, 40), (16, 16), (2, 100)]  # 16 is also the width of a head, and 64 the network's
ALL_EQUAL = [(4, 9), (64, 64)]
ONE_ROW = [(1, 12), (1, 64)]


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no code yet, and afterwards as it was."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    ours = {"recompile_limit": 8, "fail_on_recompile_limit_hit": False, "specialize_float": False, "optimize_ddp": True}
    with torch._dynamo.config.patch(ours), torch.fx.experimental._config.patch({"use_duck_shape": True}):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, anew: None) -> list[list[int]]:
    """The shape of the hidden states for which code was made, each time."""
    shapes: list[list[int]] = []
    without_code = lookup_backend("aot_eager")

    def make(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        shapes.append(next([int(n) for n in x.shape] for x in inputs if isinstance(x, Tensor) and x.ndim == 3))
        return without_code(graph, inputs)

    monkeypatch.setattr(compiling, "_make", make)
    return shapes


def adapted(network: Network, method: Method, checkpointing: bool = False) -> nn.Module:
    """The test network in float64, but for what is in few bits, in training mode."""
    if method.quantization:
        opened = network.model(method.quantization)
    else:
        opened = AutoModelForCausalLM.from_pretrained(network.path, dtype=torch.float64)
    if checkpointing:
        opened.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(1)
    net = method.adapt(opened).train()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:  # adapters begin with zeros
                parameter += 0.05 * torch.randn_like(parameter)
    return net


def batch(rows: int, length: int, padded: bool) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(rows * 1000 + length)
    ids = torch.randint(3, 60, (rows, length), generator=numbers)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def loss_and_gradients(network: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the mean negative log likelihood of what stands where there is no padding."""
    logits = network(**inputs, use_cache=False).logits[:, :-1]
    targets = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, -100)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))}


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in theirs.items():
        distance = (ours[name] - expected).abs().max() / expected.abs().max()
        assert distance <= tolerance, f"{name} {float(distance)}"


@pytest.mark.parametrize(("method", "checkpointing"), [
    pytest.param(*each, marks=[] if each == ("lora", True) else pytest.mark.slow)
    for each in product(METHODS, (False, True))
])  # fmt: skip
def test_losses_and_gradients_are_those_of_plain_blocks(
    method: str, checkpointing: bool, network: Network, made: list[Any]
) -> None:
    plain = adapted(network, METHODS[method](), checkpointing)
    compiled = adapted(network, METHODS[method](), checkpointing)
    compile_blocks(compiled)
    for rows, length in PADDED[:2]:
        inputs = batch(rows, length, padded=True)
        tolerance = 1e-4 if method == "qlora" else 1e-10
        assert_near(loss_and_gradients(compiled, inputs), loss_and_gradients(plain, inputs), tolerance)
    assert made


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_code_in_cpp_computes_the_same(method: str, network: Network, anew: None) -> None:
    plain, compiled = (adapted(network, METHODS[method](), checkpointing=True) for _ in range(2))
    compile_blocks(compiled)
    inputs = batch(3, 17, padded=True)
    tolerance = 1e-4 if method == "qlora" else 1e-10
    assert_near(loss_and_gradients(compiled, inputs), loss_and_gradients(plain, inputs), tolerance)


@pytest.mark.parametrize(("method", "each", "count"), [
    ("full", 1, 2),
    pytest.param("full", 1, 3, marks=pytest.mark.slow),
    pytest.param("lora", 2, 3, marks=pytest.mark.slow),  # under a frozen embedding the first block is apart
])  # fmt: skip
def test_code_is_made_once_for_all_blocks_and_lengths(
    method: str, each: int, count: int, network: Network, made: list[list[int]]
) -> None:
    net = adapted(network, METHODS[method]())
    compile_blocks(net)
    width = decoder_blocks(language_model(net))[0].hidden_size
    kinds = [(PADDED, True, 2), (ALL_EQUAL, False, 2), (ONE_ROW, False, 1)][:count]
    for number, (sizes, padded, rows) in enumerate(kinds, 1):
        for size in sizes:
            loss_and_gradients(net, batch(*size, padded))
            # at an example, never at the batch: which comes first must not matter
            assert made[-each:] == each * [[rows, 512, width]]
            assert len(made) == number * each
    for sizes, padded, _ in reversed(kinds):
        for size in sizes:
            loss_and_gradients(net, batch(*size, padded))
    assert len(made) == len(kinds) * each


def test_what_takes_no_gradients_is_computed_as_ever(network: Network, made: list[Any]) -> None:
    plain, compiled = (adapted(network, LoRA(r=2, init="gaussian")) for _ in range(2))
    compile_blocks(compiled)
    ids, mask = left_pad([[5, 6, 7], [8, 9, 10, 11, 12]], 0)
    answers = [generate(net, ids, mask, Decoding(max_new_tokens=6), [], 0) for net in (plain, compiled)]
    with torch.no_grad():
        inputs = batch(3, 17, padded=True)
        assert torch.equal(compiled(**inputs).logits, plain(**inputs).logits)
    assert answers[0] == answers[1]
    assert not made


def test_names_and_copies_are_as_before(network: Network, made: list[Any]) -> None:
    net = adapted(network, Full())
    names = list(net.state_dict())
    compile_blocks(net)
    assert list(net.state_dict()) == names
    other = copy.deepcopy(net)
    nn.init.zeros_(other.get_parameter("model.layers.0.mlp.down_proj.weight"))
    with torch.no_grad():
        one, changed = (each(**batch(3, 17, padded=True)).logits for each in (net, other))
    assert not torch.equal(one, changed)


@pytest.mark.slow
def test_dropout_goes_on_as_if_no_example_had_been(network: Network, made: list[Any]) -> None:
    net = adapted(network, LoRA(r=2, dropout=0.5, init="gaussian"))
    compile_blocks(net)
    losses = []
    for _ in range(2):  # the first time code is made
        torch.manual_seed(3)
        losses.append(loss_and_gradients(net, batch(3, 17, padded=True))["loss"])
    assert torch.equal(*losses)


@pytest.mark.parametrize("layout", ["pad", pytest.param("pack", marks=pytest.mark.slow)])
def test_trains_as_without(
    layout: str, make_module: Make, make_data: Make, make_trainer: Make, made: list[list[int]]
) -> None:
    """In float32, with validation."""
    options = {"batching": layout, "max_length": 30, "batch_size": 2 if layout == "pack" else 4}
    seen = []
    for compile in (False, True):
        module = make_module(compile=compile)
        trainer = make_trainer(limit_val_batches=1.0)
        trainer.fit(module, make_data(**options))
        seen.append({**dict(module.network.named_parameters()), "loss": trainer.callback_metrics["val_loss"]})
    assert_near(seen[1], seen[0], 1e-4)
    assert made
    assert all(shape[1] == 512 for shape in made)


class TestRefused:
    def test_a_machine_without_a_compiler(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        none = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
        with (
            none,
            pytest.raises(UserError, match=r"install g\+\+, .* or set model\.compile to false"),
        ):
            make_trainer(max_steps=1).fit(make_module(compile=True), make_data())

    def test_a_method_with_keys_of_its_own(
        self, make_module: Make, make_data: Make, make_trainer: Make, made: list[Any]
    ) -> None:
        method = Peft(peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"))
        with pytest.raises(UserError, match=r"model\.compile: the method has keys .* set it to false"):
            make_trainer(max_steps=1).fit(make_module(method, compile=True), make_data())

    def test_what_torch_cannot_compile(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make_module: Make,
        make_data: Make,
        make_trainer: Make,
        made: list[Any],
    ) -> None:
        def fails(*_: Any) -> Any:
            raise NotImplementedError("no kernel")

        monkeypatch.setattr(compiling, "_make", fails)
        with pytest.raises(UserError, match=r"model\.compile: torch cannot compile LlamaDecoderLayer .*no kernel"):
            make_trainer(max_steps=1).fit(make_module(compile=True), make_data())
