"""A checkpoint that is read: of its tensors what is used alone comes into memory, and its file stays as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ftlab.modules.sharding.checkpoint_parts import read

VALUES = 1 << 24


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(VALUES)}
    content = {
        "state_dict": {"network.weight": torch.ones(8)},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "by_rank": [{"random_state": {"cpu": torch.get_rng_state()}}],
    }
    torch.save(content, path)
    return path


def own_memory() -> int:
    """Bytes of this process that no file stands behind."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_moments_that_nobody_asks_for_are_not_read(checkpoint: Path) -> None:
    before = own_memory()
    content = read(checkpoint)
    assert content["state_dict"]["network.weight"].sum() == 8
    assert own_memory() - before < VALUES  # of four bytes each


def test_training_on_with_them_leaves_the_file_alone(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    read(checkpoint)["optimizer_states"][0]["state"][0]["exp_avg"].zero_()
    assert checkpoint.read_bytes() == before


def test_what_is_kept_beside_the_device_keeps_no_deleted_file_on_the_disk(checkpoint: Path) -> None:
    """An optimiser's counts of steps and random states stay on the CPU, where weights and moments go to a GPU."""
    content: Any = read(checkpoint)
    kept = content["optimizer_states"][0]["state"][0]["step"], content["by_rank"]
    del content
    assert str(checkpoint) not in Path("/proc/self/maps").read_text()
    assert kept[0] == 3
