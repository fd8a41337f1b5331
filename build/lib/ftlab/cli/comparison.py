"""Two networks that should be one: their logits on the same tokens, their scores on the same records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from ftlab.cli.experiment import Experiment
from ftlab.progress import Progress


@dataclass(frozen=True)
class Judgement:
    """What a network answers.

    Args:
        logits: (4, 32, vocabulary), in float32.
        scores: `loss` in nats a target token, and the run's metrics; empty where there is nothing to score.
        records: How many records were scored.
    """

    logits: Tensor
    scores: dict[str, float]
    records: int


class Judge:
    """Asks networks that stand on a run's base, in float32: what is compared is weights, not the rounding of sums.

    Args:
        experiment: The run; its base is opened and multiplied in float32 from now on.
        records: Validation records to score; 0 for none. In `records` there are as many as there are.
    """

    def __init__(self, experiment: Experiment, records: int) -> None:
        method, data = experiment.model.method, experiment.datamodule
        experiment.model.pretrained = dataclasses.replace(experiment.model.pretrained, dtype="float32")
        if method.quantization:
            method.quantization = dataclasses.replace(method.quantization, compute_dtype="float32")
        self.module, self.data = experiment.model, data
        self.device = experiment.trainer.strategy.root_device
        self.scored = records > 0 and data.has_split("validation")
        data.answers_in_validation = True
        data.test_limit = records  # limits what is scored, of any split
        if self.scored:
            data.setup("validate")
        self.records = len(data.records("validation")) if self.scored else 0

    def __call__(self, network: nn.Module, bar: Progress) -> Judgement:
        """Logits on tokens drawn from the whole vocabulary, and scores on the first validation records."""
        vocabulary = self.module.pretrained.config().get_text_config().vocab_size
        ids = torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.inference_mode():
            logits = network.eval()(input_ids=ids).logits.float().cpu()
        if not self.scored:
            return Judgement(logits, {}, 0)
        self._score(network, bar)
        return Judgement(logits, self.module.tally.scores(), len(self.module.tally.answers))

    def _score(self, network: nn.Module, bar: Progress) -> None:
        self.module.network = network
        trainer = pl.Trainer(
            accelerator=self.device.type,
            devices=1,
            callbacks=[_Counter(bar)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.validate(self.module, self.data, verbose=False)
        self.module.network = None


class _Counter(pl.Callback):
    """Has a bar count the records that are answered."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if "indices" in batch:
            self._bar.advance(len(batch["indices"]))


@dataclass(frozen=True)
class Comparison:
    """An export beside its run.

    Args:
        run: What the run answers.
        export: What the export answers, opened from its files.
        full: What the run's weights answer on the base in full precision, where it was trained in few bits.
    """

    run: Judgement
    export: Judgement
    full: Judgement | None

    @property
    def logit(self) -> float:
        """The largest difference of a logit between export and run, as a share of the run's largest."""
        return _apart(self.export, self.run) / float(self.run.logits.abs().max())

    @property
    def loss(self) -> float:
        """The difference of the loss, as a share of the run's; 0 where nothing was scored."""
        mine, its = self.export.scores.get("loss", 0.0), self.run.scores.get("loss", 0.0)
        return abs(mine - its) / its if mine != its else 0.0

    def rows(self) -> list[list[str]]:
        """A header and a line a number, as texts."""
        others = {"export": self.export} | ({"base in full precision": self.full} if self.full else {})
        each = [self.run, *others.values()]
        rows = [
            ["", "run", *others],
            ["largest logit", *(f"{one.logits.abs().max():.4g}" for one in each)],
            ["largest difference of one", "", *(f"{_apart(one, self.run):.2g}" for one in others.values())],
        ]
        if self.run.records:
            rows.append(["validation records", *(str(one.records) for one in each)])
        return rows + [[name, *(f"{one.scores[name]:.4f}" for one in each)] for name in self.run.scores]

    def plain(self) -> dict[str, Any]:
        """For programs: differences as shares, and the scores of each."""
        each = {"run": self.run, "export": self.export, "full_precision": self.full}
        return {
            "logit": self.logit,
            "loss": self.loss,
            "records": self.run.records,
            "scores": {name: judged.scores for name, judged in each.items() if judged},
        }

    def table(self) -> Table:
        """The same for a terminal."""
        header, *rows = self.rows()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, column in enumerate(header):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        return table


def _apart(one: Judgement, other: Judgement) -> float:
    return float((one.logits - other.logits).abs().max())
