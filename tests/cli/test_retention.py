"""Retention sets on the command line: measured before and after, kept, added later, refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.modules import retention
from ftlab.networks import Network
from ftlab.runs import Run

KNOWN = ["Mara has twenty golden lamps", "Olga came to see Viktor at the old mill", "It was a cold day"]
RUN = ("-c", "tiny.yaml", "--run.name", "run")


@pytest.fixture
def known(workplace: Path, write_lines: Callable[..., Path]) -> tuple[str, str]:
    """Options that name a text and a task."""
    write_lines(Path("known.jsonl"), [{"text": text} for text in KNOWN])
    write_lines(Path("task.jsonl"), [{"prompt": f"Who is {n}?", "completion": f"It is {n}."} for n in range(3)])
    sets = [{"name": "known", "path": "known.jsonl"}, {"name": "task", "path": "task.jsonl", "score": True}]
    Path("known.yaml").write_text(yaml.safe_dump({"data": {"retention+": sets}}))
    return "-c", "known.yaml"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The sets on which a base is measured, each time that one is opened for it."""
    times: list[list[str]] = []
    measure_base = retention.measure_base

    def counted(trainer: Any, module: Any, data: Any) -> Any:
        times.append(data.names)
        return measure_base(trainer, module, data)

    monkeypatch.setattr("ftlab.cli.retention.measure_base", counted)
    return times


def scores() -> dict[str, float]:
    return json.loads(Path("runs/tiny/run/scores.json").read_text())


def of(name: str) -> dict[str, float]:
    return {key: value for key, value in scores().items() if key.startswith(f"retention_{name}_")}


def test_fit_measures_before_and_after(ftlab: Callable[..., Any], known: Any, opened: list[Any]) -> None:
    answer = ftlab("fit", *known, *RUN)
    assert answer.code == 0, answer.err
    assert opened == [["known", "task"]]
    found = of("known")
    assert found["retention_known_loss_change"] == pytest.approx(
        found["retention_known_loss_after"] - found["retention_known_loss_before"]
    )
    assert found["retention_known_loss_change"] != 0
    assert found["retention_known_loss_change_low"] <= found["retention_known_loss_change"]
    assert found["retention_known_loss_change"] <= found["retention_known_loss_change_high"]
    assert {"retention_task_rougeL_before", "retention_task_rougeL_after"} <= set(of("task"))
    run = Run(Path("runs/tiny/run"))
    rows = [json.loads(line) for line in run.retention("known").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in rows)
    assert sum(row["nats_after"] for row in rows) / tokens == pytest.approx(found["retention_known_loss_after"])
    assert sum(row["nats_before"] for row in rows) / tokens == pytest.approx(found["retention_known_loss_before"])
    assert "retention known: a loss of " in answer.err
    assert len(answer.err.split("retention known")[1].splitlines()[0]) < 120


def test_the_judged_weights_are_the_best_ones_and_test_gives_the_same(
    ftlab: Callable[..., Any], known: Any, opened: list[Any]
) -> None:
    best = ("--run.checkpoints.best_by", "val_loss", "--run.checkpoints.best_is", "highest")  # the first, as a rule
    assert ftlab("fit", *known, *RUN, *best).code == 0
    fitted = of("known")
    for verb in ("test", "validate"):
        answer = ftlab(verb, "-c", "runs/tiny/run/config.yaml")
        assert answer.code == 0, answer.err
        assert "retention_known_loss_change" in answer.out
        assert of("known") == pytest.approx(fitted, rel=1e-6)
    assert len(opened) == 1  # what the base came to is kept


def test_a_set_that_is_added_to_a_finished_run_is_measured_by_test_alone(
    ftlab: Callable[..., Any], known: Any, opened: list[Any]
) -> None:
    assert ftlab("fit", *RUN).code == 0
    assert not of("known")
    answer = ftlab("fit", *known, *RUN)  # it is the same run
    assert "has finished" in answer.err
    assert ftlab("test", "-c", "runs/tiny/run/config.yaml", *known).code == 0
    assert of("known")["retention_known_loss_change"] != 0
    assert opened == [["known", "task"]]
    assert len(list(Path("runs/tiny/run").glob("scores*.json"))) == 1


def test_the_base_is_not_measured_again_where_training_goes_on(
    ftlab: Callable[..., Any], known: Any, opened: list[Any]
) -> None:
    assert ftlab("fit", *known, *RUN, "--trainer.max_steps", "2").code == 0
    before = {file.name: file.read_bytes() for file in Path("runs/tiny/run/retention/base").iterdir()}
    assert len(before) == 2
    first = of("known")
    assert ftlab("fit", *known, *RUN, "--trainer.max_steps", "6").code == 0
    assert len(opened) == 1
    assert {file.name: file.read_bytes() for file in Path("runs/tiny/run/retention/base").iterdir()} == before
    assert of("known")["retention_known_loss_before"] == first["retention_known_loss_before"]
    assert of("known")["retention_known_loss_after"] != first["retention_known_loss_after"]


