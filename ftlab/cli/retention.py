"""What a run has forgotten: its base measured once and kept, its trained network each time that it is judged."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ftlab.cli.experiment import Experiment
from ftlab.cli.provenance import network_fingerprint
from ftlab.data.retained import RetentionData
from ftlab.errors import UserError
from ftlab.evaluation.retention import Measured, changes, lines
from ftlab.modules.retention import measure, measure_base
from ftlab.runs import short_hash, write_atomically


class Retention:
    """The retention sets of an experiment; of one without any, nothing is done.

    Args:
        experiment: Whose `data.retention` they are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._before: dict[str, Measured] = {}

    @property
    def _data(self) -> RetentionData:
        return self._experiment.datamodule.retained

    def refuse(self) -> None:
        """Refuses sets that cannot be measured, before anything is begun."""
        if self._experiment.datamodule.retention:
            _ = self._data.documents

    def before(self) -> None:
        """Has what the base comes to: as the run keeps it, or measured now. To be called while no other network is in
        memory."""
        if not self._experiment.datamodule.retention:
            return
        self.refuse()
        files = {name: self._experiment.run.retention_of_base(name, self._key(name)) for name in self._data.names}
        kept = {name: _read(file) for name, file in files.items()}
        left = [name for name, found in kept.items() if found is None]
        measured: dict[str, Measured] = {}
        if left:
            trainer = self._experiment.trainer
            measured = measure_base(trainer, self._experiment.model, self._data.only(left))
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
            if trainer.is_global_zero:
                for name, found in measured.items():
                    files[name].parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(files[name], json.dumps(found.plain()) + "\n")
        self._before = {name: found for name, found in (kept | measured).items() if found is not None}

    def after(self, checkpoint: str | None = None) -> dict[str, Measured]:
        """What the trained network comes to.

        Args:
            checkpoint: Whose weights are judged; None takes those that the module has.
        """
        if not self._experiment.datamodule.retention:
            return {}
        return measure(self._experiment.trainer, self._experiment.model, self._data, checkpoint)

    def keep(self, after: dict[str, Measured], suffix: str = "") -> dict[str, float]:
        """Writes and says what has changed; to be called by one process.

        Args:
            after: What the trained network comes to.
            suffix: Of files, for scores that are not of the run's own configuration.
        """
        scores: dict[str, float] = {}
        run = self._experiment.run
        for name, trained in after.items():
            run.write_lines(run.retention(name + suffix), lines(self._before[name], trained))
            found = changes(self._before[name], trained)
            scores |= {f"retention_{name}_{key}": value for key, value in found.items()}
            print(
                f"ftlab: retention {name}: a loss of {found['loss_before']:.4f} before and {found['loss_after']:.4f} "
                f"after: {found['loss_change']:+.4f} [{found['loss_change_low']:+.4f}, "
                f"{found['loss_change_high']:+.4f}] over {len(trained.documents)} documents",
                file=sys.stderr,
            )
        if scores:
            run.add_scores(scores, suffix)
        return scores

    def _key(self, name: str) -> str:
        """A hash of all that the base's numbers follow from."""
        experiment = self._experiment
        module, trainer = experiment.model, experiment.trainer
        of: dict[str, Any] = {
            "set": self._data.key(name),
            "network": asdict(module.pretrained) | {"path": network_fingerprint(module.pretrained)},
            "base": str(module.method.quantization),
            "seed": module.seed if module.pretrained.random_weights else None,
            "precision": str(trainer.precision),
            "device": trainer.strategy.root_device.type,
        }
        if any(kept.score for kept in self._data.sets if kept.name == name):
            of |= {"decoding": asdict(module.decoding), "metrics": [metric.name for metric in module.metrics]}
        return short_hash(of)


def _read(file: Path) -> Measured | None:
    if not file.is_file():
        return None
    try:
        return Measured.from_plain(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: delete it, and the base is measured again") from error
