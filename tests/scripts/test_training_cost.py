"""scripts/training_cost.py: which figures count, and the operations that the use of a GPU is told by."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BARE = {"norm": 0.9, "tokens": 100, "targets": 60, "losses": [4.0, 2.0]}


@pytest.fixture(scope="module")
def training_cost() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    import training_cost

    yield training_cost
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("changed", "arm", "said"),
    [
        ({}, "hf", None),
        ({"losses": [4.03, 2.01]}, "hf", None),
        ({"losses": [4.0, 2.03]}, "hf", "the loss of step 2 is 2.03000, the bare loop's 2.00000"),
        ({"losses": [4.0, float("nan")]}, "hf", "the loss of step 2 is nan, the bare loop's 2.00000"),
        ({"norm": 0.0}, "hf", "the first gradient's norm is 0.0"),
        ({"norm": float("nan")}, "trl:pack", "the first gradient's norm is nan"),
        ({"tokens": 90}, "hf", "90 tokens, 60 targets; the bare loop 100, 60"),
        ({"tokens": 90, "losses": [9.0, 9.0]}, "trl:pack", None),  # of its own steps
    ],
)
def test_a_figure_counts_where_the_work_is_that_of_the_bare_loop(
    training_cost: Any, changed: dict[str, Any], arm: str, said: str | None
) -> None:
    assert training_cost.objection(BARE | changed, BARE, arm) == said


@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_are_those_that_torch_counts(training_cost: Any, method: str, tmp_path: Path) -> None:
    """Rows so short that what attention takes is small: torch counts all of its square, the formula the causal half.
    And so many layers that it is little that the first needs no gradient of its inputs."""
    config = LlamaConfig(
        **{"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 12, "vocab_size": 1000},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False},
    )
    config.save_pretrained(tmp_path)
    network: Any = LlamaForCausalLM(config).train()
    if method == "lora":
        network = peft.get_peft_model(network, peft.LoraConfig(r=16, target_modules="all-linear"))
    ids = torch.arange(64).reshape(4, 16)
    with FlopCounterMode(display=False) as counter:
        network(input_ids=ids, labels=ids).loss.backward()
    work = training_cost.Work(str(tmp_path), "none", method=method, length=16)
    assert training_cost.operations(work) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.02)


@pytest.mark.slow
def test_the_command_compares_ftlab_with_the_bare_loop(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--arms", "bare", "ftlab", "--length", "256", "--steps", "4", "--warm", "2", "--repeats", "1"]
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "training", *options, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert figures["ftlab"]["losses"] == pytest.approx(figures["bare"]["losses"], rel=1e-4)
    assert figures["ftlab"]["tokens"] == figures["bare"]["tokens"] > 0
