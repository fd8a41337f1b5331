"""Disks that are full or read-only: a small one is mounted for real, and what was broken goes on once it is mended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def fit_there(disk: Any, fit: Any) -> Any:
    """A run on the small disk."""
    fit.run = disk.place / "runs/tiny/broken"
    return fit


def assert_goes_on(fit: Any, disk: Any, undisturbed: Any, *options: str) -> None:
    """There is nothing half-written, and with room the same command comes to the same bits."""
    assert fit.leftovers() == []
    (disk.place / "filler").unlink(missing_ok=True)
    disk.resize("64m")
    again = fit(*options)
    assert again.code == 0, again.err
    assert fit.results == undisturbed(*options)


def test_full_at_a_checkpoint(fit_there: Any, disk: Any, undisturbed: Any) -> None:
    broken = fit_there(AT=4, BREAK="fill", DISK=disk.place)
    assert broken.code == 1
    # whichever comes first; both leave the checkpoint before
    room = "no room for a checkpoint: it takes .* the one before stands: make room, and give the command again"
    curves = r"metrics\.csv cannot be written \(No space left on device\) .* the same command goes on from "
    assert re.search(f"{room}|{curves}", broken.said)
    assert torch.load(fit_there.run / "checkpoints/last.ckpt")["global_step"] == 3
    assert_goes_on(fit_there, disk, undisturbed)


@pytest.mark.resume
def test_full_at_the_curves(fit_there: Any, disk: Any, undisturbed: Any) -> None:
    seldom = ["--run.checkpoints.every_n_steps", "6"]
    broken = fit_there(*seldom, AT=7, BREAK="fill", DISK=disk.place)
    assert broken.code == 1
    assert "metrics.csv" in broken.said
    assert "cannot be written (No space left on device) in training, at step " in broken.said
    assert "make room or mend the disk; the same command goes on from " in broken.said
    assert torch.load(fit_there.run / "checkpoints/last.ckpt")["global_step"] == 6
    assert_goes_on(fit_there, disk, undisturbed, *seldom)


@pytest.mark.resume
def test_full_at_the_model(fit_there: Any, disk: Any, undisturbed: Any) -> None:
    broken = fit_there(BREAK="fill_at_save", DISK=disk.place)
    assert broken.code == 1
    assert "cannot be written (No space left on device) in the saving of the model: make room" in broken.said
    assert not fit_there.run.joinpath("model").exists()
    assert_goes_on(fit_there, disk, undisturbed)


@pytest.mark.resume
def test_full_at_the_data(fit: Any, disk: Any) -> None:
    disk.resize("8k")
    cache = disk.place / "cache"
    broken = fit("--data.cache", str(cache))
    assert broken.code == 1
    assert broken.said.startswith(f"ftlab: data.cache: prepared data cannot be kept in {cache / 'prepared'} (No space")
    assert not fit.run.exists()
    assert [path for path in cache.rglob("*") if path.suffix not in (".lock", "") and path.is_file()] == []
    disk.resize("8m")
    assert fit("--data.cache", str(cache)).code == 0


@pytest.mark.resume
def test_a_directory_that_is_read_only(fit_there: Any, disk: Any, undisturbed: Any) -> None:
    assert fit_there(AT=4, BREAK="allocate").code == 1
    before = {path: path.read_bytes() for path in fit_there.run.rglob("*") if path.is_file()}
    disk.read_only(True)
    broken = fit_there()
    assert broken.code == 1
    assert f"{fit_there.run}" in broken.said
    assert "cannot be written (Read-only file system) in the opening of data and network: make room" in broken.said
    assert {path: path.read_bytes() for path in fit_there.run.rglob("*") if path.is_file()} == before
    new = fit_there("--run.name", "new")
    assert (new.code, "Read-only file system" in new.said) == (1, True)
    disk.read_only(False)
    assert_goes_on(fit_there, disk, undisturbed)
    assert not Path(disk.place / "runs/tiny/new").exists()
