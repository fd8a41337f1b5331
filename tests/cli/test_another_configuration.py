"""A run directory that is given another configuration: longer, forced, or refused with nothing changed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.cli.experiment import Experiment

Finished = Callable[[str], Path]
Command = Callable[..., Any]


def of(run: Path) -> list[object]:
    return ["fit", "-c", "tiny.yaml", "--run.name", run.name]


def steps(run: Path) -> list[str]:
    """The first column of the curves."""
    return [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "provenance.json").read_text())


def test_a_finished_run_is_trained_on(finished: Finished, ftlab: Command) -> None:
    run = finished("lora")
    answer = ftlab(*of(run), "--trainer.max_steps", 6)
    assert answer.code == 0, answer.err
    assert steps(run) == ["1", "2", "3", "4", "5", "6"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert record(run)["changes"] == [{"trainer.max_steps": {"before": 4, "now": 6}}]
    assert record(run)["state"] == "finished"
    assert "has finished" in ftlab("fit", "-c", run / "config.yaml").err


def test_an_earlier_end_is_another_run(finished: Finished, refused: Callable[..., str]) -> None:
    run = finished("lora")
    assert refused(*of(run), "--trainer.max_steps", 3) == (
        f"{run} holds another run: there trainer.max_steps is 4, here 3; choose another --run.name, or have it go on "
        "as this one (--run.resume force)"
    )


def test_forced_a_run_goes_on_as_another(finished: Finished, ftlab: Command) -> None:
    run = finished("lora")
    other = ["--data.batch_size", 2, "--trainer.max_steps", 8, "--model.optimizer.lr", 0.02, "--run.resume", "force"]
    answer = ftlab(*of(run), *other)
    assert answer.code == 0, answer.err
    assert steps(run) == [str(step) for step in range(1, 9)]
    assert record(run)["state"] == "finished"
    assert record(run)["changes"][0]["data.batch_size"] == {"before": 4, "now": 2}
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 2
    assert "has finished" in ftlab("fit", "-c", run / "config.yaml").err


def test_what_cannot_be_forced_leaves_the_run_as_it_was(finished: Finished, ftlab: Command) -> None:
    run = finished("lora")
    before = (run / "config.yaml").read_text()
    other = ["--model.method.r", 2, "--trainer.max_steps", 8, "--run.resume", "force"]
    answer = ftlab(*of(run), *other)
    assert answer.code == 1
    assert "in shape" in answer.err
    assert (run / "config.yaml").read_text() == before
    assert record(run)["state"] == "finished"
    assert ftlab(*of(run)).code == 0


@pytest.mark.resume
def test_forced_a_run_goes_on_over_two_processes(finished: Finished) -> None:
    run = finished("lora")
    other = ["--trainer.devices", 2, "--data.batch_size", 3, "--trainer.max_steps", 8, "--run.resume", "force"]
    command = [sys.executable, "-m", "ftlab", *of(run), *other]  # Lightning starts the other process by the same
    subprocess.run([str(word) for word in command], check=True, timeout=300)
    assert steps(run) == [str(step) for step in range(1, 9)]


@pytest.mark.parametrize("seed", ["order", "weights", "dropout"])
def test_seeds_go_where_they_belong(seed: str, workplace: Path, refused: Callable[..., str]) -> None:
    plain = Experiment(["-c", "tiny.yaml", "--seed_everything", "3"])
    assert (plain.datamodule.seed, plain.model.seed, plain.model.dropout_seed) == (3, 3, 3)
    own = Experiment(["-c", "tiny.yaml", "--seed_everything", "3", f"--seeds.{seed}", "7"])
    seeds = {"order": own.datamodule.seed, "weights": own.model.seed, "dropout": own.model.dropout_seed}
    assert seeds == dict.fromkeys(seeds, 3) | {seed: 7}
    assert f"seeds.{seed} is -1" in refused("fit", "-c", "tiny.yaml", f"--seeds.{seed}", "-1")
