"""What is written down of the machine: versions of all packages, and no variable that is not on the list."""

import importlib.metadata
import os
import platform

import pytest

import ftlab
from ftlab.runs.machine import environment, hardware, packages


def test_every_installed_package_has_its_version() -> None:
    found = packages()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["ruamel-yaml" if "ruamel-yaml" in found else "pyyaml"]
    assert len(found) > 50


def test_ftlab_has_its_version_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [])
    assert packages()["ftlab"] == ftlab.__version__


def test_the_environment_is_a_list_of_what_is_allowed() -> None:
    allowed = {"OMP_NUM_THREADS": "2", "NCCL_DEBUG": "INFO", "SLURM_ARRAY_TASK_ID": "7", "WORLD_SIZE": "2"}
    others = {"HF_TOKEN": "x", "SLURM_JWT": "x", "PATH": "x", "MY_OWN": "x"}
    assert environment(allowed | others) == allowed


def test_hardware_is_that_of_this_process() -> None:
    found = hardware()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] > 2**28
    assert {"hostname", "system", "cpu", "gpus"} <= set(found)
