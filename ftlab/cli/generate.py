"""`ftlab generate RUN`: one prompt, a file of prompts, or a chat on the terminal, answered by a run's saved model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse
from ftlab.data.records import pair
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
    network = experiment.open_trained(experiment.trainer.strategy.root_device)
    decoding = options.decoding or experiment.model.decoding
    encoder = experiment.datamodule.encoder

    def answers(prompts: list[str]) -> list[str]:
        ids = encoder.prompts_ids([pair(prompt, (), "the prompt") for prompt in prompts], decoding.max_new_tokens)
        tokens = generate_all(network, ids, decoding, encoder.stop_ids, encoder.pad_id, options.batch_size)
        return [encoder.decode(answer) for answer in tokens]

    if options.file:
        prompts = _prompts(options.file)
        for prompt, answer in zip(prompts, answers(prompts), strict=True):
            print(json.dumps({"prompt": prompt, "prediction": answer}, ensure_ascii=False))
    elif options.prompt is not None:
        print(*answers([sys.stdin.read() if options.prompt == "-" else options.prompt]))
    else:
        for line in _lines_of_the_user():
            print(*answers([line]), flush=True)
    return 0


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
