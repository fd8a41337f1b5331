"""Pairs of network, method and data that would train something else than was meant: refused before they train."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn

from ftlab.data import FinetuneData
from ftlab.errors import UserError
from ftlab.evaluation.generation import virtual_tokens
from ftlab.methods import Method
from ftlab.modules.sharding.fsdp import FSDP2Strategy, FSDPStrategy
from ftlab.modules.sharding.refusals import refuse_in_frozen_shards, refuse_in_shards
from ftlab.networks import Network


def refuse_strategy(strategy: Strategy, method: Method, pretrained: Network) -> None:
    """Under any other strategy a network in shards would be clipped by the norm of one, and saved without the others.

    Raises:
        UserError: It is another, or one that the method or its base does not go with.
    """
    kind = pretrained.base_kind(method.quantization)
    if isinstance(strategy, FSDP2Strategy):
        refuse_in_shards(method, kind, strategy.strategy_name)
    elif isinstance(strategy, FSDPStrategy):
        refuse_in_frozen_shards(method, kind)
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            f"trainer.strategy: {type(strategy).__name__} is none that ftlab can train, save and resume exactly: take "
            "ddp, fsdp or fsdp2"
        )


def refuse_scaled_gradients(precision: object) -> None:
    """Gradients of 16-bit floats are scaled, and would be clipped and logged as such.

    Raises:
        UserError: They would be.
    """
    if str(precision) in ("16-mixed", "16"):
        raise UserError(
            f"trainer.precision {precision}: its gradients are scaled where they are clipped and logged; give "
            "bf16-mixed, or 32-true where the device has no bfloat16"
        )


def refuse_preferences(data: FinetuneData) -> None:
    """The loss of answers alone cannot use pairs of them.

    Raises:
        UserError: The data holds pairs.
    """
    if data.has_preferences:
        raise UserError(
            f"data.path: {data.corpus.name} holds preference pairs, which need an objective of their own; to train on "
            'the better answers alone give data.prompt and data.response: "{chosen}"'
        )


def refuse_other_base(method: Method, pretrained: Network) -> None:
    """A method works on some kinds of base.

    Raises:
        UserError: Not on this one.
    """
    refuse_base(method, pretrained.base_kind(method.quantization), pretrained.path)


def refuse_base(method: Method, kind: str, path: str) -> None:
    """As `refuse_other_base`, of a base whose kind is known."""
    if kind not in method.bases:
        raise UserError(
            f"model.method: {type(method).__name__} does not work on a base in {kind}, which {path} is, "
            f"only on {', '.join(sorted(method.bases))}: take another of the two"
        )


def refuse_long_rows(network: nn.Module, pretrained: Network, data: FinetuneData) -> None:
    """Virtual tokens and the longest row must fit into the context together.

    Raises:
        UserError: They do not.
    """
    virtual, context = virtual_tokens(network), pretrained.context_length()
    if not virtual or context is None:
        return
    refuse_long_windows(network, pretrained, data)
    longest = data.encoder.max_length if data.streaming else int(data.rows("train").lengths.max())
    assert longest is not None  # the context, where nothing else is said
    if longest + virtual > context:
        raise UserError(
            f"data.max_length: the method puts {virtual} tokens of its own before each row, the longest row has "
            f"{longest} and the network's context is {context}: set data.max_length to {context - virtual}"
        )


def refuse_long_windows(network: nn.Module, pretrained: Network, data: FinetuneData) -> None:
    """Virtual tokens and each window of a retention set must fit into the context together.

    Raises:
        UserError: They do not.
    """
    virtual, context = virtual_tokens(network), pretrained.context_length()
    if not virtual or context is None:
        return
    for kept in data.retained.sets:
        if data.retained.window(kept) + virtual > context:
            raise UserError(
                f"{kept.key}: the method puts {virtual} tokens of its own before each window, and the network's "
                f"context is {context}: set window to {context - virtual} or less"
            )
