"""What was tried and what came of it: an Optuna study in one journal file, shared by all workers of a sweep.

A trial that is RUNNING and whose run nobody has a lease on is to be taken up: it is new, put back, was stopped, or its
worker was killed. It goes on where its run stands, as the same trial.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ftlab.sweeps import budgets, search
from ftlab.sweeps.commands import name_of_run
from ftlab.sweeps.directory import SweepDirectory
from ftlab.sweeps.journal import Journal, StudyLock
from ftlab.sweeps.leases import Lease
from ftlab.sweeps.ledger import RESULT, SAID, Ledger

DRAWS = 20_000
"""Draws in a row of which none is new, after which a random search is over: of 1,000 that are equally likely the last
is then found but for once in half a billion times. Half a second, for which the study's lock is held."""
_LOOK = 1_000
"""Draws between looks at whether the sweep is to end."""
_ASKS = 10
"""Trials that a sampler has asked for while others were at the same; it is not asked again until one of these ends."""


@dataclass
class Task:
    """A trial that this process works on.

    Args:
        trial_id: Of the study.
        said: Attribute SAID.
        lease: On its run.
        seconds: That it took before.
        since: When this process began, by its own clock.
    """

    trial_id: int
    said: dict[str, Any]
    lease: Lease
    seconds: float
    since: float = field(default_factory=time.monotonic)

    @property
    def run(self) -> str:
        return self.said["run"]

    def seconds_so_far(self) -> float:
        return round(self.seconds + time.monotonic() - self.since, 3)


