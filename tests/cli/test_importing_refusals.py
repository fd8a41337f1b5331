"""`ftlab import-config`: what it refuses, and what it names because it is not carried over."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files
import pytest
import yaml
from foreign_files import change

from ftlab.cli.importing import imported
from ftlab.cli.importing.foreign import NAMES, read, tool
from ftlab.errors import UserError
from ftlab.networks import Network


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with the three tools' files."""
    monkeypatch.chdir(tmp_path)
    foreign_files.write(network.path, data_path)
    return tmp_path


def config_of(file: Path) -> tuple[dict[str, Any], list[str]]:
    """What is written, as it is read, and the notes beside it."""
    text, notes = imported(file)
    return yaml.safe_load(text), notes


@pytest.mark.parametrize(
    ("name", "key", "near"),
    [
        ("trl", "lora_rr", "lora_r"),
        ("llama-factory", "cutof_len", "cutoff_len"),
        ("axolotl", "micro_batchsize", "micro_batch_size"),
    ],
)
def test_a_key_that_the_tool_does_not_know_is_refused(
    name: str, key: str, near: str, place: Path, refused: Callable[..., str]
) -> None:
    change(name, **{key: 1})
    sentence = refused("import-config", f"{name}.yaml", "-o", "mine.yaml")
    assert f"has no key {key} (did you mean {near}?): correct it" in sentence
    change(name, zzz=2)
    assert f"has no key {key} (did you mean {near}?), zzz: " in refused("import-config", f"{name}.yaml")
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(
    ("name", "key", "sets", "said"),
    [
        (
            "axolotl",
            "datasets",
            [{"path": "a.jsonl", "type": "alpaca", "shards": 4, "revision": "x", "split": "train", "roles": None}],
            "revision, shards of a.jsonl are not carried over",
        ),
        (
            "axolotl",
            "datasets",
            [{"path": "a.jsonl", "type": {"field_output": "answer", "system_format": "{system}!"}}],
            "system_format of the type of a.jsonl is not carried over",
        ),
        (
            "axolotl",
            "datasets",
            [{"path": "a.jsonl", "type": "chat_template", "message_property_mappings": {"content": "text"}}],
            "messages of a.jsonl in messages, as role and text: bring them",
        ),
        ("axolotl", "bnb_config_kwargs", {"bnb_4bit_quant_storage": "uint8"}, "bnb_4bit_quant_storage of it is not"),
        ("trl", "datasets", [{"path": "a", "split": "dev", "fraction": 0.5}], "fraction, split of a are not carried"),
    ],
)
def test_what_is_not_read_of_a_part_is_named(name: str, key: str, sets: Any, said: str, place: Path) -> None:
    change(name, **{key: sets})
    _, notes = imported(Path(f"{name}.yaml"))
    assert [line for line in notes if line.startswith(f"{key} must be done by hand") and said in line]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_any_shape_is_read_or_refused(name: str, place: Path) -> None:
    """Never another error than the one that a user is meant to read."""
    known = yaml.safe_load(Path(f"{name}.yaml").read_text())
    for key in tool(name).maps:
        for value in (3, -1.5, "abc", [1], ["a"], {"a": 1}, {"a": {"b": [1]}}, True):
            Path("other.yaml").write_text(yaml.safe_dump(known | {key: value}))
            with contextlib.suppress(UserError):
                text, _ = imported(Path("other.yaml"), name)
                assert yaml.safe_load(text).keys() >= {"trainer", "model", "data"}


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        *[(name, {"path": "a.jsonl"}) for name in ("trl", "axolotl")],
        *[(name, [{"path": "a.jsonl"}, 3]) for name in ("trl", "axolotl")],
        *[(name, [{"name": "a"}]) for name in ("trl", "axolotl")],
        ("axolotl", "abc"),
        ("axolotl", [{"path": ["a"]}]),
        ("axolotl", [{"path": "a", "type": "chat_template", "message_property_mappings": ["a"]}]),
        ("llama-factory", {"it": 3}),
        ("llama-factory", {"it": {"columns": [1]}}),
        ("llama-factory", {"it": {"tags": 3}}),
        ("llama-factory", {"it": {"num_samples": "x"}}),
        ("llama-factory", {"it": {"formatting": "sharegpt", "tags": {"role_tag": 3}}}),
        ("axolotl", [{"path": "a", "type": {"format": 3}}]),
        ("llama-factory", [1]),
    ],
)
def test_a_data_set_of_another_shape_is_refused(name: str, sets: Any, place: Path, refused: Callable[..., str]) -> None:
    if name == "llama-factory":
        Path("dataset_info.json").write_text(json.dumps(sets))
        change(name, dataset="it")
    else:
        change(name, datasets=sets)
    assert "data" in refused("import-config", f"{name}.yaml")


