"""Real processes that are told to stop, or are killed: what they leave, how they exit, what the same command does."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Forked
from tiny_experiment import results

STEPS = 60
RUN = Path("runs/tiny/stopped")


def begin(*options: str) -> Forked:
    """A run of which each step takes a few milliseconds and is saved."""
    said = {
        "--run.name": RUN.name,
        "--trainer.max_steps": str(STEPS),
        "--trainer.val_check_interval": "7",
        "--run.checkpoints.every_n_steps": "1",
        "--model.method.dropout": "0.2",
    }
    return Forked(["fit", "-c", "tiny.yaml", *(word for pair in said.items() for word in pair), *options])


def when_trained(process: Forked, step: int) -> None:
    """Waits until a checkpoint of `step` or later is there."""
    while not any(int(path.name.split("-")[1]) >= step for path in RUN.glob("checkpoints/last-*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def ended(process: Forked) -> tuple[int, str]:
    """The exit code and the last line that was said."""
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, (err.splitlines() or [""])[-1]


@pytest.fixture
def undisturbed(workplace: Path) -> Callable[[], dict]:
    """The results of a run that nothing stops."""

    def make() -> dict:
        code, said = ended(begin("--run.name", "whole"))
        assert code == 0, said
        return results(RUN.with_name("whole"))

    return make


def test_sigterm_saves_and_asks_to_be_started_again(undisturbed: Callable[[], dict]) -> None:
    process = begin()
    when_trained(process, 5)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    last = (RUN / "checkpoints/last.ckpt").resolve()
    step = torch.load(last)["global_step"]
    assert 5 <= step < STEPS
    assert (code, said) == (75, f"ftlab: stopped by SIGTERM at step {step}: the same command goes on from {last}")
    assert json.loads((RUN / "provenance.json").read_text())["state"] == "preempted"
    assert ended(begin())[0] == 0
    assert results(RUN) == undisturbed()


@pytest.mark.resume
def test_killed_at_random_moments(undisturbed: Callable[[], dict]) -> None:
    """Three times, each a little later than a checkpoint that is new, until training has come to its end."""
    dice = random.Random(0)
    for kill in range(3):
        process = begin()
        when_trained(process, 16 * kill + 1)
        time.sleep(dice.uniform(0, 0.2))
        process.kill()
        process.communicate()
    assert ended(begin())[0] == 0
    assert results(RUN) == undisturbed()


@pytest.mark.resume
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_before_training_leaves_nothing(number: signal.Signals, expected: int, workplace: Path) -> None:
    process = begin()
    while not (RUN / "config.yaml").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    code, said = ended(process)
    assert code == expected, said
    assert said == f"ftlab: stopped by {number.name} before training began: the same command starts it"
    assert not Path("runs").exists()


@pytest.fixture
def endless(workplace: Path) -> list[str]:
    """A method whose optimiser steps take minutes."""
    code = """import time; from ftlab.methods import LoRA
class Endless(LoRA):
    def penalty(self, network): time.sleep(300)
"""
    (workplace / "slow.py").write_text(code)
    return ["--model.method", "slow.Endless"]


def when_training(process: Forked) -> None:
    """Waits until the network is open and batches are trained on: some seconds after the run says that it began."""
    while not ((RUN / "provenance.json").is_file() and "frozen_base" in (RUN / "provenance.json").read_text()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(1)


@pytest.mark.resume
def test_a_second_interrupt_stops_at_once(endless: list[str]) -> None:
    process = begin(*endless)
    when_training(process)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = "ftlab: stopped: there is no checkpoint yet: the same command starts anew"
    assert ended(process) == (130, said)
    assert not RUN.exists()


@pytest.mark.resume
def test_too_short_a_grace_is_said(endless: list[str]) -> None:
    process = begin(*endless, "--run.grace_seconds", "3")
    when_training(process)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 75
    assert "no optimiser step ended within 3 s: nothing was saved" in said


@pytest.mark.resume
def test_two_processes_stop_together_where_one_is_told(workplace: Path) -> None:
    two = ["--trainer.devices", "2", "--data.batch_size", "2"]
    process = begin(*two)
    when_trained(process, 5)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 75, said
    assert "stopped by SIGTERM at step" in said  # the last line: the other process has nothing to add
    for name in (RUN.name, "whole"):
        code, said = ended(begin(*two, "--run.name", name))
        assert code == 0, said
    assert results(RUN) == results(RUN.with_name("whole"))


@pytest.mark.resume
def test_a_damaged_checkpoint_is_passed_over(undisturbed: Callable[[], dict]) -> None:
    process = begin()
    when_trained(process, 5)
    process.kill()
    process.communicate()
    last = (RUN / "checkpoints/last.ckpt").resolve()
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    process = begin()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert f"ftlab: {last} is damaged, and the one before is taken" in err
    assert results(RUN) == undisturbed()
