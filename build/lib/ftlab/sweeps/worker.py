"""A worker: takes a trial, runs it as a process of its own, follows its curve, tells the study; and again."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from ftlab.errors import Preempted
from ftlab.runs import Run
from ftlab.sweeps import budgets
from ftlab.sweeps.directory import SweepDirectory, disk_errors
from ftlab.sweeps.study import Study, Task

_POLL = 0.2
"""Seconds between looks at a trial."""
_BEAT = 5.0
"""Seconds between looks at what lies on the shared disk, and between heartbeats."""
_GRACE = 900.0
"""Seconds after which a trial that was told to stop, and does not, is killed."""
_IDLE_STARTS = 3
"""Starts in a row after which a trial that asks to be started again, and comes no further, has failed."""
_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def work(directory: SweepDirectory, wait: bool = True) -> None:
    """Works until there is nothing left to do, or the process is told to stop, or the sweep is.

    Args:
        directory: Of the sweep.
        wait: Stay while others work, to take up the trial of one that is killed.

    Raises:
        Preempted: This process was told to stop; its trial has been saved.
    """
    with _told_to_stop() as told, disk_errors():
        study = Study(directory)
        while not (told or directory.stopped):
            task = study.take()
            if task is not None:
                _Trial(study, task, told).run()
            elif wait and _others_work(study):
                _sleep(2.0, told)
            else:
                return
    if told:
        raise Preempted(f"stopped by {told[0]}: ftlab sweep resume {directory.path} goes on")


class _Trial:
    """One trial, from its start, or where it stands, to its end.

    Args:
        study: That is told of it.
        task: The trial.
        told: Fills when this process is told to stop.
    """

    def __init__(self, study: Study, task: Task, told: list[str]) -> None:
        self.study, self.task, self.told = study, task, told
        self.directory = study.directory
        self.files = self.directory.run(task.run)
        self.pruned = False
        self._said: list[float] = []
        self._looked = 0.0

    def run(self) -> None:
        """Runs the trial, again where it asks for that, and tells the study, unless it was stopped."""
        idle, step = 0, last_step(self.files)
        while idle < _IDLE_STARTS:
            code = 0 if self.files.finished and self._value() is not None else self._process(self._command())
            if code == 0 and self.directory.plan().judged_after and self._value() is None:
                code = self._process(_judging(self.files))
            if code != Preempted.EXIT_CODE or self._ends() or self.pruned:
                break
            before, step = step, last_step(self.files)
            idle = idle + 1 if step == before else 0
        if self.pruned and code != 0:
            self.study.finish(self.task, TrialState.PRUNED, self._said[-1])
        elif code == 0:
            self._finish()
        elif self._ends():  # it was told to stop; whatever its code is, it is not its own fault
            self.study.put_back(self.task)
        else:
            self.study.finish(self.task, TrialState.FAIL, error=self._last_line(code))
            _say(f"{self.task.run} failed: {self._last_line(code)}")

    def _finish(self) -> None:
        value, metric = self._value(), self.study.file.metric
        if value is None or not math.isfinite(value):
            why = f"has logged no {metric}" if value is None else f"has {metric} {value}"
            self.study.finish(self.task, TrialState.FAIL, error=f"it came to its end and {why}")
            _say(f"{self.task.run} failed: it {why}")
            return
        self.study.report(self.task, curve(self.files, metric))
        self.study.finish(self.task, TrialState.COMPLETE, value)
        _say(f"{self.task.run} finished: {metric} {value:.6g}")

    def _command(self) -> list[str]:
        return self.directory.command(self.task.said["parameters"], self.task.run)

    def _process(self, command: list[str]) -> int:
        log = self.directory.log(self.task.run)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.directory.plan().place,
                env=_no_step_of_a_job(),
                pass_fds=[self.task.lease.descriptor],  # where this process is killed, the lease ends with the trial
                preexec_fn=stop_with_parent,
                start_new_session=True,  # Ctrl-C is for the launcher, which has workers stop in order
            )
        try:
            self._follow(process)
        finally:  # on a full disk, too, nothing is left behind that runs
            if process.poll() is None:
                process.terminate()
                process.wait()
        return process.returncode

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Until the process ends, which it is told to where it must."""
        stopping = 0.0
        while process.poll() is None:
            time.sleep(_POLL)
            if stopping:
                self.task.lease.beat()
                if time.monotonic() - stopping > _GRACE:
                    process.kill()
            elif self._look() or self.pruned:
                process.terminate()
                stopping = time.monotonic()

    def _look(self) -> bool:
        """Follows the curve, gives signs of life; returns whether the trial is to stop."""
        if self.told or self.directory.stopped:
            return True
        if time.monotonic() - self._looked > _BEAT:
            self._looked = time.monotonic()
            self.task.lease.beat()
            if self._ends():
                return True
        values = curve(self.files, self.study.file.metric) if self._changed() else []
        if len(values) > len(self._said):
            self._said = values
            self.pruned = self.study.report(self.task, values)
        return False

    def _changed(self) -> bool:
        try:
            now = self.files.metrics.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        changed = now != getattr(self, "_when", None)
        self._when = now
        return changed

    def _ends(self) -> bool:
        """Whether no trial is to go on: this process, or the sweep, is stopped, or its budget is spent."""
        return bool(self.told or self.directory.stopped or budgets.spent(self.study, self.study.ledger()))

    def _value(self) -> float | None:
        """What the run has come to: as its scores say, which are those of its best checkpoint, or its curve's end."""
        metric = self.study.file.metric
        with contextlib.suppress(OSError, ValueError, KeyError):
            return float(json.loads(self.files.scores.read_text(encoding="utf-8"))[metric])
        values = curve(self.files, metric)
        return values[-1] if values else None

    def _last_line(self, code: int) -> str:
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = self.directory.log(self.task.run).read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return said.removeprefix("ftlab: ") or f"exit code {code}, and nothing was said"


def curve(run: Run, metric: str) -> list[float]:
    """The values of a metric at each validation so far."""
    try:
        with run.metrics.open(newline="", encoding="utf-8") as file:
            return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
    except (OSError, ValueError, csv.Error):  # there is none yet, or it is damaged, which the run itself refuses
        return []


def last_step(run: Run) -> int | None:
    """The last optimiser step in a run's curves; None where there are none yet."""
    try:
        with run.metrics.open(newline="", encoding="utf-8") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=None)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None


def _no_step_of_a_job() -> dict[str, str]:
    """The environment of a trial: under SLURM Lightning would take the tasks of the worker's job for its processes."""
    return {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}


def _judging(run: Run) -> list[str]:
    return [sys.executable, "-m", "ftlab", "validate", "-c", str(run.config)]


def _others_work(study: Study) -> bool:
    ledger = study.ledger()
    return bool(ledger.open) and not budgets.spent(study, ledger)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[str]]:
    """A list that holds the name of the first signal that says so."""
    told: list[str] = []

    def tell(number: int, _: Any) -> None:
        told.append(signal.Signals(number).name)

    before = {
        number: signal.signal(number, tell)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Has the trial save and end where its worker is killed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)


def _sleep(seconds: float, told: list[str]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not told:
        time.sleep(_POLL)


def _say(sentence: str) -> None:
    print(f"ftlab: {sentence}", file=sys.stderr, flush=True)


def command(directory: Path) -> list[str]:
    """The command of a worker, for launchers; as many processes may run it, on as many machines, as one likes."""
    return [sys.executable, "-m", "ftlab", "sweep", "work", os.fspath(directory)]
