"""What is known of the trials of a study, kept up as they come and end: ten thousand are not gone through for each."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

SAID = "trial"
"""Attribute of a trial: its index, parameters and run, and for one that is tried again, which it is a `retry_of`."""
RESULT = "result"
"""Attribute of a trial: the seconds that it took, and for one that failed, its last line."""

LEADING = 25
"""Trials that are known to be the best: as many as TPE takes for good ones."""


class Ledger:
    """What the trials of a study amount to.

    Args:
        maximize: Whether higher is better.
    """

    def __init__(self, maximize: bool) -> None:
        self.begun = 0
        """How many there are, those that are tried again counted once."""
        self.next = 0
        """The index of the trial that comes next."""
        self.runs: set[str] = set()
        """Those of all trials, whatever has become of them."""
        self.open: list[FrozenTrial] = []
        """Those that are not at their end."""
        self.ended: dict[str, FrozenTrial] = {}
        """Those that have a result, finished or pruned, by their runs."""
        self._leading: list[tuple[float, int, FrozenTrial]] = []
        self._seconds = 0.0
        self._sign = -1 if maximize else 1
        self._read = 0
        self._unsaid: set[int] = set()
        """Numbers of those that had been read before they were told of."""

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Takes up what is new.

        Args:
            trials: All of the study, in order.
        """
        before, self.open = self.open, []
        for trial in [*(trials[old.number] for old in before), *trials[self._read :]]:
            self._take_up(trial, new=trial.number >= self._read or trial.number in self._unsaid)
        self._read = len(trials)

    @property
    def best(self) -> FrozenTrial | None:
        """The best that has finished, the first of equals."""
        return self._leading[0][-1] if self._leading else None

    @property
    def leading(self) -> list[FrozenTrial]:
        """The best that have finished, at most LEADING, in the order in which they began."""
        return sorted((trial for *_, trial in self._leading), key=lambda trial: trial.number)

    @property
    def seconds(self) -> float:
        """That workers have told, of all trials."""
        return self._seconds + sum(map(_seconds, self.open))

    def _take_up(self, trial: FrozenTrial, new: bool) -> None:
        said = trial.user_attrs.get(SAID)
        if said is None:
            # a trial that was asked for is told of in a second step, under the same lock, which readers do not have
            self._unsaid.add(trial.number)
            if not trial.state.is_finished():  # a killed process had not told all of it: it never will be
                self.open.append(trial)
            return
        self._unsaid.discard(trial.number)
        if new:
            self.begun += "retry_of" not in said
            self.next = max(self.next, said["index"] + 1)
            self.runs.add(said["run"])
        if not trial.state.is_finished():
            self.open.append(trial)
            return
        self._seconds += _seconds(trial)
        if trial.state == TrialState.FAIL:
            return
        self.ended[said["run"]] = trial
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            bisect.insort(self._leading, (self._sign * trial.value, trial.number, trial))
            del self._leading[LEADING:]


def _seconds(trial: FrozenTrial) -> float:
    return trial.user_attrs.get(RESULT, {}).get("seconds", 0.0)
