"""What is refused of a sweep before anything is launched: trials are composed here that stand for all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab import cluster
from ftlab.cli.experiment import Experiment
from ftlab.cli.on_slurm import devices_of_a_node, processes_of
from ftlab.cli.unopened import Unopened, refuse_what_would_fail
from ftlab.errors import UserError
from ftlab.sweeps.commands import CONFIG, files_of, find, is_ftlab, resolved_command, trial_command
from ftlab.sweeps.directory import Plan
from ftlab.sweeps.local import named_gpus
from ftlab.sweeps.sweep_file import SweepFile

_ALWAYS = ("val_loss", "val_perplexity")
"""What every run logs at its validations."""


def planned(file: SweepFile, path: Path, profile: str | None = None) -> Plan:
    """How trials of a sweep are run.

    Args:
        file: What the sweep file says.
        path: Where it lies.
        profile: Of SLURM, that workers run by; None where they run on this machine.

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
    devices = []
    for parameters in _standing_for_all(file):
        with _refusals(parameters, path):
            experiment = _composed(plan, parameters, path, Unopened if profile else Experiment)
            refuse_what_would_fail(experiment)
            devices.append(_devices(experiment, profile))
            judged_after = _judged_after(experiment, file)
    return dataclasses.replace(plan, devices=max(devices), judged_after=judged_after)


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


@contextlib.contextmanager
def _refusals(parameters: dict[str, Any], path: Path) -> Iterator[None]:
    """Says of which trial a refusal is."""
    try:
        yield
    except UserError as error:
        tried = ", ".join(f"{name} {value}" for name, value in parameters.items())
        raise UserError(f"{path}: a trial with {tried} would be refused: {error}") from error


def _composed(plan: Plan, parameters: dict[str, Any], path: Path, kind: type[Experiment]) -> Experiment:
    if CONFIG in parameters:
        parameters = {**parameters, CONFIG: [find(name, path) for name in files_of(parameters[CONFIG])]}
    words = trial_command(plan.command, parameters, plan.options)
    arguments = words[words.index("fit", words.index("ftlab")) + 1 :]
    return kind(arguments)


def _devices(experiment: Experiment, profile: str | None) -> int:
    """Of one trial."""
    trainer = experiment.resolved()["trainer"]
    if profile is None:
        # of several GPUs that are named a worker is shown one, unless a number asks for more
        one = devices_of_a_node(trainer["devices"]) is None and len(named_gpus()) > 1
        return (1 if one else experiment.trainer.num_devices) * experiment.trainer.num_nodes
    return processes_of(trainer, cluster.load_profile(profile), profile) * trainer["num_nodes"]


def _judged_after(experiment: Experiment, file: SweepFile) -> bool:
    """Whether the metric is told by `ftlab validate` alone: training logs losses, validate scores answers, too."""
    texts = [f"val_{metric.name}" for metric in experiment.model.metrics]
    if file.metric not in (*_ALWAYS, *texts):
        there = ", ".join([*_ALWAYS, *texts])
        raise UserError(f"no trial logs {file.metric}: metric.name can be {there}")
    _refuse_unvalidated(experiment, file)
    if file.metric in _ALWAYS:
        return False
    if file.hyperband:
        raise UserError(
            f"early_terminate needs a metric that training logs, and {file.metric} is scored after it: take "
            "val_loss, or leave early_terminate out"
        )
    return True


def _refuse_unvalidated(experiment: Experiment, file: SweepFile) -> None:
    """How long an epoch is only the data says; but training may end before the first validation whatever that is."""
    trainer = experiment.trainer
    if trainer.limit_val_batches == 0:
        raise UserError(f"no trial logs {file.metric}: trainer.limit_val_batches is 0, so that nothing is validated")
    if file.metric not in _ALWAYS or not experiment.model.method.trains or trainer.max_steps == -1:
        return
    interval, batches = (
        experiment.config.trainer.val_check_interval,
        trainer.max_steps * trainer.accumulate_grad_batches,
    )
    if isinstance(interval, int) and interval > batches:
        raise UserError(
            f"no trial logs {file.metric}: training ends after {batches} batches, and trainer.val_check_interval is "
            f"{interval}: give less"
        )