def test_one_key_and_several_are_told_in_good_grammar(place: Path) -> None:
    change("axolotl", comet_mode="online", bench_dataset="x", unfrozen_parameters=None)
    _, notes = imported(Path("axolotl.yaml"))
    (without,) = (line for line in notes if "no counterpart" in line)
    assert without == "bench_dataset: x, comet_mode: online have no counterpart in ftlab"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("llama-factory", {"stage": "ppo"}, "stage ppo has an objective that ftlab has not"),
        ("llama-factory", {"do_train": False}, "it does not train"),
        ("axolotl", {"rl": "dpo"}, "rl dpo has an objective"),
        ("axolotl", {"datasets": [{"path": "a.jsonl", "tpye": "alpaca"}]}, "no key tpye (did you mean type?)"),
        ("axolotl", {"num_epochs": 0.5}, "num_epochs is 0.5, and ftlab trains whole epochs"),
        ("trl", {"learning_rate": "fast"}, "learning_rate is 'fast': it must be a number"),
        ("trl", {"learning_rate": 10**400}, "it must be a number"),
        ("trl", {"dtype": 3}, "dtype is 3: it must be a text"),
        ("trl", {"lora_target_modules": 3}, "lora_target_modules is 3: it must be a text or a list of texts"),
        (
            "trl",
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": "low"}},
            "lr_scheduler_kwargs: lr_end is 'low': it must be a number",
        ),
        ("trl", {"lr_scheduler_type": "polynomial", "learning_rate": 0.0}, "learning_rate is 0.0: it must be above 0"),
        ("trl", {"load_in_4bit": True, "use_peft": False}, "cannot be trained whole"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    name: str, values: dict[str, Any], said: str, place: Path, refused: Callable[..., str]
) -> None:
    change(name, **values)
    assert said in refused("import-config", f"{name}.yaml")


def test_numbers_of_a_schedule_may_be_texts_to_yaml(place: Path) -> None:
    change("trl", lr_scheduler_type="cosine_with_min_lr", learning_rate="1e-4", lr_scheduler_kwargs={"min_lr": "1e-6"})
    config, _ = config_of(Path("trl.yaml"))
    assert config["model"]["schedule"]["init_args"]["floor"] == pytest.approx(0.01)
    change("trl", lr_scheduler_kwargs={"min_lr_rate": "2e-1", "num_cycles": 3})
    config, notes = config_of(Path("trl.yaml"))
    assert config["model"]["schedule"]["init_args"]["floor"] == pytest.approx(0.2)
    assert any("num_cycles is none of ftlab's schedules" in note for note in notes)


def test_false_in_quotes_is_false(place: Path) -> None:
    off = dict.fromkeys(("bf16", "fp16", "sample_packing", "train_on_inputs", "gradient_checkpointing"), "false")
    change("axolotl", **off, torch_compile="false")
    config, _ = config_of(Path("axolotl.yaml"))
    assert "compile" not in config["model"]
    assert config["trainer"]["precision"] == "32-true"
    assert not config["model"].get("gradient_checkpointing")
    assert config["data"].get("batching") != "pack"
    assert config["data"]["learn"] != "all"
    change("axolotl", torch_compile="auto")
    config, _ = config_of(Path("axolotl.yaml"))
    assert config["model"]["compile"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"learning_rate": 1, "learning_rate": 2}',
            "one.json, in one mapping: learning_rate is there twice: take one",
        ),
        ('{"a": ' + "[" * 100_000, "one.json is not JSON"),
        ('{"learning_rate": ', "one.json is not JSON"),
        ("[1]", "one.json holds no keys"),
    ],
)
def test_json_that_is_refused(text: str, said: str, place: Path, refused: Callable[..., str]) -> None:
    Path("one.json").write_text(text)
    assert said in refused("import-config", "one.json")


def test_a_torn_description_of_data_sets_is_refused(place: Path, refused: Callable[..., str]) -> None:
    Path("dataset_info.json").write_text('{"it": ')
    assert "dataset_info.json is not JSON" in refused("import-config", "llama-factory.yaml")


def test_whose_it_is(place: Path, refused: Callable[..., str]) -> None:
    assert [read(Path(f"{name}.yaml"), None).tool.name for name in NAMES] == list(NAMES)
    Path("both.yaml").write_text("model_name_or_path: x\nlearning_rate: 1e-4\n")
    assert "may be a configuration of TRL or LLaMA-Factory" in refused("import-config", "both.yaml")
    Path("none.yaml").write_text("layers: 3\n")
    assert "none of its keys" in refused("import-config", "none.yaml")


def test_a_file_that_is_there_stays(place: Path, refused: Callable[..., str]) -> None:
    Path("mine.yaml").write_text("kept")
    assert "is there already" in refused("import-config", "trl.yaml", "-o", "mine.yaml")
    assert Path("mine.yaml").read_text() == "kept"


def test_files_of_a_data_set_are_looked_for_in_it(place: Path) -> None:
    Path("sets").mkdir()
    for name in ("trl", "axolotl"):
        change(name, datasets=[{"path": "sets", "data_files": ["a.jsonl"]}])
        config, _ = config_of(Path(f"{name}.yaml"))
        assert config["data"]["path"] == "sets/a.jsonl"
        change(name, datasets=[{"path": "json", "data_files": "b.jsonl"}])
        config, _ = config_of(Path(f"{name}.yaml"))
        assert config["data"]["path"] == "b.jsonl"
        change(name, datasets=[{"path": "org/name", "data_files": "b.jsonl"}])
        config, notes = config_of(Path(f"{name}.yaml"))
        assert config["data"]["path"] == "org/name"
        assert any("b.jsonl of org/name is not carried over: fetch them" in note for note in notes)


def test_no_tool_looks_for_duplicates_unasked(place: Path) -> None:
    for name in NAMES:
        config, _ = config_of(Path(f"{name}.yaml"))
        assert config["data"]["duplicates"] == {"exact": False}


def test_evaluation_without_records_is_named(place: Path) -> None:
    change("trl", eval_strategy="steps", eval_steps=2, test_split_size=None)
    _, notes = config_of(Path("trl.yaml"))
    assert any("eval_strategy" in note and "--data.splits.validation" in note for note in notes)
    assert not any("dataset_test_split" in note for note in notes)
