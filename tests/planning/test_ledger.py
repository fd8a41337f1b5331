"""Bytes from their making to their end, counted by hand."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ftlab.planning import Ledger


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """What is let go is let go by counting references alone."""
    gc.disable()
    yield
    gc.enable()


def floats(count: int) -> Tensor:
    return torch.zeros(count)


def test_the_most_at_once_and_not_all_that_came() -> None:
    with Ledger(block=1) as ledger:
        first = floats(100)
        del first
        second, third = floats(60), floats(60)
    assert sum(ledger.peak().values()) == 480
    del second, third


def test_a_storage_counts_once_whatever_views_there_are() -> None:
    with Ledger(block=1) as ledger:
        whole = floats(100)
        views = [whole[:50], whole.view(10, 10), whole.t()]
        del whole
        views.pop()
        more = floats(10)  # a view still holds what it is of
    assert sum(ledger.peak().values()) == 440
    del views, more


def test_sizes_are_rounded_up_to_blocks() -> None:
    with Ledger() as ledger:
        tensors = [floats(1), floats(128), floats(129)]
    assert sum(ledger.peak().values()) == 512 + 512 + 1024
    del tensors


def test_parts_as_they_are_made_and_as_they_are_assigned() -> None:
    before = floats(10)
    with Ledger(block=1) as ledger:
        ledger.assign("weights", [before])
        with ledger.part("activations"):
            kept = floats(20)
            gradient = floats(30)
        ledger.assign("gradients", [gradient, None])
        logits = torch.zeros(4, 10)
    assert ledger.peak() == {
        "weights": 40,
        "gradients": 120,
        "optimizer": 0,
        "activations": 80,
        "head": 0,
        "temporary": 160,
    }
    del kept, logits


def test_parts_by_shape() -> None:
    with Ledger(block=1) as ledger:
        ledger.assign_shapes("head", lambda shape: shape[-1] == 50)
        logits, other = torch.zeros(2, 50), torch.zeros(50, 3)
    assert (ledger.peak()["head"], ledger.peak()["temporary"]) == (400, 600)
    del logits, other


def test_the_peak_since_a_moment() -> None:
    with Ledger(block=1) as ledger:
        large = floats(1000)
        del large
        since = ledger.moment
        small = floats(10)
    assert (sum(ledger.peak().values()), sum(ledger.peak(since).values())) == (4000, 40)
    del small


def test_what_an_operation_holds_while_it_runs() -> None:
    with Ledger({torch.ops.aten.mm.default: lambda a, b: a.nbytes}, block=1) as ledger:
        a, b = torch.zeros(4, 4), torch.zeros(4, 4)
        product = a @ b
        kept = floats(4)
    assert sum(ledger.peak().values()) == 3 * 64 + 16  # the workspace is gone when the product is made
    assert sum(ledger.peak().values()) == 208
    del product, kept


def test_what_goes_after_it_is_off_is_not_asked_for() -> None:
    with Ledger(block=1) as ledger:
        kept = floats(10)
    del kept
    assert sum(ledger.peak().values()) == 40
