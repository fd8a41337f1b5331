"""`ftlab generate RUN`: one prompt, a file of prompts, or a chat on the terminal, answered by a run's saved model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse
from ftlab.data import Encoder
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, generate_all


def run(verb: str, arguments: Sequence[str]) -> int:
    """Answers on standard output: text for one prompt and in a chat, a JSON line for each prompt of a file."""
    parser = own_parser(verb, "Answers prompts with a run's saved model.")
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--prompt", type=str | None, help="the prompt to answer; '-' reads standard input")
    parser.add_argument("--file", type=Path | None, help="prompts: a line each, or .jsonl with a column `prompt`")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts answered at once")
    parser.add_argument("--decoding", type=Decoding | None, help="how to decode; by default as the run was scored")
    options = parse(parser, arguments)
    experiment = Experiment.of_run(options.run)
    network = experiment.open_trained()
    decoding = options.decoding or experiment.model.decoding
    chat = _Answerer(network, experiment.datamodule.encoder, decoding, options.batch_size)
    if options.file:
        for prompt, answer in chat.answer_all(_prompts(options.file)):
            print(json.dumps({"prompt": prompt, "prediction": answer}, ensure_ascii=False))
    elif options.prompt is not None:
        print(chat.answer(sys.stdin.read() if options.prompt == "-" else options.prompt))
    else:
        for line in _lines_of_the_user():
            print(chat.answer(line), flush=True)
    return 0


@dataclasses.dataclass
class _Answerer:
    network: nn.Module
    encoder: Encoder
    decoding: Decoding
    batch_size: int

    def answer(self, prompt: str) -> str:
        return next(self.answer_all([prompt]))[1]

    def answer_all(self, prompts: list[str]) -> Iterator[tuple[str, str]]:
        encoder, size = self.encoder, self.batch_size
        for start in range(0, len(prompts), size):
            chunk = prompts[start : start + size]
            ids = encoder.prompts_ids(chunk)
            answers = generate_all(self.network, ids, self.decoding, encoder.stop_ids, encoder.pad_id, size)
            yield from zip(chunk, map(encoder.decode, answers), strict=True)


def _prompts(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file: {path} cannot be read ({error})") from error
    if not lines:
        raise UserError(f"--file: {path} holds no prompts")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(json.loads(line)["prompt"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"--file: {path}, line {number}, is no JSON object with a `prompt`") from error
    return prompts


def _lines_of_the_user() -> Iterator[str]:
    """What is typed, until end of file; `/quit` ends too. Every line is a conversation of its own."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip() == "/quit":
            return
        if line.strip():
            yield line
