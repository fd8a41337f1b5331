"""From hidden states to the loss: the head sees rows with a target alone, and their logits are never all there at once.

A network of 128,256 words makes half a GB of logits out of 1,000 tokens, and its loss would hold them three times. Here
the head takes some rows at a time, and their gradient is taken at once, while their logits are there; only that of the
hidden states and of the head's own parameters is kept. The idea is Liger's (Hsu et al. 2024, arXiv 2410.10989) and
torch's `linear_cross_entropy`; theirs take a plain matrix, this one whatever layer stands there: tied, adapted, in few
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ftlab.errors import out_of_memory
from ftlab.evaluation.generation import evaluating
from ftlab.modules.devices import gathered
from ftlab.modules.sharding.lockstep import without_gradients
from ftlab.networks import language_model

_ROWS = 288
"""At a time, at least, or the head's matrix would be read too often. Of 32,000 words these are 37 MB of logits: what is
freed in pieces below 32 MiB, glibc keeps."""

_LOGITS = 2**22
"""At a time."""

_LOGITS_ON_GPU = {False: 2**26, True: 2**27}
"""By whether a matrix is trained, whose gradient is added to a sum after each piece (docs/results/head.md)."""

_TOKENS = 8
"""By which the ways are told."""

Way = Literal["fused", "rows", "whole"]
_WAYS: tuple[Way, ...] = get_args(Way)

Fused = Callable[[Callable[[Tensor], Tensor], Iterable[nn.Parameter], Tensor, Tensor], Tensor]
"""Makes a loss of a head, its parameters, hidden states and targets, without all logits."""


class _AnsweredOtherwise(Exception):  # noqa: N818  (no error while ways are tried)
    """The network has not answered with what its output layer gave."""


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
        self.way: Way | None = None

    def summed_loss(self, inputs: dict[str, Any], length: int, places: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, summed.

        Args:
            inputs: What the network takes.
            length: Of a row of `inputs`; virtual tokens of a method's own stand before.
            places: From which a target is predicted, in the flattened rows, (targets,).
            targets: The ids, (targets,).
        """
        return self._loss(fused_cross_entropy, "sum", inputs, length, places, targets)

    def losses(self, inputs: dict[str, Any], length: int, places: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats of each target, (targets,). It has no gradient; arguments as of `summed_loss`."""
        with torch.no_grad():
            return self._loss(_losses_of_rows, "none", inputs, length, places, targets)

    def _loss(
        self, fused: Fused, reduction: str, inputs: dict[str, Any], length: int, places: Tensor, targets: Tensor
    ) -> Tensor:
        if self.way is None:
            self.try_ways(places.device)
        assert self.way is not None
        try:
            return self._by(self.way, inputs, length, places, targets, fused, reduction)
        except _AnsweredOtherwise:  # a hook that came later, or looks at what is asked
            # not from now on: a run that is resumed after this batch would not know of it
            return self._by("whole", inputs, length, places, targets, fused, reduction)

    def try_ways(self, device: torch.device) -> None:
        """Finds the way; to be called by all processes, whose network may be in shards. Nothing is drawn at random.

        Args:
            device: Of the network.
        """
        self.way = max(gathered(self._found(device)), key=_WAYS.index)

    def try_without_values(self) -> None:
        """Finds the way where tensors have no values to compare: by whether the network answers with its head's."""
        if self._layer is None:
            self.way = "whole"
            return
        ids = torch.zeros(1, _TOKENS, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with without_gradients(), evaluating(self.network):
            try:
                self._by("fused", inputs, _TOKENS, ids[0, :-1], ids[0, 1:])
                self.way = "fused"
            except (_AnsweredOtherwise, RuntimeError, IndexError, ValueError):
                self.way = "rows"

    def _by(
        self,
        way: Way,
        inputs: dict[str, Any],
        length: int,
        places: Tensor,
        targets: Tensor,
        fused: Fused | None = None,
        reduction: str = "sum",
    ) -> Tensor:
        if way == "whole":
            logits = _rows(self.network(**inputs).logits, length, places)
        else:
            by_pieces = (fused or fused_cross_entropy) if way == "fused" else None
            with self._takes_over(by_pieces, length, places, targets) as answers:
                logits = self.network(**inputs).logits
            if way == "fused":
                if not answers or logits is not answers[-1]:
                    raise _AnsweredOtherwise
                return logits
        return nn.functional.cross_entropy(_wide(logits), targets, reduction=reduction)

    @contextmanager
    def _takes_over(self, fused: Fused | None, length: int, places: Tensor, targets: Tensor) -> Iterator[list[Tensor]]:
        """Has the output layer take rows alone; gives what it answers with."""
        layer, before = self._layer, vars(self._layer).get("forward")
        forward, answers = layer.forward, []

        def of_rows(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def head(rows: Tensor) -> Tensor:
                return forward(rows, *args, **kwargs)

            rows = _rows(hidden, length, places)
            answers.append(fused(head, layer.parameters(), rows, targets) if fused else head(rows))
            return answers[-1]

        layer.forward = of_rows
        try:
            yield answers
        finally:
            if before is None:
                del layer.forward
            else:
                layer.forward = before

    def _found(self, device: torch.device) -> Way:
        """The first way that comes to the same as the network's own logits. All are tried: processes in shards compute
        the same number of times."""
        if self._layer is None:
            return "whole"
        ids = torch.arange(_TOKENS, device=device)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        places, targets = ids[0, :-1], ids[0, 1:]
        found: list[Way] = []
        with without_gradients(), evaluating(self.network):
            expected = self._by("whole", inputs, _TOKENS, places, targets)
            for way in _WAYS[:-1]:
                try:
                    loss = self._by(way, inputs, _TOKENS, places, targets)
                except (_AnsweredOtherwise, RuntimeError, IndexError, ValueError) as error:
                    if out_of_memory(error):
                        raise
                    continue  # what it does to logits takes no others than its own
                if torch.allclose(loss.to(expected), expected, rtol=1e-2):
                    found.append(way)
        return found[0] if found else "whole"


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


def _losses_of_rows(head: Callable[[Tensor], Tensor], _: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """The same of each row, (rows,), without a gradient."""
    losses: list[Tensor] = []
    start, step = 0, _ROWS
    while start < len(rows) or not losses:
        logits, ids = head(rows[start : start + step]), targets[start : start + step]
        start += step
        step = _rows_at_a_time(logits, trained=False)
        losses.append(nn.functional.cross_entropy(_wide(logits), ids, reduction="none"))
    return torch.cat(losses)


def _rows_at_a_time(logits: Tensor, trained: bool) -> int:
    most = _LOGITS_ON_GPU[trained] if logits.is_cuda else _LOGITS
    return max(_ROWS, most // max(1, logits.shape[-1]))


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
        of_rows: list[Tensor] = []
        losses: list[Tensor] = []
        start, step = 0, _ROWS
        while start < len(rows) or not losses:
            some, ids = rows[start : start + step], targets[start : start + step]
            start += step
            wanted = parameters if with_gradients else None
            # in a function of its own, so that a piece's logits are gone before the next one's are made
            loss, gradients, step = _piece(head, some, ids, wanted)
            losses.append(loss)
            if gradients:
                of_rows.append(gradients[0])
                sums = [_added(total, one) for total, one in zip(sums, gradients[1:], strict=True)]
                del gradients  # that of a matrix is as large as the matrix
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


def _piece(
    head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, parameters: Sequence[Tensor] | None
) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """Summed loss of some rows; its gradients with respect to rows and `parameters`, none where these are None; and of
    how many rows the next piece should be."""
    with torch.set_grad_enabled(parameters is not None):
        part = rows.detach().requires_grad_(parameters is not None)
        logits = head(part)
    step = _rows_at_a_time(logits, bool(parameters))
    scores = _wide(logits.detach()).log_softmax(-1)
    chosen = targets[:, None]
    of_chosen = scores.gather(-1, chosen)
    loss = -of_chosen.sum()
    if parameters is None:
        return loss, (), step
    # not in the logits themselves: a layer may need what it gave for its gradient
    room = scores if scores.dtype == logits.dtype else torch.empty_like(logits)
    of_logits = torch.exp(scores, out=room).scatter_(-1, chosen, of_chosen.expm1().to(logits.dtype))
    del scores
    return loss, torch.autograd.grad(logits, [part, *parameters], of_logits, allow_unused=True), step


def _rows(values: Tensor, length: int, places: Tensor) -> Tensor:
    """Of values of rows, (batch, any number of virtual tokens + length, width), those at `places`."""
    return values[:, -length:].flatten(0, 1).index_select(0, places)


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
