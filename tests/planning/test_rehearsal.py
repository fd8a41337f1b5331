"""A step without values, beside the same step with values: what the profiler was told of, and counted operations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ftlab.attention import PACKED, SDPA
from ftlab.errors import UserError
from ftlab.methods import Full, LoRA, Method, QLoRA, ZeroShot
from ftlab.modules.activations import WAYS, GradientCheckpointing, checkpoint_blocks
from ftlab.modules.head import Head
from ftlab.modules.optimizers import PagedAdamW
from ftlab.networks import Network
from ftlab.planning import Batch, Step, rehearse

METHODS: dict[str, Any] = {"full": Full, "lora": lambda: LoRA(r=8), "qlora": lambda: QLoRA(r=8)}
PRECISIONS: dict[str, Any] = {
    "32-true": Precision,
    "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
    "bf16-true": lambda: HalfPrecision("bf16-true"),
}


def adamw(groups: list[dict[str, Any]]) -> AdamW:
    return AdamW(groups, lr=1e-4, fused=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Wide enough that its activations, not its norms' statistics, take the most; with fewer keys than heads."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape["num_key_value_heads"] = 2
    return saved(LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape)), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Norms with a mean, dropout, tied embeddings."""
    network = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=128, n_layer=3, n_head=4, n_positions=768))
    return saved(network, tmp_path_factory.mktemp("gpt2"))


def saved(network: Any, directory: Path) -> Network:
    network.save_pretrained(directory)
    return Network(str(directory))


def measured(step: Step) -> int:
    """The most bytes at once in the second step, weights and optimiser's state included, by torch's profiler."""
    network = step.network.model(step.method.quantization)
    checkpoint_blocks(network, step.checkpointing)
    adapted = step.method.adapt(network).train()
    step.precision.convert_module(adapted)
    optimizer = step.optimizer(step.method.param_groups(adapted))
    head = Head(adapted)
    inputs, places, targets = step.batch.tensors()

    def one_step() -> None:
        for _ in range(2 if step.accumulate else 1):
            with step.precision.forward_context():
                loss = head.summed_loss(inputs, step.batch.length, places, targets)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    one_step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    states = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
    weights = {id(t): stored(t) for t in [*adapted.parameters(), *adapted.buffers()]}
    return most + states + sum(weights.values())


def stored(tensor: Tensor) -> int:
    state: Any = getattr(tensor, "quant_state", None)
    parts = [] if state is None else [state.absmax, state.code, state.state2.absmax, state.state2.code]
    return tensor.nbytes + sum(part.nbytes for part in parts)


