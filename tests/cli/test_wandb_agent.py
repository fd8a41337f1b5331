"""A sweep file of ours handed to `wandb sweep` and `wandb agent`, the real ones, with a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_stub import ENTITY, PROJECT, SWEEP, WandbStub, wandb_server


@pytest.mark.slow
def test_an_agent_runs_a_trial(workplace: Path) -> None:
    content = {
        "method": "grid",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": {"model.optimizer.lr": {"values": [0.02]}, "model.method.r": {"value": 2}},
        "command": ["${env}", "${interpreter}", "-m", "ftlab", "fit", "-c", "tiny.yaml", "${args}"],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(content))
    stub = WandbStub([{"model.optimizer.lr": 0.02, "model.method.r": 2, "trainer.max_steps": 2}])
    with wandb_server(stub) as address:
        environment = os.environ | {
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "offline",  # of the trial: what it logs goes nowhere
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

        environment.pop("WANDB_SILENT", None)  # which ftlab sets in the process of whatever test ran before

        def wandb(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "wandb", *words], env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        said = wandb("sweep", "--entity", ENTITY, "--project", PROJECT, "sweep.yaml")
        assert f"wandb agent {ENTITY}/{PROJECT}/{SWEEP}" in said
        said = wandb("agent", f"{ENTITY}/{PROJECT}/{SWEEP}")
    assert yaml.safe_load(stub.config) == content
    assert {"UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(stub.asked)
    options = "--model.optimizer.lr=0.02 --model.method.r=2 --trainer.max_steps=2"
    assert f"/usr/bin/env python -m ftlab fit -c tiny.yaml {options}" in said
    [run] = Path("runs/tiny").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.02
    assert config["model"]["method"]["init_args"]["r"] == 2
    told = json.loads((run / "provenance.json").read_text())
    assert (told["state"], told["wandb_id"]) == ("finished", stub.started[0])
    assert list((run / "wandb").glob(f"offline-run-*-{stub.started[0]}/*.wandb"))
