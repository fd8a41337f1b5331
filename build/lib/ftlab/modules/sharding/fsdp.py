"""`trainer.strategy: fsdp` and `fsdp2`: a network in shards over the processes, checkpoints as of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies import FSDPStrategy as LightningsFSDP
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from ftlab.errors import UserError
from ftlab.modules.devices import gathered, share_only
from ftlab.modules.sharding.checkpoint_parts import Parts, read
from ftlab.modules.sharding.frozen import FrozenShards, frozen_in_blocks
from ftlab.modules.sharding.lockstep import without_gradients
from ftlab.modules.sharding.network import Sharded, policy_for
from ftlab.modules.sharding.refusals import refuse_in_shards
from ftlab.modules.sharding.tensors import gather, own_state, part_of, parts_of, whole_state
from ftlab.networks import fingerprint


class FSDPStrategy(DDPStrategy):
    """Each process holds its part of a network, and gathers a decoder block to compute it.

    Where the method leaves tensors of blocks frozen, these alone are in shards, and all else is DDP, to the digit: the
    same sums of gradients, optimisers, precision. So a base of 4 bits fits where it is larger than a device.

    Where it leaves none, all is in shards: weights, gradients and moments, by torch's FSDP2. The network is sharded
    when it is set up, after a checkpoint's weights are in it.

    Either way a checkpoint is that of one process, which has what is trained, and its optimiser state, never the frozen
    base: any number of processes and any strategy goes on from it. Lightning's own strategy of this name would wrap the
    module in torch's FSDP1; see `ftlab.modules.sharding.frozen` for why not.

    Args:
        process_group_backend: By default nccl on GPUs and gloo on CPUs.
        timeout: After which a process that waits for another gives up.
    """

    strategy_name = "fsdp"

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout, gradient_as_bucket_view=True)
        self.before_sharding: list[Callable[[], Any]] = []
        """Are called while every process still has the whole network."""
        self.saves_parts = False
        """Whether each process writes its part of a checkpoint, instead of the first one all of it."""

    @property
    def _module(self) -> Any:
        """The FinetuneModule, which imports this file."""
        return self.lightning_module

    @property
    def shards_all(self) -> bool:
        """Whether all is in shards, or the frozen base alone; known once the network is there."""
        if self._module.sharded is not None:
            return isinstance(self._module.sharded, Sharded)
        return not any(frozen_in_blocks(self._module.network, self._trained_in_network()))

    def _trained_in_network(self) -> set[str]:
        return {name.removeprefix("network.") for name in self._module.trained_names()}

    def _trained(self) -> dict[str, Tensor]:
        return {name: self._module.get_parameter(name) for name in sorted(self._module.trained_names())}

    # ---------------------------------------------------------------- taking it apart

    def model_to_device(self) -> None:
        """Leaves the parts there, never the whole network."""
        module = self._module
        if module.sharded is None:
            for look in self.before_sharding:
                look()
            module.sharded = self._all_in_shards() if self.shards_all else self._frozen_in_shards()
            if self.is_global_zero:  # nobody should learn of it by what memory it takes
                print(f"ftlab: trainer.strategy {self.strategy_name}: {module.sharded.what} in shards", file=sys.stderr)
        elif not self.shards_all:
            module.sharded.put_away(until_used=True)
        super().model_to_device()

    def _all_in_shards(self) -> Sharded:
        module = self._module
        kind = module.pretrained.base_kind(module.method.quantization)
        refuse_in_shards(module.method, kind, self.strategy_name)
        self._refuse_different_weights()
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = policy_for(str(module.trainer.precision))
        sharded = Sharded(module.network, mesh, policy, self.root_device, self.strategy_name)
        share_only(module, set())  # nothing: where nothing is trained, Lightning would send the first process's parts
        return sharded

    def _refuse_different_weights(self) -> None:
        """DDP sends the first process's trained weights to the others; here each keeps a part of its own."""
        trained = self._trained()
        if len(set(gathered(fingerprint(trained.items())))) > 1:
            raise UserError(
                "the processes of this run have opened different weights under model.network.path: have all nodes read "
                f"the same files ({len(trained)} tensors are trained)"
            )

    def _frozen_in_shards(self) -> FrozenShards:
        module = self._module
        if self.saves_parts:
            raise UserError(
                f"run.checkpoints.in_parts: {type(module.method).__name__} leaves tensors of decoder blocks frozen, "
                f"and trainer.strategy {self.strategy_name} shards these alone: leave it out, or take fsdp2"
            )
        return FrozenShards(module.network, self._trained_in_network(), self.root_device)

    def configure_ddp(self) -> None:
        """Of a network that is all in shards, gradients are summed where they are made."""
        if not self.shards_all:
            super().configure_ddp()

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if not self.shards_all:
            self._module.sharded.release()

    def teardown(self) -> None:
        sharded = self._module.sharded if self._module is not None else None
        if isinstance(sharded, Sharded):  # Lightning would bring parts to the CPU, which FSDP2 has by their device
            assert self.cluster_environment is not None
            assert self.accelerator is not None
            for plugin in (self.cluster_environment, self.precision_plugin, self.accelerator, self.checkpoint_io):
                plugin.teardown()
            return
        if sharded is not None:
            sharded.put_away()  # before Lightning brings all that looks like weights to the CPU
        super().teardown()

    # ---------------------------------------------------------------- judging

    def _judging(self) -> AbstractContextManager[None]:
        """Lightning's loops are in inference mode, but over gloo."""
        return without_gradients() if self.shards_all else nullcontext()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._judging():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._judging():
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._judging():
            return super().predict_step(*args, **kwargs)

    # ---------------------------------------------------------------- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, whole, in the first process; or this process's part of it."""
        if not self.shards_all:
            return super().lightning_module_state_dict()
        return parts_of(self._trained()) if self.saves_parts else gather(self._trained(), self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's part of each tensor, or all of it where it is not sharded, or not yet."""
        with torch.no_grad():
            for name, tensor in checkpoint["state_dict"].items():
                parameter = self._module.get_parameter(name)
                parameter.copy_(part_of(tensor, parameter))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole, in the first process; or this process's part of it."""
        if not self.shards_all:
            return super().optimizer_state(optimizer)
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return parts_of(plain.state_dict()) if self.saves_parts else whole_state(plain, self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        if self.shards_all:
            states = zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
            is_own = checkpoint.get("own_state", False)
            checkpoint = {"optimizer_states": [own_state(state, optimizer, is_own) for state, optimizer in states]}
        super().load_optimizer_state_dict(checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.saves_parts:
            files: Any = self.checkpoint_io
            parts = Parts(Path(filepath).stem, checkpoint["global_step"], self.world_size)
            files.save_part(checkpoint, filepath, parts, self.global_rank, lambda said: all(gathered(said)))
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        if not self.shards_all:
            return super().load_checkpoint(checkpoint_path, weights_only)
        return read(Path(checkpoint_path), own=(self.global_rank, self.world_size))


class FSDP2Strategy(FSDPStrategy):
    """All in shards, as `FSDPStrategy` has it where a method leaves nothing frozen. It takes the same arguments."""

    strategy_name = "fsdp2"

    @property
    def shards_all(self) -> bool:
        return True


# Lightning takes its own strategy of this name on GPUs alone
if FSDPStrategy.strategy_name in LightningsFSDP.get_registered_strategies():
    LightningsFSDP.get_registered_strategies().remove(FSDPStrategy.strategy_name)
StrategyRegistry.register(
    FSDPStrategy.strategy_name,
    FSDPStrategy,
    description="The frozen base in shards by decoder block; all of it where nothing is frozen",
    override=True,
)
StrategyRegistry.register(
    FSDP2Strategy.strategy_name, FSDP2Strategy, description="Weights in shards by decoder block (FSDP2)", override=True
)
