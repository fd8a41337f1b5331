"""The schema of configurations: it takes what ftlab takes, and refuses a misspelt key where ftlab would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import ftlab.cli.schema as made
from ftlab.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def is_experiment(path: Path) -> bool:
    return "command" not in yaml.safe_load(path.read_text())  # a sweep has one


FILES = sorted(filter(is_experiment, EXPERIMENTS.rglob("*.yaml")))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return made.schema()


@pytest.fixture(scope="module")
def wrong(schema: dict[str, Any]) -> Callable[[Any], list[str]]:
    """Where a configuration, or its YAML, is not as the schema says."""
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    def places(config: Any) -> list[str]:
        config = yaml.safe_load(config) if isinstance(config, str) else config
        return [error.json_path for error in validator.iter_errors(config)]

    return places


def test_every_file_that_ships_is_as_it_says(wrong: Callable[[Any], list[str]]) -> None:
    assert len(FILES) > 90
    assert {str(path): found for path in FILES if (found := wrong(path.read_text()))} == {}


def test_so_is_a_whole_configuration(wrong: Callable[[Any], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", str(EXPERIMENTS / "demo_qlora.yaml"), "--print_config"]) == 0
    assert wrong(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("trainer: {max_stps: 3}", "$.trainer"),
        ("datas: {path: x}", "$"),
        ("data: {clean: {unicod: NFC}}", "$.data.clean"),
        ("data: {clean: {unicode: NFX}}", "$.data.clean.unicode"),
        ("data: {batch_size: many}", "$.data.batch_size"),
        ("include: base.yaml", "$.include"),
        ("data: {sources: [{path: x, wieght: 2}]}", "$.data.sources"),
        ("model: {method: {class_path: LoRA, init_args: {rank: 3}}}", "$.model.method"),
        ("model: {method: {class_path: ftlab.methods.QLoRA, init_args: {kind: nf5}}}", "$.model.method"),
        ("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {rate: 1}}}", "$.model.optimizer"),
        (
            "model: {method: {class_path: Peft, init_args: {config: "
            "{class_path: peft.VeraConfig, init_args: {x: 1}}}}}",
            "$.model.method",
        ),
    ],
)
def test_what_ftlab_refuses_it_refuses(config: str, place: str, wrong: Callable[[Any], list[str]]) -> None:
    assert wrong(config) == [place]


@pytest.mark.parametrize(
    "config",
    [
        "model: {method: my.Method}",
        "model: {method: {class_path: my.Method, init_args: {anything: 1}}}",
        "model: {method: LoRA, schedule: Constant, optimizer: {init_args: {lr: 0.1}}}",
        "trainer: {callbacks+: [{class_path: ftlab.callbacks.NEFTune, init_args: {alpha: 5.0}}], precision: 16}",
        "data: {retention+: [{name: a, path: b}], learn: [user], micro_batch: auto}",
    ],
)
def test_what_is_ones_own_it_takes(config: str, wrong: Callable[[Any], list[str]]) -> None:
    assert wrong(config) == []


def test_keys_have_what_the_help_says(schema: dict[str, Any]) -> None:
    batch = schema["properties"]["data"]["properties"]["batch_size"]
    assert batch["type"] == "integer"
    assert batch["default"] == 8
    assert batch["description"].startswith("Records (packed: rows of max_length tokens)")
    rank = schema["$defs"]["ftlab.methods.LoRA"]["properties"]["r"]
    assert rank["default"] == 16


def test_the_verb_prints_it(schema: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema))
