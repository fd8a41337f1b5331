"""How many rows the device takes at once, by plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from ftlab.cli.planned import device_of_this_machine, processes_of, step_of
from ftlab.cli.unopened import Unopened
from ftlab.errors import UserError
from ftlab.planning import plan


def largest(config: dict[str, Any]) -> int:
    """The largest micro-batch of an experiment on the first device of this machine.

    Args:
        config: The experiment's, as plain data.

    Raises:
        UserError: Not even one row fits, or it cannot be planned.
    """
    config["data"]["micro_batch"] = None
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "experiment.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        experiment = Unopened(["-c", str(file)])
    device = device_of_this_machine(str(config["trainer"]["accelerator"]))
    found = plan(step_of(experiment, device.is_gpu), device, processes_of(experiment))
    if not found.largest:
        raise UserError(
            f"data.micro_batch auto: not one row of {found.step.batch.length:,} tokens fits {device.name}: see ftlab "
            "plan, and lower data.max_length"
        )
    return found.largest
