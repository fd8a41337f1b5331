"""What the k-th trial of a sweep tries."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from ftlab.errors import UserError
from ftlab.sweeps.parameters import Parameter
from ftlab.sweeps.sweep_file import SweepFile


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


def random_trial(parameters: Sequence[Parameter], seed: int, k: int) -> dict[str, Any]:
    """The k-th draw, whatever was drawn before; a parameter's value does not depend on which others there are."""
    return {parameter.name: parameter.at(_uniform(f"{seed}/{k}/{parameter.name}")) for parameter in parameters}


def _uniform(key: str) -> float:
    """A number between 0 and 1, never either, that follows from the key on every machine."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) + 0.5) / 2**48


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
        # those that are running count as bad ones, or workers side by side would all try the same
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
