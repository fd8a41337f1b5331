"""A sweep file, in W&B's format: `wandb sweep` takes the same file.

    program: ftlab
    command: [${env}, ${interpreter}, -m, ftlab, fit, -c, experiments/demo_lora.yaml, ${args}]
    method: random
    metric: {name: val_loss, goal: minimize}
    parameters:
      model.optimizer.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-1}
    run_cap: 20
    controller: {type: cloud, seed: 0}

What W&B has no key for stands under `controller`, the one mapping in which W&B's schema lets other keys be: `seed`;
`sampler` (tpe, gp or cmaes, for method bayes); `hours` and `gpu_hours`, after which nothing more is trained.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.errors import UserError
from ftlab.sweeps.hyperband import Hyperband
from ftlab.sweeps.parameters import Parameter, read_parameters
from ftlab.yaml_files import read_mapping

METHODS = ("grid", "random", "bayes")
SAMPLERS = ("tpe", "gp", "cmaes")
BUDGETS = ("run_cap", "hours", "gpu_hours", "target")
_KEYS = {
    *("method", "metric", "parameters", "early_terminate", "command", "program", "name", "run_cap", "controller"),
    *("description", "project", "entity", "apiVersion", "kind"),
}
_ELSEWHERE = {"job": "W&B Launch", "image_uri": "W&B Launch", "scheduler": "W&B", "metrics": "W&B"}
_CONTROLLER = {"type", "seed", "sampler", "hours", "gpu_hours"}
_HOLDS = "a sweep file has method, metric, parameters and command"
_EARLY = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
_DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    Args:
        content: The file as it is.
        name: Of the sweep: its key `name`, or the file's name.
        method: grid, random or bayes.
        metric: Name of the metric.
        maximize: Whether higher is better.
        parameters: In the order of the file.
        command: With W&B's macros in it.
        hyperband: Which trials are stopped early; None for none.
        budgets: Those of BUDGETS that are given.
        seed: Of grid and random search: the k-th trial is a function of it and k.
        sampler: Of method bayes.
        project: W&B project of the trials; None for what the configuration says.
        entity: W&B entity, likewise.
    """

    content: Mapping[str, Any]
    name: str
    method: str
    metric: str
    maximize: bool
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    hyperband: Hyperband | None
    budgets: Mapping[str, float]
    seed: int
    sampler: str
    project: str | None
    entity: str | None

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the metric is better than another."""
        return value > than if self.maximize else value < than


def read_sweep_file(path: Path) -> SweepFile:
    """Reads a sweep file.

    Raises:
        UserError: It is not there, or not as W&B's format has it.
    """
    content = read_mapping(path, "sweep file", _HOLDS)
    if not content:
        raise UserError(f"{path} holds no keys: {_HOLDS}")
    return _understood(content, path)


def _understood(content: Mapping[str, Any], path: Path) -> SweepFile:
    file = str(path)
    for key in content:
        if key in _ELSEWHERE:
            raise UserError(f"{file}: {key} is for {_ELSEWHERE[key]} alone: take it out")
    _refuse_unknown(content, _KEYS, file)
    method = _one_of(content.get("method"), METHODS, f"{file}: method")
    metric = _mapping(content.get("metric"), f"{file}: metric", "{name: val_loss, goal: minimize}")
    _refuse_unknown(metric, {"name", "goal", "target", "impute", "impute_while_running"}, f"{file}: metric")
    if not isinstance(metric.get("name"), str):
        raise UserError(f"{file}: metric has no name: give {{name: val_loss, goal: minimize}}")
    goal = _one_of(metric.get("goal", "minimize"), ("minimize", "maximize"), f"{file}: metric.goal")
    if "parameters" not in content:
        raise UserError(f"{file} has no parameters: give each a name and, say, values: [1, 2]")
    parameters = read_parameters(content["parameters"], file)
    names = [parameter.name for parameter in parameters]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: parameter {twice[0]} is there twice, nested and with its dotted name: take one out")
    controller = _mapping(content.get("controller", {"type": "cloud"}), f"{file}: controller", "{type: cloud, seed: 0}")
    _refuse_unknown(controller, _CONTROLLER, f"{file}: controller")
    budgets = {
        "run_cap": content.get("run_cap"),
        "target": metric.get("target"),
        "hours": controller.get("hours"),
        "gpu_hours": controller.get("gpu_hours"),
    }
    seed = controller.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{file}: controller.seed is {seed!r}: give a whole number")
    found = SweepFile(
        content=content,
        name=_name(content.get("name", path.stem), file),
        method=method,
        metric=metric["name"],
        maximize=goal == "maximize",
        parameters=tuple(parameters),
        command=_command(content, file),
        hyperband=_hyperband(content["early_terminate"], file) if "early_terminate" in content else None,
        budgets=checked_budgets({key: value for key, value in budgets.items() if value is not None}, f"{file}: "),
        seed=seed,
        sampler=_one_of(controller.get("sampler", "tpe"), SAMPLERS, f"{file}: controller.sampler"),
        project=content.get("project"),
        entity=content.get("entity"),
    )
    for parameter in parameters:  # what the method cannot do is refused here
        if method == "grid":
            parameter.grid()
        elif method == "bayes":
            parameter.space()
    return found


def checked_budgets(budgets: Mapping[str, Any], where: str = "") -> dict[str, float]:
    """The same budgets.

    Raises:
        UserError: One is no number that leaves something to do.
    """
    for key, value in budgets.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise UserError(f"{where}{key} is {value!r}: give a number")
        if key == "run_cap" and (value < 1 or value != int(value)):
            raise UserError(f"{where}{key} is {value}: give a whole number from 1 on")
        if key != "target" and value <= 0:
            raise UserError(f"{where}{key} is {value}: give more than 0")
    return dict(budgets)


def _name(name: Any, file: str) -> str:
    if not isinstance(name, str) or not name.strip() or name.startswith(".") or "/" in name:
        raise UserError(f"{file}: name is {name!r}: give a name that can be a directory's")
    return name


def _command(content: Mapping[str, Any], file: str) -> tuple[str, ...]:
    command = content.get("command", _DEFAULT_COMMAND)
    if not isinstance(command, list) or not command:
        raise UserError(f"{file}: command is {command!r}: give a list of words, ${{args}} among them")
    words = [str(word) for word in command]
    if "${program}" in words and not isinstance(content.get("program"), str):
        raise UserError(
            f"{file} does not say what runs a trial: give command: [${{env}}, ${{interpreter}}, -m, ftlab, fit, -c, "
            "EXPERIMENT.yaml, ${args}]"
        )
    if not any(word.startswith("${args") for word in words):
        raise UserError(f"{file}: command has no ${{args}}, so that all trials would be the same: put it at its end")
    return tuple(content["program"] if word == "${program}" else word for word in words)


def _hyperband(said: Any, file: str) -> Hyperband:
    where = f"{file}: early_terminate"
    said = _mapping(said, where, "{type: hyperband, min_iter: 3}")
    _refuse_unknown(said, _EARLY, where)
    _one_of(said.get("type"), ("hyperband",), f"{where}.type")
    for key, least in {"min_iter": 1, "max_iter": 1, "s": 1}.items():
        value = said.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{where}.{key} is {value!r}: give a whole number from {least} on")
    eta, strict = said.get("eta", 3), said.get("strict", False)
    if not isinstance(eta, int | float) or not eta > 1:
        raise UserError(f"{where}.eta is {eta!r}: give a number above 1")
    if not isinstance(strict, bool):
        raise UserError(f"{where}.strict is {strict!r}: it must be true or false")
    if "min_iter" in said:
        return Hyperband.from_min(said["min_iter"], eta, strict)
    if not {"max_iter", "s"} <= set(said):
        raise UserError(f"{where} needs min_iter, or max_iter and s")
    found = Hyperband.from_max(said["max_iter"], said["s"], eta, strict)
    if not found.rungs:
        raise UserError(f"{where}: max_iter {said['max_iter']} over eta {eta} is less than 1: give a greater max_iter")
    return found


def _mapping(said: Any, where: str, example: str) -> Mapping[str, Any]:
    if not isinstance(said, Mapping):
        raise UserError(f"{where} is {said!r}: give {example}" if said else f"{where} is missing: give {example}")
    return said


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give {', '.join(known[:-1])} or {known[-1]}".lstrip(", ")
        raise UserError(f"{where} is {value!r}: {hint}")
    return value


def _refuse_unknown(content: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"{where} has an unknown key {key!r}: {hint}")
