"""The directory of a sweep, beside its runs.

runs/<sweep>/
  sweep.yaml           the sweep file, as it was given
  plan.json            how a trial is run: its command, where, on how many devices
  budgets.json         when to stop
  study.journal        what was tried and what came of it: Optuna's JournalStorage
  leases/              a file for each trial that somebody works on
  logs/<run>.log       what the trials said
  best.yaml            configuration of the best trial, once asked for
  <run>/               a trial: an ordinary run directory
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftlab.errors import UserError
from ftlab.runs import Run, write_atomically
from ftlab.runs.files import read_json
from ftlab.sweeps.commands import CONFIG, files_of, find, is_ftlab, trial_command
from ftlab.sweeps.journal import StudyLock
from ftlab.sweeps.sweep_file import SweepFile, read_sweep_file

_FREE = ("name", "description", "run_cap", "controller", "project", "entity")
"""Keys that may change while a sweep is on: they say how long, not what; of `controller`, all but how it draws."""


@dataclass(frozen=True)
class Plan:
    """How a trial is run.

    Args:
        command: With the macro for the trial's parameters in it.
        file: The sweep file, beside which files of configuration lie.
        place: The working directory of trials.
        devices: Of one trial.
        judged_after: Whether the metric is told by `ftlab validate` after training.
        options: What ftlab is told beside the parameters.
    """

    command: Sequence[str]
    file: str
    place: str
    devices: int = 1
    judged_after: bool = False
    options: Sequence[str] = field(default=())


class SweepDirectory:
    """A sweep on disk.

    Args:
        path: runs/<sweep>.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "study.journal"
        self.leases = path / "leases"
        self.best = path / "best.yaml"
        self._file, self._plan = path / "sweep.yaml", path / "plan.json"
        self._budgets, self._stop = path / "budgets.json", path / "stop"

    @property
    def there(self) -> bool:
        """Whether there is a sweep."""
        return self._plan.is_file()

    def required(self) -> SweepDirectory:
        """Itself.

        Raises:
            UserError: There is no sweep.
        """
        if not self.there:
            raise UserError(f"there is no sweep at {self.path}: give the directory that ftlab sweep run has named")
        return self

    def file(self) -> SweepFile:
        """The sweep file."""
        return read_sweep_file(self._file)

    def plan(self) -> Plan:
        """How a trial is run."""
        return Plan(**read_json(self._plan))

    def found(self, file: Path, plan: Plan) -> None:
        """Writes what a new sweep is; sweep.yaml is a copy of `file`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with StudyLock(self.journal):
            if not self.there:  # another launcher may have been faster
                write_atomically(self._file, file.read_text(encoding="utf-8"))
                write_atomically(self._plan, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")

    def refuse_other(self, file: SweepFile) -> None:
        """Raises:
        UserError: The sweep that is there is not the one of `file`.
        """
        there, here = _what(self.file()), _what(file)
        differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if differing:
            raise UserError(
                f"{self.path} holds another sweep: {differing[0]} is {there.get(differing[0])!r} there and "
                f"{here.get(differing[0])!r} here; give another --name"
            )

    def run(self, name: str) -> Run:
        """The run directory of a trial."""
        return Run(self.path / name)

    def log(self, name: str) -> Path:
        """What a trial said."""
        return self.path / "logs" / f"{name}.log"

    def lease(self, name: str) -> Path:
        """The sign that somebody works on a trial."""
        return self.leases / name

    def command(self, parameters: Mapping[str, Any], run: str) -> list[str]:
        """The words that run a trial, from `Plan.place`."""
        plan = self.plan()
        if CONFIG in parameters:
            files = [find(name, Path(plan.file)) for name in files_of(parameters[CONFIG])]
            parameters = {**parameters, CONFIG: files}
        here = self.path.resolve()
        where = {"root": here.parent, "experiment": here.name, "name": run}
        options = [f"--run.{key}={value}" for key, value in where.items()]
        if is_ftlab(plan.command):
            options += [f"--wandb.group={here.name}", "--wandb.job_type=sweep", f"--wandb.tags+={here.name}"]
        return trial_command(plan.command, parameters, [*plan.options, *options])

    def budgets(self) -> dict[str, float]:
        """Those of BUDGETS that are given, and `deadline`, in seconds since 1970, where `hours` is."""
        return read_json(self._budgets)

    def begin(self, budgets: Mapping[str, float]) -> None:
        """Lets workers work, within budgets: hours count from now on."""
        end = {"deadline": time.time() + budgets["hours"] * 3600} if "hours" in budgets else {}
        write_atomically(self._budgets, json.dumps({**budgets, **end}, indent=2) + "\n")
        self._stop.unlink(missing_ok=True)

    def stop(self) -> None:
        """Has all workers save their trials and end."""
        write_atomically(self._stop, f"process {os.getpid()}\n")

    @property
    def stopped(self) -> bool:
        """Whether workers are to end."""
        return self._stop.is_file()


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """A full or lost disk, as one sentence."""
    try:
        yield
    except OSError as error:
        where = error.filename or "the sweep's directory"
        raise UserError(
            f"{where} cannot be written or read ({os.strerror(error.errno) if error.errno else error}): make "
            "room there, or mend it, and give the command again"
        ) from error


def _what(file: SweepFile) -> dict[str, Any]:
    content = {key: value for key, value in file.content.items() if key not in _FREE}
    content["metric"] = {"name": file.metric, "goal": "maximize" if file.maximize else "minimize"}
    return content | {"controller.seed": file.seed, "controller.sampler": file.sampler}
