"""`ftlab generate`: a prompt, a file of prompts, a chat."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "zeroshot"])
def test_a_file_is_answered_as_the_run_was_scored(
    method: str, finished: Callable[[str], Path], data_path: str, ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    assert ftlab("test", "-c", run / "config.yaml").code == 0
    answer = ftlab("generate", run, "--file", Path(data_path) / "test.jsonl")
    assert (answer.code, answer.err) == (0, "")
    scored = [json.loads(line) for line in (run / "predictions/test.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in answer.out.splitlines()] == [
        {"prompt": row["prompt"], "prediction": row["prediction"]} for row in scored
    ]


def test_one_prompt_a_text_file_and_a_chat_answer_alike(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("lora")
    prompts = ["Who cleans the rope?", "Why?"]
    alone = [ftlab("generate", run, "--prompt", prompt).out for prompt in prompts]
    (workplace / "prompts.txt").write_text("\n".join(prompts) + "\n")
    of_file = ftlab("generate", run, "--file", "prompts.txt", "--batch_size", 1).out
    assert [json.loads(line)["prediction"] for line in of_file.splitlines()] == [text[:-1] for text in alone]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*prompts, "/quit", "not asked"])))
    assert ftlab("generate", run).out == "".join(alone)
    monkeypatch.setattr("sys.stdin", io.StringIO(prompts[0]))
    assert ftlab("generate", run, "--prompt", "-").out == alone[0]


def test_decoding_can_be_chosen(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("full")
    short, long = (
        ftlab("generate", run, "--prompt", "Go on.", "--decoding.max_new_tokens", length).out for length in (1, 12)
    )
    assert len(short) < len(long)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--file", "gone.txt"], "gone.txt cannot be read"),
        (["--file", "empty.txt"], "empty.txt holds no prompts"),
        (["--file", "columns.jsonl"], "columns.jsonl, line 2, is no JSON object with a `prompt`"),
        (["--decoding.max_new_tokens", "0"], "decoding.max_new_tokens is 0"),
        (["--promt", "a"], "there is no key promt: did you mean prompt?"),
    ],
)
def test_refusals(
    options: list[str], said: str, finished: Callable[[str], Path], workplace: Path, refused: Callable[..., str]
) -> None:
    (workplace / "empty.txt").write_text("\n")
    (workplace / "columns.jsonl").write_text('{"prompt": "a"}\n{"ask": "b"}\n')
    assert said in refused("generate", finished("lora"), *options)


def test_a_run_is_needed(workplace: Path, refused: Callable[..., str]) -> None:
    assert "there is no run at nowhere" in refused("generate", "nowhere", "--prompt", "a")
    assert refused("generate").startswith("run is missing")
