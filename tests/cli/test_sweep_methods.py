"""Sweeps of real trainings by method bayes, with a budget that is changed, and with Hyperband."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.resume
CONTENT = {
    "metric": {"name": "val_loss", "goal": "minimize"},
    "command": ["${env}", "${interpreter}", "-m", "ftlab", "fit", "-c", "tiny.yaml", "${args}"],
}


def write_sweep(**content: Any) -> str:
    Path("sweep.yaml").write_text(yaml.safe_dump(CONTENT | content))
    return "sweep.yaml"


def test_bayes_of_which_one_more_is_wanted(workplace: Path, ftlab: Callable[..., Any]) -> None:
    rates = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    write_sweep(
        method="bayes",
        parameters={
            "model.optimizer.lr": rates,
            "model.method.r": {"values": [2, 4]},
            "trainer.max_steps": {"value": 2},
        },
    )
    first = ftlab("sweep", "run", "sweep.yaml", "--max-trials", "1")
    assert (first.code, "1 finished of 1" in first.out) == (0, True), first.err
    more = ftlab("sweep", "resume", "runs/sweep", "--max-trials", "2")
    assert (more.code, "2 finished of 2" in more.out) == (0, True), more.err
    runs = [path.parent for path in Path("runs/sweep").glob("*/scores.json")]
    losses = {run.name: json.loads((run / "scores.json").read_text())["val_loss"] for run in runs}
    best = json.loads(ftlab("sweep", "status", "runs/sweep", "--json").out)["best"]
    assert (best["run"], best["value"]) == (min(losses, key=losses.__getitem__), min(losses.values()))
    config = yaml.safe_load((Path("runs/sweep") / best["run"] / "config.yaml").read_text())
    rate, rank = best["parameters"]["model.optimizer.lr"], best["parameters"]["model.method.r"]
    assert 1e-4 <= rate <= 1e-1
    assert config["model"]["optimizer"]["init_args"]["lr"] == rate
    assert config["model"]["method"]["init_args"]["r"] == rank


def test_hyperband_stops_the_worse_with_a_checkpoint(workplace: Path, ftlab: Callable[..., Any]) -> None:
    """The worse would train for so long that it is stopped on any machine."""
    for name, rate, steps in (("good", 3e-2, 4), ("bad", 1e-7, 20_000)):
        content = {"model": {"optimizer": {"init_args": {"lr": rate}}}, "trainer": {"max_steps": steps}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    write_sweep(
        method="grid",
        parameters={"config": {"values": ["good.yaml", "bad.yaml"]}},
        early_terminate={"type": "hyperband", "min_iter": 2},
    )
    answer = ftlab("sweep", "run", "sweep.yaml")
    assert answer.code == 0, answer.err
    assert "1 finished, 1 pruned of 2" in answer.out
    told = json.loads(ftlab("sweep", "status", "runs/sweep", "--json").out)
    assert told["best"]["parameters"] == {"config": "good.yaml"}
    [run] = [
        path.parent for path in Path("runs/sweep").glob("*/provenance.json") if path.parent.name != told["best"]["run"]
    ]
    assert json.loads((run / "provenance.json").read_text())["state"] == "preempted"
    [*_, checkpoint] = sorted((run / "checkpoints").glob("last-*.ckpt"))
    assert 4 <= int(checkpoint.name.split("-")[1]) < 20_000  # the second validation is after four steps
    again = ftlab("sweep", "run", "sweep.yaml")
    assert (again.code, "1 finished, 1 pruned of 2" in again.out) == (0, True)
