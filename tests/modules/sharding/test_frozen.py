"""The frozen tensors of blocks in shards: there while a block is computed, and no numbers in between."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from ranks import on_ranks

from ftlab.modules.sharding.frozen import FrozenShards
from ftlab.networks import Network, decoder_blocks, language_model


def looked_at(network: Network, share: bool) -> tuple[bool, list[str]]:
    """Whether a network in shards answers as before; and its blocks' parameters that are there between forwards."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    opened: Any = network.model()
    if share:
        first, second = decoder_blocks(opened)
        second.mlp.up_proj.weight = first.mlp.up_proj.weight
        second.register_parameter("shared", opened.lm_head.weight)
    before = opened(torch.tensor([[5, 9, 14]])).logits
    FrozenShards(opened, {"model.layers.0.mlp.down_proj.weight"}, torch.device("cpu"))
    names = [name for name, p in decoder_blocks(language_model(opened)).named_parameters() if not p.isnan().all()]
    after = opened(torch.tensor([[5, 9, 14]])).logits
    return torch.equal(before, after), names


@pytest.mark.parametrize("share", [False, True])
def test_what_is_not_gathered_is_no_number_and_what_several_blocks_have_stays_whole(
    share: bool, network: Network
) -> None:
    same, there = on_ranks(1, partial(looked_at, network, share))[0]
    assert same
    assert set(there) == {"0.mlp.down_proj.weight", *(["0.mlp.up_proj.weight", "1.shared"] if share else [])}
