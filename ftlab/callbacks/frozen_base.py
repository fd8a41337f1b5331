"""Proof that what a method leaves frozen stays as it was, to the byte: in training, and until the run is judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from ftlab.errors import UserError
from ftlab.modules import FinetuneModule, FSDPStrategy
from ftlab.modules.devices import gathered
from ftlab.networks import fingerprint, frozen_tensors
from ftlab.progress import Progress
from ftlab.runs import Run

_OTHER_WEIGHTS = (
    "the weights under model.network.path have changed since; put them back, or start another run (--run.name)"
)


class FrozenBase(pl.Callback):
    """Takes the digest of every frozen parameter when training starts, and compares it when training ends.

    Args:
        run: Keeps the digest, so that a resume or a test over another base is refused. Digests are compared on the same
            kind of device only: quantisation may round otherwise on another.
    """

    def __init__(self, run: Run | None = None) -> None:
        self.run = run
        self.digest = ""
        self._whole = ""  # of a network in shards, before it was: `digest` is then of this process's

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            trainer.strategy.before_sharding.append(lambda: self._note_whole(pl_module))

    def _note_whole(self, module: pl.LightningModule) -> None:
        self._whole = self._digest(module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.digest = self._digest(pl_module)
        if len(set(gathered(self._whole or self.digest))) > 1:
            raise UserError(
                "the processes of this run have opened different weights under model.network.path: have all nodes read "
                "the same files"
            )
        self._compare_with_run(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if all(gathered(self._digest(pl_module) == self.digest)):
            return
        if self.run and trainer.is_global_zero:  # nobody should go on from them, or judge them
            shutil.rmtree(self.run.checkpoints.directory, ignore_errors=True)
        raise UserError(
            "the frozen base has changed in training: the method writes to weights that it does not train; the "
            "checkpoints, which do not hold these, are deleted"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._compare_with_run(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compare_with_run(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compare_with_run(trainer, pl_module)

    def _digest(self, module: pl.LightningModule) -> str:
        assert isinstance(module, FinetuneModule)
        trained = module.trained_names()
        if module.sharded:
            tensors = list(module.sharded.parts({name.removeprefix("network.") for name in trained}))
        else:
            tensors = list(frozen_tensors(module, trained))
        trainer, size = module.trainer, sum(tensor.nbytes for _, tensor in tensors)
        with Progress("taking the digest of the base", "bytes", size, shown=trainer.is_global_zero) as bar:
            found = fingerprint(_counted(tensors, bar))
        return f"{trainer.strategy.root_device.type} {found}"

    def _compare_with_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.run is None:
            return
        here = self._whole or self.digest or self._digest(pl_module)
        there = self.run.record().get("frozen_base")
        assert isinstance(pl_module, FinetuneModule)
        if there is None or (there != here and pl_module.forced):
            if trainer.is_global_zero:
                self.run.note(frozen_base=here)
        elif there != here and there.split()[0] == here.split()[0]:
            why = self._other_rounding() if pl_module.method.rewrites_base else _OTHER_WEIGHTS
            raise UserError(f"the frozen base is not the one that {self.run.directory} began with: {why}")

    def _other_rounding(self) -> str:
        assert self.run is not None
        threads = self.run.record().get("environment", {}).get("OMP_NUM_THREADS")
        return (
            "the method's start takes a part out of it, with other rounding on another machine or with another number "
            f"of threads (OMP_NUM_THREADS was {threads or 'not set'} there); give this command as and where the run "
            "was trained, or look at what ftlab export writes, which is of the original base"
        )


def _counted(tensors: Iterable[tuple[str, torch.Tensor]], bar: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        bar.advance(tensor.nbytes)
