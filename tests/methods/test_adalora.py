"""AdaLoRA: the budget falls as the paper has it, cut entries stay cut, and what is saved answers the same."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ftlab.errors import UserError
from ftlab.methods import AdaLoRA
from ftlab.networks import Network

STEPS = 20


def kept(network: nn.Module) -> int:
    """Diagonal entries that are not 0."""
    return sum(int((p != 0).sum()) for name, p in network.named_parameters() if "lora_E" in name)


@pytest.fixture
def trained(network: Network, batches: list[dict[str, Tensor]]) -> tuple[AdaLoRA, nn.Module, list[int]]:
    """A method, the network after all steps, and the entries that were left after each."""
    torch.manual_seed(0)
    method = AdaLoRA(init_r=6, target_r=2, warmup=0.2, final=0.3)
    adapted = method.adapt(network.model()).train()
    method.begin(adapted, STEPS)
    optimizer = torch.optim.AdamW(method.param_groups(adapted), lr=1e-2)
    left = []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        penalty = method.penalty(adapted)
        assert penalty is not None
        (adapted(**batches[step % 3]).loss + penalty).backward()
        optimizer.step()
        method.after_step(adapted, step)
        left.append(kept(adapted))
    return method, adapted, left


def test_budget_falls_by_the_third_power_between_warm_up_and_final(
    trained: tuple[AdaLoRA, nn.Module, list[int]],
) -> None:
    layers = 2 * 7
    first, last = 6 * layers, 2 * layers
    begin, end = 4, 14  # of 20 steps: a fifth of warm-up, three tenths at the end
    for step, left in enumerate(trained[2], start=1):
        if step <= begin:
            budget = first
        elif step >= end:
            budget = last
        else:
            budget = math.floor((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)
        assert left == budget, step


def test_penalty_is_the_mean_distance_from_orthogonal(network: Network) -> None:
    method = AdaLoRA(init_r=3, target_r=1, targets=["q_proj"], orthogonality=0.5)
    adapted = method.adapt(network.model())
    expected = []
    for name, p in adapted.named_parameters():
        p64 = p.detach().double()
        if "lora_A" in name:
            expected.append((p64 @ p64.T - torch.eye(3)).square().sum().sqrt())
        if "lora_B" in name:
            expected.append((p64.T @ p64 - torch.eye(3)).square().sum().sqrt())
    assert len(expected) == 4
    penalty = method.penalty(adapted)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * sum(expected).item() / 4, rel=1e-5)


def test_saved_with_the_ranks_that_are_left(
    trained: tuple[AdaLoRA, nn.Module, list[int]],
    network: Network,
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    method, adapted, _ = trained
    expected = logits(adapted)
    kept_before = method.state(adapted)["ranks"]
    method.save(adapted, tmp_path)
    assert method.state(adapted)["ranks"] == kept_before
    loaded = method.load(network.model(), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    ranks = [p.numel() for name, p in loaded.named_parameters() if "lora_E" in name]
    assert sum(ranks) == 2 * 2 * 7
    torch.testing.assert_close(logits(method.merge(loaded)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_r": 4, "target_r": 4}, "less than init_r"),
        ({"warmup": 0.7, "final": 0.3}, "no steps for cuts"),
        ({"every": 0}, "method.every is 0"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        AdaLoRA(**options)


def test_too_few_steps_are_refused(network: Network) -> None:
    method = AdaLoRA()
    with pytest.raises(UserError, match="2 optimiser steps"):
        method.begin(method.adapt(network.model()), steps=2)
