"""What is refused of a sweep before anything is launched: trials are composed here that stand for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab.cli.experiment import Experiment
from ftlab.errors import UserError
from ftlab.sweeps.commands import CONFIG, files_of, find, is_ftlab, resolved_command, trial_command
from ftlab.sweeps.directory import Plan
from ftlab.sweeps.sweep_file import SweepFile

_ALWAYS = ("val_loss", "val_perplexity")
"""What every run logs at its validations."""


def planned(file: SweepFile, path: Path) -> Plan:
    """How trials of a sweep are run.

    Raises:
        UserError: A trial would be refused, or would never log the metric.
    """
    where = {"project": file.project, "entity": file.entity}
    plan = Plan(
        command=resolved_command(file.command, path),
        file=str(path.resolve()),
        place=str(Path.cwd()),
        options=[f"--wandb.{key}={value}" for key, value in where.items() if value is not None],
    )
    if not is_ftlab(plan.command):
        return plan
    experiment = None
    for parameters in _standing_for_all(file):
        experiment = _composed(plan, parameters, path)
        judged_after = _judged_after(experiment, file, path)
    assert experiment is not None
    devices = experiment.trainer.num_devices * experiment.trainer.num_nodes
    return dataclasses.replace(plan, devices=devices, judged_after=judged_after)


def _standing_for_all(file: SweepFile) -> Iterator[dict[str, Any]]:
    """Trials in which every file of configuration is named, and every parameter has its extremes, one after another."""
    values = {parameter.name: _different(parameter.extremes()) for parameter in file.parameters}
    first = {name: there[0] for name, there in values.items()}
    yield first
    for name, there in values.items():
        for value in there[1:]:
            yield {**first, name: value}


def _different(values: list[Any]) -> list[Any]:
    """Of many numbers of one kind the least and the greatest: what a configuration takes lies between."""
    for kind in (int, float):
        numbers = [value for value in values if type(value) is kind]
        if len(numbers) > 2:
            ends = (min(numbers), max(numbers))
            values = [*ends, *(value for value in values if type(value) is not kind)]
    return values


def _composed(plan: Plan, parameters: dict[str, Any], path: Path) -> Experiment:
    if CONFIG in parameters:
        parameters = {**parameters, CONFIG: [find(name, path) for name in files_of(parameters[CONFIG])]}
    words = trial_command(plan.command, parameters, plan.options)
    arguments = words[words.index("fit", words.index("ftlab")) + 1 :]
    try:
        return Experiment(arguments)
    except UserError as error:
        tried = ", ".join(f"{name} {value}" for name, value in parameters.items())
        raise UserError(f"{path}: a trial with {tried} would be refused: {error}") from error


def _judged_after(experiment: Experiment, file: SweepFile, path: Path) -> bool:
    """Whether the metric is told by `ftlab validate` alone: training logs losses, validate scores answers, too."""
    texts = [f"val_{metric.name}" for metric in experiment.model.metrics]
    if file.metric in _ALWAYS:
        return False
    if file.metric not in texts:
        there = ", ".join([*_ALWAYS, *texts])
        raise UserError(f"{path}: no trial logs {file.metric}: metric.name can be {there}")
    if file.hyperband:
        raise UserError(
            f"{path}: early_terminate needs a metric that training logs, and {file.metric} is scored after it: take "
            "val_loss, or leave early_terminate out"
        )
    return True
