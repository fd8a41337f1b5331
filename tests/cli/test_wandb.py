"""Weights & Biases beside a run: what is logged offline, read back from its file; online, to a server that is here."""

import contextlib
import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_file
import yaml
from wandb_file import logged
from wandb_stub import ENTITY, PROJECT, WandbStub, wandb_server

TOP = Path(__file__).parents[2]


def curve(run: str) -> dict[int, float]:
    """The training loss in metrics.csv, by step."""
    with (Path(run) / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]}


def test_offline_with_a_hint_where_nobody_is_logged_in(
    workplace: Path, ftlab: Callable[..., Any], nobody_logged_in: None
) -> None:
    words = ["--wandb.tags", "[small]", "--wandb.notes", "a try", "--wandb.job_type", "test", "--wandb.samples", 2]
    answer = ftlab("fit", "-c", "tiny.yaml", "--run.name", "logged", "--wandb.log_model", "all", *words)
    assert answer.code == 0
    hint, first_step, done, score = answer.err.splitlines()
    assert first_step.startswith("ftlab: the first step had ended after ")
    assert "W&B logs offline into runs/tiny/logged/wandb" in hint
    assert "--wandb.mode disabled" in hint
    assert done.startswith("ftlab: runs/tiny/logged: ")
    assert score == "ftlab: score it with ftlab test -c runs/tiny/logged/config.yaml"
    [file] = logged("runs/tiny/logged")
    [run] = wandb_file.of_kind(file, "run")
    assert (run.display_name, run.run_group, run.job_type) == ("tiny/logged", "tiny", "test")
    assert (list(run.tags), run.notes) == (["small"], "a try")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    written = yaml.safe_load(Path("runs/tiny/logged/config.yaml").read_text())
    assert config["model"] == written["model"]
    assert config["trainer"]["max_steps"] == 4

    rows = wandb_file.rows(file)
    losses = {row["trainer/global_step"]: row["train_loss"] for row in rows if "train_loss" in row}
    assert losses == pytest.approx(curve("runs/tiny/logged"))
    axes = {(metric.name or metric.glob_name): metric.step_metric for metric in wandb_file.of_kind(file, "metric")}
    assert axes == {"trainer/global_step": "", "*": "trainer/global_step"}
    assert wandb_file.of_kind(file, "stats")  # of the machine

    tables = [row for row in rows if "answers.path" in row]
    assert [row["trainer/global_step"] for row in tables] == [2, 4]  # after each validation
    table = json.loads((file.parent / "files" / tables[-1]["answers.path"]).read_text())
    assert table["columns"] == ["prompt", "reference", "prediction"]
    assert [row[0] for row in table["data"]] == ["Zeno dev 0", "asks dev 1"]

    artifacts = [each for each in wandb_file.of_kind(file, "artifact") if each.type != "run_table"]
    told = [(each.type, each.name, each.use_after_commit) for each in artifacts]
    network, data = (each.name for each in artifacts[:2])
    assert told == [
        ("network", network, True),
        ("data", data, True),
        ("model", "tiny-logged-model", False),
        ("checkpoint", "tiny-logged-checkpoint", False),
    ]
    assert {entry.path for entry in artifacts[2].manifest.contents} >= {"adapter_model.safetensors", "tokenizer.json"}
    metadata = json.loads(artifacts[2].metadata)
    assert metadata["code"] == json.loads(Path("runs/tiny/logged/provenance.json").read_text())["code"]
    assert metadata["scores"]["val_loss"] == pytest.approx(written_scores("logged")["val_loss"])


def written_scores(run: str) -> dict[str, float]:
    return json.loads((Path("runs/tiny") / run / "scores.json").read_text())


def test_scores_and_answers_go_to_the_run_that_was_trained(
    workplace: Path, ftlab: Callable[..., Any], nobody_logged_in: None
) -> None:
    assert ftlab("fit", "-c", "tiny.yaml", "--run.name", "scored").code == 0
    assert ftlab("test", "-c", "runs/tiny/scored/config.yaml", "--wandb.log_predictions", "true").code == 0
    first, second = logged("runs/tiny/scored", exits=2)
    [before], [after] = (wandb_file.of_kind(file, "run") for file in (first, second))
    assert before.run_id == after.run_id == json.loads(Path("runs/tiny/scored/provenance.json").read_text())["wandb_id"]
    told = {}
    for summary in wandb_file.of_kind(second, "summary"):
        told |= wandb_file.values(summary.update)
    scores = written_scores("scored")
    assert {name: told[name] for name in scores} == pytest.approx(scores)
    assert "test_rougeL" in scores
    assert wandb_file.rows(second) == []  # no part of the curves
    [*_, answers] = wandb_file.of_kind(second, "artifact")
    assert (answers.type, [entry.path for entry in answers.manifest.contents]) == ("predictions", ["test.jsonl"])


