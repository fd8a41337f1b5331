"""Data workers and ranks that are killed: nobody hangs, and the same command goes on to the bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest


def children(pid: int) -> list[int]:
    """Processes that a process has started, the first one first."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.resume
def test_a_data_worker(fit: Any, wait_for: Any, ended: Any, undisturbed: Any) -> None:
    process = fit.begin("--data.workers", "2", PAUSE=1)
    wait_for(lambda: (fit.run / "checkpoints/last.ckpt").is_file(), process)
    worker = children(process.pid)[0]
    os.kill(worker, signal.SIGKILL)
    broken = ended(process)
    assert (broken.code, fit.state) == (1, "failed")
    assert broken.said.startswith(
        f"ftlab: data.workers: process {worker} of those that put batches together was killed"
    )
    assert "the last checkpoint stands, and the same command goes on from it" in broken.said
    assert fit("--data.workers", "2").code == 0
    assert fit.results == undisturbed()


TWO = ["--trainer.devices", "2", "--data.batch_size", "2"]


@pytest.mark.resume
@pytest.mark.parametrize("pause", [1, 300], ids=["waiting for each other", "busy"])
@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_rank(victim: str, pause: int, fit: Any, wait_for: Any, ended: Any, undisturbed: Any) -> None:
    """Of two that wait for each other, or are busy for minutes: then nothing but a watch tells that one is gone."""
    if pause == 300:
        assert fit(*TWO, AT=4, BREAK="allocate").code == 1  # in both
    process = fit.begin(*TWO, PAUSE=pause)
    if pause == 300:
        wait_for(lambda: fit.state == "running", process)
        time.sleep(3)
    else:
        wait_for(lambda: (fit.run / "checkpoints/last.ckpt").is_file(), process)
    wait_for(lambda: children(process.pid), process)
    second = children(process.pid)[0]
    os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
    killed = time.monotonic()
    broken = ended(process)
    while not (gone(process.pid) and gone(second)):
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    assert broken.code == (1 if victim == "second" else -signal.SIGKILL)
    assert "of this run has ended" in broken.said
    assert "the same command" in broken.said or "goes on from" in broken.said
    assert fit.state == ("failed" if victim == "second" else "running")
    assert fit(*TWO).code == 0
    assert fit.results == undisturbed(*TWO)
