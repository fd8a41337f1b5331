"""Networks that cannot be taken apart into shards are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from ftlab.errors import UserError
from ftlab.methods import Full
from ftlab.modules import FinetuneModule
from ftlab.modules.sharding.network import shard
from ftlab.networks import Network


def not_taken_apart(network: Network, change: Callable[[Any], None]) -> str:
    """What is said of a network that cannot be sharded."""
    opened = network.model()
    change(opened)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    with pytest.raises(UserError) as caught:
        shard(opened, init_device_mesh("cpu", (1,)), MixedPrecisionPolicy(), "fsdp2")
    return str(caught.value)


def share_a_matrix(network: Any) -> None:
    first, second = network.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight


def share_with_the_head(network: Any) -> None:
    network.model.layers[1].register_parameter("shared", network.lm_head.weight)


def train_in_two_types(network: Any) -> None:
    network.model.layers[0].mlp.up_proj.bfloat16()


def train_a_number(network: Any) -> None:
    network.model.layers[0].scale = torch.nn.Parameter(torch.ones(()))


def hide_the_blocks(network: Any) -> None:
    network.config.num_hidden_layers = 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (share_a_matrix, "model.layers.0.mlp.up_proj.weight is a tensor of several decoder blocks"),
        (share_with_the_head, "is a tensor of several decoder blocks"),
        (train_in_two_types, "a decoder block trains tensors in bfloat16 and float32"),
        (train_a_number, "model.layers.0.scale is trained and cannot be sharded, as it has no dimension"),
        (hide_the_blocks, "sharded by its decoder blocks, and those of LlamaForCausalLM cannot be told"),
    ],
)
def test_a_network_that_cannot_be_taken_apart_is_refused(
    change: Callable[[Any], None], says: str, network: Network
) -> None:
    said = on_ranks(1, partial(not_taken_apart, network, change))[0]
    assert said.startswith("trainer.strategy fsdp2: ")
    assert says in said


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_no_device_holds_the_network_before_it_is_sharded(
    strategy: str, network: Network, make_trainer: Callable[..., pl.Trainer]
) -> None:
    """Lightning has set the process's device where it is opened, which `meta` stands for here."""
    module = FinetuneModule(Full(), network)
    module.trainer = make_trainer(strategy=strategy)
    with torch.device("meta"):
        module.configure_model()
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"cpu"}