def test_another_text_under_the_same_name_is_measured_anew(
    ftlab: Callable[..., Any], known: Any, opened: list[Any], write_lines: Callable[..., Path]
) -> None:
    assert ftlab("fit", *known, *RUN).code == 0
    first = of("known")
    write_lines(Path("known.jsonl"), [{"text": text} for text in [*KNOWN, "Tomas met Ida by the lake"]])
    assert ftlab("test", "-c", "runs/tiny/run/config.yaml").code == 0
    assert opened == [["known", "task"], ["known"]]
    assert of("known")["retention_known_loss_before"] != first["retention_known_loss_before"]


def test_a_base_is_known_by_what_is_in_it(
    ftlab: Callable[..., Any], known: Any, opened: list[Any], network: Network
) -> None:
    shutil.copytree(network.path, "base")
    assert ftlab("fit", *known, *RUN, "--model.network.path", "base").code == 0
    first = of("known")["retention_known_loss_before"]
    assert ftlab("test", "-c", "runs/tiny/run/config.yaml").code == 0
    assert opened == [["known", "task"]]
    told = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(told | {"rms_norm_eps": 0.5}))
    answer = ftlab("test", "-c", "runs/tiny/run/config.yaml")
    assert opened == [["known", "task"]] * 2, answer.err
    assert of("known")["retention_known_loss_before"] != first


def test_zero_shot_forgets_nothing(ftlab: Callable[..., Any], known: Any) -> None:
    assert ftlab("fit", *known, *RUN, "--model.method", "ZeroShot").code == 0
    assert of("known")["retention_known_loss_change"] == 0
    assert of("task")["retention_task_rougeL_change"] == 0


def test_without_sets_nothing_is_opened_or_written(ftlab: Callable[..., Any], workplace: Path, opened: list) -> None:
    assert ftlab("fit", *RUN).code == 0
    assert ftlab("test", "-c", "runs/tiny/run/config.yaml").code == 0
    assert opened == []
    assert not Path("runs/tiny/run/retention").exists()
    assert not [key for key in scores() if key.startswith("retention")]


def test_a_set_that_is_also_trained_on_is_refused(refused: Callable[..., str], workplace: Path, data_path: str) -> None:
    sets = json.dumps([{"name": "known", "path": data_path, "split": "train"}])
    said = refused("fit", *RUN, "--data.retention", sets)
    assert said.startswith("data.retention known: 15 of its 15 passages are also found in training: train.jsonl:1 in ")


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("verb", ["test", "validate"])
def test_one_that_is_added_later_is_refused_before_the_base_is_measured(
    verb: str, refused: Callable[..., str], ftlab: Callable[..., Any], data_path: str, opened: list[Any]
) -> None:
    assert ftlab("fit", *RUN).code == 0
    sets = json.dumps([{"name": "known", "path": data_path, "split": "train"}])
    said = refused(verb, "-c", "runs/tiny/run/config.yaml", "--data.retention", sets)
    assert said.startswith("data.retention known: 15 of its 15 passages are also found in training: ")
    assert opened == []
    assert not Path("runs/tiny/run/retention").exists()


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ({"name": "known", "path": "nowhere.jsonl"}, "data.retention known: nowhere.jsonl is neither a file nor"),
        ({"name": "known", "path": "known.jsonl", "widow": 3}, "widow"),
        ({"path": "known.jsonl"}, "name"),
    ],
)
def test_bad_sets_are_refused(kept: dict[str, Any], sentence: str, refused: Callable[..., str], known: Any) -> None:
    assert sentence in refused("fit", *RUN, "--data.retention", json.dumps([kept]))


def test_virtual_tokens_must_fit_beside_a_window(refused: Callable[..., str], known: Any) -> None:
    config = {"class_path": "peft.PromptTuningConfig", "init_args": {"num_virtual_tokens": 8}}
    method = {"class_path": "ftlab.methods.Peft", "init_args": {"config": config}}
    said = refused("fit", *known, *RUN, "--model.method", json.dumps(method))
    assert "data.retention known: the method puts 8 tokens of its own before each window" in said
    assert "set window to 120 or less" in said


def test_in_a_set_that_is_added_later_too(refused: Callable[..., str], ftlab: Callable[..., Any], known: Any) -> None:
    config = {"class_path": "peft.PromptTuningConfig", "init_args": {"num_virtual_tokens": 8}}
    method = {"class_path": "ftlab.methods.Peft", "init_args": {"config": config}}
    short = ("--data.max_length", "100")
    assert ftlab("fit", *RUN, *short, "--model.method", json.dumps(method), "--trainer.max_steps", "1").code == 0
    said = refused("test", "-c", "runs/tiny/run/config.yaml", *known)
    assert "set window to 120 or less" in said
    assert not Path("runs/tiny/run/scores.json").exists()