class Study:
    """The study of a sweep, which is made where it is not there yet.

    Args:
        directory: Of the sweep.
    """

    def __init__(self, directory: SweepDirectory) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.directory = directory.required()
        self.file = directory.file()
        self.command = directory.plan().command
        self.devices = directory.plan().devices
        self.lock = StudyLock(directory.journal)
        # the collector would go through every trial again and again while they are read
        with self.lock, warnings.catch_warnings(), _uncollected():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.storage = JournalStorage(Journal(directory.journal, self.lock))
            if not self.storage.get_all_studies():
                optuna.create_study(
                    storage=self.storage,
                    study_name=directory.path.name,
                    direction="maximize" if self.file.maximize else "minimize",
                )
        self.study_id = self.storage.get_all_studies()[0]._study_id
        self.name = self.storage.get_study_name_from_id(self.study_id)
        self._ledger = Ledger(self.file.maximize)
        self._combinations = None if self.file.method == "grid" else search.combinations(self.file.parameters)
        self._drawn_out = False

    def trials(self) -> list[FrozenTrial]:
        """All trials, in order; not to be changed. One that a killed process had not told all of is left out."""
        return [trial for trial in self._all() if SAID in trial.user_attrs]

    def ledger(self) -> Ledger:
        """What the trials amount to now."""
        self._ledger.read(self._all())
        return self._ledger

    def _all(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def take(self) -> Task | None:
        """A trial to work on: one that nobody works on any more, or the next; None where there is none at present."""
        with self.lock:
            ledger = self.ledger()
            if self._ends(ledger):
                return None
            for trial in ledger.open:
                if SAID not in trial.user_attrs:
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                elif task := self._leased(trial):
                    return task
            cap = self.directory.budgets().get("run_cap", math.inf)
            while ledger.begun < cap and not self._ends(ledger):
                trial_id = self._next(ledger)
                if trial_id is None:
                    return None
                trial = self.storage.get_trial(trial_id)
                if trial.state == TrialState.RUNNING and (task := self._leased(trial)):
                    return task
                ledger = self.ledger()  # the same was tried before, or is at present
        return None

    def left(self, ledger: Ledger) -> int | None:
        """How many combinations have not been drawn yet, by method random or bayes; None where there is no end."""
        if self._drawn_out:
            return 0
        return None if self._combinations is None else max(0, self._combinations - len(ledger.runs))

    def report(self, task: Task, values: Sequence[float]) -> bool:
        """Notes the values of the metric at each validation so far; returns whether the trial is to be stopped."""
        there = dict(self.storage.get_trial(task.trial_id).intermediate_values)
        for step, value in enumerate(values, 1):
            if not _same(there.get(step), value):
                self.storage.set_trial_intermediate_value(task.trial_id, step, value)
        if self.file.hyperband is None:
            return False
        sign = -1 if self.file.maximize else 1
        others = [trial.intermediate_values for trial in self.trials() if trial._trial_id != task.trial_id]
        curves = [[sign * other[step] for step in sorted(other)] for other in others]
        return self.file.hyperband.stops([sign * value for value in values], curves, seen=len(there))

    def finish(self, task: Task, state: TrialState, value: float | None = None, error: str | None = None) -> None:
        """Notes what has come of a trial, and gives its run back."""
        result = {"seconds": task.seconds_so_far()} | ({"error": error} if error else {})
        with self.lock:
            self.storage.set_trial_user_attr(task.trial_id, RESULT, result)
            self.storage.set_trial_state_values(task.trial_id, state, None if value is None else [value])
        task.lease.give_back()

    def put_back(self, task: Task) -> None:
        """Leaves a trial, which was stopped, for whoever takes it up."""
        self.storage.set_trial_user_attr(task.trial_id, RESULT, {"seconds": task.seconds_so_far()})
        task.lease.give_back()

    def retry_failed(self) -> int:
        """Has all failed trials tried again; returns how many."""
        with self.lock:
            failed = [trial for trial in current(self.trials()) if trial.state == TrialState.FAIL]
            for trial in failed:
                self._add({**trial.user_attrs[SAID], "retry_of": trial.number}, drawn=trial)
        return len(failed)

    def _leased(self, trial: FrozenTrial) -> Task | None:
        lease = Lease.take(self.directory.lease(trial.user_attrs[SAID]["run"]))
        if lease is None:
            return None
        seconds = trial.user_attrs.get(RESULT, {}).get("seconds", 0.0) + lease.unpaid
        return Task(trial._trial_id, trial.user_attrs[SAID], lease, seconds)

    def _ends(self, ledger: Ledger) -> bool:
        """Whether nothing more is to be begun: the sweep is stopped, or a budget spent."""
        return self.directory.stopped or budgets.spent(self, ledger) is not None

    def _next(self, ledger: Ledger) -> int | None:
        """Adds the next trial to the study: of a grid with its result where the same was tried before."""
        file, index = self.file, ledger.next
        if file.method == "grid":
            parameters = search.grid_trial(file.parameters, index)
            if parameters is None:
                return None
            run = name_of_run(self.command, parameters)
            return self._add({"index": index, "parameters": parameters, "run": run}, ledger.ended.get(run))
        if self.left(ledger) == 0:
            return None
        if file.method == "bayes":
            runs = [trial.user_attrs[SAID]["run"] for trial in ledger.open if SAID in trial.user_attrs]
            return self._asked(index) if len(runs) - len(set(runs)) < _ASKS else None
        said = self._drawn(ledger)
        return None if said is None else self._add(said)

    def _drawn(self, ledger: Ledger) -> dict[str, Any] | None:
        """The next draw that was not drawn before, which is the same to all workers; None where there is none."""
        for index in range(ledger.next, ledger.next + DRAWS):
            if index % _LOOK == 0 and self._ends(ledger):
                return None
            parameters = search.random_trial(self.file.parameters, self.file.seed, index)
            run = name_of_run(self.command, parameters)
            if run not in ledger.runs:
                return {"index": index, "parameters": parameters, "run": run}
        self._drawn_out = True
        return None

    def _add(self, said: dict[str, Any], same: FrozenTrial | None = None, drawn: FrozenTrial | None = None) -> int:
        """Adds a trial: with the result of the `same` one before, and what a sampler has `drawn` it from."""
        state = same.state if same else TrialState.RUNNING
        template = FrozenTrial(
            number=-1,  # unused, as the next
            trial_id=-1,
            state=state,
            value=same.value if same else None,
            datetime_start=None,
            datetime_complete=None,
            params=drawn.params if drawn else {},
            distributions=drawn.distributions if drawn else {},
            user_attrs={SAID: said} | ({RESULT: {"seconds": 0.0}} if same else {}),
            system_attrs={},
            intermediate_values=same.intermediate_values if same else {},
        )
        return self.storage.create_new_trial(self.study_id, template)

    def _asked(self, index: int) -> int:
        """As Optuna suggests; where it suggests what was tried before, that is tried under the same name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = search.Seen(self.name, self.storage, search.sampler(self.file, index), self._ledger.leading)
            trial = study.ask(search.spaces(self.file.parameters))
        parameters = {p.name: p.value(trial.params.get(p.name)) for p in self.file.parameters}
        said = {"index": index, "parameters": parameters, "run": name_of_run(self.command, parameters)}
        self.storage.set_trial_user_attr(trial._trial_id, SAID, said)
        return trial._trial_id


def _same(noted: float | None, value: float) -> bool:
    """Whether a value is noted already: NaN, too, which is not equal to itself."""
    return noted == value or (noted is not None and math.isnan(noted) and math.isnan(value))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def current(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Without those that are tried again."""
    again = {trial.user_attrs[SAID].get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.number not in again]
