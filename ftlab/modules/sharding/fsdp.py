"""`trainer.strategy: fsdp`: the frozen base in shards over the processes, all else as with DDP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies import FSDPStrategy as LightningsFSDP
from torch import Tensor

from ftlab.errors import UserError
from ftlab.methods import Method
from ftlab.modules.sharding.frozen import FrozenShards

_BASES = ("full", "nf4", "fp4")


class FSDPStrategy(DDPStrategy):
    """DDP, but that each process holds its part of the frozen tensors alone, and gathers a decoder block to compute it.

    So a base of 4 bits fits where it is larger than a device, and training is to the digit what it is with DDP: the
    same sums of gradients, checkpoints, optimisers, precision. Lightning's own strategy of this name would wrap the
    module in torch's FSDP1; see `ftlab.modules.sharding.frozen` for why not.

    Args:
        kwargs: As DDPStrategy takes them.
    """

    strategy_name = "fsdp"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"gradient_as_bucket_view": True} | kwargs))
        self.before_sharding: list[Callable[[], Any]] = []
        """Are called while every process still has the whole network."""

    @property
    def _module(self) -> Any:
        """The FinetuneModule, which imports this file."""
        return self.lightning_module

    def model_to_device(self) -> None:
        """Leaves the parts of blocks there, never the whole network."""
        module = self._module
        if module.sharded is None:
            for look in self.before_sharding:
                look()
            trained = {name.removeprefix("network.") for name in module.trained_names()}
            module.sharded = FrozenShards(module.network, trained, self.root_device)
            if not module.sharded.frozen:
                raise UserError(
                    f"trainer.strategy fsdp: {type(module.method).__name__} leaves no decoder block's tensor frozen, "
                    "and these are what it shards: take fsdp2"
                )
        else:
            module.sharded.put_away(until_used=True)
        super().model_to_device()

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        self._module.sharded.release()

    def teardown(self) -> None:
        if self._module is not None and self._module.sharded is not None:
            self._module.sharded.put_away()  # before Lightning brings all that looks like weights to the CPU
        super().teardown()


def refuse_in_frozen_shards(method: Method, kind: str) -> None:
    """Some bases do not go with it.

    Args:
        method: Trains it.
        kind: How its base is held, as `ftlab.networks.base_kind` says.

    Raises:
        UserError: This is one of them.
    """
    if kind not in _BASES:
        raise UserError(
            f"trainer.strategy fsdp: a base in {kind} keeps its weights where they cannot be sharded, and "
            f"{type(method).__name__} over it is not trained so: take ddp, or one of {', '.join(_BASES)}"
        )


# Lightning takes its own strategy of this name on GPUs alone
if FSDPStrategy.strategy_name in LightningsFSDP.get_registered_strategies():
    LightningsFSDP.get_registered_strategies().remove(FSDPStrategy.strategy_name)
StrategyRegistry.register(
    FSDPStrategy.strategy_name, FSDPStrategy, description="The frozen base in shards by decoder block", override=True
)
