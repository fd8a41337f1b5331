"""Whether a network keeps packed samples apart, and sees no padding: tried on the network itself, since no list of them
is ever whole."""

from __future__ import annotations

import warnings
from itertools import accumulate

import torch
from torch import Tensor, nn

from ftlab.attention import mask_of
from ftlab.errors import out_of_memory
from ftlab.evaluation.generation import evaluating
from ftlab.modules.sharding.lockstep import without_gradients

TOLERANCE = 0.05
"""Rounding stays well below this share of what a neighbour in the same sample does to the logits; a leak does not."""


def attention_is_isolated(network: nn.Module, packs: int = 2, told_bounds: bool = False) -> bool:
    """Whether samples of a packed batch are computed as if each stood alone.

    The network must find the samples by where `position_ids` restart, without an attention mask, or where it is told
    that they begin. Tried in evaluation mode on packs of two tiny samples: changing the first must not change the
    logits of the second, and these must be those of the second alone. Networks with a recurrent state, those that
    ignore positions, and prompt methods fail.

    Args:
        network: A causal language model, adapted or not; left as it was, random numbers included.
        packs: Rows of the batch to try. Flash attention finds samples in a single row only: ask with 1 where the
            collator lays them flat, and with 2 or more where it does not.
        told_bounds: Tell it where samples begin, by `ftlab.attention`; a sample that is alone is computed without.

    Raises:
        Exception: What the network raises on such a batch, other than that it takes no `position_ids`.
    """
    device = next(network.parameters()).device
    vocabulary = network.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    first, other, second = (
        torch.tensor([(vocabulary // 3 + step * place + 1) % vocabulary for place in range(5)], device=device)
        for step in (7, 11, 5)
    )
    modes = {module: module.training for module in network.modules()}
    cuda = [device] if device.type == "cuda" else []
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as peft's, that it ignores position_ids
            alone = _logits(network, [second], packs)
            packed = _logits(network, [first, second], packs, told_bounds)
            changed = _logits(network, [other, second], packs, told_bounds)
            leaking = _logits(network, [torch.cat([first, second])], packs)
            leaking_changed = _logits(network, [torch.cat([other, second])], packs)
    except TypeError as error:
        if "position_ids" in str(error):
            return False
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
    if packed.shape[1] != 2 * len(second):  # virtual tokens before the samples
        return False

    def within(difference: Tensor, leak: Tensor) -> bool:
        return _size(difference[:, -len(second) :]) <= TOLERANCE * _size(leak[:, -len(second) :])

    moved = packed[:, -len(second) :] - alone
    return within(packed - changed, leaking - leaking_changed) and within(moved, leaking[:, -len(second) :] - alone)


def padding_is_unseen(network: nn.Module, device: torch.device) -> bool:
    """Whether rows that are padded on the right are computed as without padding where no mask tells of it.

    So it is where a token sees what stands before it alone, and its position is its place. Processes whose network is
    in shards compute the same number of times.

    Args:
        network: A causal language model, adapted or not; left as it was.
        device: Of the network.
    """
    vocabulary = network.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    length, real = 8, 5
    rows = [[(vocabulary // 3 + step * place + 1) % vocabulary for place in range(length)] for step in (7, 11)]
    ids = torch.tensor(rows, device=device)
    changed = ids.clone()  # by its first token, which the others see
    changed[:, 0] = (changed[:, 0] + 1) % vocabulary
    mask = torch.ones_like(ids)
    mask[:, real:] = 0
    tried: tuple[tuple[Tensor, Tensor | None], ...] = ((ids, mask), (changed, mask), (ids, None))
    try:
        with without_gradients(), evaluating(network):
            told, moved, untold = (
                network(input_ids=some, attention_mask=seen, use_cache=False).logits[:, -length:][:, 1:real].float()
                for some, seen in tried
            )
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return False  # it wants a mask
    return _size(untold - told) <= TOLERANCE * _size(moved - told)


def _logits(network: nn.Module, samples: list[Tensor], packs: int, told_bounds: bool = False) -> Tensor:
    """(packs, length, vocabulary), every row the same."""
    positions = torch.cat([torch.arange(len(sample), device=sample.device) for sample in samples])
    input_ids, position_ids = torch.cat(samples).expand(packs, -1), positions.expand(packs, -1)
    told: dict[str, Tensor] = {}
    if told_bounds:
        bounds = [0, *accumulate(len(sample) for sample in samples * packs)]
        told["attention_mask"] = mask_of(bounds, positions.device)
    logits: Tensor = network(input_ids=input_ids, position_ids=position_ids, use_cache=False, **told).logits
    return logits.float()


def _size(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())
