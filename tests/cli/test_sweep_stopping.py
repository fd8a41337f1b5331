"""A sweep of real trainings that is stopped or killed: the same command goes on, to the same bits."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.resume
WEIGHTS = "model/adapter_model.safetensors"


@pytest.fixture
def command(workplace: Path) -> list[str]:
    """A sweep of one training of 60 short steps, of which each is saved."""
    parameters = {
        "trainer.max_steps": 60,
        "trainer.val_check_interval": 7,
        "run.checkpoints.every_n_steps": 1,
        "model.method.dropout": 0.2,
    }
    content = {
        "method": "grid",
        "metric": {"name": "val_loss"},
        "command": ["ftlab", "fit", "-c", "tiny.yaml", "${args}"],
        "parameters": {name: {"value": value} for name, value in parameters.items()},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "ftlab", "sweep", "run", "sweep.yaml"]


def when_trained(step: int) -> Path:
    """Waits until a checkpoint of `step` or later is there; the run."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for path in Path("runs/sweep").glob("*/checkpoints/last-*.ckpt"):
            if int(path.name.split("-")[1]) >= step:
                return path.parent.parent
        time.sleep(0.02)
    raise AssertionError("nothing was trained")


def test_stopped_killed_and_gone_on_with_to_the_same_bits(command: list[str], ftlab: Callable[..., Any]) -> None:
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    run = when_trained(5)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=300)
    assert stopped.returncode == 130
    assert err.splitlines()[-1] == "ftlab: stopped: ftlab sweep resume runs/sweep goes on"
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    when_trained(20)
    killed.kill()
    killed.wait()
    assert ftlab("sweep", "run", "sweep.yaml").code == 0
    assert "1 finished of 1" in ftlab("sweep", "status", "runs/sweep").out
    whole = ftlab("sweep", "run", "sweep.yaml", "--name", "whole")
    assert whole.code == 0
    assert (run / WEIGHTS).read_bytes() == (Path("runs/whole") / run.name / WEIGHTS).read_bytes()
