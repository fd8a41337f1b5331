"""`ftlab test --harness`: tasks of a user's own files, judged for real where lm-evaluation-harness is installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.evaluation.harness import HarnessResults

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
QUESTIONS = {
    "Who came?": ["Zeno", "Mara", "Olga"],
    "Who left?": ["Ralf", "Zeno", "Ida"],
    "Why?": ["Ida", "Igor", "Leo"],
}


def write_task(write_lines: Callable[..., Path], gold: dict[str, int]) -> str:
    rows = [{"question": question, "choices": QUESTIONS[question], "gold": right} for question, right in gold.items()]
    task = {
        "task": "who",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(write_lines(Path("who.jsonl"), rows).resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 3},
    }
    Path("who.yaml").write_text(yaml.safe_dump(task))
    return "who.yaml"


@torch.no_grad()
def likeliest(directory: Path, question: str, choices: list[str]) -> int:
    """Which choice has the largest probability after a question and a space, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    before = len(tokenizer(question)["input_ids"])
    found = []
    for choice in choices:
        ids = tokenizer(f"{question} {choice}", return_tensors="pt")["input_ids"]
        log_p = model(ids).logits[0].log_softmax(-1)
        found.append(sum(float(log_p[place - 1, ids[0, place]]) for place in range(before, ids.shape[1])))
    return found.index(max(found))


@pytest.mark.slow
@needs_harness
def test_its_results_are_those_of_the_network_that_was_trained(
    finished: Callable[[str], Path], ftlab: Callable[..., Any], write_lines: Callable[..., Path]
) -> None:
    run = finished("full")
    right = {question: likeliest(run / "model", question, choices) for question, choices in QUESTIONS.items()}
    wrong = right | {"Why?": (right["Why?"] + 1) % 3}
    for gold, expected in ((right, 1.0), (wrong, 2 / 3)):
        answer = ftlab("test", "-c", run / "config.yaml", "--harness", write_task(write_lines, gold))
        assert answer.code == 0, answer.err
        scores = json.loads((run / "scores.json").read_text())
        assert scores["harness_who_acc"] == pytest.approx(expected)
        assert "harness_who_acc" in answer.out
    assert not [key for key in scores if key.startswith("test_")]  # test records were not judged
    noted = json.loads((run / "provenance.json").read_text())["harness"]
    assert noted["tasks"] == {"who": {"version": 3, "examples": 0, "records": 3}}


@pytest.mark.slow
@needs_harness
@pytest.mark.parametrize("method", ["lora", "qlora", "zeroshot"])
def test_it_judges_whatever_a_method_makes_of_a_network(
    method: str, finished: Callable[[str], Path], ftlab: Callable[..., Any], write_lines: Callable[..., Path]
) -> None:
    run = finished(method)
    answer = ftlab(
        "test", "-c", run / "config.yaml", f"--harness={write_task(write_lines, dict.fromkeys(QUESTIONS, 0))}"
    )
    assert answer.code == 0, answer.err
    assert 0 <= json.loads((run / "scores.json").read_text())["harness_who_acc"] <= 1


@pytest.mark.slow
@needs_harness
def test_a_task_that_is_not_there_is_refused(finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    said = refused("test", "-c", finished("full") / "config.yaml", "--harness", "no_such_task")
    assert said.startswith("--harness no_such_task: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("fit", "-c", "tiny.yaml", "--harness", "x"), "--harness is for ftlab test, not for fit"),
        (("test", "-c", "tiny.yaml", "--harness"), "--harness names no task"),
        (("test", "-c", "tiny.yaml", "--harness=,"), "--harness names no task"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: tuple[str, ...], sentence: str, refused: Callable[..., str], workplace: Path
) -> None:
    assert sentence in refused(*words)


def test_without_the_package_nothing_is_opened(
    refused: Callable[..., str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find_spec(name))
    assert "is not installed: pip install" in refused("test", "-c", "nowhere.yaml", "--harness", "hellaswag")


@pytest.mark.parametrize(
    ("precision", "weights", "mixed"),
    [("32-true", torch.float32, None), ("bf16-true", torch.bfloat16, None), ("bf16-mixed", torch.float32, "bfloat16")],
)
def test_the_network_is_given_in_the_precision_of_the_run(
    precision: str,
    weights: torch.dtype,
    mixed: str | None,
    finished: Callable[[str], Path],
    ftlab: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but the package, which need not be there."""
    given: list[Any] = []

    def evaluate(network: Any, tokenizer: Any, tasks: Any, batch_size: int, mixed: str | None) -> HarnessResults:
        given.append(({weight.dtype for weight in network.parameters()}, mixed))
        return HarnessResults({}, {"lm_eval": "0", "tasks": {}})

    monkeypatch.setattr("ftlab.cli.harness.refuse_without_harness", lambda: None)
    monkeypatch.setattr("ftlab.cli.harness.evaluate", evaluate)
    words = ("--harness", "x", "--trainer.precision", precision)
    answer = ftlab("test", "-c", finished("lora") / "config.yaml", *words)
    assert answer.code == 0, answer.err
    assert given == [({weights}, mixed)]
