"""`ftlab generate --file --to`: in batches, killed and gone on with, and lines that cannot be answered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.cli import files_of_prompts
from ftlab.cli.answers import Model


@pytest.fixture
def prompts(workplace: Path) -> Path:
    path = workplace / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Who {'is ' * (n % 4)}{n}?"}) + "\n" for n in range(7)))
    return path


def command(run: Path, *more: object) -> list[object]:
    sampled = ("--decoding.temperature", 3, "--decoding.max_new_tokens", 5)
    return ["generate", run, "--file", "prompts.jsonl", "--batch_size", 2, *sampled, *more]


def test_a_file_that_is_killed_again_and_again_has_the_same_answers(
    finished: Callable[[str], Path],
    prompts: Path,
    ftlab: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files_of_prompts, "_BATCHES", 1)  # written two by two
    run = finished("lora")
    whole = ftlab(*command(run)).out
    assert len(whole.splitlines()) == 7
    real, asked = Model.answers, []

    def killed(self: Model, questions: list[Any], place: int = 0, **options: Any) -> list[str]:
        asked.append(len(questions))
        if len(asked) % 2 == 0:
            raise KeyboardInterrupt
        return real(self, questions, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "answers", killed)
        for turn in range(3):
            answer = ftlab(*command(run, "--to", "out/answers.jsonl"))
            assert answer.code == 130
            assert not Path("out/answers.jsonl").exists()
            assert ("going on after" in answer.err) == bool(turn)
            (part,) = Path("out").iterdir()
            if turn == 0:
                part.write_bytes(part.read_bytes()[:-5])  # as where a line was cut off by the kill
    answer = ftlab(*command(run, "--to", "out/answers.jsonl"))
    assert (answer.code, answer.out) == (0, "")
    assert "ftlab: wrote out/answers.jsonl" in answer.err
    assert Path("out/answers.jsonl").read_text() == whole
    assert [path.name for path in Path("out").iterdir()] == ["answers.jsonl"]
    assert "exists: give a new file" in refused(*command(run, "--to", "out/answers.jsonl"))


def test_what_was_begun_otherwise_is_not_gone_on_with(
    finished: Callable[[str], Path], prompts: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_of_prompts, "_BATCHES", 1)
    run = finished("lora")
    real = Model.answers

    def killed(self: Model, questions: list[Any], place: int = 0, **options: Any) -> list[str]:
        if place:
            raise KeyboardInterrupt
        return real(self, questions, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "answers", killed)
        assert ftlab(*command(run, "--to", "answers.jsonl")).code == 130
    answer = ftlab(*command(run, "--to", "answers.jsonl", "--decoding.seed", 3))
    assert (answer.code, answer.err) == (0, "ftlab: wrote answers.jsonl\n")
    assert len(Path("answers.jsonl").read_text().splitlines()) == 7


def test_lines_that_cannot_be_answered_are_said_and_the_others_answered(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    good = ['{"prompt": "Who?"}', '{"prompt": "Why?"}', '{"prompt": "How?"}']
    bad = ["{torn", '{"ask": "b"}', '{"prompt": 3}', '{"prompt": "x", "adapter": "a"}']
    bad.append(json.dumps({"prompt": "long " * 200}))
    Path("good.jsonl").write_text("\n".join(good))
    Path("mixed.jsonl").write_text("\n".join([good[0], *bad[:2], "", good[1], *bad[2:], good[2]]) + "\n")
    expected = ftlab("generate", run, "--file", "good.jsonl")
    assert (expected.code, expected.err) == (0, "")
    answer = ftlab("generate", run, "--file", "mixed.jsonl")
    assert (answer.code, answer.out) == (1, expected.out)
    said = answer.err.splitlines()
    assert [line.split(", ")[1] for line in said] == [f"line {number}" for number in (2, 3, 6, 7, 8)]
    assert "it is no JSON object with a `prompt`" in said[0]
    assert "there is no adapter 'a': none is given, see --adapter" in said[3]
    assert "leaves no room for an answer" in said[4]


def test_lines_that_are_no_text_are_left_out_like_others(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    rows = [
        b'\xef\xbb\xbf{"prompt": "Who?"}',  # as some editors begin a file
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "a", "id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt": "Why?"}',
    ]
    Path("prompts.jsonl").write_bytes(b"\r\n".join(rows))
    answer = ftlab("generate", run, "--file", "prompts.jsonl")
    assert answer.code == 1
    assert [json.loads(line)["prompt"] for line in answer.out.splitlines()] == ["Who?", "Why?"]
    said = [line.partition(", is left out: ") for line in answer.err.splitlines()]
    assert [head for head, *_ in said] == [f"ftlab: prompts.jsonl, line {number}" for number in (2, 3, 4, 5)]
    assert said[0][2] == "it is not UTF-8"
    assert "the prompt is no text" in said[1][2]
    assert {why for *_, why in said[2:]} == {"it is no JSON object with a `prompt`"}
    Path("prompts.txt").write_bytes(b"Who?\r\ncaf\xe9\nWhy?\n")
    plain = ftlab("generate", run, "--file", "prompts.txt")
    assert (plain.code, plain.out) == (1, answer.out)
