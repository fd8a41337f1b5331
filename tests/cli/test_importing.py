"""`ftlab import-config`: files as the three tools' examples have them, trained, and their numbers by TRL's own count.

The files are those of TRL's documentation, LLaMA-Factory's examples/train_lora and Axolotl's examples/llama-3, with
another network and records.
"""

import contextlib
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ftlab.cli.experiment import Experiment
from ftlab.cli.importing import _TRANSLATE, imported
from ftlab.cli.importing.foreign import NAMES, read, tool
from ftlab.errors import UserError
from ftlab.modules.steps import total_steps
from ftlab.networks import Network

ROOT = Path(__file__).resolve().parents[2]
HERE = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")

TRL = """
model_name_or_path: {network}
dataset_name: {data}
learning_rate: 2.0e-4
num_train_epochs: 2
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
lr_scheduler_type: cosine
warmup_steps: 0.5
eval_strategy: steps
eval_steps: 2
dataset_test_split: validation
use_peft: true
lora_r: 32
lora_alpha: 16
max_length: 96
output_dir: Qwen2-0.5B-SFT
use_cpu: true
"""

LLAMA_FACTORY = """
### model
model_name_or_path: {network}
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,chats
dataset_dir: {data}
template: llama3
cutoff_len: 96
max_samples: 10
overwrite_cache: true
preprocessing_num_workers: 1

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 1
save_steps: 500
plot_loss: true
overwrite_output_dir: true

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
"""

AXOLOTL = """
base_model: {network}
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer

load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: {data}/alpaca.jsonl
    type: alpaca
dataset_prepared_path:
val_set_size: 0.2
output_dir: ./outputs/qlora-out

adapter: qlora
lora_model_dir:

sequence_len: 512
sample_packing: false
pad_to_sequence_len: true

lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
lora_target_linear: true
lora_fan_in_fan_out:

wandb_project:
wandb_entity:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4

train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false

gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
logging_steps: 1
xformers_attention:
flash_attention: true

warmup_steps: 2
evals_per_epoch: 1
saves_per_epoch: 1
debug:
deepspeed:
weight_decay: 0.0
fsdp:
special_tokens:
  pad_token: "<|end_of_text|>"
"""
FILES = {"trl": TRL, "llama-factory": LLAMA_FACTORY, "axolotl": AXOLOTL}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with the three files, and what LLaMA-Factory and Axolotl train on."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": f"It is {n}."} for n in range(16)]
    chats = [
        {"conversations": [{"from": "human", "value": f"Is it {n}?"}, {"from": "gpt", "value": f"No, {n}."}]}
        for n in range(12)
    ]
    for name, lines in {"alpaca": rows, "chats": chats}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    described = {
        "identity": {"file_name": "alpaca.jsonl"},
        "chats": {"file_name": "chats.jsonl", "formatting": "sharegpt"},
    }
    Path("dataset_info.json").write_text(json.dumps(described))
    data = {"trl": data_path, "llama-factory": str(tmp_path), "axolotl": str(tmp_path)}
    for name, text in FILES.items():
        base = ROOT / "ftlab/assets/network" if name == "axolotl" else network.path  # Alpaca's wording takes room
        Path(f"{name}.yaml").write_text(text.format(network=base, data=data[name]))
    return tmp_path


def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(imported(Path(f"{name}.yaml"))[0])


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


def change(name: str, **values: Any) -> None:
    config = yaml.safe_load(Path(f"{name}.yaml").read_text()) | values
    Path(f"{name}.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


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


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_any_shape_is_read_or_refused(name: str, place: Path) -> None:
    """Never another error than the one that a user is meant to read."""
    known = yaml.safe_load(Path(f"{name}.yaml").read_text())
    for key in tool(name).maps:
        for value in (3, -1.5, "abc", [1], ["a"], {"a": 1}, {"a": {"b": [1]}}, True):
            Path("other.yaml").write_text(yaml.safe_dump(known | {key: value}))
            with contextlib.suppress(UserError):
                imported(Path("other.yaml"), name)


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


def test_files_of_splits_are_those_that_train(place: Path) -> None:
    change("trl", datasets=[{"path": "json", "data_files": {"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"}}])
    text, notes = imported(Path("trl.yaml"))
    assert yaml.safe_load(text)["data"]["sources"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    assert any("test of data_files of json is not carried over" in line for line in notes)


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
        ("trl", {"load_in_4bit": True, "use_peft": False}, "cannot be trained whole"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    name: str, values: dict[str, Any], said: str, place: Path, refused: Callable[..., str]
) -> None:
    change(name, **values)
    assert said in refused("import-config", f"{name}.yaml")


def test_whose_it_is(place: Path, refused: Callable[..., str]) -> None:
    assert [read(Path(f"{name}.yaml"), None).tool.name for name in NAMES] == list(NAMES)
    Path("both.yaml").write_text("model_name_or_path: x\nlearning_rate: 1e-4\n")
    assert "may be a configuration of TRL or LLaMA-Factory" in refused("import-config", "both.yaml")
    Path("none.yaml").write_text("layers: 3\n")
    assert "none of its keys" in refused("import-config", "none.yaml")


def test_json_is_read(place: Path) -> None:
    Path("lf.json").write_text(json.dumps(yaml.safe_load(Path("llama-factory.yaml").read_text())))
    assert yaml.safe_load(imported(Path("lf.json"))[0]) == config_of("llama-factory")


def test_a_file_that_is_there_stays(place: Path, refused: Callable[..., str]) -> None:
    Path("mine.yaml").write_text("kept")
    assert "is there already" in refused("import-config", "trl.yaml", "-o", "mine.yaml")
    assert Path("mine.yaml").read_text() == "kept"


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
