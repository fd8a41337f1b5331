"""scripts/training_cost.py: which figures count, and the operations that the use of a GPU is told by."""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

BARE = {"norm": 0.9, "tokens": [60, 40], "targets": [20, 40], "losses": [4.0, 2.0]}


@pytest.fixture
def training_cost(scripts: Path) -> Any:
    return importlib.import_module("training_cost")


@pytest.mark.parametrize(
    ("changed", "arm", "said"),
    [
        ({}, "hf", None),
        ({"losses": [4.03, 2.01]}, "hf", None),
        ({"losses": [4.0, 2.03]}, "hf", "the loss of step 2 is 2.03000, the reference's 2.00000"),
        ({"losses": [4.0, float("nan")]}, "hf", "the loss of step 2 is nan, the reference's 2.00000"),
        ({"norm": 0.0}, "hf", "the first gradient's norm is 0.0"),
        ({"norm": float("nan")}, "trl:pack", "the first gradient's norm is nan"),
        ({"tokens": [60, 30]}, "hf", "90 tokens, 60 targets; the reference 100, 60"),
        ({"tokens": [50, 40]}, "ftlab:bucket+compile", "90 tokens, 60 targets; the reference 100, 60"),
        ({"tokens": [40, 60]}, "hf", "its steps hold other records than the reference's: other tokens or targets"),
        ({"failed": "no memory"}, "trl", "no memory"),
        # other batches of the same records: (20 * 4 + 40 * 2) / 60 = 2.667 a target
        ({"losses": [2.7], "tokens": [100], "targets": [60]}, "trl:pack", None),
        ({"losses": [2.4, 2.9], "targets": [30, 30]}, "ftlab:pack", None),
        (
            {"losses": [2.4], "tokens": [100], "targets": [60]},
            "ftlab:pack",
            "the loss of the epoch is 2.40000 a target, the reference's 2.66667",
        ),
        (
            {"losses": [float("nan")], "tokens": [100], "targets": [60]},
            "ftlab:pack",
            "the loss of the epoch is nan a target, the reference's 2.66667",
        ),
    ],
)
def test_a_figure_counts_where_the_work_is_that_of_the_bare_loop(
    training_cost: Any, changed: dict[str, Any], arm: str, said: str | None
) -> None:
    assert training_cost.objection(BARE | changed, BARE, arm) == said


def test_nothing_counts_beside_a_reference_that_failed(training_cost: Any) -> None:
    assert training_cost.objection(BARE, {"failed": "no memory"}, "hf") == "what it is held against failed"


def test_arms_are_told_by_tool_and_options(training_cost: Any) -> None:
    assert training_cost.arm("ftlab:bucket+compile") == "ftlab:bucket+compile"
    for wrong in ("ftlab:default", "hf:pack", "unsloth"):
        with pytest.raises(argparse.ArgumentTypeError, match=wrong):
            training_cost.arm(wrong)


# ---------------------------------------------------------------- arms, in this process


@pytest.fixture
def arms(training_cost: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("training_arms")


@pytest.fixture
def work(training_cost: Any, arms: Any, tmp_path: Path) -> Any:
    """Six of the twelve records that ship which come first, in three steps."""
    lines = (training_cost.ASSETS / "data" / "train.jsonl").read_text().splitlines()[:12]
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    network, file = training_cost.ASSETS / "network", tmp_path / "records.jsonl"
    said = training_cost.Work(
        str(network), str(tmp_path / "all.jsonl"), length=256, batch_size=2, packs=1, warm=1, steps=3
    )
    arms.chosen(said, file)
    assert file.read_text().splitlines() == lines[::2]
    return replace(said, data=str(file))


def test_too_few_records_are_refused(arms: Any, work: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="it has 6 records of up to 256 tokens; 8 are wanted"):
        arms.chosen(replace(work, steps=4), tmp_path / "none.jsonl")


def test_peers_train_what_the_bare_loop_trains(training_cost: Any, arms: Any, work: Any, tmp_path: Path) -> None:
    batches = arms.rows(work)
    bare, hf = (arms.TOOLS[tool](work, tmp_path / tool, set()) for tool in ("bare", "hf"))
    tokens = [[len(row["input_ids"]) for row in batch] for batch in batches]
    assert bare["tokens"] == list(map(sum, tokens))
    assert bare["positions"] == [2 * max(both) for both in tokens]
    assert bare["targets"] == [sum(label != -100 for row in batch for label in row["labels"]) for batch in batches]
    assert bare["norm"] > 0
    assert hf["losses"] == pytest.approx(bare["losses"], rel=1e-5)
    assert arms.bare(work, tmp_path, {"unmasked"})["losses"] == pytest.approx(bare["losses"], rel=1e-5)
    assert {name: hf[name] for name in ("tokens", "targets", "positions")} == {
        name: bare[name] for name in ("tokens", "targets", "positions")
    }
    figures = training_cost.summed([bare | {"seconds": 0.5}, bare | {"seconds": 0.25}], work)
    assert figures["turns"]["tokens/s"] == [(sum(bare["tokens"][1:]) / 2) / 0.5, (sum(bare["tokens"][1:]) / 2) / 0.25]
    assert figures["padding"] == 1 - sum(bare["tokens"]) / sum(bare["positions"])


def test_trl_packs_the_same_records(training_cost: Any, arms: Any, work: Any, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    bare, packed = arms.bare(work, tmp_path, set()), arms.trl(work, tmp_path / "trl", {"pack"})
    assert packed["tokens"] != bare["tokens"]
    assert training_cost.objection(packed, bare, "trl:pack") is None


# ---------------------------------------------------------------- operations


@pytest.mark.parametrize("length", [16, 512])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_are_those_that_torch_counts(training_cost: Any, method: str, length: int, tmp_path: Path) -> None:
    """Of so many layers that it is little that the first needs no gradient of its inputs."""
    config = LlamaConfig(
        **{"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 12, "vocab_size": 1000},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False},
    )
    config.save_pretrained(tmp_path)
    network: Any = LlamaForCausalLM._from_config(config, attn_implementation="eager").train()
    if method == "lora":
        network = peft.get_peft_model(network, peft.LoraConfig(r=16, target_modules="all-linear"))
    ids = (torch.arange(4 * length) % 1000).reshape(4, length)
    with FlopCounterMode(display=False) as counter:
        network(input_ids=ids, labels=ids).loss.backward()
    work = training_cost.Work(str(tmp_path), "none", method=method, length=length)
    other_half = 6 * 12 * 256 * length  # of the square of attention, of which the formula has what is causal
    counted = counter.get_total_flops() / ids.numel()
    assert training_cost.operations(work) + other_half == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_the_command_compares_ftlab_with_the_bare_loop(scripts: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--arms", "bare", "ftlab", "ftlab:pack", "--length", "256", "--steps", "4", "--warm", "2"]
    command = [sys.executable, str(scripts / "benchmark.py"), "training", *options, "--repeats", "1"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert figures["ftlab"]["losses"] == pytest.approx(figures["bare"]["losses"], rel=1e-4)
    assert figures["ftlab"]["tokens"] == figures["bare"]["tokens"] > 0
    assert figures["ftlab:pack"]["targets/s"][0] > 0
