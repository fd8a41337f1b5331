"""Methods, bases and optimisers that do not go with a network in shards."""

from __future__ import annotations

from torch.optim import Optimizer

from ftlab.errors import UserError
from ftlab.methods import Method

_LOOK_AT_WEIGHTS = ("begin", "penalty", "after_step", "state")
_NOT_VALUE_BY_VALUE = ("Adafactor", "LBFGS", "Muon", "SparseAdam")
_FROZEN_BASES = ("full", "nf4", "fp4")


def refuse_in_shards(method: Method, kind: str, strategy: str) -> None:
    """Some methods and bases do not go with a network that is all in shards.

    Args:
        method: Trains it.
        kind: How its base is held, as `ftlab.networks.base_kind` says.
        strategy: By which it is sharded, fsdp or fsdp2.

    Raises:
        UserError: This is one of them.
    """
    name = type(method).__name__
    if kind != "full":
        others = "fsdp, ddp" if strategy == "fsdp2" else "ddp"
        raise UserError(
            f"trainer.strategy {strategy}: a base in {kind} comes out of it damaged (bitsandbytes #1945), so {name} "
            f"over it is not trained: take {others}, or a base in full precision"
        )
    looks = [hook for hook in _LOOK_AT_WEIGHTS if getattr(type(method), hook) is not getattr(Method, hook)]
    if looks:
        raise UserError(
            f"trainer.strategy {strategy}: {name} looks at weights between steps ({', '.join(looks)}), of which a "
            "process has its part alone: take ddp (ddp_find_unused_parameters_true where weights rest) or another "
            "method"
        )


def refuse_in_frozen_shards(method: Method, kind: str) -> None:
    """Some bases do not go with shards of what is frozen.

    Args:
        method: Trains it.
        kind: How its base is held, as `ftlab.networks.base_kind` says.

    Raises:
        UserError: This is one of them.
    """
    if kind not in _FROZEN_BASES:
        raise UserError(
            f"trainer.strategy fsdp: a base in {kind} keeps its weights where they cannot be sharded, and "
            f"{type(method).__name__} over it is not trained so: take ddp, or one of {', '.join(_FROZEN_BASES)}"
        )


def refuse_whole_matrices(optimizer: Optimizer, strategy: str) -> None:
    """An optimiser must go value by value: a process has some rows of each matrix.

    Args:
        optimizer: Of a network that is all in shards.
        strategy: By which it is sharded, fsdp or fsdp2.

    Raises:
        UserError: It is none that is known to.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or kind.__name__ in _NOT_VALUE_BY_VALUE:
        raise UserError(
            f"model.optimizer: {kind.__name__} is not known to go value by value, and with trainer.strategy {strategy} "
            "a process has some rows of a matrix alone: take one of torch.optim that does, such as AdamW, or ddp"
        )
