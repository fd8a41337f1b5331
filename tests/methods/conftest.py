"""A batch to train on, and the loop that trains: torch alone, no Lightning."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ftlab.methods import Method
from ftlab.networks import Network


@pytest.fixture(scope="session")
def batches() -> list[dict[str, Tensor]]:
    """Three batches of four rows; the second half of each row is learned."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        ids = torch.randint(8, 1400, (4, 12), generator=generator)
        labels = ids.clone()
        labels[:, :6] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


@pytest.fixture(scope="session")
def adapt(batches: list[dict[str, Tensor]]) -> Callable[..., nn.Module]:
    """Opens a network as the method wants its base, and adapts it under a seed."""

    def adapt_seeded(method: Method, network: Network, seed: int = 0) -> nn.Module:
        base = network.model(method.quantization)
        torch.manual_seed(seed)
        return method.adapt(base, iter(batches) if method.needs_batches else None)

    return adapt_seeded


@pytest.fixture(scope="session")
def train(batches: list[dict[str, Tensor]]) -> Callable[..., set[str]]:
    """Three steps of AdamW over the method's groups; gives the names of the tensors whose gradient was not 0."""

    def train_steps(method: Method, network: nn.Module, lr: float = 1e-2) -> set[str]:
        network.train()
        optimizer = torch.optim.AdamW(method.param_groups(network), lr=lr)
        moved: set[str] = set()
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad()
            network(**batch).loss.backward()
            moved |= {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
            optimizer.step()
            method.after_step(network, step)
        network.eval()
        return moved

    return train_steps


@pytest.fixture(scope="session")
def logits(batches: list[dict[str, Tensor]]) -> Callable[[nn.Module], Tensor]:
    """What a network says to the first batch, in evaluation mode."""

    @torch.no_grad()
    def answer(network: nn.Module) -> Tensor:
        batch = batches[0]
        network.eval()
        return network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    return answer
