"""Data workers and ranks that are killed: nobody hangs, and the same command goes on to the bit."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
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
    said = rf"ftlab: data\.workers: (process {worker}|one) of those that put batches together was killed"
    assert re.match(said, broken.said), broken.said
    assert "the same command goes on from " in broken.said
    assert fit("--data.workers", "2").code == 0
    assert fit.results == undisturbed()


BUSY = [Path("busy-0"), Path("busy-1")]  # each there once its process is training
TWO = ["--trainer.devices", "2", "--data.batch_size", "2"]


@pytest.mark.parametrize(
    ("victim", "pause"),
    [
        pytest.param("first", 1, marks=pytest.mark.slow, id="first, waiting for the other"),
        pytest.param("first", 300, marks=pytest.mark.resume, id="first, busy"),
        pytest.param("second", 1, marks=pytest.mark.resume, id="second, waiting for the other"),
        pytest.param("second", 300, marks=pytest.mark.slow, id="second, busy"),
    ],
)
def test_a_rank(victim: str, pause: int, fit: Any, wait_for: Any, ended: Any, undisturbed: Any) -> None:
    """Of two that wait for each other, or are busy for minutes: then nothing but a watch tells that one is gone."""
    if pause == 300:
        assert fit(*TWO, AT=4, BREAK="allocate").code == 1  # in both
        for file in BUSY:
            file.unlink()
    process = fit.begin(*TWO, PAUSE=pause)
    for file in BUSY:
        wait_for(file.exists, process)
    if pause == 1:
        wait_for((fit.run / "checkpoints/last.ckpt").is_file, process)
    second = children(process.pid)[0]
    os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
    killed = time.monotonic()
    broken = ended(process)
    while not (gone(process.pid) and gone(second)):
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    assert broken.code == (1 if victim == "second" else -signal.SIGKILL)
    assert "of this run has ended" in broken.said
    assert "the same command goes on from " in broken.said
    assert fit.state == ("failed" if victim == "second" else "running")
    assert fit(*TWO).code == 0
    assert fit.results == undisturbed(*TWO)


@pytest.mark.resume
def test_two_leave_out_the_steps_that_one_leaves_out(fit: Any, make_data: Any) -> None:
    """The record that spoils a step is on one device; both know of it, and none waits for the other."""
    rows = make_data(template="auto").rows("train")
    holders = Counter(token for row in rows for token in set(row.input_ids.tolist()))
    row, token = next((row, token) for row in rows for token in row.input_ids.tolist() if holders[token] == 1)
    found = []
    for name, options in {"one": [], "two": TWO}.items():
        fit.run = fit.run.with_name(name)
        done = fit("--model.skip_nonfinite", "3", *options, POISON=token)
        assert done.code == 0, done.err
        found.append([json.loads(line) for line in (fit.run / "nonfinite.jsonl").read_text().splitlines()])
    one, two = found
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert len(one) == 3
    for whole, part in zip(one, two, strict=True):
        assert row.source in part["records"]
        assert set(part["records"]) < set(whole["records"])  # of one device's micro-batch
    assert fit("--run.name", "refused", "--model.skip_nonfinite", "2", *TWO, POISON=token).code == 1
