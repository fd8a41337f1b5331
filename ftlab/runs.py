"""The run directory: what is written, where, and how it is read back.

runs/<experiment>/<run>/
  config.yaml          the resolved configuration: running it again is the same run
  provenance.json      where the run came from, what it cost, how it ended
  metrics.csv          the curves
  checkpoints/         last.ckpt, best.ckpt
  model/               what the method saved: loads with transformers and peft alone
  predictions/*.jsonl  a line a record
  scores.json          metric name to number
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftlab.errors import UserError


@dataclass
class RunOptions:
    """Where a run is kept.

    Args:
        root: Directory of all runs.
        experiment: Directory of the runs of one experiment; by default the name of the configuration file.
        name: The run's own directory; by default a hash of the configuration: the same configuration is the same run.
        checkpoint_every: Optimiser steps between writes of `checkpoints/last.ckpt`; by default only at the end of an
            epoch and of training.
    """

    root: str = "runs"
    experiment: str | None = None
    name: str | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise UserError(f"run.checkpoint_every is {self.checkpoint_every}: give a number of steps from 1 on")
        for key, name in {"experiment": self.experiment, "name": self.name}.items():
            if name and (Path(name).name != name or name.startswith(".")):
                raise UserError(f"run.{key} is {name!r}: give the name of one directory, without / or a leading dot")


# What says where results go, or how they are shown: it does not make another run.
_NOT_PART_OF_A_RUN = (
    "config",
    "run",
    "wandb",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration flattened to dotted keys, without what does not change the results."""
    flat = dict(_flatten(config))
    return {k: v for k, v in flat.items() if not any(k == n or k.startswith(n + ".") for n in _NOT_PART_OF_A_RUN)}


def short_hash(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the configuration's identity."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Run:
    """One run's directory.

    Args:
        directory: Where it lies, or will lie.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.yaml"
        self.provenance = directory / "provenance.json"
        self.metrics = directory / "metrics.csv"
        self.checkpoints = directory / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.model = directory / "model"
        self.scores = directory / "scores.json"

    def predictions(self, split: str) -> Path:
        """Where the answers to the records of `split` are kept."""
        return self.directory / "predictions" / f"{split}.jsonl"

    @property
    def checkpoint(self) -> Path | None:
        """The weights that the run is judged by: the best, else the last, None where there are none."""
        return next((path for path in (self.best, self.last) if path.is_file()), None)

    @property
    def finished(self) -> bool:
        """Whether its training has come to its end."""
        return self.record().get("state") == "finished"

    def record(self) -> dict[str, Any]:
        """The provenance written so far."""
        return _read_json(self.provenance)

    def note(self, **facts: Any) -> None:
        """Adds facts to the provenance."""
        write_atomically(self.provenance, json.dumps(self.record() | facts, indent=2) + "\n")

    @contextmanager
    def claimed(self, config: Mapping[str, Any], owner: bool = True) -> Iterator[None]:
        """Takes the directory for the run that `config` describes.

        Args:
            config: Resolved.
            owner: False for every process but one: they work in the directory and leave it alone.

        Leaves nothing behind where the run is new and fails before its first checkpoint.

        Raises:
            UserError: The directory holds another run.
        """
        if not owner:
            yield
            return
        new = not self.config.is_file()
        if new and self.directory.exists() and any(self.directory.iterdir()):
            raise UserError(f"{self.directory} is not empty and holds no run: choose another --run.name")
        if not new:
            self._must_be_the_same(config)
        self.directory.mkdir(parents=True, exist_ok=True)
        if new:
            write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        try:
            yield
        except BaseException:
            if new and self.checkpoint is None:
                shutil.rmtree(self.directory, ignore_errors=True)
                with suppress(OSError):  # others have runs there
                    self.directory.parent.rmdir()
                    self.directory.parent.parent.rmdir()
            elif self.record().get("state") == "running":
                self.note(state="failed")
            raise

    def _must_be_the_same(self, config: Mapping[str, Any]) -> None:
        differing = self.differences(config)
        if differing:
            key, (theirs, ours) = next(iter(differing.items()))
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise UserError(
                f"{self.directory} holds another run: there {key} is {theirs!r}, here {ours!r}{more}; "
                "choose another --run.name"
            )

    def differences(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Keys in which `config` is another run than this one, each with the value there and here."""
        theirs, ours = identity(yaml.safe_load(self.config.read_text(encoding="utf-8"))), identity(config)
        keys = {**theirs, **ours}
        return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}

    def model_digests(self) -> dict[str, str]:
        """The digest of every file under `model/` (BLAKE2b, 16 hex digits), by its path from there."""
        digests = {}
        for path in files_under(self.model):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
            digests[str(path.relative_to(self.model))] = digest
        return digests

    def saved_model(self) -> Path:
        """`model/`, as the run wrote it.

        Raises:
            UserError: Training has not come to its end, or the files are not as they were written.
        """
        if not self.model.is_dir():
            raise UserError(f"{self.directory} has no model/: let ftlab fit come to its end")
        there, written = self.model_digests(), self.record().get("model", {})
        damaged = [name for name, digest in written.items() if there.get(name) != digest]
        if damaged:
            raise UserError(
                f"{self.model / damaged[0]} is not as the run wrote it: it is damaged, or was changed by hand; ftlab "
                "fit with another --run.name makes it again"
            )
        return self.model

    def add_scores(self, scores: Mapping[str, float], suffix: str = "") -> None:
        """Writes scores beside those that are there; a score of the same name is replaced.

        Args:
            scores: Names to numbers.
            suffix: Of the file's name, for scores that are not of the run's own configuration.
        """
        path = self.scores.with_stem(self.scores.stem + suffix)
        write_atomically(path, json.dumps(_read_json(path) | dict(scores), indent=2) + "\n")

    def write_predictions(self, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes the answers to the records of `split`, a line each."""
        path = self.predictions(split)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path


def files_under(directory: Path) -> list[Path]:
    """All files under a directory, in order."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or delete it and run the command again") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that whoever reads `path` finds all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
