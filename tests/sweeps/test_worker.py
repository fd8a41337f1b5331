"""Workers as real processes, on trials of milliseconds: what they leave, also where they are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState

from ftlab.errors import Preempted, UserError
from ftlab.sweeps import Study, SweepDirectory, local, status, work
from ftlab.sweeps.ledger import SAID
from ftlab.sweeps.worker import command

SLOW = {"steps": {"value": 20}, "seconds": {"value": 0.1}}


def starts(directory: SweepDirectory) -> dict[str, int]:
    """How often each run was started."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in directory.path.glob("*/starts")}


def begin(directory: SweepDirectory) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(directory.path), stderr=subprocess.DEVNULL)


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_trials_are_run_and_told(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep()
    work(directory)
    now = status(Study(directory))
    assert now.states["finished"] == now.trials == 4
    assert now.best is not None
    assert (now.best["value"], now.best["parameters"]) == (0.25, {"x": 0.5})
    assert set(starts(directory).values()) == {1}
    assert not list(directory.leases.glob("[!.]*"))
    work(directory)
    assert set(starts(directory).values()) == {1}


def test_validations_are_told_as_they_come(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"value": 2.0}})
    work(directory)
    [trial] = Study(directory).trials()
    assert trial.intermediate_values == pytest.approx({1: 4 + 2 / 3, 2: 4 + 1 / 6, 3: 4.0})


def test_a_failed_trial_keeps_its_last_line(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"values": [1.0, 3.0]}, "fails_above": {"value": 2}})
    work(directory)
    now = status(Study(directory))
    assert (now.states["finished"], now.states["failed"]) == (1, 1)
    assert now.failed[0]["error"] == "x is 3.0: that is too much"
    assert "a line before" in directory.log(now.failed[0]["run"]).read_text()


def test_a_trial_that_logs_no_metric_has_failed(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(metric={"name": "val_bleu"}, parameters={"x": {"value": 1.0}})
    work(directory)
    assert status(Study(directory)).failed[0]["error"] == "it came to its end and has logged no val_bleu"


def test_the_worse_are_pruned_at_a_validation(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(
        parameters={"x": {"values": [1.0, 0.5, 3.0]}, "steps": {"value": 12}, "seconds": {"value": 0.1}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )
    work(directory)
    trials = Study(directory).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    assert 2 <= len(trials[2].intermediate_values) < 12


@pytest.mark.resume
def test_a_stopped_worker_saves_its_trial_and_another_goes_on(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"value": 1.0}, **SLOW})
    process = begin(directory)
    until(lambda: list(directory.path.glob("*/metrics.csv")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == Preempted.EXIT_CODE
    [curve] = directory.path.glob("*/metrics.csv")
    steps = len(curve.read_text().splitlines()) - 1
    assert 1 <= steps < 20
    assert status(Study(directory)).states["waiting"] == 1
    work(directory)
    assert len(curve.read_text().splitlines()) == 21
    assert status(Study(directory)).states["finished"] == 1
    assert list(starts(directory).values()) == [2]


@pytest.mark.resume
def test_stop_reaches_all_workers(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"values": [1.0, 2.0, 3.0]}, **SLOW})
    processes = [begin(directory) for _ in range(2)]
    until(lambda: len(list(directory.path.glob("*/metrics.csv"))) == 2)
    directory.stop()
    assert [process.wait(30) for process in processes] == [0, 0]
    assert status(Study(directory)).states["waiting"] == 2


def test_the_trial_of_a_killed_worker_is_taken_up_by_another(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"value": 1.0}, **SLOW})
    process = begin(directory)
    until(lambda: list(directory.path.glob("*/metrics.csv")))
    process.kill()
    process.wait()
    work(directory)
    [trial] = Study(directory).trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 1.0)
    assert len(trial.intermediate_values) == 20
    assert list(starts(directory).values()) == [2]


