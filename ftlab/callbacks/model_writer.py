"""At the end of training, the run's best weights in the layout that others can open."""

from __future__ import annotations

import shutil

import lightning.pytorch as pl
import torch

from ftlab.modules import FinetuneModule
from ftlab.runs import Run


class ModelWriter(pl.Callback):
    """Writes `model/` of a run: what the method saves, and the tokenizer.

    Args:
        run: The run; its best checkpoint is taken where there is one, else the weights as they stand.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, FinetuneModule)
            self.write(pl_module)

    def write(self, module: FinetuneModule) -> None:
        """Writes `model/` whole, or leaves what was there."""
        assert module.network is not None
        if self.run.best.is_file():
            checkpoint = torch.load(self.run.best, map_location=module.device, weights_only=True)
            module.load_state_dict(checkpoint["state_dict"], strict=False)
            module.method.restore(module.network, checkpoint["ftlab"]["method"])
        unfinished = self.run.model.with_name(".model")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            module.method.save(module.network, unfinished)
            module.pretrained.tokenizer().save_pretrained(unfinished)
            shutil.rmtree(self.run.model, ignore_errors=True)
            unfinished.replace(self.run.model)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
