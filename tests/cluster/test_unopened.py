"""What the machine that submits can tell of an experiment without its devices, network and data."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from job_watching import write_profile

from ftlab.cli.sweep_check import planned
from ftlab.cli.unopened import Unopened, refuse_what_would_fail
from ftlab.errors import UserError
from ftlab.sweeps import read_sweep_file

OPTIMIZERS = sorted((Path(__file__).parents[2] / "experiments/optimizer").glob("*.yaml"))


def test_no_optimizer_that_works_is_refused(workplace: Path) -> None:
    assert OPTIMIZERS
    for path in OPTIMIZERS:
        refuse_what_would_fail(Unopened(["-c", "tiny.yaml", "-c", str(path)]))


def test_devices_of_a_trial_are_the_profiles(workplace: Path) -> None:
    """This machine may have none."""
    write_profile(gpus=4)
    path = workplace / "rates.yaml"
    content: dict[str, Any] = {
        "method": "grid",
        "metric": {"name": "val_loss"},
        "parameters": {"trainer.accelerator": {"value": "gpu"}, "trainer.num_nodes": {"value": 1}},
        "command": ["ftlab", "fit", "-c", "tiny.yaml", "${args}"],
    }
    path.write_text(yaml.safe_dump(content))
    assert planned(read_sweep_file(path), path, "default").devices == 4
    content["parameters"] |= {"trainer.devices": {"values": [4, 2]}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"would be refused: slurm/profiles/default.yaml has gpus: 4, and trainer.dev"):
        planned(read_sweep_file(path), path, "default")


def test_of_a_sweep_over_devices_the_most_count(workplace: Path) -> None:
    path = workplace / "devices.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "val_loss"},
        "parameters": {"trainer.devices": {"values": [2, 1]}},
        "command": ["ftlab", "fit", "-c", "tiny.yaml", "${args}"],
    }
    path.write_text(yaml.safe_dump(content))
    assert planned(read_sweep_file(path), path).devices == 2


@pytest.mark.parametrize(("named", "devices"), [("0,1", 1), (None, 2)])
def test_all_devices_are_those_that_a_worker_has(
    named: str | None, devices: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two GPUs that are named, a worker on this machine has one."""
    for module in ("lightning.pytorch.accelerators.cuda", "lightning.fabric.accelerators.cuda"):
        monkeypatch.setattr(f"{module}.num_cuda_devices", lambda: 2)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = workplace / "rates.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "val_loss"},
        "parameters": {"trainer.devices": {"value": "auto"}, "trainer.accelerator": {"value": "gpu"}},
        "command": ["ftlab", "fit", "-c", "tiny.yaml", "${args}"],
    }
    path.write_text(yaml.safe_dump(content))
    assert planned(read_sweep_file(path), path).devices == devices