def test_a_run_that_goes_on_goes_on_with_its_curve(
    workplace: Path, ftlab: Callable[..., Any], nobody_logged_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", "-c", "tiny.yaml", "--run.name", "stopped", "--run.checkpoints.every_n_steps", 1]
    with monkeypatch.context() as patch:
        patch.setattr("ftlab.callbacks.Throughput.on_train_batch_end", stop_at(2))
        assert ftlab(*command).code != 0
    assert ftlab(*command).code == 0
    files = logged("runs/tiny/stopped")
    assert len({run.run_id for file in files for run in wandb_file.of_kind(file, "run")}) == 1
    rows = [row for file in files for row in wandb_file.rows(file)]
    losses = {row["trainer/global_step"]: row["train_loss"] for row in rows if "train_loss" in row}
    assert list(losses) == [1, 2, 3, 4]
    assert losses == pytest.approx(curve("runs/tiny/stopped"))


def stop_at(step: int) -> Callable[..., None]:
    def stop(callback: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            raise KeyboardInterrupt

    return stop


@pytest.mark.resume
def test_online_its_curves_reach_the_server(workplace: Path) -> None:
    stub = WandbStub([])
    with wandb_server(stub) as address:
        environment = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(TOP)}
        for name in ("WANDB_MODE", "WANDB_SERVICE"):  # the latter is of tests that ran before, in this process
            environment.pop(name, None)
        options = ["--run.name", "online", "--wandb.entity", ENTITY, "--wandb.project", PROJECT, "--wandb.tags", "[a]"]
        command = [sys.executable, "-m", "ftlab", "fit", "-c", "tiny.yaml", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = stub.runs[0]
    assert (first["project"], first["entity"], first["groupName"]) == (PROJECT, ENTITY, "tiny")
    assert (first["displayName"], first["tags"]) == ("tiny/online", ["a"])
    losses = {row["trainer/global_step"]: row["train_loss"] for row in stub.history if "train_loss" in row}
    assert losses == pytest.approx(curve("runs/tiny/online"))


def test_disabled_it_leaves_no_trace(
    workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    answer = ftlab("fit", "-c", "tiny.yaml", "--run.name", "quiet", "--wandb.mode", "disabled")
    assert answer.code == 0
    assert "W&B" not in answer.err
    assert not Path("runs/tiny/quiet/wandb").exists()


def test_another_logger_by_its_name(workplace: Path, ftlab: Callable[..., Any]) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "own", "name": "n"}}
    Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    assert ftlab("fit", "-c", "logger.yaml", "-c", "tiny.yaml", "--run.name", "other").code == 0
    with Path("own/n/version_0/metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]}
    assert losses == pytest.approx(curve("runs/tiny/other"))


def test_curves_in_tensorboard(workplace: Path, ftlab: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "boards"}}
    Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    assert ftlab("fit", "-c", "logger.yaml", "-c", "tiny.yaml", "--run.name", "board").code == 0
    [events] = Path("boards").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    losses = {event.step: event.value for event in found.Scalars("train_loss")}
    assert losses == pytest.approx(curve("runs/tiny/board"))
    assert {"val_loss", "lr", "grad_norm"} <= set(found.Tags()["scalars"])


def test_curves_in_trackio(workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(workplace / "tracks"))
    logger = {"class_path": "ftlab.callbacks.TrackioLogger", "init_args": {"project": "p", "name": "n"}}
    Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    answer = ftlab("fit", "-c", "logger.yaml", "-c", "tiny.yaml", "--run.name", "tracked")
    assert answer.code == 0
    assert answer.out == "runs/tiny/tracked\n"
    with contextlib.closing(sqlite3.connect(workplace / "tracks" / "p.db")) as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'n'").fetchall()
    points = [(step, json.loads(metrics)) for step, metrics in rows]
    losses = {step: metrics["train_loss"] for step, metrics in points if "train_loss" in metrics}
    assert losses == pytest.approx(curve("runs/tiny/tracked"))
    assert any("val_loss" in metrics for _, metrics in points)


def test_bad_input(workplace: Path, refused: Callable[..., str]) -> None:
    assert "wandb.samples is -1: give a number of prompts, from 0 on" in refused(
        "fit", "-c", "tiny.yaml", "--wandb.samples", "-1"
    )
