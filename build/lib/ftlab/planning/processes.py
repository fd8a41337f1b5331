"""What a training over several processes takes of each, by its strategy: memory, and what crosses between them.

Bytes from formulas, which tests hold against the tensors that are there and counted collectives; docs/how-to/scale.md
shows some. Activations are none of this: they depend on the batch of a process, and not on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from ftlab.networks import decoder_blocks, language_model


@dataclass(frozen=True)
class Weights:
    """Bytes of some weights.

    Args:
        all: Of all of them.
        trained: Of those that are trained.
    """

    all: int
    trained: int

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter]) -> Weights:
        """Counts each once."""
        there = set(parameters)
        return cls(sum(p.nbytes for p in there), sum(p.nbytes for p in there if p.requires_grad))

    @property
    def frozen(self) -> int:
        """Of those that are not."""
        return self.all - self.trained


@dataclass(frozen=True)
class Shape:
    """Of a network, what the formulas need.

    Args:
        blocks: Its decoder blocks.
        outside: Embeddings, final norm and head.
    """

    blocks: tuple[Weights, ...]
    outside: Weights

    @classmethod
    def of(cls, network: nn.Module) -> Shape:
        """Of a network as a method has adapted it.

        Raises:
            UserError: Its blocks cannot be told.
        """
        blocks = [list(block.parameters()) for block in decoder_blocks(language_model(network))]
        inside = {parameter for block in blocks for parameter in block}
        outside = (parameter for parameter in network.parameters() if parameter not in inside)
        return cls(tuple(map(Weights.of, blocks)), Weights.of(outside))

    @property
    def weights(self) -> Weights:
        """Of the whole network."""
        units = (*self.blocks, self.outside)
        return Weights(sum(unit.all for unit in units), sum(unit.trained for unit in units))

    @property
    def frozen_in_blocks(self) -> int:
        """Bytes of what is frozen in the blocks."""
        return sum(block.frozen for block in self.blocks)


@dataclass(frozen=True)
class Cost:
    """Of one process, in bytes.

    Args:
        processes: How many there are (W).
        weights: That it holds.
        gradients: Of what is trained.
        moments: AdamW's two.
        buffers: In which weights and gradients stand whole while it computes, where it holds them in parts.
        all_reduced: Goes into all-reduces in an optimiser step.
        reduce_scattered: Goes into reduce-scatters.
        all_gathered: Comes out of all-gathers.
    """

    processes: int
    weights: float
    gradients: float
    moments: float
    buffers: float = 0
    all_reduced: float = 0
    reduce_scattered: float = 0
    all_gathered: float = 0

    @property
    def memory(self) -> float:
        """The most that it holds beside activations."""
        return self.weights + self.gradients + self.moments + self.buffers

    @property
    def sent(self) -> float:
        """That it sends in an optimiser step, and receives, where the processes form a ring (Patarasuk & Yuan 2009,
        doi 10.1016/j.jpdc.2008.09.002)."""
        once = self.reduce_scattered + self.all_gathered
        return (2 * self.all_reduced + once) * (self.processes - 1) / self.processes


def ddp(shape: Shape, processes: int) -> Cost:
    """DistributedDataParallel: each has everything, and gradients are summed once a step, whatever it accumulates."""
    weights = shape.weights
    crossing = weights.trained if processes > 1 else 0
    return Cost(processes, weights.all, weights.trained, 2 * weights.trained, all_reduced=crossing)


def fsdp(shape: Shape, processes: int, accumulate: int = 1) -> Cost:
    """The frozen base in shards: each has its part of what is frozen in blocks, and all else. Blocks are gathered
    in the forward and in the backward pass, of which two are there at a time; gradients are summed once a step.

    Where nothing is frozen in blocks, it is `fsdp2`.

    Args:
        shape: Of the network.
        processes: How many there are.
        accumulate: Micro-batches of an optimiser step.
    """
    if not shape.frozen_in_blocks:
        return fsdp2(shape, processes, accumulate)
    alike, parts = ddp(shape, processes), shape.frozen_in_blocks
    return replace(
        alike,
        weights=alike.weights - parts + parts / processes,
        buffers=sum(sorted(block.frozen for block in shape.blocks)[-2:]),
        all_gathered=accumulate * 2 * parts,
    )


def fsdp2(shape: Shape, processes: int, accumulate: int = 1) -> Cost:
    """FSDP2: each has its part. Blocks are gathered in the forward and in the backward pass, of which two are there
    at a time, all else once; gradients are summed at every micro-batch.

    Args:
        shape: Of the network.
        processes: How many there are.
        accumulate: Micro-batches of an optimiser step.
    """
    weights, outside = shape.weights, shape.outside
    largest = max(shape.blocks, key=lambda block: block.all)
    return Cost(
        processes,
        weights.all / processes,
        weights.trained / processes,
        2 * weights.trained / processes,
        buffers=outside.all + outside.trained + 2 * largest.all + largest.trained,
        reduce_scattered=accumulate * weights.trained,
        all_gathered=accumulate * (2 * weights.all - outside.all),
    )
