"""Sweeps whose workers are jobs: the results of one on this machine, submitted once, and jobs that fail."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from job_watching import Answer, wait, write_profile
from private_cluster import PrivateCluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def sweep_file(workplace: Path) -> Path:
    """Three trials of the tiny experiment."""
    path = workplace / "rates.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": {"model.optimizer.lr": {"values": [1e-3, 1e-2, 3e-2]}},
        "command": ["${env}", "${interpreter}", "-m", "ftlab", "fit", "-c", "tiny.yaml", "${args}"],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def outcome(sweep: Path, ftlab: Callable[..., Answer]) -> tuple[dict[str, int], dict[str, object], list[bytes]]:
    """States, the best trial, and what every run saved."""
    now = json.loads(ftlab("sweep", "status", sweep, "--json").out)
    adapters = [path.read_bytes() for path in sorted(sweep.glob("*/model/adapter_model.safetensors"))]
    return now["states"], now["best"]["parameters"] | {"value": now["best"]["value"]}, adapters


def test_a_cluster_comes_to_what_one_machine_comes_to(
    cluster: PrivateCluster, sweep_file: Path, ftlab: Callable[..., Answer]
) -> None:
    """And the launcher is killed once: the second finds what the first has submitted."""
    words = ["sweep", "run", str(sweep_file), "--on", "slurm", "--workers", "2", "--name", "there"]
    first = subprocess.Popen([sys.executable, "-m", "ftlab", *words], stderr=subprocess.PIPE, text=True)
    wait(Path("runs/there/slurm/job.json").is_file, lambda: f"exit code {first.poll()}")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    job = json.loads(Path("runs/there/slurm/job.json").read_text())["job"]
    answer = ftlab(*words)
    assert answer.code == 0, answer.err
    assert f"job {job} is there already, and nothing is submitted" in answer.err
    assert ftlab("sweep", "run", sweep_file, "--workers", 2, "--name", "here").code == 0
    there, here = outcome(Path("runs/there"), ftlab), outcome(Path("runs/here"), ftlab)
    assert there == here
    assert there[0]["finished"] == len(there[2]) == 3
    again = ftlab(*words)
    assert again.code == 0
    assert "job" not in again.err  # nothing is left to do


def test_a_worker_that_fails_is_told_of(
    cluster: PrivateCluster, sweep_file: Path, ftlab: Callable[..., Answer]
) -> None:
    write_profile("lost", python="/nowhere/python")
    answer = ftlab("sweep", "run", sweep_file, "--on", "slurm:lost")
    assert answer.code == 1
    said = answer.err.splitlines()[-1]
    assert "_0 is failed: " in said
    assert "/nowhere/python" in said
    assert "see runs/rates/slurm/" in said
