"""What the k-th trial of a sweep tries."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ftlab.errors import UserError
from ftlab.sweeps.parameters import Parameter
from ftlab.sweeps.sweep_file import SweepFile

LATEST = 1000
"""Trials that a sampler of method bayes sees, beside the best: it goes through all that it sees for each draw."""


def size(parameters: Sequence[Parameter]) -> int:
    """How many trials a grid has."""
    return math.prod(len(parameter.grid()) for parameter in parameters)


def grid_trial(parameters: Sequence[Parameter], k: int) -> dict[str, Any] | None:
    """The k-th point of the grid, counted from 0: the last parameter changes first. None after the last."""
    values: dict[str, Any] = {}
    for parameter in reversed(parameters):
        all_values = parameter.grid()
        k, place = divmod(k, len(all_values))
        values[parameter.name] = all_values[place]
    return {parameter.name: values[parameter.name] for parameter in parameters} if k == 0 else None


def combinations(parameters: Sequence[Parameter]) -> int | None:
    """How many different trials can be drawn; None where there is no end of them."""
    counts = [parameter.count() for parameter in parameters]
    finite = [count for count in counts if count is not None]
    return math.prod(finite) if len(finite) == len(counts) else None


def random_trial(parameters: Sequence[Parameter], seed: int, k: int) -> dict[str, Any]:
    """The k-th draw, whatever was drawn before; a parameter's value does not depend on which others there are."""
    return {parameter.name: parameter.at(_uniform(f"{seed}/{k}/{parameter.name}")) for parameter in parameters}


def _uniform(key: str) -> float:
    """A number between 0 and 1, never either, that follows from the key on every machine."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) + 0.5) / 2**48


class Seen(optuna.Study):
    """The study as a sampler sees it: the latest trials and the best.

    TPE has at most 25 good ones, which are the same as if it saw all; the others tell it only how thickly trials lie
    elsewhere.

    Args:
        name: Of the study.
        storage: That it lies in.
        sampler: That draws.
        best: The best trials, in the order in which they began.
    """

    def __init__(self, name: str, storage: BaseStorage, sampler: BaseSampler, best: Sequence[FrozenTrial]) -> None:
        super().__init__(name, storage, sampler=sampler)
        self._best = best
        self._seen: list[FrozenTrial] = []

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if not self._seen:
            latest = self._storage.get_all_trials(self._study_id, deepcopy=False)[-LATEST:]
            self._seen = [*(trial for trial in self._best if trial.number < latest[0].number), *latest]
        return [trial for trial in self._seen if states is None or trial.state in states]


class TPE(optuna.samplers.TPESampler):
    """Optuna's, which would look at every trial for the parameters that all have in common: here all have the same.

    Args:
        spaces: Of the parameters.
        seed: Of its draws.
    """

    def __init__(self, spaces: Mapping[str, BaseDistribution], seed: int) -> None:
        # those that are running count as bad ones, or workers side by side would all try the same
        super().__init__(seed=seed, constant_liar=True)
        self._spaces = {name: spaces[name] for name in sorted(spaces) if not spaces[name].single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._spaces)


def sampler(file: SweepFile, k: int) -> BaseSampler:
    """Optuna's sampler of method bayes for the k-th trial: it draws by what the trials before have come to."""
    seed = int.from_bytes(hashlib.sha256(f"{file.seed}/{k}".encode()).digest()[:4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if file.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if file.sampler == "cmaes":
            try:
                import cmaes  # noqa: F401
            except ImportError:
                raise UserError("controller.sampler cmaes needs a package: pip install cmaes") from None
            return optuna.samplers.CmaEsSampler(seed=seed)
        return TPE(spaces(file.parameters), seed)


def spaces(parameters: Sequence[Parameter]) -> dict[str, BaseDistribution]:
    """What a sampler draws from: of each parameter, but for those that have one value."""
    found = {parameter.name: parameter.space() for parameter in parameters}
    return {name: space for name, space in found.items() if space is not None}
