"""At the end of training, the run's best weights in the layout that others can open."""

from __future__ import annotations

import shutil

import lightning.pytorch as pl
from torch import nn

from ftlab.modules import FinetuneModule
from ftlab.modules.sharding.checkpoint_parts import read
from ftlab.runs import Run


class ModelWriter(pl.Callback):
    """Writes `model/` of a run: what the method saves, and the tokenizer.

    Args:
        run: The run; its best checkpoint is taken where there is one, else the weights as they stand.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FinetuneModule)
        network, owner = pl_module.network, trainer.is_global_zero
        if pl_module.sharded:
            network = pl_module.sharded.whole_network(owner)
        if owner:
            self.write(pl_module, network)

    def write(self, module: FinetuneModule, network: nn.Module | None = None) -> None:
        """Writes `model/` whole, or leaves what was there.

        Args:
            module: Has been trained.
            network: The module's, whole; by default as it stands there.
        """
        network = network or module.network
        assert network is not None
        if self.run.best.is_file():
            checkpoint = read(self.run.best)
            weights = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
            network.load_state_dict(weights, strict=False)
            module.method.restore(network, checkpoint["ftlab"]["method"])
        unfinished = self.run.model.with_name(".model")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            module.method.save(network, unfinished)
            module.pretrained.tokenizer().save_pretrained(unfinished)
            shutil.rmtree(self.run.model, ignore_errors=True)
            unfinished.replace(self.run.model)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
