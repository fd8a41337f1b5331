"""Where a sweep stands: how many trials are in which state, which are running, the best so far, which failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ftlab.sweeps import budgets, search
from ftlab.sweeps.leases import working
from ftlab.sweeps.ledger import RESULT, SAID, Ledger
from ftlab.sweeps.study import Study, current
from ftlab.sweeps.worker import last_step

STATES = ("finished", "pruned", "failed", "running", "waiting")
_STATE = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Status:
    """Where a sweep stands.

    Args:
        sweep: Its name.
        metric: Of the best.
        goal: minimize or maximize.
        trials: How many there will be; None where nothing says it.
        states: Trials in each of STATES. Those that wait have begun, or are to be tried again, and nobody is at work.
        running: Number, run and parameters of each, its last step and value.
        best: Number, run, value and parameters of the best that finished; None while none has.
        failed: Number, run, parameters and the last line of each.
        gpu_hours: Taken by all trials, times their devices.
        spent: Which budget is spent; None where there is something left.
    """

    sweep: str
    metric: str
    goal: str
    trials: int | None
    states: dict[str, int]
    running: list[dict[str, Any]]
    best: dict[str, Any] | None
    failed: list[dict[str, Any]]
    gpu_hours: float
    spent: str | None

    @property
    def ended(self) -> int:
        """How many trials need no more work."""
        return sum(self.states[state] for state in ("finished", "pruned", "failed"))

    @property
    def over(self) -> bool:
        """Whether nothing is left to train."""
        return self.spent is not None or self.ended == self.trials


def status(study: Study) -> Status:
    """Where a sweep stands now."""
    trials, ledger = study.trials(), study.ledger()
    counts, running, failed = Counter[str](), [], []
    for trial in current(trials):
        state = _STATE.get(trial.state)
        run = trial.user_attrs[SAID]["run"]
        if state is None:
            state = "running" if working(study.directory.lease(run)) else "waiting"
        counts[state] += 1
        if state == "running":
            values = trial.intermediate_values
            told = {"step": last_step(study.directory.run(run)), "value": values[max(values)] if values else None}
            running.append(_named(trial) | told)
        elif state == "failed":
            failed.append(_named(trial) | {"error": trial.user_attrs.get(RESULT, {}).get("error", "")})
    best = ledger.best
    return Status(
        sweep=study.name,
        metric=study.file.metric,
        goal="maximize" if study.file.maximize else "minimize",
        trials=planned(study, ledger),
        states={state: counts[state] for state in STATES},
        running=running,
        best=_named(best) | {"value": best.value} if best else None,
        failed=failed,
        gpu_hours=round(budgets.gpu_hours(study, ledger), 6),
        spent=budgets.spent(study, ledger),
    )


def planned(study: Study, ledger: Ledger) -> int | None:
    """How many trials there will be; None where only another budget ends the sweep."""
    most = study.directory.budgets().get("run_cap")
    known = [int(number) for number in (most, _points(study, ledger)) if number is not None]
    return min(known, default=None)


def _points(study: Study, ledger: Ledger) -> int | None:
    """After how many trials nothing is left to try; None where that cannot be said."""
    if study.file.method == "grid":
        return search.size(study.file.parameters)
    left = study.left(ledger)
    # a sampler may ask for the same several times before it has asked for all
    return None if left is None or (left and study.file.method == "bayes") else ledger.begun + left


def _named(trial: FrozenTrial) -> dict[str, Any]:
    said = trial.user_attrs[SAID]
    return {"number": trial.number, "run": said["run"], "parameters": said["parameters"]}
