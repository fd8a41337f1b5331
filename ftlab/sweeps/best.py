"""The best trial of a sweep: its configuration as a file, and plots of what mattered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from ftlab.errors import UserError
from ftlab.runs import write_atomically
from ftlab.runs.files import write_whole
from ftlab.sweeps.ledger import SAID
from ftlab.sweeps.study import Study

_OF_ONE_RUN = ("root", "experiment", "name", "resume")
_AT_LEAST = 2
"""Trials without which there is nothing to compare."""


def write_best(study: Study) -> FrozenTrial:
    """Writes best.yaml, which `ftlab fit -c` takes, and returns the trial.

    Raises:
        UserError: No trial has finished, or the run of the best is gone.
    """
    best = study.ledger().best
    if best is None:
        raise UserError(f"no trial of {study.directory.path} has finished: there is no best one yet")
    said = best.user_attrs[SAID]
    run = study.directory.run(said["run"])
    if not run.config.is_file():
        raise UserError(f"{run.directory}, the best run, has no config.yaml: put it back")
    config = run.configuration()
    config["run"] = {key: value for key, value in config.get("run", {}).items() if key not in _OF_ONE_RUN}
    config.pop("wandb", None)
    head = f"# {run.directory}: {study.file.metric} {best.value:.6g}, trial {best.number} of {study.name}\n"
    write_atomically(study.directory.best, head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return best


def write_plots(study: Study) -> list[Path]:
    """Draws importance.png, which says how much each parameter mattered (fANOVA), and parallel.png, a line a trial."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    finished = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    compared = _with_values(study, finished)
    names = {name for trial in compared.trials for name in trial.params}
    if len(finished) < _AT_LEAST or not names:
        raise UserError(f"{study.directory.path} has too few finished trials, or parameters, for a plot")
    written = []
    draws = {"importance": "plot_param_importances", "parallel": "plot_parallel_coordinate"}
    for name, function in draws.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(optuna.visualization.matplotlib, function)(compared, target_name=study.file.metric)
        figure = pyplot.gcf()
        figure.set_size_inches(10, 5)
        figure.tight_layout()
        path = study.directory.path / f"{name}.png"
        written.append(write_whole(path, lambda file, figure=figure: figure.savefig(file, format="png", dpi=120)))  # type: ignore[misc]
        pyplot.close(figure)
    return written


def importances(study: Study) -> dict[str, float]:
    """The share of the variance of the metric that each parameter explains (fANOVA, Hutter et al. 2014)."""
    finished = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(_with_values(study, finished), evaluator=evaluator)


def _with_values(study: Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """A study in memory whose parameters are the values that were tried, those that never changed left out."""
    tried = {p.name: [t.user_attrs[SAID]["parameters"][p.name] for t in trials] for p in study.file.parameters}
    spaces = {name: space for name, values in tried.items() if (space := _space(values)) is not None}
    made = optuna.create_study(direction="maximize" if study.file.maximize else "minimize")
    for trial in trials:
        said = trial.user_attrs[SAID]["parameters"]
        values = {
            name: float(said[name]) if isinstance(space, FloatDistribution) else _label(said[name])
            for name, space in spaces.items()
        }
        made.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=trial.value))
    return made


def _space(values: Sequence[Any]) -> BaseDistribution | None:
    different = list(dict.fromkeys(_label(value) for value in values))
    if len(different) < _AT_LEAST:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low >= 100)
    return CategoricalDistribution(different)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
