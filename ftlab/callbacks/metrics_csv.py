"""The curves of a run in one CSV file, a row a step, one curve however often the run was interrupted."""

from __future__ import annotations

import csv
import io
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ftlab.errors import UserError, one_line
from ftlab.modules import FinetuneModule
from ftlab.runs import Run, write_atomically


class MetricsCSV(Logger, pl.Callback):
    """Writes `metrics.csv` of a run: a logger, and the callback that rolls it back to where training goes on.

    Args:
        run: The run; rows that are there are kept up to the step at which training goes on.
        every: Logged steps between writes.
    """

    def __init__(self, run: Run, every: int = 20) -> None:
        super().__init__()
        self.run = run
        self.every = every
        self._rows: dict[int, dict[str, Any]] = {}
        self._unwritten = 0

    @property
    def name(self) -> str:
        return self.run.directory.parent.name

    @property
    def version(self) -> str:
        return self.run.directory.name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start_from(trainer.global_step)
        if trainer.is_global_zero and isinstance(pl_module, FinetuneModule):
            self.run.note(steps=pl_module.total_steps())  # of which `ftlab jobs` says how many are done

    def start_from(self, step: int) -> None:
        """Takes up the rows that are there, but what an interrupted run logged after the checkpoint at `step`.

        Raises:
            UserError: The file is damaged.
        """
        if not self.run.metrics.is_file():
            return
        try:
            with self.run.metrics.open(newline="", encoding="utf-8") as file:
                there = {int(row["step"]): {k: v for k, v in row.items() if v} for row in csv.DictReader(file)}
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{self.run.metrics} is damaged ({type(error).__name__}: {one_line(error)}): mend it, or delete it and "
                "lose the curves so far"
            ) from error
        self._rows = {s: row for s, row in there.items() if s <= step} | self._rows

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of `step`."""
        row = self._rows.setdefault(step or 0, {"step": step or 0})
        row.update({name: value for name, value in metrics.items() if name != "step"})
        self._unwritten += 1
        if self._unwritten >= self.every:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes the file."""
        if not self._unwritten:
            return
        self._unwritten = 0
        rows = [self._rows[step] for step in sorted(self._rows)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.run.metrics, text.getvalue())

    def finalize(self, status: str) -> None:
        """Writes what is left."""
        self.save()
