"""What the tests of jobs ask of SLURM and of a run's directory."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PATIENCE = 150.0
"""Seconds in which a job must get to where it is expected."""


@dataclass
class Answer:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def write_profile(name: str = "default", **changed: Any) -> None:
    """Writes a profile for small jobs on the private cluster."""
    said = {"gpus": 1, "cpus": 1, "memory": "1G"} | changed
    file = Path("slurm/profiles") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(said))


def slurm(*command: str) -> str:
    """What a command of SLURM answers."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def states(job: str) -> list[str]:
    """Of each job of an array."""
    return slurm("squeue", "-h", "-r", "-t", "all", "-j", job, "-o%T").split()


def state(job: str) -> str:
    return " ".join(states(job))


def submitted(run: Path) -> str:
    """The job of a run."""
    return json.loads((run / "slurm/job.json").read_text())["job"]


def log(run: Path) -> str:
    return "\n".join(file.read_text() for file in sorted((run / "slurm").glob("*.out")))


def wait(until: Callable[[], Any], what: Callable[[], str]) -> None:
    """Waits until something holds; fails with `what`."""
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def wait_for_state(run: Path, *states: str) -> str:
    """Waits until a run's job is in one of these states, and returns it."""
    job = submitted(run)
    wait(lambda: state(job) in states, lambda: f"{state(job)}\n{log(run)}")
    return state(job)
