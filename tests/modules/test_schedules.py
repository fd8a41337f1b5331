"""Factors on the learning rate, against values computed by hand."""

import math

import pytest
import torch

from ftlab.errors import UserError
from ftlab.modules import Constant, Cosine, Linear, Schedule

HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "total", "factors"),
    [
        (Constant(), 3, [1, 1, 1]),
        (Constant(warmup=4), 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        (Linear(warmup=0), 4, [1, 0.75, 0.5, 0.25, 0]),
        (Linear(warmup=0, floor=0.2), 4, [1, 0.8, 0.6, 0.4, 0.2]),
        (Linear(warmup=0.2), 10, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        (Cosine(warmup=0), 4, [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2, 0]),
        (Cosine(warmup=0, floor=0.1), 4, [1, 0.1 + 0.45 * (1 + HALF), 0.55, 0.1 + 0.45 * (1 - HALF), 0.1]),
        (Cosine(warmup=2), 6, [0.5, 1, 1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2, 0]),
        (Cosine(warmup=0.25), 8, [0.5, 1, 1, (1 + math.cos(math.pi / 6)) / 2]),
        (Cosine(warmup=1), 5, [1, 1, (1 + HALF) / 2]),  # one step, not the whole
        (Cosine(), 100, [1 / 3, 2 / 3, 1, 1]),  # 3 %
        (Cosine(warmup=5), 3, [0.2, 0.4, 0.6, 0.8]),  # shorter than its warm-up
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else "",
)
def test_factors(schedule: Schedule, total: int, factors: list[float]) -> None:
    assert [schedule.factor(step, total) for step in range(len(factors))] == pytest.approx(factors, abs=1e-12)


@pytest.mark.parametrize("schedule", [Constant(), Linear(floor=0.2), Cosine(floor=0.1)])
def test_beyond_the_end_it_stays(schedule: Schedule) -> None:
    assert schedule.factor(50, 10) == schedule.factor(10, 10)


def test_optimizer_follows_the_factors() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 1.6)]
    optimizer = torch.optim.SGD(groups)
    scheduler = Linear(warmup=0)(optimizer, 4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates == [pytest.approx([0.1 * f, 1.6 * f]) for f in (1, 0.75, 0.5, 0.25)]


def test_negative_warmup_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup is -1"):
        Cosine(warmup=-1)