@pytest.mark.resume
def test_eight_workers_of_which_half_are_killed_lose_nothing(make_sweep: Callable[..., SweepDirectory]) -> None:
    """Killed at random, and replaced, until four have been; what a worker has said to be told is there at the end."""
    x = [round(-4 + 0.2 * n, 1) for n in range(40)]
    parameters = {"x": {"values": x}, "steps": {"value": 4}, "seconds": {"value": 0.1}}
    directory = make_sweep(parameters=parameters)
    logs = [directory.path.parent / f"said-{n}" for n in range(12)]

    def start(n: int) -> subprocess.Popen[bytes]:
        with logs[n].open("wb") as log:
            return subprocess.Popen(command(directory.path), stderr=log)

    processes = [start(n) for n in range(8)]
    dice = random.Random(0)
    for kill in range(4):
        until(lambda kill=kill: len(list(directory.path.glob("*/scores.json"))) > 4 * kill)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.5))
        processes[kill].kill()
        processes[kill].wait()
    assert [process.wait(120) for process in processes[4:]] == [0] * 4
    trials = Study(directory).trials()
    assert [trial.user_attrs[SAID]["parameters"]["x"] for trial in trials] == x
    assert [trial.value for trial in trials] == pytest.approx([value**2 for value in x])
    assert all(len(trial.intermediate_values) == 4 for trial in trials)
    told = [line.split()[1] for log in logs[:8] for line in log.read_text().splitlines() if " finished: " in line]
    assert len(told) == len(set(told))
    assert set(told) <= {trial.user_attrs[SAID]["run"] for trial in trials}
    assert sum(starts(directory).values()) <= 40 + 4  # each kill costs one start, and no more


def test_a_full_disk_is_one_sentence(
    make_sweep: Callable[..., SweepDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_sweep()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(directory.journal))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as refusal:
        work(directory)
    assert str(refusal.value) == (
        f"{directory.journal} cannot be written or read (No space left on device): make room there, or mend it, and "
        "give the command again"
    )


@pytest.mark.resume
def test_workers_end_with_their_launcher(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"values": [1.0, 2.0]}, **SLOW, "seconds": {"value": 1.0}})
    code = f"""from pathlib import Path
from ftlab.sweeps import SweepDirectory, local
local(SweepDirectory(Path({str(directory.path)!r})), 2, list)"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: len(list(directory.path.glob("*/metrics.csv"))) == 2)
    launcher.kill()
    launcher.wait()
    until(lambda: status(Study(directory)).states["waiting"] == 2)
    assert not list(directory.leases.glob("[!.]*"))


def test_the_local_launcher_runs_all(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep()
    seen: list[int] = []
    local(directory, 2, lambda: seen.append(status(Study(directory)).ended))
    assert seen[-1] == 4


@pytest.mark.parametrize(
    ("gpus", "devices", "each"),
    [
        ("4,5", 1, ["4", "5", "4"]),
        ("4,5", 2, ["4,5"] * 3),
        ("4,5", 3, ["4,5"] * 3),  # too many: the trial says so itself
        ("0,1,2,3", 2, ["0,1", "2,3", "0,1"]),
        ("0,1,2", 2, ["0,1", "2,0", "1,2"]),
        ("7", 1, ["7"] * 3),
        ("", 1, [""] * 3),
    ],
)
def test_a_worker_has_as_many_gpus_as_a_trial_takes(
    gpus: str, devices: int, each: list[str], make_sweep: Callable[..., SweepDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_sweep(devices=devices)
    tell = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(sys.modules[local.__module__], "command", lambda _: [sys.executable, "-S", "-c", tell])
    monkeypatch.setattr(sys.modules[local.__module__], "_LOOK", 0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    local(directory, 3, lambda: None)
    logs = [directory.path / "logs" / f"worker-{number}.log" for number in range(3)]
    assert [log.read_text().strip() for log in logs] == each


def test_a_command_is_given_its_run(make_sweep: Callable[..., SweepDirectory]) -> None:
    directory = make_sweep(parameters={"x": {"value": 0.1}})
    words = directory.command({"x": 1e-05, "flag": True, "list": ["a", 1]}, "abc")
    assert words[2:] == [
        *("--x=1e-05", "--flag=true", '--list=["a", 1]'),
        *(f"--run.root={directory.path.parent}", "--run.experiment=square", "--run.name=abc"),
    ]
    assert json.loads((directory.path / "plan.json").read_text())["devices"] == 1
