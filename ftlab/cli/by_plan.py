"""What an experiment leaves to this machine's first device, by plan: rows at once, and what is computed again."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ftlab.cli.planned import device_of_this_machine, processes_of, step_of
from ftlab.cli.unopened import Unopened
from ftlab.errors import UserError
from ftlab.modules.activations import GradientCheckpointing
from ftlab.planning import Device, Processes, Step, memory_of, plan, size_in_bytes, ways_on


def largest(config: dict[str, Any]) -> int:
    """The largest micro-batch of an experiment.

    Args:
        config: The experiment's, as plain data.

    Raises:
        UserError: Not even one row fits, it cannot be planned, or there is less memory than it is to be given.
    """
    config["data"]["micro_batch"] = None
    step, device, processes = _asked(config)
    found = plan(step, device, processes)
    if not found.largest:
        raise UserError(
            f"data.micro_batch auto: not one row of {found.step.batch.length:,} tokens fits {device.name}: see ftlab "
            "plan, and lower data.max_length"
        )
    return found.largest


def first_way(config: dict[str, Any]) -> GradientCheckpointing:
    """The fastest way with which a micro-batch of an experiment fits.

    Args:
        config: The experiment's, as plain data.

    Raises:
        UserError: It fits with none, it cannot be planned, or there is less memory than it is to be given.
    """
    config["model"]["gradient_checkpointing"] = False
    step, device, processes = _asked(config)
    for way in ways_on(step.on_gpu):
        if way == "selective" and config["model"]["compile"]:  # which the module refuses
            continue
        if memory_of(replace(step, checkpointing=way, counted=False), processes) <= device.usable:
            return way
    raise UserError(
        f"model.gradient_checkpointing auto: {step.batch.rows} rows of {step.batch.length:,} tokens do not fit "
        f"{device.name}, whatever is computed again: see ftlab plan, and lower data.batch_size or data.max_length"
    )


def _no_more_than(budget: str, device: Device) -> Device:
    """A device on which tensors may take so many bytes.

    Raises:
        UserError: It is no size, or more than there is.
    """
    size = size_in_bytes(budget)
    if size is None:
        raise UserError(f"data.micro_batch_memory is {budget!r}: give a size such as '20 GB' or '500 MB'")
    if size > device.usable:
        raise UserError(
            f"data.micro_batch_memory is {budget}, and {device.name} has {device.usable / 1e9:.1f} GB for it"
        )
    return Device(f"data.micro_batch_memory {budget}", size, device.operations, is_gpu=False)  # all of it is usable


def _asked(config: dict[str, Any]) -> tuple[Step, Device, Processes]:
    """With a device that has no more memory than the experiment may take."""
    budget, config["data"]["micro_batch_memory"] = config["data"]["micro_batch_memory"], None
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "experiment.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        experiment = Unopened(["-c", str(file)])
    device = device_of_this_machine(str(config["trainer"]["accelerator"]))
    step, processes = step_of(experiment, device.is_gpu), processes_of(experiment)
    return step, device if budget is None else _no_more_than(budget, device), processes