@pytest.mark.parametrize("length", [64, 768])  # a mask of all pairs of positions would show
@pytest.mark.parametrize("checkpointing", [False, "selective", True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", ["llama", "gpt2"])
def test_the_peak_is_what_the_profiler_is_told(
    network: str, method: str, checkpointing: GradientCheckpointing, length: int, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(network)
    step = Step(base, METHODS[method](), adamw, Precision(), Batch(4, length), checkpointing, on_gpu=False)
    found, real = rehearse(step).memory, measured(step)
    assert 0.95 * real <= found <= 1.05 * real


@pytest.mark.parametrize("checkpointing", [False, "selective", True])
def test_packs_without_a_mask(checkpointing: GradientCheckpointing, llama: Network) -> None:
    packs = Batch(4, 192, packed=True)
    told = Network(llama.path, attention=PACKED)
    step = Step(told, LoRA(r=8), adamw, Precision(), packs, checkpointing, on_gpu=False)
    assert rehearse(step).memory == pytest.approx(measured(step), rel=0.01)
    assert rehearse(replace(step, network=llama)) == rehearse(step)  # what packs get by themselves
    masked = replace(step, network=Network(llama.path, attention=SDPA))
    padded = replace(masked, batch=replace(packs, packed=False))
    assert rehearse(padded).memory == pytest.approx(measured(padded), rel=0.01)
    assert rehearse(masked).memory >= rehearse(padded).memory + 4 * 192**2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_other_precisions(precision: str, method: str, llama: Network) -> None:
    step = Step(llama, METHODS[method](), adamw, PRECISIONS[precision](), Batch(4, 128), on_gpu=False)
    assert rehearse(step).memory == pytest.approx(measured(step), rel=0.1)


def test_micro_batches_add_to_gradients_that_stay(llama: Network) -> None:
    step = Step(llama, Full(), adamw, Precision(), Batch(4, 64), accumulate=True, on_gpu=False)
    found = rehearse(step)
    assert found.memory == pytest.approx(measured(step), rel=0.1)
    assert found.memory > rehearse(replace(step, accumulate=False)).memory


@pytest.mark.parametrize("method", METHODS)
def test_operations_are_the_formulas(method: str, llama: Network) -> None:
    """Full 6 N + 12 L d s a token, of adapters 4 N + 12 L d s + 6 of theirs: attention is counted whole here."""
    config = llama.config()
    found = rehearse(Step(llama, METHODS[method](), adamw, Precision(), Batch(4, 128), on_gpu=False))
    embeddings = config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    adapters = 0 if method == "full" else found.trained
    multiplied = found.parameters - adapters - embeddings - norms
    weights = 6 * multiplied if method == "full" else 4 * multiplied + 6 * adapters
    attention = 12 * config.num_hidden_layers * config.hidden_size * 128
    assert found.operations / (4 * 128) == pytest.approx(weights + attention, rel=0.03)


def test_what_is_computed_again_is_counted_again(llama: Network) -> None:
    plain = Step(llama, LoRA(r=8), adamw, Precision(), Batch(4, 128), on_gpu=False)
    once, twice = rehearse(plain).operations, rehearse(replace(plain, checkpointing=True)).operations
    assert 1.2 * once < twice < 1.5 * once


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_way_takes_less_memory_than_the_one_before(method: str, llama: Network) -> None:
    steps = [Step(llama, METHODS[method](), adamw, Precision(), Batch(8, 192), way, on_gpu=False) for way in WAYS]
    kept, selective, again, offloaded = (rehearse(step).memory for step in steps)
    assert kept > selective > again > offloaded
    assert again - offloaded <= 3 * 8 * 192 * 128 * 4  # the inputs of three blocks, in bytes


def test_paged_states_lie_elsewhere_on_a_gpu(llama: Network) -> None:
    """Of matrices of 100,000 values or more; the others' are in 8 bits, or 32 below 4,096 values."""
    step = Step(llama, Full(), lambda groups: PagedAdamW(groups), Precision(), Batch(1, 8))
    sizes = [p.numel() for p in llama.model().parameters()]
    expected = {n: 2 * 4 * n if n < 4096 else 2 * (n + 4 * -(-n // 256)) for n in sizes}
    found = rehearse(step)
    assert found.optimizer_bytes == sum(expected[n] for n in sizes)  # a checkpoint holds them
    here = sum(expected[n] for n in sizes if n < 100_000)
    assert here <= found.peak["optimizer"] <= here + 512 * 4 * len(sizes)
    assert rehearse(replace(step, on_gpu=False)).optimizer_bytes == pytest.approx(8 * sum(sizes), rel=0.01)


def test_logits_that_are_changed_later_are_all_there(tmp_path: Path) -> None:
    """Gemma 2 caps its logits: the loss cannot be taken in the place of its head."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 8192}
    capped = saved(Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=30.0)), tmp_path / "capped")
    free = saved(Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=None)), tmp_path / "free")
    steps = [Step(base, LoRA(r=2), adamw, Precision(), Batch(8, 256), on_gpu=False) for base in (capped, free)]
    with_all, without = map(rehearse, steps)
    assert with_all.memory - without.memory > 2 * 8 * 256 * 8192 * 4
    assert measured(steps[0]) <= with_all.memory <= 1.25 * measured(steps[0])


def test_a_method_that_trains_nothing(llama: Network) -> None:
    found = rehearse(Step(llama, ZeroShot(), adamw, Precision(), Batch(4, 64), on_gpu=False))
    assert (found.trained, found.optimizer_bytes, found.peak["gradients"], found.trained_bytes) == (0, 0, 0, 0)
    assert found.peak["weights"] >= 4 * found.parameters


class Looks(Full):
    def adapt(self, network: Any, batches: Any = None) -> Any:
        if float(next(network.parameters()).sum()) > 0:
            return network
        return network


def test_a_method_that_looks_at_values(llama: Network) -> None:
    method: Method = Looks()
    with pytest.raises(UserError, match="Looks looks at the values of tensors"):
        rehearse(Step(llama, method, adamw, Precision(), Batch(1, 8)))
