"""Starts that look at data or at the base's rounding, against their papers' formulas computed by hand."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods import LoRA, Peft, QLoRA
from ftlab.networks import Network, Quantization

RANK = 4
LAYER = "model.layers.1.mlp.up_proj"


def update(adapted: nn.Module) -> Tensor:
    """scale B A of LAYER, in float64."""
    layer: Any = adapted.get_submodule(f"base_model.model.{LAYER}")
    return layer.scaling["default"] * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()


def weight(network: Network) -> Tensor:
    return network.model().get_submodule(LAYER).weight.detach().double()


def test_corda_is_the_best_approximation_as_the_inputs_see_it(
    network: Network, adapt: Callable[..., nn.Module], batches: list[dict[str, Tensor]]
) -> None:
    adapted = adapt(LoRA(r=RANK, init="corda", targets=["up_proj"]), network)
    seen: list[Tensor] = []
    model = network.model()
    model.get_submodule(LAYER).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0].double()))
    with torch.no_grad():
        for batch in batches:
            for row in batch["input_ids"]:
                model(row[None])
    scaled = [inputs / inputs.max().abs() for inputs in seen]
    covariance = torch.stack([inputs.T @ inputs for inputs in scaled]).mean(dim=0)
    covariance += 0.01 * covariance.diag().mean() * torch.eye(len(covariance))
    u, s, v = torch.linalg.svd(weight(network) @ covariance, full_matrices=False)
    best = u[:, :RANK] * s[:RANK] @ v[:RANK]
    torch.testing.assert_close(update(adapted) @ covariance, best, rtol=1e-3, atol=1e-3 * float(best.abs().max()))


def test_lora_ga_starts_in_the_directions_of_the_first_gradient(
    network: Network, adapt: Callable[..., nn.Module], batches: list[dict[str, Tensor]]
) -> None:
    adapted: Any = adapt(LoRA(r=RANK, init="lora_ga", targets=["up_proj"]), network)
    model = network.model()
    for batch in batches:
        model(**batch).loss.backward()
    gradient = model.get_submodule(LAYER).weight.grad.double() / len(batches)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    layer = adapted.get_submodule(f"base_model.model.{LAYER}")
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    # A in the span of the first r right singular vectors, B in that of the left ones after them
    torch.testing.assert_close(a @ v[:RANK].T @ v[:RANK], a, rtol=0, atol=1e-3 * float(a.abs().max()))
    rest = u[:, RANK : 2 * RANK]
    torch.testing.assert_close(rest @ rest.T @ b, b, rtol=0, atol=1e-2 * float(b.abs().max()))


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_loftq_leaves_of_the_rounding_what_its_rank_cannot_hold(network: Network, alpha: float | None) -> None:
    adapted = QLoRA(r=RANK, alpha=alpha, init="loftq").adapt(network.model(Quantization("nf4")))
    base: Any = network.model(Quantization("nf4")).get_submodule(LAYER).weight
    lost = weight(network) - dequantize_4bit(base.data, base.quant_state).double()
    left = torch.linalg.matrix_norm(lost - update(adapted))
    unheld = torch.linalg.svdvals(lost)[RANK:].square().sum().sqrt()
    assert float(left) == pytest.approx(float(unheld), rel=1e-4)
    assert left < torch.linalg.matrix_norm(lost)


def test_loftq_compares_with_the_commit_that_was_rounded(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is at hand: what is looked at is the revision that is asked for."""
    base = network.model(Quantization("nf4"))
    opened, asked = type(base).from_pretrained, []

    def note(path: str, revision: str | None = None, **options: Any) -> Any:
        asked.append(revision)
        return opened(path, **options)

    base.config._commit_hash = "abc"
    monkeypatch.setattr(type(base), "from_pretrained", note)
    QLoRA(r=RANK, init="loftq").adapt(base)
    assert asked == ["abc"]


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_without_data_they_are_refused(network: Network, init: str) -> None:
    with pytest.raises(UserError, match=rf"init {init} needs training data"):
        LoRA(r=RANK, init=init).adapt(network.model())  # type: ignore[arg-type]


def test_eva_with_too_few_learned_tokens_is_refused(network: Network, batches: list[dict[str, Tensor]]) -> None:
    with pytest.raises(UserError, match="more than 24 learned tokens, and the largest has 24"):  # rho 2, four rows of 6
        LoRA(r=12, init="eva").adapt(network.model(), iter(batches))


@pytest.mark.parametrize("init", ["orthogonal", "pissa", "olora", "corda", "lora_ga"])
def test_a_start_that_computes_with_the_weight_is_refused_on_few_bits(init: str) -> None:
    with pytest.raises(UserError, match=f"with init {init} does not work on a base in nf4, only on full"):
        QLoRA(init=init)  # type: ignore[arg-type]


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_through_the_configuration_as_through_the_front(
    init: str, network: Network, adapt: Callable[..., nn.Module]
) -> None:
    config: Any = peft.LoraConfig(r=RANK, lora_alpha=8, target_modules="all-linear", init_lora_weights=init)  # type: ignore[arg-type]
    setattr(config, f"{init}_config", None)  # as peft leaves it for a configuration that comes from YAML
    one, other = adapt(Peft(config), network), adapt(LoRA(r=RANK, init=init), network)  # type: ignore[arg-type]
    torch.testing.assert_close(update(one), update(other), rtol=0, atol=0)
    a, b = (peft.get_peft_model_state_dict(each) for each in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
