"""`ftlab import-config`: the three tools' own examples, trained, and their numbers by TRL's own count."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files
import pytest
import torch
import yaml
from foreign_files import change, config_of

from ftlab.cli.experiment import Experiment
from ftlab.cli.importing import _TRANSLATE, imported
from ftlab.cli.importing.foreign import NAMES, read, tool
from ftlab.modules.steps import total_steps
from ftlab.networks import Network

ROOT = Path(__file__).resolve().parents[2]
HERE = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with the three tools' files."""
    monkeypatch.chdir(tmp_path)
    foreign_files.write(network.path, data_path)
    return tmp_path


def experiment_of(name: str, *options: str) -> Experiment:
    Path("out.yaml").write_text(imported(Path(f"{name}.yaml"))[0])
    return Experiment(["-c", "out.yaml", *HERE, *options])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_trains(name: str, place: Path, ftlab: Callable[..., Any]) -> None:
    answer = ftlab("import-config", f"{name}.yaml", "-o", "mine.yaml")
    assert answer.code == 0, answer.err
    assert answer.out == "mine.yaml\n"
    attention = ("--model.network.attention", "sdpa") if name == "axolotl" else ()
    done = ftlab("fit", "-c", "mine.yaml", *HERE, *attention, "--trainer.max_steps", 2, "--wandb.mode", "disabled")
    assert done.code == 0, done.err
    (curves,) = place.glob("runs/mine/*/metrics.csv")
    assert '"state": "finished"' in (curves.parent / "provenance.json").read_text()
    # the notes stand in the file as on the terminal
    comments = " ".join(
        line.lstrip("# ") for line in Path("mine.yaml").read_text().splitlines() if line.startswith("#")
    )
    for line in answer.err.splitlines():
        assert line.removeprefix("ftlab: ") in comments


def test_trl_counts_the_same(place: Path, data_path: str) -> None:
    """Steps, rates, batch, adapter and precision, as TRL's parser and HF Trainer make them of the same file."""
    pytest.importorskip("trl")
    from transformers import Trainer
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_peft_config

    classes = (ScriptArguments, SFTConfig, ModelConfig)
    parser = TrlParser(classes)
    _, args, of_model = parser.parse_args_and_config(["--config", "trl.yaml"], fail_with_unknown_args=False)
    records: Any = [{"x": n} for n in range(15)]
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=records, eval_dataset=records)
    loader = torch.utils.data.DataLoader(range(15), batch_size=args.per_device_train_batch_size)
    *_, batch, _, steps = trainer.set_initial_training_values(args, loader)
    trainer.create_optimizer()
    schedule = trainer.create_scheduler(steps, trainer.optimizer)
    theirs = []
    for _ in range(steps):
        theirs.append(schedule.get_last_lr()[0])
        trainer.optimizer.step()
        schedule.step()

    experiment = experiment_of("trl")
    module, data, ours = experiment.model, experiment.datamodule, experiment.trainer
    ours.strategy.connect(module)
    assert total_steps(data, ours) == steps
    assert data.batch_size * ours.accumulate_grad_batches == batch
    rates = [args.learning_rate * module.schedule.factor(step, steps) for step in range(steps)]
    warmup = args.get_warmup_steps(steps)
    assert rates[warmup:] == pytest.approx(theirs[warmup:])
    assert rates[:warmup] == pytest.approx(theirs[1 : warmup + 1])
    config, theirs_config = module.method.config, get_peft_config(of_model)
    for field in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "modules_to_save"):
        assert getattr(config, field) == getattr(theirs_config, field), field
    assert (ours.precision == "bf16-mixed") == args.bf16
    assert module.gradient_checkpointing is args.gradient_checkpointing
    assert ours.gradient_clip_val == args.max_grad_norm
    assert data.encoding.max_length == args.max_length
    assert (data.encoding.learn, data.encoding.template) == ("last", "plain")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_restarts", {"num_cycles": 1}),
        ("polynomial", {"lr_end": 1e-5, "power": 1}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates_are_those_of_transformers(kind: str, more: dict[str, Any], warmup: int, place: Path) -> None:
    from transformers import get_scheduler

    from ftlab import modules

    change("trl", lr_scheduler_type=kind, warmup_steps=warmup, warmup_ratio=None, lr_scheduler_kwargs=more or None)
    said = config_of("trl")["model"]["schedule"]
    ours = getattr(modules, said["class_path"].rpartition(".")[2])(**said["init_args"])
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2e-4)
    theirs = get_scheduler(kind, optimizer, warmup, 10, more).lr_lambdas[0]
    begin = 0 if kind == "constant" else warmup
    assert [ours.factor(n, 10) for n in range(begin, 10)] == pytest.approx([theirs(n) for n in range(begin, 10)])
    assert [ours.factor(n, 10) for n in range(begin)] == pytest.approx([theirs(n + 1) for n in range(begin)])


