"""Gradient descent by hand, one record at a time in float64, with nothing of Lightning's or ours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ftlab.data import FinetuneData
from ftlab.data.collators import Row
from ftlab.networks import Network


@dataclass
class Descent:
    """What gradient descent by hand came to."""

    network: nn.Module
    losses: list[float]
    norms: list[float]

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())


def loss_by_hand(network: nn.Module, row: Row) -> tuple[Tensor, int]:
    """Negative log likelihood of the row's targets in nats, and their number, token by token."""
    log_p = network(torch.tensor(row.input_ids)[None]).logits[0].log_softmax(-1)
    targets = [place for place in range(1, len(row.labels)) if row.labels[place] != -100]
    return -sum(log_p[place - 1, row.labels[place]] for place in targets), len(targets)


@pytest.fixture
def rows_loss(network: Network) -> Callable[[list[Row]], float]:
    """Mean loss of a target token of the pretrained network over rows."""

    @torch.no_grad()
    def mean(rows: list[Row]) -> float:
        model = AutoModelForCausalLM.from_pretrained(network.path, dtype=torch.float64)
        losses, targets = zip(*(loss_by_hand(model, row) for row in rows), strict=True)
        return float(sum(losses)) / sum(targets)

    return mean


@pytest.fixture
def descend(network: Network) -> Callable[..., Descent]:
    """Trains all weights on `steps` of whole batches, in the order that the data module promises."""

    def run(
        data: FinetuneData,
        rows_per_step: int,
        lr: float = 0.1,
        clip: float | None = None,
        epochs: int = 1,
        limit: int | None = None,
    ) -> Descent:
        model = AutoModelForCausalLM.from_pretrained(network.path, dtype=torch.float64)
        rows = data.rows("train")
        done = Descent(model, [], [])
        for epoch in range(epochs):
            order = numpy.random.default_rng([data.seed, epoch]).permutation(len(rows))[:limit]
            for start in range(0, len(order), rows_per_step):
                parts = [loss_by_hand(model, rows[place]) for place in order[start : start + rows_per_step]]
                loss = sum(part for part, _ in parts) / sum(targets for _, targets in parts)
                model.zero_grad()
                loss.backward()
                norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
                scale = 1.0 if clip is None else min(1.0, clip / norm.item())
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= lr * scale * parameter.grad
                done.losses.append(loss.item())
                done.norms.append(norm.item())
        return done

    return run
