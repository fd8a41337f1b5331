"""`trainer.strategy: fsdp2`: weights, gradients and moments in shards over the processes, checkpoints as of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from ftlab.errors import UserError
from ftlab.methods import Method
from ftlab.modules.devices import gathered
from ftlab.modules.sharding.checkpoint_parts import Parts, read
from ftlab.modules.sharding.lockstep import without_gradients
from ftlab.modules.sharding.network import Sharded
from ftlab.modules.sharding.tensors import gather, own_state, part_of, parts_of, whole_state
from ftlab.networks import fingerprint

_LOOK_AT_WEIGHTS = ("begin", "penalty", "after_step", "state")
_NOT_VALUE_BY_VALUE = ("Adafactor", "LBFGS", "Muon", "SparseAdam")


class FSDP2Strategy(ModelParallelStrategy):
    """Each process holds its part of every tensor (FSDP2), and what `FinetuneModule` trains is what one process would.

    Lightning's ModelParallelStrategy leaves all but the process groups to the module. Here the network is sharded by
    decoder block when it is set up, after a checkpoint's weights are in it. A checkpoint is that of one process: the
    first gathers what is trained, and its optimiser state, never the frozen base, so that any number of processes and
    any strategy goes on from it.

    Args:
        process_group_backend: By default nccl on GPUs and gloo on CPUs.
        timeout: After which a process that waits for another gives up.
    """

    strategy_name = "fsdp2"

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.before_sharding: list[Callable[[], Any]] = []
        """Are called while every process still has the whole network."""
        self.saves_parts = False
        """Whether each process writes its part of a checkpoint, instead of the first one all of it."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.world_size
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.model is not None
        self.model = self.precision_plugin.convert_module(self.model)
        module = self._module
        if module.sharded is None:
            for look in self.before_sharding:
                look()
            self._refuse_different_weights()
            mesh, policy = self.device_mesh["data_parallel"], policy_for(str(trainer.precision))
            module.sharded = Sharded(module.network, mesh, policy, self.root_device)
        super().setup(trainer)

    @property
    def _module(self) -> Any:
        """The FinetuneModule, which imports this file."""
        return self.lightning_module

    def _refuse_different_weights(self) -> None:
        """DDP sends the first process's trained weights to the others; here each keeps a part of its own."""
        module = self._module
        if len(set(gathered(fingerprint(self._trained().items())))) > 1:
            raise UserError(
                "the processes of this run have opened different weights under model.network.path: have all nodes read "
                f"the same files ({len(module.trained_names())} tensors are trained)"
            )

    def _trained(self) -> dict[str, Tensor]:
        module = self._module
        return {name: module.get_parameter(name) for name in sorted(module.trained_names())}

    # ---------------------------------------------------------------- judging

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with without_gradients():  # Lightning's loops are in inference mode, but over gloo
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with without_gradients():
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with without_gradients():
            return super().predict_step(*args, **kwargs)

    # ---------------------------------------------------------------- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, whole, in the first process; or this process's part of it."""
        return parts_of(self._trained()) if self.saves_parts else gather(self._trained(), self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's part of each tensor, or all of it where the network is not sharded yet."""
        tensors = checkpoint["state_dict"]
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameter = self._module.get_parameter(name)
                parameter.copy_(part_of(tensor, parameter))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole, in the first process; or this process's part of it."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return parts_of(plain.state_dict()) if self.saves_parts else whole_state(plain, self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        is_own = checkpoint.get("own_state", False)
        own = [own_state(state, optimizer, is_own) for state, optimizer in states]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": own})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.saves_parts:
            files: Any = self.checkpoint_io
            parts = Parts(Path(filepath).stem, checkpoint["global_step"], self.world_size)
            files.save_part(checkpoint, filepath, parts, self.global_rank, lambda said: all(gathered(said)))
        else:
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(checkpoint_path), own=(self.global_rank, self.world_size))


def policy_for(precision: str) -> MixedPrecisionPolicy:
    """In which types blocks are gathered and computed, and gradients summed, for a trainer's precision.

    With bf16-mixed the parts stay float32, and cross in bfloat16. Gradients of bfloat16 are summed in float32.
    """
    if precision == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if precision in ("bf16-true", "16-true"):
        return MixedPrecisionPolicy(reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def refuse_in_shards(method: Method, kind: str) -> None:
    """Some methods and bases do not go with a network in shards.

    Args:
        method: Trains it.
        kind: How its base is held, as `ftlab.networks.base_kind` says.

    Raises:
        UserError: This is one of them.
    """
    name = type(method).__name__
    if kind != "full":
        raise UserError(
            f"trainer.strategy fsdp2: a base in {kind} comes out of it damaged (bitsandbytes #1945), so {name} over it "
            "is not trained: take fsdp, ddp, or a base in full precision"
        )
    looks = [hook for hook in _LOOK_AT_WEIGHTS if getattr(type(method), hook) is not getattr(Method, hook)]
    if looks:
        raise UserError(
            f"trainer.strategy fsdp2: {name} looks at weights between steps ({', '.join(looks)}), of which a process "
            "has its part alone: take ddp, or another method"
        )


def refuse_whole_matrices(optimizer: Optimizer) -> None:
    """An optimiser must go value by value: a process has some rows of each matrix.

    Raises:
        UserError: It is none that is known to.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or kind.__name__ in _NOT_VALUE_BY_VALUE:
        raise UserError(
            f"model.optimizer: {kind.__name__} is not known to go value by value, and with trainer.strategy fsdp2 a "
            "process has some rows of a matrix alone: take one of torch.optim that does, such as AdamW, or ddp"
        )


StrategyRegistry.register(
    FSDP2Strategy.strategy_name, FSDP2Strategy, description="Weights in shards by decoder block (FSDP2)", override=True
)