def test_llama_factory_is_carried_over(place: Path) -> None:
    config = config_of("llama-factory")
    assert config["data"]["sources"] == [
        {"path": f"{place}/alpaca.jsonl", "format": "alpaca", "limit": 10},
        {"path": f"{place}/chats.jsonl", "format": "conversations", "limit": 10},
    ]
    experiment = experiment_of("llama-factory")
    ours = experiment.trainer
    # 20 records one by one, 8 to a step, three passes: HF Trainer's ceil(20 / 8) * 3
    ours.strategy.connect(experiment.model)
    assert total_steps(experiment.datamodule, ours) == 9
    method: Any = experiment.model.method
    assert (method.config.r, method.config.lora_alpha) == (8, 16)  # twice the rank, as its arguments make it
    assert experiment.datamodule.encoding.learn == "assistant"
    assert experiment.model.pretrained.dtype == "bfloat16"
    assert experiment.model.gradient_checkpointing is True
    assert len(experiment.datamodule.rows("train")) == 20  # nothing held back


def test_axolotl_is_carried_over(place: Path) -> None:
    config = config_of("axolotl")
    assert config["model"]["method"]["init_args"] == {
        "r": 32,
        "alpha": 16,
        "dropout": 0.05,
        "targets": "all-linear",
        "kind": "nf4",
        "double": True,
        "compute_dtype": "bfloat16",
    }
    assert config["model"]["optimizer"] == {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 2e-4, "weight_decay": 0.0},
    }
    assert config["trainer"]["val_check_interval"] == 1.0
    experiment = experiment_of("axolotl", "--model.network.attention", "sdpa")
    (first, *_) = experiment.datamodule.corpus.prompts("train")
    # axolotl.prompters.AlpacaPrompter's words, without those that it has for records without input
    assert "### Instruction:\nCount to 0.\n\n### Input:\n\n\n### Response:\n" in first.prompt


@pytest.mark.parametrize(
    ("info", "source", "said"),
    [
        ({"formatting": "sharegpt"}, {"format": "conversations"}, None),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                },
            },
            {"format": "messages"},
            None,
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"user_tag": "me"}},
            {"format": "conversations"},
            "talk, from, value, user_tag me of it",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "system": "system"}},
            {"format": "alpaca"},
            None,
        ),
        (
            {"columns": {"prompt": "q", "response": "a"}, "folder": "f", "split": "train"},
            {"prompt": "{q}", "response": "{a}"},
            "folder of it is not carried over",
        ),
    ],
)
def test_sets_of_llama_factory(info: dict[str, Any], source: dict[str, Any], said: str | None, place: Path) -> None:
    Path("dataset_info.json").write_text(json.dumps({"it": {"file_name": "alpaca.jsonl", **info}}))
    change("llama-factory", dataset="it", max_samples=None)
    text, notes = imported(Path("llama-factory.yaml"))
    found = yaml.safe_load(text)["data"]
    assert {"path": f"{place}/alpaca.jsonl"} | source == {key: found[key] for key in ("path", *source)}
    by_hand = [line for line in notes if line.startswith("dataset: it must be done by hand")]
    assert any(said in line for line in by_hand) if said else not by_hand


def test_files_of_splits_are_those_that_train(place: Path) -> None:
    change("trl", datasets=[{"path": "json", "data_files": {"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"}}])
    text, notes = imported(Path("trl.yaml"))
    assert yaml.safe_load(text)["data"]["sources"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    assert any("test of data_files of json is not carried over" in line for line in notes)


def test_json_is_read(place: Path) -> None:
    Path("lf.json").write_text(json.dumps(yaml.safe_load(Path("llama-factory.yaml").read_text())))
    assert yaml.safe_load(imported(Path("lf.json"))[0]) == config_of("llama-factory")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_is_said_to_map_is_read(name: str, place: Path) -> None:
    foreign = read(Path(f"{name}.yaml"), None)
    _TRANSLATE[name](foreign)
    known = tool(name)
    assert foreign.taken == set(known.maps)
    assert set(known.maps).isdisjoint(known.reasons)
    assert set(known.old.values()) <= set(known.keys)


def test_trl_has_no_other_keys() -> None:
    pytest.importorskip("trl")
    from trl import ModelConfig, ScriptArguments, SFTConfig

    plain = (bool, int, float, str)
    for cls in (SFTConfig, ModelConfig, ScriptArguments):
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            assert field.name in tool("trl").keys
            if isinstance(field.default, plain) and field.name not in ("optim", "lr_scheduler_type"):
                assert tool("trl").keys[field.name] in (field.default, str(field.default)), field.name


def test_the_page_lists_every_key() -> None:
    spec = importlib.util.spec_from_file_location("migration_tables", ROOT / "scripts" / "migration_tables.py")
    assert spec
    assert spec.loader
    tables = sys.modules["migration_tables"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page == tables.written(page), "scripts/migration_tables.py writes the page anew"
