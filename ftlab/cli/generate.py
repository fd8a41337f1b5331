"""`ftlab generate`: one prompt, a file of prompts, or a chat on the terminal.

A run's saved model answers, or one base with several adapters on it, each as if it were alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import Namespace

from ftlab.cli.adapters import Undescribed, find, open_all, read_combination
from ftlab.cli.answers import Model, Voice
from ftlab.cli.experiment import Experiment
from ftlab.cli.sentences import own_parser, parse
from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding
from ftlab.methods.adapters import Combination
from ftlab.networks import DType, Quantization


def run(verb: str, arguments: Sequence[str]) -> int:
    """Answers on standard output: text for one prompt and in a chat, a JSON line for each prompt of a file."""
    parser = own_parser(verb, "Answers prompts with a run's saved model, or with several adapters on one base.")
    parser.add_argument("run", type=Path | None, nargs="?", help="directory of a finished run")
    parser.add_argument("--prompt", type=str | None, help="the prompt to answer; '-' reads standard input")
    parser.add_argument(
        "--file",
        type=Path | None,
        help="prompts: a line each, or .jsonl with a column `prompt`, and `adapter` where one is to answer",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="prompts answered at once")
    parser.add_argument("--decoding", type=Decoding | None, help="how to decode; by default as the run was scored")
    parser.add_argument(
        "--adapter",
        type=str,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="instead of RUN, and as often as there are adapters of one base: a run, its model/, an export, or any "
        "directory in peft's layout",
    )
    parser.add_argument("--use", type=str | None, help="the adapter that answers; by default each does, by its name")
    parser.add_argument("--base", type=str | None, help="the base of all adapters; by default the one that they name")
    of_bare = "for adapters that no run describes: "
    parser.add_argument("--dtype", type=DType | None, help=f"{of_bare}type of the base's weights (default: float32)")
    parser.add_argument("--quantization", type=Quantization | None, help=f"{of_bare}how the base is held in few bits")
    parser.add_argument("--template", type=str | None, help=f"{of_bare}as data.template (default: auto)")
    parser.add_argument(
        "--trust_remote_code", type=bool, default=False, help=f"{of_bare}as model.network.trust_remote_code"
    )
    parser.add_argument(
        "--combine", type=str | None, metavar="NAME=A:WEIGHT,B:WEIGHT", help="one more adapter, made of these"
    )
    parser.add_argument(
        "--combination",
        type=Combination,
        default="cat",
        help="how peft combines them: cat is the weighted sum of their updates",
    )
    parser.add_argument("--density", type=float | None, help="share of values that TIES, DARE and pruning keep")
    parser.add_argument("--save", type=Path | None, help="new directory for the combined adapter, in peft's layout")
    options = parse(parser, arguments)
    _must_make_sense(options)
    model = _adapters_of(options) if options.adapter else _model_of_run(options)
    if options.file:
        questions = [question for row in _rows(options.file, model.names) for question in model.questions(*row)]
        for question, answer in zip(questions, model.answers(questions), strict=True):
            adapter = {"adapter": question.adapter} if options.adapter else {}
            print(json.dumps({"prompt": question.prompt, **adapter, "prediction": answer}, ensure_ascii=False))
    elif options.prompt is not None:
        model.say(sys.stdin.read() if options.prompt == "-" else options.prompt)
    elif not options.save:
        _chat(model)
    return 0


def _must_make_sense(options: Namespace) -> None:
    if options.run is None and not options.adapter:
        raise UserError("run is missing: give the directory of a finished run, or adapters with --adapter NAME=DIR")
    if options.run and options.adapter:
        raise UserError(f"{options.run} and --adapter are given: a run is an adapter too, --adapter NAME={options.run}")
    if not options.combine and (options.save or options.density is not None or options.combination != "cat"):
        raise UserError("--save, --density and --combination are about a combination: give --combine too")
    if options.adapter:
        if options.save and options.save.exists():
            raise UserError(f"--save: {options.save} exists: give a new directory")
        return
    for name in ("use", "base", "dtype", "quantization", "template", "trust_remote_code", "combine"):
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name} is about adapters: give --adapter NAME={options.run} instead of the run alone")


def _model_of_run(options: Namespace) -> Model:
    experiment = Experiment.of_run(options.run)
    network = experiment.open_trained(experiment.trainer.strategy.root_device)
    voice = Voice(experiment.datamodule.encoder, options.decoding or experiment.model.decoding)
    return Model(network, {"": voice}, [""], None, options.batch_size)


def _adapters_of(options: Namespace) -> Model:
    name, weights = read_combination(options.combine) if options.combine else ("", {})
    undescribed = Undescribed(options.dtype, options.quantization, options.template, options.trust_remote_code)
    sources = find(options.adapter, options.base, undescribed)
    names = [*(source.name for source in sources), *([name] if weights else [])]
    if options.use and options.use not in names:
        raise UserError(f"--use: there is no adapter {options.use!r}: there are {', '.join(names)}")
    adapters = open_all(sources)
    voices = {source.name: Voice(source.voice.encoder, options.decoding or source.voice.decoding) for source in sources}
    if weights:
        adapters.combine(name, weights, options.combination, options.density)
        first = next(source for source in sources if source.name == next(iter(weights)))
        voices[name] = voices[first.name]
        if options.save:
            adapters.save(name, options.save)
            first.tokenized_by.tokenizer().save_pretrained(options.save)
    return Model(adapters.network, voices, [options.use] if options.use else names, adapters, options.batch_size)


def _rows(path: Path, adapters: Sequence[str]) -> list[tuple[str, str | None]]:
    """The prompts of a file, each with the adapter that it names."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file: {path} cannot be read ({error})") from error
    if not lines:
        raise UserError(f"--file: {path} holds no prompts")
    if path.suffix != ".jsonl":
        return [(line, None) for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt, adapter = row["prompt"], row.get("adapter")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--file: {path}, line {number}, is no JSON object with a `prompt`") from error
        if adapter is not None and adapter not in adapters:
            there = f"there are {', '.join(adapters)}" if adapters else "none is given, see --adapter"
            raise UserError(f"--file: {path}, line {number}: there is no adapter {adapter!r}: {there}")
        rows.append((prompt, adapter))
    return rows


def _chat(model: Model) -> None:
    for line in _lines_of_the_user():
        command, _, name = line.strip().partition(" ")
        if command != "/adapter" or not model.adapters:
            model.say(line)
        elif name.strip() in model.names:
            model.chosen = [name.strip()]
        else:
            unknown = f"there is no adapter {name.strip()!r}: there are " if name.strip() else ""
            print(unknown + ", ".join(model.names), flush=True)


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
