"""From hidden states to the loss: the head sees rows with a target alone, and their logits are never all there at once.

A network of 128,256 words makes half a GB of logits out of 1,000 tokens, and its loss would hold them three times. Here
the head takes some rows at a time, and their gradient is taken at once, while their logits are there; only that of the
hidden states and of the head's own parameters is kept. The idea is Liger's (Hsu et al. 2024, arXiv 2410.10989) and
torch's `linear_cross_entropy`; theirs take a plain matrix, this one whatever layer stands there: tied, adapted, in few
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ftlab.evaluation.generation import evaluating
from ftlab.networks import language_model

_LOGITS, _ROWS = 2**24, 256
"""Logits at a time; but of so many rows at least, or the head's matrix would be read too often."""

Way = Literal["fused", "rows", "whole"]


class Head:
    """The output layer of a network, as the loss uses it.

    What a network does with logits after its output layer is not known: which way its loss may take is tried once, on a
    few tokens. `fused` gives the loss in the place of logits; `rows` the logits of rows with a target; `whole` all.

    Args:
        network: Adapted or not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._layer: Any = language_model(network).get_output_embeddings()
        self._way: Way | None = None

    def summed_loss(self, inputs: dict[str, Any], length: int, places: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, summed.

        Args:
            inputs: What the network takes.
            length: Of a row of `inputs`; virtual tokens of a method's own stand before.
            places: From which a target is predicted, in the flattened rows, (targets,).
            targets: The ids, (targets,).
        """
        if self._way is None:
            self._way = self._found(inputs)
        return self._by(self._way, inputs, length, places, targets)

    def _by(self, way: Way, inputs: dict[str, Any], length: int, places: Tensor, targets: Tensor) -> Tensor:
        if way == "whole":
            logits = _rows(self.network(**inputs).logits, length, places)
        else:
            with self._takes_over(way == "fused", length, places, targets):
                logits = self.network(**inputs).logits
            if way == "fused":
                if logits.ndim:
                    raise RuntimeError(f"{type(self.network).__name__} has answered without its output layer")
                return logits
        return nn.functional.cross_entropy(_wide(logits), targets, reduction="sum")

    @contextmanager
    def _takes_over(self, fused: bool, length: int, places: Tensor, targets: Tensor) -> Iterator[None]:
        layer, before = self._layer, vars(self._layer).get("forward")
        forward = layer.forward

        def of_rows(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def head(rows: Tensor) -> Tensor:
                return forward(rows, *args, **kwargs)

            rows = _rows(hidden, length, places)
            if not fused:
                return head(rows)
            return fused_cross_entropy(head, layer.parameters(), rows, targets)

        layer.forward = of_rows
        try:
            yield
        finally:
            if before is None:
                del layer.forward
            else:
                layer.forward = before

    def _found(self, inputs: dict[str, Any]) -> Way:
        """The first way that comes to the same as the network's own logits."""
        if self._layer is None:
            return "whole"
        ids = inputs["input_ids"][:1, :8]
        few = {**inputs, **{name: value[:1, :8] for name, value in inputs.items() if isinstance(value, Tensor)}}
        length = ids.shape[1]
        places, targets = torch.arange(length - 1, device=ids.device), ids[0, 1:]
        ways: tuple[Way, ...] = ("fused", "rows")
        with torch.no_grad(), evaluating(self.network):  # in which nothing is drawn at random
            expected = self._by("whole", few, length, places, targets)
            for way in ways:
                with suppress(RuntimeError, IndexError, ValueError):  # of what is done to logits of another shape
                    found = self._by(way, few, length, places, targets)
                    if torch.allclose(found.to(expected), expected, rtol=1e-3):
                        return way
        return "whole"


def fused_cross_entropy(
    head: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter], rows: Tensor, targets: Tensor
) -> Tensor:
    """Cross entropy in nats, summed over rows, without all of their logits. Its gradient can be asked for once.

    Args:
        head: Logits of some rows.
        parameters: That `head` uses; of those that are trained there is a gradient.
        rows: Hidden states, (rows, width).
        targets: Ids, (rows,).
    """
    training = torch.is_grad_enabled()
    trained = [parameter for parameter in parameters if training and parameter.requires_grad]
    return _Fused.apply(head, training, rows, targets, *trained)


class _Fused(torch.autograd.Function):
    """The summed loss of rows, and with it the gradients of rows and of the head's parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        training: bool,
        rows: Tensor,
        targets: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        with_gradients = training and (rows.requires_grad or bool(parameters))
        sums: list[Tensor | None] = [None] * len(parameters)
        of_rows, losses = [], []
        step = max(_ROWS, _LOGITS // max(1, _width(head, rows)))
        for some, ids in zip(rows.split(step), targets.split(step), strict=True):
            with torch.set_grad_enabled(with_gradients):
                part = some.detach().requires_grad_(with_gradients)
                logits = head(part)
            scores = _wide(logits.detach())
            normal = scores.logsumexp(-1, keepdim=True)
            chosen = ids[:, None]
            losses.append((normal - scores.gather(-1, chosen)).sum())
            if not with_gradients:
                continue
            softmax = scores.sub_(normal).exp_()  # in the logits themselves, where these are wide: no layer needs them
            softmax.scatter_(-1, chosen, softmax.gather(-1, chosen) - 1)
            gradients = torch.autograd.grad(logits, [part, *parameters], softmax.to(logits.dtype), allow_unused=True)
            of_rows.append(gradients[0])
            sums = [_added(total, one) for total, one in zip(sums, gradients[1:], strict=True)]
        if with_gradients:
            narrow = [_narrowed(total, parameter) for total, parameter in zip(sums, parameters, strict=True)]
            ctx.gradients = torch.cat(of_rows), narrow
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (scale,) = upstream
        of_rows, of_parameters = ctx.gradients
        ctx.gradients = None  # they are scaled in place: once
        return None, None, of_rows.mul_(scale), None, *(g if g is None else g.mul_(scale) for g in of_parameters)


def _rows(values: Tensor, length: int, places: Tensor) -> Tensor:
    """Of values of rows, (batch, any number of virtual tokens + length, width), those at `places`."""
    return values[:, -length:].flatten(0, 1).index_select(0, places)


def _width(head: Callable[[Tensor], Tensor], rows: Tensor) -> int:
    with torch.no_grad():
        return head(rows.detach()[:0]).shape[-1]


def _wide(logits: Tensor) -> Tensor:
    """In float32, or float64 where they are that."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _added(total: Tensor | None, one: Tensor | None) -> Tensor | None:
    """Sums of 16-bit floats are kept in 32."""
    if one is None or total is None:
        return one if total is None else total
    return _wide(total).add_(one)


def _narrowed(total: Tensor | None, like: Tensor) -> Tensor | None:
    return total if total is None else total.to(like.dtype)
